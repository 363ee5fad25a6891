"""A sweep on W&B: real offline runs, read back by our own reader."""

from dataclasses import replace
from pathlib import Path

import pytest

from herd.config.errors import UserError
from herd.scaling.choice.adaptive import Wave
from herd.scaling.choice.posterior import GoalEstimate
from herd.scaling.records.readers import read_runs
from herd.scaling.records.record import write_table
from herd.scaling.records.wandb import read_offline_run
from herd.scaling.sweep.plan import PlanConfig, plan_cells, with_overrides
from herd.scaling.sweep.view import SweepView, numbers_so_far
from herd.scaling.sweep.wandb import SweepLog, SweepWandbConfig, log_sweep
from herd.scaling.sweep_stage import log_new, numbers_of

from ..conftest import make_sweep

pytest.importorskip("wandb")


@pytest.mark.usefixtures("pictures")
def test_cells_and_a_summary_form_one_group_and_read_back(tmp_path: Path) -> None:
    records = make_sweep(noise=0.01, budgets=(1e11,), factors=(0.5, 1.0, 2.0))
    records[0] = replace(records[0], tasks={"arc": 0.3}, lr=1e-3)
    records[2] = replace(records[2], status="failed", loss=float("nan"), error="out of memory")
    figure = tmp_path / "isoflop.png"
    from matplotlib.figure import Figure

    Figure(figsize=(1, 1)).savefig(figure)
    curves = {records[0].cell: [{"step": i, "loss": 7.0 - i, "num_tokens": i * 100} for i in range(1, 4)]}
    log_sweep(SweepWandbConfig("offline", "p", "sweep-1"), tmp_path, records, curves, {"alpha": 0.5, "A": None}, [figure])
    runs = {run["name"]: run for run in (read_offline_run(file) for file in tmp_path.rglob("*.wandb"))}
    assert set(runs) == {*(record.cell for record in records), "summary"}
    assert {run["group"] for run in runs.values()} == {"sweep-1"}
    first = runs[records[0].cell]
    assert first["config"]["budget"] == 1e11 and first["config"]["lr"] == 1e-3 and first["config"]["tokens"] == records[0].tokens
    assert first["summary"]["num_tokens"] == 300 and first["summary"]["loss"] == records[0].loss
    assert runs[records[2].cell]["state"] == "failed" and runs[records[2].cell]["config"]["error"] == "out of memory"
    summary = runs["summary"]
    assert summary["summary"]["alpha"] == 0.5 and "A" not in summary["summary"]
    assert summary["summary"]["cells"]["_type"] == "table-file" and summary["summary"]["isoflop"]["_type"] == "image-file"
    from herd.scaling.records.readers import TableOptions

    again = read_runs(f"wandb:{tmp_path}", TableOptions(where={"group": "sweep-1", "config.cells": ""})).records
    by_cell = {record.cell: record for record in again}
    assert by_cell[records[0].cell] == records[0] and by_cell[records[2].cell].status == "failed"


def test_disabled_writes_nothing_and_a_wrong_mode_is_refused(tmp_path: Path) -> None:
    log_sweep(SweepWandbConfig(), tmp_path, make_sweep(), {}, {}, [])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="Did you mean 'offline'"):
        SweepWandbConfig("ofline")


def test_a_running_sweep_is_followed(tmp_path: Path) -> None:
    """Cells as they finish, a row with the law so far for each, one per wave; started again, no cell is logged twice."""
    records = make_sweep(noise=0.001, budgets=(1e11, 2e11, 4e11), factors=(0.25, 0.5, 1.0, 2.0, 4.0))
    cells = [with_overrides(plan_cells(PlanConfig([1e12], vocab_size=1024)).cells[0], [f"x={record.cell}"]) for record in records]
    rows = [replace(record, cell=cell.id) for record, cell in zip(records, cells, strict=True)]
    config, folder = SweepWandbConfig("offline", "p", "live"), tmp_path / "sweep"
    for count in (12, 15):  # the sweep ends after twelve cells, and goes on
        with SweepLog(config, tmp_path, tmp_path / "logged") as log:
            view = SweepView(cells, folder)
            for done in range(count - 2, count + 1):
                write_table(folder / "table.csv", rows[:done])
                log_new(log, view)
            goal = GoalEstimate("ok", "", 10.0, 0.5, (9.0, 11.0), 0.95, 5.0)
            wave = Wave(2, "train", "goal", "why", tuple(row.cell for row in rows), estimate=goal)
            log.progress(rows[:count], lambda known, wave=wave: numbers_of(wave, known), table=True)  # type: ignore[misc]
    runs = [read_offline_run(file) for file in sorted(tmp_path.rglob("*.wandb"))]
    assert sorted(run["name"] for run in runs) == sorted([*(row.cell for row in rows), "progress", "progress"])
    assert {run["group"] for run in runs} == {"live"} and {run["state"] for run in runs} == {"finished"}
    first, last = sorted(
        (run["summary"] for run in runs if run["name"] == "progress"), key=lambda summary: summary["cells/finished"]
    )
    assert (first["cells/finished"], last["cells/finished"], last["cells/ok"]) == (12, 15, 15)
    assert last["flops"] == pytest.approx(sum(row.flops for row in rows)) and last["best_loss"] == min(row.loss for row in rows)
    law = numbers_so_far(rows)
    assert law["optima"] == 3 and [last[name] for name in law] == pytest.approx([law[name] for name in law])
    assert (last["wave"], last["goal"], last["goal_low"], last["goal_high"]) == (2, 10.0, 9.0, 11.0)
    assert last["cells"]["_type"] == "table-file" and last["cells"]["nrows"] == 15


def test_a_sweep_that_nobody_follows_writes_nothing(tmp_path: Path) -> None:
    with SweepLog(SweepWandbConfig(), tmp_path, tmp_path / "logged") as log:
        log.cell(make_sweep()[0], [])
        log.progress(make_sweep(), numbers_so_far)
        log.summary(make_sweep(), {}, [])
    assert list(tmp_path.iterdir()) == []
