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
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from herd.config.errors import UserError
from herd.config.loader import compose, to_plain
from herd.runs.stage import Inputs, Stage, StageRun
from herd.scaling.plan import Cell, PlanConfig, plan_cells, vocabulary_of, write_plan
from herd.scaling.record_readers import read_table
from herd.scaling.records import Record, usable, write_table


@dataclass(frozen=True)
class ScalingSweepConfig:
    """Which cells to train, and how."""

    plan: PlanConfig  # group conf/plan
    sweep: str  # sweeps/<sweep>.yaml: sweeper and launcher
    overrides: list[str] = field(default_factory=list)  # further Hydra overrides of the multirun, e.g. hydra.launcher.n_jobs=4
    min_cells: int = 4  # cells that must succeed; the fit says later whether they are enough for a law
    seed: int = 0  # of the cells' weights and data order

    def __post_init__(self) -> None:
        if self.min_cells < 1:
            raise UserError(f"min_cells {self.min_cells}: at least 1.")


def run(config: ScalingSweepConfig, inputs: Inputs, stage_run: StageRun) -> dict[str, Any]:
    """Write ``table.csv``, ``cells.json`` and ``curves/<cell>.jsonl`` (each cell's own metrics)."""
    tokens = inputs["tokens"]
    vocabulary = config.plan.vocab_size or vocabulary_of(tokens.path)
    plan = plan_cells(config.plan, vocabulary)
    cells = stage_run.folder / "cells.json"
    write_plan(cells, plan)
    folder = stage_run.scratch / "sweep"
    root = stage_run.folder.parent.parent  # of all runs: the cells are stages of their own in its store
    command = [
        *(sys.executable, "-m", "herd.cli", "pretrain", "-m", f"+sweeps={config.sweep}"),
        f"inputs.tokens={_quoted(tokens.path)}",
        f"seed={config.seed}",
        f"run.root={_quoted(root)}",
        "run.name=cells",
        f"hydra.sweep.dir={_quoted(folder)}",
        f"hydra.sweeper.cells={_quoted(cells)}",
        *config.overrides,
    ]
    code, last = run_child(command)
    if not (folder / "table.csv").exists():
        raise UserError(f"The sweep ended with status {code} before its first cell: {last or 'no message'}")
    records = read_table(folder / "table.csv")
    check_sweep(records, len(plan.cells), config.min_cells, code, last)
    write_table(stage_run.folder / "table.csv", records)
    _keep_curves(folder, plan.cells, stage_run.folder / "curves")
    stage_run.cost(tokens=int(sum(r.tokens for r in usable(records))), flops=sum(r.flops for r in usable(records)))
    counts = {status: sum(record.status == status for record in records) for status in ("ok", "failed", "diverged")}
    return {
        "cells": len(records),
        **counts,
        "budgets": sorted({record.budget for record in usable(records)}),
        "best_loss": min(record.loss for record in usable(records)),
        "vocab_size": vocabulary,
        "flops": sum(record.flops for record in usable(records)),
    }


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


def run_child(command: Sequence[str]) -> tuple[int, str]:
    """Run a sweep as a child that ends with us; its output streams to our stderr. Returns its status and last line."""
    environment = {
        **os.environ,
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
            print(line, end="", file=sys.stderr, flush=True)
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
        try:
            result = json.loads((folder / cell.id / "result.json").read_text(encoding="utf-8"))
            source = Path(result["metrics"]["artifact"]) / "metrics.jsonl"
        except (OSError, KeyError, ValueError):
            continue
        if source.exists():
            shutil.copyfile(source, target / f"{cell.id}.jsonl")


def fingerprint(config: ScalingSweepConfig) -> Any:
    """What a cell trains with beside the plan: the composed configuration of `herd pretrain`, without where it writes."""
    from omegaconf import OmegaConf

    composed = OmegaConf.to_container(compose("pretrain", config.plan.overrides), resolve=True)
    assert isinstance(composed, dict)
    return to_plain({str(key): value for key, value in composed.items() if key not in ("run", "inputs", "hydra")})


STAGE = Stage(
    name="scaling-sweep",
    version=1,
    config=ScalingSweepConfig,
    run=run,
    summary="train the cells of a sweep (Hydra multirun), gather their table",
    inputs=("tokens",),
    fingerprint=fingerprint,
)
