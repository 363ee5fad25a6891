"""Training checkpoints that are whole or not there, and that a resumed run can trust.

A checkpoint is one file, ``step-00000120-<first 16 hex digits of its SHA-256>.ckpt``, with ``-eval<loss>`` after the step where
the model was evaluated. It is written under a temporary name, flushed to disk, and renamed; so its name alone says that it is
complete, and its content can be checked against its name.
"""

import hashlib
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from herd.runs.atomic import fsync_folder


class _Hashing:
    """A file that hashes what is written to it, and keeps the first error for later: torch.save is not to be unwound."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.hash = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        if self.error is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
            self.hash.update(data)
        return len(data)

    def flush(self) -> None:
        pass


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: where they lie; made when the first is saved.
        keep: how many of the newest stay.
        best: how many of those with the lowest loss of an evaluation stay besides.
        permanent_every: those of each so-many-th step stay for good; 0 = none.
        regular: may a run go back to the checkpoint after so many steps? The newest of these stays too.
    """

    def __init__(
        self,
        folder: Path,
        keep: int = 2,
        best: int = 0,
        permanent_every: int = 0,
        regular: Callable[[int], bool] = lambda step: True,
    ) -> None:
        self.folder, self.keep, self.best, self.permanent_every = Path(folder), keep, best, permanent_every
        self.regular = regular
        self.scores: dict[int, float] = {}  # step -> loss of the evaluation there, for the name of its checkpoint

    def files(self) -> list[Path]:
        """Complete checkpoints, newest first."""
        return sorted(self.folder.glob("step-*.ckpt"), key=lambda path: (step_of(path), path.name), reverse=True)

    def save(self, state: dict[str, Any], step: int) -> Path:
        """Write ``state`` and drop what need not be kept.

        Raises:
            OSError: the disk is full, say. Nothing half-written is left, and what was there stays.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".step-{step:08d}.tmp"
        try:
            with temporary.open("wb") as file:
                hashing = _Hashing(file)
                torch.save(state, hashing)  # type: ignore[arg-type]
                if hashing.error:
                    raise hashing.error
                file.flush()
                os.fsync(file.fileno())
            score = self.scores.get(step, math.nan)
            mark = f"-eval{score:.6g}" if math.isfinite(score) and score >= 0 else ""
            path = self.folder / f"step-{step:08d}{mark}-{hashing.hash.hexdigest()[:16]}.ckpt"
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        fsync_folder(self.folder)
        for old in self.files():
            if old not in self._kept() or (step_of(old) == step and old != path):
                old.unlink()
        return path

    def _kept(self) -> set[Path]:
        files = self.files()
        scored = sorted((path for path in files if score_of(path) is not None), key=lambda p: (score_of(p), -step_of(p)))
        permanent = [
            path for path in files if self.permanent_every and step_of(path) % self.permanent_every == 0 and step_of(path)
        ]
        regular = [path for path in files if self.regular(step_of(path))]
        return {*files[: self.keep], *scored[: self.best], *permanent, *regular[:1]}

    def is_whole(self, path: Path) -> bool:
        """Whether the content still has the hash that the name carries."""
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest().startswith(path.stem.rsplit("-", 1)[1])

    def newest(self, step: int | None = None) -> Path | None:
        """The newest whole checkpoint; a damaged one is named on stderr, set aside as ``*.damaged``, and the one
        before is tried.

        Args:
            step: only regular ones of so many finished steps, or fewer.
        """
        for path in self.files():
            if step is not None and not (step_of(path) <= step and self.regular(step_of(path))):
                continue
            try:
                if self.is_whole(path):
                    return path
                os.replace(path, path.with_suffix(".damaged"))
            except FileNotFoundError:  # another rank, which finds the same, was faster
                continue
            print(f"Checkpoint '{path}' is damaged (truncated or altered); trying the one before it.", file=sys.stderr)
        return None

    def drop_after(self, step: int) -> None:
        """Remove the checkpoints of more than ``step`` finished steps."""
        for path in self.files():
            if step_of(path) > step:
                path.unlink()

    def clean(self) -> None:
        """Remove what a killed run left half-written."""
        for path in self.folder.glob(".step-*.tmp"):
            path.unlink(missing_ok=True)


def step_of(path: Path) -> int:
    """Finished optimizer steps at the time of a checkpoint, from its name."""
    return int(path.stem.split("-")[1])


def score_of(path: Path) -> float | None:
    """Loss of the evaluation at a checkpoint, from its name; None where there was none."""
    found = re.search(r"-eval([0-9.e+-]+)-", path.stem)
    return float(found[1]) if found else None
