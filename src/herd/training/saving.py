"""When the training state is saved, and whether a saved one is of this run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint

from herd.config.errors import UserError
from herd.training.checkpoint import CheckpointStore
from herd.training.module import HerdModule
from herd.training.optimizer import build_optimizer, make_state, misfit
from herd.training.signals import Stopped, StopSignals


class SaveCheckpoints(Checkpoint):
    """Saves the whole training state at the steps that are ``due``, and when a signal asks the run to stop.

    Lightning runs it after every other callback, so that their state is saved as it is after the step.

    Args:
        due: is a checkpoint due after so many finished steps? Asked about 0 too, before the first step.
        fingerprint: what the run is, see :func:`check_checkpoint`.
    """

    def __init__(
        self, store: CheckpointStore, due: Callable[[int], bool], signals: StopSignals, fingerprint: dict[str, Any]
    ) -> None:
        self.store, self.due, self.signals, self.fingerprint = store, due, signals, fingerprint

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for optimizer in trainer.optimizers:
            make_state(optimizer)  # before the first checkpoint: one without is then known to be damaged
        if trainer.global_step == 0 and self.due(0):
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


def check_checkpoint(path: Path, fingerprint: dict[str, Any], module: HerdModule) -> None:
    """Refuse a checkpoint that ``module`` cannot go on from, before anything of it is loaded: its tensors are mapped, not read.

    Raises:
        UserError: another run's, or the optimizer's moments are missing or not of the shapes of the model's parameters.
    """
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    theirs = state["callbacks"][SaveCheckpoints.__name__]["fingerprint"]
    changed = sorted(k for k in fingerprint.keys() | theirs.keys() if fingerprint.get(k) != theirs.get(k))
    if changed:
        raise UserError(
            f"The checkpoints in '{path.parent}' are of another run (different: {', '.join(changed)}): "
            "remove that folder to start anew, or restore the configuration."
        )
    saved = state["optimizer_states"][0]
    numbers = [number for group in saved["param_groups"] for number in group["params"]]  # FSDP counts in another order
    parameters = [
        p for group in build_optimizer(module.parameters(), module.optimizer_config).param_groups for p in group["params"]
    ]
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    for number, parameter in zip(numbers, parameters, strict=True):
        if problem := misfit(saved["state"].get(number, {}), parameter):
            raise UserError(
                f"The checkpoint '{path}' does not fit the model: the optimizer's state of {names[id(parameter)]} {problem}. "
                "Remove that file to go on from the one before it, or its folder to start anew."
            )
