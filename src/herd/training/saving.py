"""When the training state is saved, and whether a saved one is of this run."""

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from herd.config.errors import UserError
from herd.training.checkpoint import CheckpointStore
from herd.training.module import HerdModule
from herd.training.optimizer import make_state
from herd.training.signals import Stopped, StopSignals


class SaveCheckpoints(Checkpoint):
    """Saves the whole training state at the steps that are ``due``, and when a signal asks the run to stop.

    Lightning runs it after every other callback, so that their state is saved as it is after the step.

    Args:
        due: is a checkpoint due after so many finished steps? Asked about 0 too, before the first step.
        fingerprint: what the run is; a checkpoint with another one is refused.
    """

    def __init__(
        self, store: CheckpointStore, due: Callable[[int], bool], signals: StopSignals, fingerprint: dict[str, Any]
    ) -> None:
        self.store, self.due, self.signals, self.fingerprint = store, due, signals, fingerprint

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == 0 and self.due(0):
            for optimizer in trainer.optimizers:
                make_state(optimizer)
            self._save(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, HerdModule)
        step = trainer.global_step
        stop = self.signals.agreed(trainer.strategy.root_device, trainer.world_size)
        if self.due(step) or stop:
            if pl_module.evaluated is not None and pl_module.evaluated[0] == step:
                self.store.scores[step] = pl_module.evaluated[1]
            pl_module.clock.lap("other", pl_module.device)
            self._save(trainer)
            pl_module.clock.lap("checkpoint", pl_module.device)
        if stop:
            raise Stopped(stop)

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.store.folder / f"step-{trainer.global_step}")

    def state_dict(self) -> dict[str, Any]:
        return {"fingerprint": self.fingerprint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        theirs = state_dict["fingerprint"]
        changed = sorted(k for k in self.fingerprint.keys() | theirs.keys() if self.fingerprint.get(k) != theirs.get(k))
        if changed:
            raise UserError(
                f"The checkpoints in '{self.store.folder}' are of another run (different: {', '.join(changed)}): "
                "remove that folder to start anew, or restore the configuration."
            )
