"""Tasks that are run once: a function, its arguments, and the JSON file that holds its result when it is done."""

import errno
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from herd.config.errors import UserError
from herd.curation.config import CurateConfig
from herd.curation.executors import Executor
from herd.runs.atomic import write_json
from herd.runs.progress import progress

Result = dict[str, Any]  # plain values, small


@dataclass(frozen=True)
class Work:
    """What every task is given: the configuration and where things lie."""

    config: CurateConfig
    scratch: Path  # intermediate files, deleted when the stage succeeds
    folder: Path  # the stage's own folder
    measured: Path  # what was measured (texts, scores, earlier ledger rows): in ``folder``, or in the run that is decided again

    def file(self, phase: str, name: str | int) -> Path:
        """An intermediate file; numbers become five digits."""
        return self.scratch / phase / (f"{name:05d}" if isinstance(name, int) else name)

    def part(self, phase: str, partition: int, suffix: str) -> Path:
        """An intermediate file of one partition."""
        return self.scratch / phase / f"{partition:05d}{suffix}"

    def result(self, phase: str, name: int) -> Result:
        """What a finished task returned."""
        found: Result = json.loads(self.part(phase, name, ".json").read_text(encoding="utf-8"))
        return found


@dataclass(frozen=True)
class Task:
    """One call of ``function(work, *arguments)``."""

    function: Callable[..., Result]
    work: Work
    arguments: tuple[Any, ...]
    done: Path


def perform(task: Task) -> Result:
    """Run a task unless it is done already; its files are whole before its JSON file appears."""
    from threadpoolctl import threadpool_limits

    if not task.done.exists():
        # One thread of numerical libraries in every kind of worker: parallelism comes from tasks, and sums keep their order.
        with threadpool_limits(limits=1):
            write_json(task.done, task.function(task.work, *task.arguments))
    result: Result = json.loads(task.done.read_text(encoding="utf-8"))
    return result


Phase = tuple[str, Callable[..., Result], Sequence[tuple[Any, ...]]]  # folder of its files, function, arguments of each task


def run_phase(
    executor: Executor, work: Work, phase: str, function: Callable[..., Result], arguments: Sequence[tuple[Any, ...]], shown: str
) -> list[Result]:
    """Run ``function(work, *arguments[i])`` for each i, those that are not done yet; results in order."""
    return run_phases(executor, work, [(phase, function, arguments)], shown)[0]


def run_phases(executor: Executor, work: Work, phases: Sequence[Phase], shown: str) -> list[list[Result]]:
    """As :func:`run_phase`, for phases that do not need each other; results by phase."""
    tasks = [
        Task(function, work, given, work.part(phase, i, ".json"))
        for phase, function, arguments in phases
        for i, given in enumerate(arguments)
    ]
    results = {task.done: perform(task) for task in tasks if task.done.exists()}
    left = [task for task in tasks if task.done not in results]
    with progress(shown, len(tasks), "tasks") as bar:
        bar.advance(len(results))
        for task, result in zip(left, executor.map(perform, left), strict=True):
            results[task.done] = result
            bar.advance(1)
    return [[results[work.part(phase, i, ".json")] for i in range(len(arguments))] for phase, _, arguments in phases]


def explained(error: OSError, folder: Path) -> Exception:
    """A full disk in words; other errors as they are."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return error
    return UserError(
        f"The disk is full ({folder}): free some space, then the same command goes on from here; what is finished stays."
    )


def merged(results: Sequence[Result], key: str) -> dict[str, int]:
    """Sum of the counters that each result holds under ``key``, by name."""
    total: dict[str, int] = {}
    for result in results:
        for name, count in result.get(key, {}).items():
            total[name] = total.get(name, 0) + count
    return dict(sorted(total.items()))
