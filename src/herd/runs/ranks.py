"""The processes of one launch (torchrun, srun) that share a stage: the first makes its result, the others take part in the work.

Each of them runs the whole command, so all come to the same stage, in their own time. They meet there by small files in the
store, seen by all nodes: every other process leaves a note with a word of its own; the first, once it has the lock and finds no
result, answers all notes at once with a word of its own; and when all have repeated that one, it says so and all begin. So
nothing that a killed launch has left behind is taken for an answer, even where both launches have the same name.
"""

import hashlib
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from herd.config.errors import UserError
from herd.runs.atomic import write_json
from herd.runs.lock import is_locked
from herd.runs.manifest import MANIFEST

PATIENCE = 600.0  # seconds for the processes of a launch to come, while nobody works on the stage
GRACE = 10.0  # seconds for what another node has written to be seen here
_GLANCE = 0.1  # seconds between two looks
# Variables by which a process knows its place in a launch.
_OF_A_LAUNCH = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID")


class OwnError(UserError):
    """What this process of a launch alone has to say; its other errors are those of every process of its machine."""


def speaks(error: UserError) -> bool:
    """Whether this process is the one to say it: of those of a torchrun on one machine the first, unless the error is its own.

    What srun starts may be commands that differ, so each of these speaks.
    """
    return isinstance(error, OwnError) or os.environ.get("LOCAL_RANK", "0") == "0"


def launched() -> bool:
    """Whether torchrun, srun or the like has started this process as one of several."""
    return _rank() is not None


def first_process(processes: int) -> bool:
    """Whether this process is the one that writes, of a run that so many share. A run of its own is always its own."""
    return processes == 1 or _rank() in (None, "0")


def _rank() -> str | None:
    """What sets this process apart in its launch, "0" for the first; as Lightning reads it before it starts."""
    found = os.environ.get("RANK")
    if found is None and "LOCAL_RANK" in os.environ:
        node, local = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0")), os.environ["LOCAL_RANK"]
        return local if node == "0" else f"{node}.{local}"
    return found if found is not None else os.environ.get("SLURM_PROCID")


def place_among(devices: int, nodes: int) -> tuple[int, int]:
    """Of a run that devices x nodes processes share: this process's number among all, and among those of its machine, whose
    device of that number is its own. (0, 0) in a run of its own, and where no launch has started this process.
    """
    given = os.environ
    if devices * nodes == 1 or _rank() is None:
        return 0, 0
    if "RANK" not in given and "LOCAL_RANK" not in given:
        return int(given["SLURM_PROCID"]), int(given.get("SLURM_LOCALID", 0))
    local = int(given.get("LOCAL_RANK", 0))
    node = int(given.get("NODE_RANK", given.get("GROUP_RANK", 0)))
    return int(given.get("RANK", node * devices + local)), local


def in_turn(pieces: int, rank: int, processes: int) -> list[int]:
    """All pieces of a work that processes share, in the order in which this one looks for what is not done yet: its own share
    first, then each other's from its end.

    Whoever is done early helps, and nobody waits for one that has died. A piece may be made twice, with the same result.
    """
    own = range(rank, pieces, processes)
    others = (range((rank + further) % processes, pieces, processes) for further in range(1, processes))
    return [*own, *(piece for share in others for piece in reversed(share))]


def outside_launch() -> dict[str, str]:
    """The environment for a process of one's own, which is no part of the launch that has started this one."""
    return {k: v for k, v in os.environ.items() if k not in _OF_A_LAUNCH and not k.startswith("TORCHELASTIC_")}


@dataclass(frozen=True)
class Launch:
    """This process among those that share a stage."""

    name: str  # of the launch, the same in all its processes and in no other launch at work
    rank: str  # of this process in it
    processes: int  # of the launch

    @property
    def first(self) -> bool:
        """Whether this process makes the result."""
        return self.rank == "0"

    @contextmanager
    def gathered(self, folder: Path) -> Iterator[None]:
        """For the first process, which holds the lock of ``folder``: the time in which the others take part.

        Raises:
            UserError: some did not come.
        """
        word, answered, start = secrets.token_hex(8), None, time.monotonic()
        try:
            while True:
                notes = self._notes(folder)
                came = sum(note["repeats"] == word for note in notes.values())
                if came == self.processes - 1:
                    break
                words = {rank: note["word"] for rank, note in notes.items()}
                if words != answered:
                    write_json(self._file(folder, "0"), {"word": word, "answers": words, "begun": False})
                    answered = words
                if time.monotonic() - start > PATIENCE:
                    raise UserError(
                        f"Only {came + 1} of the {self.processes} processes of this launch came within {PATIENCE:.0f} s: see "
                        "what the others said, and whether all run this command and see this folder of runs."
                    )
                time.sleep(_GLANCE)
            write_json(self._file(folder, "0"), {"word": word, "answers": answered or {}, "begun": True})
            yield
        finally:
            self._file(folder, "0").unlink(missing_ok=True)

    @contextmanager
    def joined(self, folder: Path) -> Iterator[bool]:
        """For the others: False when ``folder`` is finished already, else the time in which the stage runs, and then the wait
        for the first process to finish.

        Raises:
            UserError: the first process did not come, or ended without a result.
        """
        own, word, repeats, start = self._file(folder, self.rank), secrets.token_hex(8), "", time.monotonic()
        try:
            write_json(own, {"word": word, "repeats": ""})
            while True:
                call = _read(self._file(folder, "0"))
                if call is not None and call["answers"].get(self.rank) == word:
                    if call["begun"] and call["word"] == repeats:
                        break
                    if call["word"] != repeats:
                        repeats = call["word"]
                        write_json(own, {"word": word, "repeats": repeats})
                elif (folder / MANIFEST).exists():
                    yield False
                    return
                if is_locked(folder):  # by another launch, or by the first of this one, which waits for others
                    start = time.monotonic()
                if repeats and time.monotonic() - start > GRACE:  # it had called, and began, and ended before it was seen
                    raise UserError("The first process of this launch ended without a result: see what it said.")
                if time.monotonic() - start > PATIENCE:
                    raise OwnError(
                        f"The first process of this launch did not come within {PATIENCE:.0f} s: see what it said, and whether "
                        "it runs this command and sees this folder of runs."
                    )
                time.sleep(_GLANCE)
            try:
                yield True
            except UserError as refusal:
                if self._first_ends(folder, repeats):  # by the same
                    raise
                raise OwnError(str(refusal)) from refusal
            self._await_result(folder, repeats)
        finally:
            own.unlink(missing_ok=True)

    def _await_result(self, folder: Path, word: str) -> None:
        seen_at_work = time.monotonic()
        while not (folder / MANIFEST).exists():
            if self._at_work(folder, word):
                seen_at_work = time.monotonic()
            if time.monotonic() - seen_at_work > GRACE:
                raise OwnError("The first process of this launch ended without a result: see what it said.")
            time.sleep(_GLANCE)

    def _first_ends(self, folder: Path, word: str) -> bool:
        """Whether the first process gives up too, before long."""
        start = time.monotonic()
        while self._at_work(folder, word):
            if time.monotonic() - start > GRACE:
                return False
            time.sleep(_GLANCE)
        return True

    def _at_work(self, folder: Path, word: str) -> bool:
        """Whether the first process, which has called with ``word``, still works on ``folder``."""
        call = _read(self._file(folder, "0"))
        return call is not None and call["word"] == word and is_locked(folder)

    def _file(self, folder: Path, rank: str) -> Path:
        return folder.parent / ".ranks" / f"{folder.name}-{self.name}-{rank}.json"

    def _notes(self, folder: Path) -> dict[str, dict[str, Any]]:
        """Rank -> its note, of the others."""
        stem = f"{folder.name}-{self.name}-"
        paths = {path.stem.removeprefix(stem): path for path in (folder.parent / ".ranks").glob(f"{stem}*.json")}
        notes = {rank: _read(path) for rank, path in paths.items() if rank != "0"}
        return {rank: note for rank, note in notes.items() if note is not None}


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError:  # not there, or just replaced by another node
        return None
    return content


def find_launch(processes: int) -> Launch | None:
    """The launch of which this process is a part, for a stage that so many processes share; None when it runs alone.

    Raises:
        UserError: the launch has another number of processes.
    """
    rank, given = _rank(), os.environ
    if processes == 1 or rank is None:
        return None
    by_slurm = "RANK" not in given and "LOCAL_RANK" not in given
    world = int(given.get("SLURM_NTASKS" if by_slurm else "WORLD_SIZE", processes))
    if world != processes:
        raise UserError(
            f"This command was started as {world} process{'es' if world > 1 else ''}, and trainer.devices x trainer.nodes is "
            f"{processes}: make them equal."
        )
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID") if by_slurm else ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")
    parts = [given.get(name, "") for name in names]
    if parts[0] in ("localhost", "127.0.0.1", "::1"):  # another on every machine
        parts.append(socket.gethostname())
    return Launch(hashlib.sha256("\x1f".join(parts).encode("utf-8")).hexdigest()[:12], rank, processes)
