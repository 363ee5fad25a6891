"""Python's garbage collector under control: on all ranks at the same steps, or one of them keeps the others waiting."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl


@contextmanager
def collected_on_demand(every: int) -> Iterator[None]:
    """Take what is alive now out of all later collections, and collect only when :class:`CollectGarbage` does; 0 = leave it."""
    if not every:
        yield
        return
    enabled, frozen = gc.isenabled(), gc.get_freeze_count() > 0
    gc.collect()
    if not frozen:  # else a caller has done it, and lets it go when it likes
        gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        if not frozen:
            gc.unfreeze()
        if enabled:
            gc.enable()


class CollectGarbage(pl.Callback):
    """Collects after each ``every``-th step."""

    def __init__(self, every: int) -> None:
        self.every = every

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.every and trainer.global_step % self.every == 0:
            gc.collect()
