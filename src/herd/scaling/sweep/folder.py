"""A sweep on disk: one folder per cell, a result file that the job itself writes, one table for all.

``<sweep>/<cell>/cell.json`` says what the cell is, ``result.json`` what came of it. The job writes its own result, wherever the
launcher runs it, so a killed sweep keeps every finished cell, and a second one skips them.
"""

import hashlib
import json
import math
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from herd.config.errors import UserError
from herd.runs.atomic import write_json
from herd.scaling.records.record import Record, write_table
from herd.scaling.sweep.plan import Cell
from herd.scaling.sweep.view import STARTED, law_so_far

RESULT, CELL = "result.json", "cell.json"


class Recorder:
    """Wraps a Hydra task function: the job leaves ``result.json`` in its output folder, also when it fails."""

    def __init__(self, task: Callable[[Any], Any]) -> None:
        self.task = task

    def __call__(self, config: Any) -> Any:
        from hydra.core.hydra_config import HydraConfig

        folder = Path(HydraConfig.get().runtime.output_dir)
        (folder / STARTED).touch()
        clock = time.monotonic()
        try:
            value = self.task(config)
        except (Exception, SystemExit) as error:
            lines = str(error).splitlines() or ["no message"]
            text = lines[0] if isinstance(error, UserError) else f"{type(error).__name__}: {lines[0]}"
            _write_result(folder, {"error": text[:500], "metrics": {}, "seconds": time.monotonic() - clock})
            if isinstance(error, SystemExit):  # would end the whole sweep under a launcher that runs in this process
                raise RuntimeError(f"the job exited with {error.code}") from error
            raise
        _write_result(folder, {"error": "", "metrics": _plain(value), "seconds": time.monotonic() - clock})
        return value


def _write_result(folder: Path, result: dict[str, Any]) -> None:
    digest = json.loads((folder / CELL).read_text(encoding="utf-8"))["digest"]
    write_json(folder / RESULT, {**result, "digest": digest})


def _plain(value: Any) -> dict[str, Any]:
    """What of a job's return value goes into JSON: a mapping's finite numbers, texts, and containers of them."""

    def clean(v: Any) -> Any:
        if isinstance(v, Mapping):
            return {str(k): clean(x) for k, x in v.items()}
        if isinstance(v, list | tuple):
            return [clean(x) for x in v]
        if isinstance(v, bool | int | str) or v is None:
            return v
        try:
            number = float(v)
        except (TypeError, ValueError):
            return str(v)
        return number if math.isfinite(number) else None

    if isinstance(value, int | float) and not isinstance(value, bool):
        value = {"loss": value}  # a job may simply return its loss
    return clean(value) if isinstance(value, Mapping) else {}


@dataclass(frozen=True)
class Job:
    """One cell with the overrides it is launched with and the digest of the configuration that they compose to."""

    cell: Cell
    overrides: list[str]
    digest: str

    @property
    def folder(self) -> str:
        """Name of its folder inside the sweep's."""
        return self.cell.id


class SweepFolder:
    """The cells of one sweep, what has come of them so far, and ``table.csv``.

    Args:
        before: rows of earlier sweeps, which the law so far is fitted to as well.
    """

    def __init__(
        self, root: Path, jobs: Sequence[Job], metric: str, diverged_above: float, before: Sequence[Record] = ()
    ) -> None:
        self.root, self.jobs, self.metric, self.diverged_above = Path(root), list(jobs), metric, diverged_above
        self.before = list(before)
        self.records: dict[str, Record] = {}
        self._lock = threading.Lock()
        self._clock, self._flops = time.monotonic(), 0.0

    def prepare(self) -> list[Job]:
        """Write every ``cell.json``; return the jobs that are still to run, the costliest first.

        A result counts as finished when it was made by the same configuration and has a loss. Failed cells run again.
        """
        remaining: list[Job] = []
        for job in self.jobs:
            folder = self.root / job.folder
            result = self._result(job)
            if result is not None and not result["error"]:
                self.records[job.cell.id] = self._record(job, result)
                continue
            shutil.rmtree(folder, ignore_errors=True)
            write_json(folder / CELL, {"cell": job.cell.id, "overrides": job.overrides, "digest": job.digest})
            remaining.append(job)
        self.write()
        return sorted(remaining, key=lambda job: (-job.cell.seconds, job.cell.id))

    def collect(self, show: bool = True) -> None:
        """Take in results that have appeared since the last call: one line each, and a new table."""
        with self._lock:
            news = [job for job in self.jobs if job.cell.id not in self.records and self._result(job) is not None]
            for job in news:
                self.add(job, self._record(job, self._result(job) or {}), show)
            if news:
                self.write()

    def add(self, job: Job, record: Record, show: bool = True) -> None:
        """Enter one result."""
        self.records[job.cell.id] = record
        self._flops += job.cell.flops
        if show:
            print(f"  {self._line(record)}; {law_so_far([*self.before, *self.rows()])}", file=sys.stderr, flush=True)

    def fail(self, job: Job, error: str) -> None:
        """Enter a cell that ended without leaving a result."""
        with self._lock:
            if job.cell.id not in self.records:
                self.add(job, self._record(job, {"error": error, "metrics": {}, "seconds": None}))
                self.write()

    def started(self, job: Job) -> bool:
        """Whether a worker has begun with the cell."""
        return (self.root / job.folder / STARTED).exists()

    def reset(self, job: Job) -> None:
        """Forget that a cell was begun, before it is launched again."""
        (self.root / job.folder / STARTED).unlink(missing_ok=True)

    def write(self) -> None:
        """Write ``table.csv`` with the cells known so far, in the plan's order."""
        write_table(self.root / "table.csv", self.rows())

    def rows(self) -> list[Record]:
        """Records in the plan's order."""
        return [self.records[job.cell.id] for job in self.jobs if job.cell.id in self.records]

    @contextmanager
    def watched(self, every: float = 0.5) -> Iterator[None]:
        """Collect results in the background while a launcher runs."""
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(every):
                self.collect()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self.collect()

    def _result(self, job: Job) -> dict[str, Any] | None:
        """The cell's result if the same configuration made it; None when there is none yet."""
        try:
            result = json.loads((self.root / job.folder / RESULT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return result if isinstance(result, dict) and result.get("digest") == job.digest else None

    def _record(self, job: Job, result: Mapping[str, Any]) -> Record:
        return make_record(job.cell, result, self.metric, self.diverged_above)

    def _line(self, record: Record) -> str:
        done = len(self.records)
        head = f"cell {done}/{len(self.jobs)}: {record.budget:.3g} FLOPs, {record.parameters:,.0f} parameters"
        what = record.error if record.status == "failed" else f"loss {record.loss:.3f}"
        mark = "" if record.status == "ok" else f"{record.status}, "
        left = sum(job.cell.flops for job in self.jobs if job.cell.id not in self.records)
        elapsed = time.monotonic() - self._clock
        to_go = f", about {elapsed * left / self._flops:.0f} s to go" if left and self._flops else ""
        took = f", {record.seconds:.1f} s" if record.seconds is not None else ""
        return f"{head}: {mark}{what}{took}{to_go}"


def make_record(cell: Cell, result: Mapping[str, Any], metric: str, diverged_above: float) -> Record:
    """The table row of a cell: planned settings, measured loss, and a status.

    A loss that is not finite, or above ``diverged_above`` (nats: ln of the vocabulary, what guessing gives), marks a
    diverged run.
    """
    metrics = result.get("metrics") or {}
    error, loss = str(result.get("error") or ""), math.nan
    status = "failed" if error else "ok"
    if not error and metric not in metrics:
        status, error = "failed", f"the job returned no '{metric}' (it returned {', '.join(sorted(metrics)) or 'nothing'})"
    elif not error:
        value = metrics[metric]
        loss = float(value) if isinstance(value, int | float) else math.nan
        if not math.isfinite(loss):
            status, error = "diverged", "the loss is not finite"
        elif loss > diverged_above:
            status, error = "diverged", f"loss {loss:.3f} is above {diverged_above:.3f}, that of guessing"
    # What the job says it did counts; a ramp of the batch ends a fraction of a step off the plan.
    tokens = float(metrics.get("tokens") or cell.tokens)
    if status == "ok" and abs(tokens / cell.tokens - 1) > 0.1:
        status = "failed"
        error = f"trained on {tokens:,.0f} tokens instead of {cell.tokens:,}: the plan's overrides do not leave it one stage"
    return Record(
        cell=cell.id,
        budget=cell.budget,
        parameters=cell.parameters,
        tokens=tokens,
        flops=cell.flops * tokens / cell.tokens,
        loss=loss,
        flops_convention=cell.flops_convention,
        lr=cell.lr,
        batch_tokens=cell.batch_tokens,
        steps=int(metrics.get("steps") or cell.steps),
        status=status,
        error=error,
        seconds=_seconds(result),
        seed=cell.seed,
        block_parameters=cell.block_parameters,
        head_parameters=cell.head_parameters,
        embedding_parameters=cell.embedding_parameters,
        layers=cell.layers,
        width=cell.width,
        seq_len=cell.seq_len,
        schedule=str(metrics.get("schedule") or ""),
        mixture=str(metrics.get("mixture") or ""),
    )


def _seconds(result: Mapping[str, Any]) -> float | None:
    """Training time as the job measured it, else its whole time, imports included."""
    seconds = (result.get("metrics") or {}).get("seconds", result.get("seconds"))
    return round(float(seconds), 2) if isinstance(seconds, int | float) else None


def digest_of(config: Mapping[str, Any]) -> str:
    """Digest of a job's composed configuration, its ``hydra`` and ``run`` nodes (where to write) left out."""
    own = {key: value for key, value in config.items() if key not in ("hydra", "run")}
    text = json.dumps(own, sort_keys=True, default=str)  # a configuration may hold an infinity, which is no JSON
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]
