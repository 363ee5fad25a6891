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

from herd.training.optimizer import OptimizerConfig, build_optimizer
from herd.training.steps import StepBatch, to_device

# Name -> (sum, count): the reported value is the sum over micro-batches, steps and ranks, divided by the summed count.
Metrics = dict[str, tuple[Tensor, Tensor | float]]


class Meter:
    """Sums of metrics since they were last read, kept on the device: adding costs no synchronisation."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}  # name -> (sum, count), float32, shape (2,)

    def add(self, name: str, total: Tensor, count: Tensor | float) -> None:
        """Add to a metric's sum and count."""
        total = total.detach().float().reshape(())
        pair = torch.stack((total, torch.as_tensor(count, dtype=torch.float32, device=total.device)))
        self.sums[name] = self.sums[name] + pair if name in self.sums else pair

    def read(self, reduce: Callable[[Tensor], Tensor] | None = None) -> dict[str, float]:
        """Means since the last read, with one synchronisation; ``reduce`` sums over ranks."""
        if not self.sums:
            return {}
        names, table = list(self.sums), torch.stack(list(self.sums.values()))
        self.sums = {}
        totals = (reduce(table) if reduce else table).tolist()
        return {name: total / count for name, (total, count) in zip(names, totals, strict=True) if count}


class HerdModule(pl.LightningModule):
    """Base of the modules for pre-training, reward modelling, SFT and DPO.

    Args:
        model: what is trained and checkpointed. Hold a frozen reference model outside the module tree (in a tuple,
        say):
            a registered one would be written into every checkpoint.
        optimizer: see :class:`OptimizerConfig`.
        schedule: step index -> learning rate of that step, a pure function.
    """

    gradient_clip: float = (
        1.0  # largest norm of the gradient; 0 = no clipping. Set by `fit` from the trainer's configuration.
    )

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
            with nullcontext() if i == last else self._without_gradient_sync():
                # Data parallelism averages gradients over ranks; the loss is a sum over them, hence the factor.
                self.manual_backward(loss * (world / batch.normalizer))
            # Each rank counts its share of the normalizer, so that the sum over ranks counts it once.
            self.meter.add("loss", loss, batch.normalizer / world if i == last else 0.0)
            for name, (total, count) in metrics.items():
                self.meter.add(name, total, count)
        limit = self.gradient_clip or float("inf")
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self.meter.add("grad_norm", norm, 1.0)
        rate = self.schedule(batch.step)
        for group in optimizer.param_groups:  # type: ignore[union-attr]
            group["lr"] = rate
        optimizer.step()  # type: ignore[union-attr]
        optimizer.zero_grad()  # type: ignore[union-attr]

    def _without_gradient_sync(self) -> AbstractContextManager[Any]:
        """Leave gradients unreduced until the last micro-batch, where the strategy wraps the model (DDP)."""
        no_sync = getattr(self.trainer.strategy.model, "no_sync", None)
        return no_sync() if no_sync else nullcontext()

    def transfer_batch_to_device(self, batch: StepBatch, device: torch.device, dataloader_idx: int) -> StepBatch:
        return batch if device.type == "cpu" else to_device(batch, device)
