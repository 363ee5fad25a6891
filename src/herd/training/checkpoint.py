"""Training checkpoints that are whole or not there, and that a resumed run can trust.

A checkpoint is one file, ``step-00000120-<first 16 hex digits of its SHA-256>.ckpt``. It is written under a temporary
name, flushed to disk, and renamed; so its name alone says that it is complete, and its content can be checked against
its name.
"""

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io import CheckpointIO
from pytorch_lightning.callbacks import Checkpoint

from herd.config.errors import UserError
from herd.runs.atomic import fsync_folder


class _Hashing:
    """A file that hashes what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.hash = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: where they lie; made when the first is saved.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = Path(folder), keep

    def files(self) -> list[Path]:
        """Complete checkpoints, newest first."""
        return sorted(self.folder.glob("step-*.ckpt"), reverse=True)

    def save(self, state: dict[str, Any], step: int) -> Path:
        """Write ``state`` and drop all but the newest ``keep``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".step-{step:08d}.tmp"
        with temporary.open("wb") as file:
            hashing = _Hashing(file)
            torch.save(state, hashing)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        path = self.folder / f"step-{step:08d}-{hashing.hash.hexdigest()[:16]}.ckpt"
        os.replace(temporary, path)
        fsync_folder(self.folder)
        for old in self.files()[self.keep :]:
            old.unlink()
        return path

    def is_whole(self, path: Path) -> bool:
        """Whether the content still has the hash that the name carries."""
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest().startswith(path.stem.rsplit("-", 1)[1])

    def newest(self) -> Path | None:
        """The newest whole checkpoint; a damaged one is named on stderr, set aside as ``*.damaged``, and the one
        before is tried.
        """
        for path in self.files():
            if self.is_whole(path):
                return path
            print(f"Checkpoint '{path}' is damaged (truncated or altered); trying the one before it.", file=sys.stderr)
            os.replace(path, path.with_suffix(".damaged"))
        return None


def step_of(path: Path) -> int:
    """Finished optimizer steps at the time of a checkpoint, from its name."""
    return int(path.stem.split("-")[1])


class AtomicCheckpointIO(CheckpointIO):
    """Lets Lightning write and read checkpoints through a :class:`CheckpointStore`; tensors and plain values only, no
    pickled code.
    """

    def __init__(self, store: CheckpointStore) -> None:
        self.store = store

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        self.store.save(checkpoint, step=int(checkpoint["global_step"]))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return state

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class SaveCheckpoints(Checkpoint):
    """Saves the whole training state every ``every`` steps, at the steps in ``also``, and when SIGTERM arrives.

    Lightning runs it after every other callback, so that their state is saved as it is after the step.

    Args:
        every: steps between checkpoints; 0 = only those in ``also``.
        also: is a checkpoint due after so many finished steps?
        fingerprint: what the run is; a checkpoint with another one is refused.
    """

    def __init__(self, store: CheckpointStore, every: int, also: Callable[[int], bool], fingerprint: dict[str, Any]) -> None:
        self.store, self.every, self.also, self.fingerprint = store, every, also, fingerprint

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        due = (self.every and step % self.every == 0) or self.also(step)
        if due or trainer.received_sigterm:
            trainer.save_checkpoint(self.store.folder / f"step-{step}")

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
