"""Side-by-side timing and the dated result file that every benchmark leaves."""

import datetime
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from herd.recipe.doctor import findings
from herd.runs.atomic import write_json
from herd.runs.manifest import commit, versions


def side_by_side(
    sides: dict[str, Callable[[], Any]], repeats: int = 7, warmup: int = 2, clock: Callable[[], float] = time.perf_counter
) -> dict[str, dict[str, float]]:
    """Seconds of one call of each side by ``clock``, measured in turns so that a noisy machine troubles all alike.

    Returns:
        side -> {median, minimum, maximum} in seconds over ``repeats`` turns.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(warmup + repeats):
        for name, call in sides.items():
            start = clock()
            call()
            if turn >= warmup:
                seconds[name].append(clock() - start)
    return {n: {"median": statistics.median(s), "minimum": min(s), "maximum": max(s)} for n, s in seconds.items()}


def save(script: str, command: str, results: Any) -> Path:
    """Write ``<script>.<date>.json`` beside the script: results, date, commit, machine, versions, command."""
    path = Path(script)
    target = path.with_name(f"{path.stem}.{datetime.date.today().isoformat()}.json")
    machine = [line for line in findings() if line.startswith(("processor", "memory", "torch", "gpu"))]
    write_json(
        target,
        {
            "benchmark": path.stem,
            "date": datetime.date.today().isoformat(),
            "commit": commit(),
            "command": command,
            "machine": machine,
            "versions": versions(),
            "results": results,
        },
    )
    return target
