"""The thin base of every Lightning module here: one ``training_step`` is one optimizer step.

A subclass says what a micro-batch costs (:meth:`HerdModule.micro_batch_loss`); accumulation, normalisation over the
global batch, clipping, the learning rate and the meters are here.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard

from herd.model.transformer import Transformer
from herd.training.meters import Flops, StepClock
from herd.training.optimizer import OptimizerConfig, build_optimizer
from herd.training.spikes import SpikeConfig, StepGuard, guarded_step
from herd.training.steps import Filler, StepBatch, to_device
from herd.training.whole import Model, filled, is_sharded, whole_tensor, without_weights

# Name -> (sum, count): the reported value is the sum over micro-batches, steps and ranks, divided by the summed count.
Metrics = dict[str, tuple[Tensor, Tensor | float]]


class Meter:
    """Metrics since they were last read, left on the device: adding costs no arithmetic and no synchronisation."""

    def __init__(self) -> None:
        # Name -> (sum, count, whether its step was finite) of each addition.
        self._entries: dict[str, list[tuple[Tensor, Tensor | float, Tensor]]] = {}
        self._open: list[tuple[str, Tensor, Tensor | float]] = []  # of the step at work

    def add(self, name: str, total: Tensor, count: Tensor | float) -> None:
        """Add a scalar tensor to a metric's sum, and to its count; :meth:`close` ends the step."""
        self._open.append((name, total.detach(), count))

    def close(self, finite: Tensor) -> None:
        """End a step: its additions count where ``finite`` (scalar on the device) is not 0."""
        for name, total, count in self._open:
            self._entries.setdefault(name, []).append((total, count, finite))
        self._open = []

    def read(self, reduce: Callable[[Tensor], Tensor] | None = None) -> dict[str, float]:
        """Means since the last read, with one synchronisation.

        Args:
            reduce: sums a tensor over ranks.
        """
        tables = self.state()
        self._entries = {}
        if not tables:
            return {}
        joined = torch.cat(list(tables.values()))
        rows = (reduce(joined) if reduce else joined).tolist()
        means, first = {}, 0
        for name, table in tables.items():
            counted = [row for row in rows[first : first + len(table)] if row[2]]
            first += len(table)
            count = sum(row[1] for row in counted)
            if count:
                means[name] = sum(row[0] for row in counted) / count  # in float64, in order: a resumed run adds the same
        return means

    def state(self) -> dict[str, Tensor]:
        """Name -> (additions, 3) float32 table of sums, counts and whether they count, for a checkpoint."""
        return {name: torch.stack([_row(*entry) for entry in entries]) for name, entries in self._entries.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up again where :meth:`state` was taken."""
        self._entries = {name: [(row[0], row[1], row[2]) for row in table] for name, table in state.items()}
        self._open = []


def _row(total: Tensor, count: Tensor | float, finite: Tensor) -> Tensor:
    """(3,) float32 on the device of ``total``."""
    total = total.float().reshape(())
    counted = count.detach().to(total) if isinstance(count, Tensor) else torch.full_like(total, count)
    return torch.stack((total, counted.reshape(()), finite.to(total).reshape(())))


def without_output_head(model: Model) -> Model:
    """``model``, whose ``backbone`` is a Transformer used without its output head, with that head frozen.

    It gets no gradient, for which ranks would wait, and no state in the optimizer, which a resumed run would miss.
    """
    backbone = model.backbone
    assert isinstance(backbone, Transformer)
    if backbone.output is not None:
        backbone.output.requires_grad_(False)
    return model


class HerdModule(pl.LightningModule):
    """Base of the modules for pre-training, reward modelling, SFT and DPO.

    Args:
        model: what is trained and checkpointed. Hold a frozen reference model outside the module tree (in a tuple,
        say):
            a registered one would be written into every checkpoint.
        optimizer: see :class:`OptimizerConfig`.
        schedule: step index -> learning rate of that step, a pure function.
    """

    gradient_clip: float = 1.0  # largest norm of the gradient; 0 = no clipping. Set by `fit` from the trainer's configuration.

    def __init__(self, model: nn.Module, optimizer: OptimizerConfig, schedule: Callable[[int], float]) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.optimizer_config = optimizer
        self.schedule = schedule
        self.meter = Meter()
        self.guard = StepGuard(SpikeConfig())  # `fit` sets the run's own
        self.clock = StepClock()
        self.evaluated: tuple[int, float] | None = None  # finished steps at the newest evaluation, and its loss
        self.extra: dict[str, Any] = {}  # fields for the row of this step, see `report`
        self.idle_seconds = 0.0  # spent inside this fit on other things than training
        self._empty: tuple[nn.Module] | None = None  # see `prepare_sharding`; in a tuple, outside the module tree

    # What a subclass gives.

    def micro_batch_loss(self, micro_batch: Any) -> tuple[Tensor, Metrics]:
        """The SUMMED loss of a micro-batch (not its mean), and more metrics as name -> (sum, count).

        The base divides the loss by :attr:`StepBatch.normalizer` and reports it as ``loss``.
        """
        raise NotImplementedError

    def before_step(self, step: int) -> None:
        """Called before the forward passes of step ``step``, also of the first one after a resume."""

    def level_changes(self, step: int) -> bool:
        """Whether another mix, length or batch begins with ``step``, so that losses before it say nothing of those after."""
        return False

    def step_flops(self, batch: StepBatch) -> Flops | None:
        """Operations of a step over all ranks; None where they are not counted."""
        return None

    def step_fields(self, step: int) -> dict[str, Any]:
        """Constants to log with the row of step ``step`` (the name of its stage, say)."""
        return {}

    # What callbacks use.

    def report(self, fields: dict[str, Any], seconds: float = 0.0) -> None:
        """Add ``fields`` to the row of metrics of this step, which is then written whether or not one is due.

        Args:
            fields: plain values.
            seconds: time it took to find them (an evaluation), to be left out of the training rate.
        """
        self.extra.update(fields)
        if "eval_loss" in fields:
            self.evaluated = (self.global_step, fields["eval_loss"])
        self.idle_seconds += seconds

    # The step.

    def prepare_sharding(self) -> None:
        """Put aside what :meth:`whole_model` needs; called while the model is as it was made."""
        self._empty = (without_weights(self.model),)

    def whole_model(self) -> Any:
        """The model itself, or a copy with whole weights on the CPU where it is sharded; then every rank must ask."""
        if not is_sharded(self.model):
            return self.model
        assert self._empty is not None, "prepare_sharding comes first"
        return filled(self._empty[0], self.model)

    def configure_model(self) -> None:
        """Under parallel=fsdp: shard each block, then the rest (FSDP2). Called by Lightning, more than once."""
        mesh = self.device_mesh
        if mesh is None or isinstance(self.model, FSDPModule):
            return
        for layers in (module for module in self.model.modules() if isinstance(module, nn.ModuleList)):
            for block in layers:
                fully_shard(block, mesh=mesh["data_parallel"])
        fully_shard(self.model, mesh=mesh["data_parallel"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return build_optimizer(self.model.parameters(), self.optimizer_config)

    def on_train_start(self) -> None:
        self.guard.to(self.device)

    def on_fit_end(self) -> None:
        self.model = self.whole_model()  # while the ranks are connected and the shards on the devices that connect them

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["guard"] = self.guard.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.guard.load_state_dict(checkpoint["guard"])

    def training_step(self, batch: StepBatch, batch_idx: int) -> None:
        """One optimizer step: accumulate gradients over the micro-batches, clip, judge, update. No host synchronisation.

        A step without micro-batches (one whose data a rewind leaves out) is counted and changes nothing.
        """
        assert batch.step == self.global_step, f"data of step {batch.step} arrived at step {self.global_step}"
        optimizer = self.optimizers()
        self.before_step(batch.step)
        if self.level_changes(batch.step):
            self.guard.forget()
        if batch.micro_batches:
            leave_out = self._accumulate(batch)
            rate = self.schedule(batch.step)
            for group in optimizer.param_groups:  # type: ignore[union-attr]
                group["lr"] = rate
            self.clock.lap("forward_backward", self.device)
            guarded_step(optimizer, leave_out)  # type: ignore[arg-type]
        else:
            optimizer.step()  # type: ignore[union-attr]
        optimizer.zero_grad()  # type: ignore[union-attr]
        self.clock.lap("optimizer", self.device)

    def _accumulate(self, batch: StepBatch) -> Tensor:
        """Leave the clipped gradient of the global batch in the parameters; returns the guard's judgement of it."""
        world = self.trainer.world_size
        last = len(batch.micro_batches) - 1
        total = torch.zeros((), device=self.device)
        for i, micro_batch in enumerate(batch.micro_batches):
            if isinstance(micro_batch, Filler):
                loss, metrics = self.micro_batch_loss(micro_batch.micro_batch)
                loss, metrics = 0.0 * loss, {name: (0.0 * value, 0.0 * count) for name, (value, count) in metrics.items()}
            else:
                loss, metrics = self.micro_batch_loss(micro_batch)
            with self._gradient_sync(i == last):
                # Data parallelism averages gradients over ranks; the loss is a sum over them, hence the factor.
                self.manual_backward(loss * (world / batch.normalizer))
            total = total + loss.detach()
            # Each rank counts its share of the normalizer, so that the sum over ranks counts it once.
            self.meter.add("loss", loss, batch.normalizer / world if i == last else 0.0)
            for name, (value, count) in metrics.items():
                self.meter.add(name, value, count)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.gradient_clip or float("inf"))
        norm = whole_tensor(norm)
        self.meter.add("grad_norm", norm / world, 1.0 / world)  # a share too: ranks may be more or fewer after a resume
        if world > 1:
            torch.distributed.all_reduce(total)
        leave_out = self.guard.judge(total / batch.normalizer, norm, batch.step)
        self.meter.close(torch.isfinite(total) & torch.isfinite(norm))
        return leave_out

    def _gradient_sync(self, wanted: bool) -> AbstractContextManager[Any]:
        """Leave gradients unreduced until the last micro-batch, where they are reduced at all."""
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(wanted)
            return nullcontext()
        no_sync = getattr(self.trainer.strategy.model, "no_sync", None)  # DDP's wrapper has one
        return nullcontext() if wanted or no_sync is None else no_sync()

    def transfer_batch_to_device(self, batch: StepBatch, device: torch.device, dataloader_idx: int) -> StepBatch:
        return batch if device.type == "cpu" else to_device(batch, device)
