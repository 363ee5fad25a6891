"""Writing checkpoints while training goes on.

The state is copied to memory of the host, which takes as long as one pass over it; a thread then writes that copy. One
checkpoint is in the making at a time: the next one waits for it.
"""

import sys
import threading
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io import CheckpointIO

from herd.training.checkpoint import CheckpointStore, step_of


class Snapshot:
    """Copies nested state to host memory, into the same buffers each time: fresh pages cost more than the copy."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[Any, ...], torch.Tensor] = {}

    def take(self, state: Any) -> Any:
        """A copy of ``state`` (dicts, lists, tuples, tensors, plain values) that further training does not change."""
        copy = self._copy(state, ())
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()  # copies from a GPU run behind the host
        return copy

    def _copy(self, value: Any, path: tuple[Any, ...]) -> Any:
        if isinstance(value, torch.Tensor):
            buffer = self._buffers.get(path)
            if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
                buffer = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
                self._buffers[path] = buffer
            return buffer.copy_(value.detach(), non_blocking=value.is_cuda)
        if isinstance(value, dict):
            return type(value)((key, self._copy(item, (*path, key))) for key, item in value.items())
        if isinstance(value, list | tuple):
            return type(value)(self._copy(item, (*path, i)) for i, item in enumerate(value))
        return value


class StoreIO(CheckpointIO):
    """Lets Lightning write and read checkpoints through a :class:`CheckpointStore`; tensors and plain values only, no
    pickled code.

    A checkpoint that cannot be written (disk full) does not end the run: stopping would lose the very steps that it was to
    keep. One line names it, those before it stay, the next is tried when it is due.

    Args:
        background: write from a copy, in a thread, which costs host memory of the size of a checkpoint.
    """

    def __init__(self, store: CheckpointStore, background: bool) -> None:
        self.store, self.background = store, background
        self.failures = 0  # checkpoints that could not be written
        self._snapshot = Snapshot()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None  # of the thread, none that a disk makes

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        self.finish()
        if not self.background:
            self._write(checkpoint)
            return
        self._thread = threading.Thread(target=self._write_apart, args=(self._snapshot.take(checkpoint),), name="herd-checkpoint")
        self._thread.start()

    def finish(self) -> None:
        """Wait until nothing is being written; raises what the thread has raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def teardown(self) -> None:
        self.finish()

    def _write_apart(self, checkpoint: dict[str, Any]) -> None:
        try:
            self._write(checkpoint)
        except BaseException as error:
            self._error = error  # a thread's own would be printed and forgotten, and the run go on without checkpoints

    def _write(self, checkpoint: dict[str, Any]) -> None:
        step = int(checkpoint["global_step"])
        try:
            self.store.save(checkpoint, step)
        except OSError as error:
            self.failures += 1
            files = self.store.files()
            before = f"the one of step {step_of(files[0])} stays" if files else "there is none before it"
            print(
                f"The checkpoint of step {step} could not be written to '{self.store.folder}' ({error.strerror}): {before}, "
                "training goes on, and the next is tried when it is due.",
                file=sys.stderr,
            )

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return state

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)
