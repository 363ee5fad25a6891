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
from torch.distributed.tensor import DTensor

from herd.training.optimizer import OptimizerConfig, build_optimizer
from herd.training.steps import StepBatch, to_device

# Name -> (sum, count): the reported value is the sum over micro-batches, steps and ranks, divided by the summed count.
Metrics = dict[str, tuple[Tensor, Tensor | float]]


class Meter:
    """Metrics since they were last read, left on the device: adding costs no arithmetic and no synchronisation."""

    def __init__(self) -> None:
        self._entries: dict[str, list[tuple[Tensor, Tensor | float]]] = {}  # name -> (sum, count) of each addition

    def add(self, name: str, total: Tensor, count: Tensor | float) -> None:
        """Add a scalar tensor to a metric's sum, and to its count."""
        self._entries.setdefault(name, []).append((total.detach(), count))

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
            totals, counts = zip(*rows[first : first + len(table)], strict=True)
            first += len(table)
            if sum(counts):
                means[name] = sum(totals) / sum(counts)  # in float64, in order: a resumed run adds the same numbers
        return means

    def state(self) -> dict[str, Tensor]:
        """Name -> (additions, 2) float32 table of sums and counts, for a checkpoint."""
        return {name: torch.stack([_pair(*entry) for entry in entries]) for name, entries in self._entries.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up again where :meth:`state` was taken."""
        self._entries = {name: [(row[0], row[1]) for row in table] for name, table in state.items()}


def _pair(total: Tensor, count: Tensor | float) -> Tensor:
    """(2,) float32 on the device of ``total``."""
    total = total.float().reshape(())
    counted = count.detach().to(total) if isinstance(count, Tensor) else torch.full_like(total, count)
    return torch.stack((total, counted.reshape(())))


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
        self.extra: dict[str, Any] = {}  # fields for the row of this step, see `report`
        self.idle_seconds = 0.0  # spent inside this fit on other things than training

    # What a subclass gives.

    def micro_batch_loss(self, micro_batch: Any) -> tuple[Tensor, Metrics]:
        """The SUMMED loss of a micro-batch (not its mean), and more metrics as name -> (sum, count).

        The base divides the loss by :attr:`StepBatch.normalizer` and reports it as ``loss``.
        """
        raise NotImplementedError

    def before_step(self, step: int) -> None:
        """Called before the forward passes of step ``step``, also of the first one after a resume."""

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
        self.idle_seconds += seconds

    # The step.

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

    def training_step(self, batch: StepBatch, batch_idx: int) -> None:
        """One optimizer step: accumulate gradients over the micro-batches, clip, update. No host synchronisation."""
        assert batch.step == self.global_step, f"data of step {batch.step} arrived at step {self.global_step}"
        optimizer = self.optimizers()
        self.before_step(batch.step)
        world = self.trainer.world_size
        last = len(batch.micro_batches) - 1
        for i, micro_batch in enumerate(batch.micro_batches):
            loss, metrics = self.micro_batch_loss(micro_batch)
            with self._gradient_sync(i == last):
                # Data parallelism averages gradients over ranks; the loss is a sum over them, hence the factor.
                self.manual_backward(loss * (world / batch.normalizer))
            # Each rank counts its share of the normalizer, so that the sum over ranks counts it once.
            self.meter.add("loss", loss, batch.normalizer / world if i == last else 0.0)
            for name, (total, count) in metrics.items():
                self.meter.add(name, total, count)
        limit = self.gradient_clip or float("inf")
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self.meter.add("grad_norm", norm.full_tensor() if isinstance(norm, DTensor) else norm, 1.0)
        rate = self.schedule(batch.step)
        for group in optimizer.param_groups:  # type: ignore[union-attr]
            group["lr"] = rate
        optimizer.step()  # type: ignore[union-attr]
        optimizer.zero_grad()  # type: ignore[union-attr]

    def _gradient_sync(self, wanted: bool) -> AbstractContextManager[Any]:
        """Leave gradients unreduced until the last micro-batch, where they are reduced at all."""
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(wanted)
            return nullcontext()
        no_sync = getattr(self.trainer.strategy.model, "no_sync", None)  # DDP's wrapper has one
        return nullcontext() if wanted or no_sync is None else no_sync()

    def transfer_batch_to_device(self, batch: StepBatch, device: torch.device, dataloader_idx: int) -> StepBatch:
        return batch if device.type == "cpu" else to_device(batch, device)
