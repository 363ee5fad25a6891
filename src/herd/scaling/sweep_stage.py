"""`herd scaling-sweep`: train the cells of a plan in a Hydra multirun, gather their table.

The multirun is a child process, the same that `herd pretrain -m +sweeps=NAME` starts by hand. Its cells lie in the store of all
runs, addressed by content, so a sweep that was stopped, or a plan with a few more cells, trains only what is missing.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from herd.config.errors import UserError
from herd.config.loader import compose, to_plain
from herd.runs.metrics import read_metrics
from herd.runs.ranks import outside_launch
from herd.runs.stage import Inputs, Stage, StageRun
from herd.scaling.choice.adaptive import Wave, WavesConfig
from herd.scaling.records.readers import read_table
from herd.scaling.records.record import Record, usable, write_table
from herd.scaling.records.units import recount_flops
from herd.scaling.sweep.plan import Cell, Plan, PlanConfig, plan_cells, read_plan, vocabulary_of, with_seed, write_plan
from herd.scaling.sweep.view import SweepView, numbers_so_far
from herd.scaling.sweep.wandb import SweepLog, SweepWandbConfig
from herd.scaling.sweep.waves import make_pool, train_waves


@dataclass(frozen=True)
class ScalingSweepConfig:
    """Which cells to train, and how."""

    plan: PlanConfig  # group conf/plan
    sweep: str  # sweeps/<sweep>.yaml: sweeper and launcher
    overrides: list[str] = field(default_factory=list)  # further Hydra overrides of the multirun, e.g. hydra.launcher.n_jobs=4
    min_cells: int = 4  # cells that must succeed; the fit says later whether they are enough for a law
    seed: int = 0  # of the cells' weights and data order
    adaptive: bool = False  # after each wave the results so far choose the next cells, see `waves`
    waves: WavesConfig = field(default_factory=WavesConfig)  # how an adaptive sweep decides
    wandb: SweepWandbConfig = field(default_factory=SweepWandbConfig)  # cells and the law so far on a dashboard, as they come

    def __post_init__(self) -> None:
        if self.min_cells < 1:
            raise UserError(f"min_cells {self.min_cells}: at least 1.")


def run(config: ScalingSweepConfig, inputs: Inputs, stage_run: StageRun) -> dict[str, Any]:
    """Write ``table.csv``, ``cells.json`` and ``curves/<cell>.jsonl`` (each cell's own metrics); ``waves.json`` if adaptive."""
    vocabulary = config.plan.vocab_size or vocabulary_of(inputs["tokens"].path)
    chosen = inputs.get("next")
    ended: dict[str, Any] = {}
    with SweepLog(config.wandb, stage_run.folder, stage_run.scratch / "logged_cells") as log:
        if config.adaptive:
            if chosen is not None:
                raise UserError("adaptive=true chooses its own cells: leave inputs.next out.")
            cells, records, made = train_waves(
                make_pool(config.plan, config.waves, vocabulary, config.seed),
                config.waves,
                config.plan.metric,
                stage_run.folder / "waves.json",
                finished_in(stage_run),
                lambda plan: train(config, inputs, stage_run, plan, 0, log),
                lambda wave, rows: log.progress(rows, lambda known: numbers_of(wave, known), table=True),
            )
            plan = Plan(tuple(cells), (), config.plan.metric, config.plan.speed.describe())
            write_plan(stage_run.folder / "cells.json", plan)
            check_sweep(records, len(plan.cells), config.min_cells)
            ended = {"waves": len(made) - 1, "adaptive_status": made[-1].status, "goal": to_plain(made[-1].estimate)}
        else:
            plan = _with_seeds(read_plan(chosen / "cells.json") if chosen else plan_cells(config.plan, vocabulary), config.seed)
            write_plan(stage_run.folder / "cells.json", plan)
            records = train(config, inputs, stage_run, plan, config.min_cells, log)
            log.progress(records, numbers_so_far, table=True)
    write_table(stage_run.folder / "table.csv", records)
    _keep_curves(stage_run.scratch / "sweep", plan.cells, stage_run.folder / "curves")
    trained = [recount_flops(record, "6N") for record in usable(records)]  # whatever convention the plan counts by
    stage_run.cost(tokens=int(sum(r.tokens for r in trained)), flops_6n=sum(r.flops for r in trained))
    counts = {status: sum(record.status == status for record in records) for status in ("ok", "failed", "diverged")}
    return {
        "cells": len(records),
        **counts,
        "budgets": sorted({record.budget for record in usable(records)}),
        "best_loss": min(record.loss for record in usable(records)),
        "vocab_size": vocabulary,
        "flops": sum(record.flops for record in usable(records)),
        **ended,
    }


def train(
    config: ScalingSweepConfig, inputs: Inputs, stage_run: StageRun, plan: Plan, needed: int, log: SweepLog
) -> list[Record]:
    """Train the cells of a plan in a multirun; a row for each, failed ones included. Each is logged when it has finished.

    Raises:
        UserError: the multirun stopped before its end, or fewer than ``needed`` cells have a loss.
    """
    folder = stage_run.scratch / "sweep"
    cells = stage_run.scratch / "cells.json"
    write_plan(cells, plan)
    (folder / "table.csv").unlink(missing_ok=True)  # of an earlier wave or attempt: its cells are found in their own folders
    root = stage_run.folder.parent.parent  # of all runs: the cells are stages of their own in its store
    command = [
        *(sys.executable, "-m", "herd.cli", "pretrain", "-m", f"+sweeps={config.sweep}"),
        f"inputs.tokens={_quoted(inputs['tokens'].path)}",
        *([] if any(cell.seed is not None for cell in plan.cells) else [f"seed={config.seed}"]),
        f"run.root={_quoted(root)}",
        "run.name=cells",
        f"hydra.sweep.dir={_quoted(folder)}",
        f"hydra.sweeper.cells={_quoted(cells)}",
        *([f"hydra.sweeper.before={_quoted(finished_in(stage_run))}"] if finished_in(stage_run).exists() else []),
        *config.overrides,
    ]
    view = SweepView(plan.cells, folder)

    def hear(line: str, show: Callable[[str], None] = _to_stderr) -> None:
        show(line)
        log_new(log, view)

    if sys.stderr.isatty():
        with view.shown():
            code, last = run_child(command, lambda line: hear(line, view.line))
    else:
        code, last = run_child(command, hear)
    log_new(log, view)
    if not (folder / "table.csv").exists():
        raise UserError(f"The sweep ended with status {code} before its first cell: {last or 'no message'}")
    records = read_table(folder / "table.csv")
    check_sweep(records, len(plan.cells), needed, code, last)
    return records


def finished_in(stage_run: StageRun) -> Path:
    """Where an adaptive sweep keeps the rows of its finished waves until the end."""
    return stage_run.scratch / "finished.csv"


def log_new(log: SweepLog, view: SweepView) -> None:
    """Log the cells that have finished since the last call, each with the law from all that are finished by then."""
    if not log.on:
        return
    for name, record in view.records().items():
        if not log.knows(name):
            metrics = _metrics_file(view.folder, name)
            log.cell(record, read_metrics(metrics) if metrics else [])
            log.progress([record], numbers_so_far)


def numbers_of(wave: Wave, records: Sequence[Record]) -> dict[str, Any]:
    """What a wave decided from, as numbers for a dashboard."""
    numbers: dict[str, Any] = {"wave": wave.number, **numbers_so_far(records)}
    if wave.estimate is not None:
        low, high = wave.estimate.interval
        numbers |= {"goal": wave.estimate.value, "goal_low": low, "goal_high": high}
    return numbers


def _with_seeds(plan: Plan, seed: int) -> Plan:
    """Where some cells name their seed all do, since a seed for the whole multirun would be a second one for them."""
    if all(cell.seed is None for cell in plan.cells):
        return plan
    return replace(plan, cells=tuple(cell if cell.seed is not None else with_seed(cell, seed) for cell in plan.cells))


def check_sweep(records: Sequence[Record], planned: int, needed: int, code: int = 0, last: str = "") -> None:
    """UserError when too few cells have a loss, or when the multirun stopped before its end."""
    good = len(usable(records))
    if good < min(needed, planned):
        reason = next((r.error for r in records if r.status == "failed"), "") or next((r.error for r in records if r.error), last)
        raise UserError(f"Only {good} of {planned} cells of the sweep succeeded, {needed} are needed; the first error: {reason}")
    if len(records) < planned:
        raise UserError(
            f"The sweep stopped after {len(records)} of {planned} cells (status {code}): {last or 'no message'} "
            "The same command goes on from there."
        )


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def run_child(command: Sequence[str], show: Callable[[str], None] = _to_stderr) -> tuple[int, str]:
    """Run a sweep as a child that ends with us; each line that it prints is shown. Returns its status and last line."""
    environment = {
        **outside_launch(),  # or a cell would wait for processes that have no part in the sweep
        # A job per core, a thread each: faster than one job with all the threads.
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
        "HERD_SWEEP_PARENT": str(os.getpid()),
        "PYTHONUNBUFFERED": "1",
    }
    last = ""
    child = subprocess.Popen(
        list(command),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # its own process group: workers end with it
    )
    assert child.stdout is not None
    try:
        for line in child.stdout:
            show(line.removesuffix("\n"))
            last = line.strip() or last
        return child.wait(), last
    except BaseException:
        _end_group(child)
        raise


def _end_group(child: "subprocess.Popen[str]") -> None:
    try:
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(child.pid, signal.SIGTERM)
            child.wait(timeout=5)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _quoted(path: Path) -> str:
    """A path as a Hydra value: quoted, so that commas, spaces and equal signs are its own."""
    text = re.sub(r"(\\*)'", r"\1\1\'", str(path))  # only before a quote, and at the end, does a backslash escape
    return "'" + re.sub(r"(\\+)$", r"\1\1", text) + "'"


def _keep_curves(folder: Path, cells: Sequence[Cell], target: Path) -> None:
    """Copy each cell's metrics.jsonl out of its artifact, where it made one."""
    target.mkdir(exist_ok=True)
    for cell in cells:
        source = _metrics_file(folder, cell.id)
        if source is not None:
            shutil.copyfile(source, target / f"{cell.id}.jsonl")


def _metrics_file(folder: Path, cell: str) -> Path | None:
    """The metrics.jsonl of a finished cell's artifact; None where it made none."""
    try:
        result = json.loads((folder / cell / "result.json").read_text(encoding="utf-8"))
        source = Path(result["metrics"]["artifact"]) / "metrics.jsonl"
    except (OSError, KeyError, ValueError):
        return None
    return source if source.exists() else None


def fingerprint(config: ScalingSweepConfig) -> Any:
    """What a cell trains with beside the plan: the composed configuration of `herd pretrain`, without where it writes."""
    from omegaconf import OmegaConf

    composed = OmegaConf.to_container(compose("pretrain", config.plan.overrides), resolve=True)
    assert isinstance(composed, dict)
    return to_plain({str(key): value for key, value in composed.items() if key not in ("run", "inputs", "hydra")})


STAGE = Stage(
    name="scaling-sweep",
    version=3,
    config=ScalingSweepConfig,
    run=run,
    summary="train the cells of a sweep (Hydra multirun), gather their table",
    inputs=("tokens",),
    optional=("next",),
    fingerprint=fingerprint,
    execution=("wandb",),
)
