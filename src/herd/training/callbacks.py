"""Callbacks of every fit: rows of metrics and the progress display. Each holds what it needs over a resume in its
state.
"""

import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from herd.runs.progress import Progress
from herd.training.logger import MetricsSink
from herd.training.meters import NO_FLOPS, Energy, Flops, StepClock, memory
from herd.training.module import HerdModule
from herd.training.spikes import Diverged, Rewind
from herd.training.steps import StepBatch, StepSource


class LogMetrics(pl.Callback):
    """Every ``every`` steps: read the module's meter (the only host synchronisation), and write one row.

    A row holds the means over the steps since the row before, and what callbacks reported. The sums of an unfinished
    interval are part of the checkpoint, so that a resumed run writes the same rows as an uninterrupted one.
    """

    def __init__(self, sink: MetricsSink, source: StepSource, every: int, peak: float | None = None) -> None:
        self.sink, self.source, self.every, self.peak = sink, source, every, peak
        self.seconds = 0.0  # of training, over all attempts
        self.last: dict[str, float] = {}
        self._clock = 0.0
        self._row_clock, self._row_idle = 0.0, 0.0  # when the last row was written, seconds of other things than training since
        self._row_steps, self._row_tokens = 0, 0  # trained on since
        self._row_flops: Flops | None = NO_FLOPS

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, HerdModule)
        self._clock = self._row_clock = time.perf_counter()
        self._energy = Energy(pl_module.device)
        pl_module.clock = StepClock()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: StepBatch, batch_idx: int) -> None:
        assert isinstance(pl_module, HerdModule)
        pl_module.clock.lap("data", pl_module.device)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: StepBatch, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, HerdModule)
        now = time.perf_counter()
        idle, pl_module.idle_seconds = pl_module.idle_seconds, 0.0
        self.seconds, self._clock = self.seconds + now - self._clock - idle, now
        self._row_clock, self._row_idle = self._row_clock + idle, self._row_idle + idle
        self._row_steps, self._row_tokens = self._row_steps + 1, self._row_tokens + batch.tokens
        flops = pl_module.step_flops(batch) if batch.micro_batches else NO_FLOPS
        self._row_flops = self._row_flops + flops if self._row_flops and flops else None
        step = trainer.global_step
        if step % self.every and step != len(self.source) and not pl_module.extra:
            return
        self.last = pl_module.meter.read(_sum_over_ranks(trainer))
        now = time.perf_counter()
        seconds = max(now - self._row_clock, 1e-9)
        row = {
            "step": step,
            "num_tokens": self.source.tokens_at(step),
            **pl_module.step_fields(batch.step),
            **self.last,
            **self._left_out(pl_module),
            "learning_rate": pl_module.schedule(batch.step),
            "tokens_per_second": round(self._row_tokens / seconds, 1),
            **self._breakdown(pl_module),
            **self._utilisation(seconds, trainer.world_size),
            **memory(pl_module.device),
            **self._energy.read(),
            **pl_module.extra,
        }
        pl_module.extra = {}
        self._row_clock, self._row_idle, self._row_steps, self._row_tokens, self._row_flops = now, 0.0, 0, 0, NO_FLOPS
        if trainer.is_global_zero:
            self.sink.write(row)

    def _breakdown(self, module: HerdModule) -> dict[str, float]:
        """Where the time of a step went, means in seconds."""
        module.clock.lap("other", module.device)
        spent, steps = module.clock.read(), max(self._row_steps, 1)
        seconds = max(sum(spent.values()) - self._row_idle, 1e-9)
        parts = {name: spent.get(name, 0.0) for name in ("data", "forward_backward", "optimizer", "checkpoint")}
        means = {f"{name}_seconds": float(f"{part / steps:.4g}") for name, part in parts.items()}
        return {"step_seconds": float(f"{seconds / steps:.4g}"), **means, "data_wait": float(f"{parts['data'] / seconds:.4g}")}

    def _utilisation(self, seconds: float, devices: int) -> dict[str, float]:
        """Operations a second, and as shares of the devices' peak where that is known."""
        flops = self._row_flops
        if not flops:
            return {}
        rate = {"flops_per_second": float(f"{flops.document / seconds:.4g}")}
        if self.peak is None:
            return rate
        counts = {"full": flops.full, "causal": flops.causal, "document": flops.document}
        return rate | {f"mfu_{name}": float(f"{count / seconds / devices / self.peak:.4g}") for name, count in counts.items()}

    @staticmethod
    def _left_out(module: HerdModule) -> dict[str, int]:
        """Steps of the whole run that moved no weight."""
        found = module.guard.look()
        spikes = {} if module.guard.config.policy == "none" else {"spike_steps": found.spikes}
        return {"nonfinite_steps": found.nonfinite, **spikes}

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "last": dict(self.last), "waiting": list(self.sink.waiting)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds, self.last = float(state_dict["seconds"]), dict(state_dict["last"])
        self.sink.take_up(state_dict["waiting"])

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        assert isinstance(pl_module, HerdModule)
        reduce = _sum_over_ranks(trainer)
        checkpoint["meter"] = {name: reduce(table) for name, table in pl_module.meter.state().items()}

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        assert isinstance(pl_module, HerdModule)
        share = 1.0 if trainer.is_global_zero else 0.0  # the saved sums are those of all ranks: one takes them up again
        tables = {name: share * table.to(pl_module.device) for name, table in checkpoint["meter"].items()}
        pl_module.meter.restore(tables)


def _sum_over_ranks(trainer: pl.Trainer) -> Callable[[Tensor], Tensor]:
    if trainer.world_size == 1:
        return lambda table: table
    return lambda table: trainer.strategy.reduce(table, reduce_op="sum")


class WatchSteps(pl.Callback):
    """Acts on what the guard has found: ends the run, or sends it back to a checkpoint.

    Args:
        due: does the host look after so many finished steps? The same on all ranks, and true before each checkpoint that a run
            may go back to, so that none of these holds a spike.
    """

    def __init__(self, due: Callable[[int], bool]) -> None:
        self.due = due

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: StepBatch, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, HerdModule)
        if not self.due(trainer.global_step):
            return
        config, found = pl_module.guard.config, pl_module.guard.look()
        if config.policy == "rewind" and (found.first_spike is not None or found.diverged_at is not None):
            raise Rewind(min(step for step in (found.first_spike, found.diverged_at) if step is not None))
        if found.diverged_at is not None:
            raise Diverged(
                f"Training diverged: in {config.in_row} steps in a row the loss or its gradient was not finite, or a spike; "
                f"the last is step {found.diverged_at} (learning rate {pl_module.schedule(found.diverged_at):.3g}). "
                "Lower optimizer.lr, lengthen the warm-up, or lower trainer.gradient_clip."
            )


class ShowProgress(pl.Callback):
    """Advances the display by one for each step and shows the last row's loss."""

    def __init__(self, bar: Progress, metrics: LogMetrics) -> None:
        self.bar, self.metrics = bar, metrics

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step:
            self.bar.advance(trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: StepBatch, batch_idx: int
    ) -> None:
        shown = {"loss": self.metrics.last["loss"]} if "loss" in self.metrics.last else {}
        self.bar.advance(1, **shown)
