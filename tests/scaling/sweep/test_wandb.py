"""A sweep on W&B: real offline runs, read back by our own reader."""

from dataclasses import replace
from pathlib import Path

import pytest

from herd.config.errors import UserError
from herd.scaling.records.readers import read_runs
from herd.scaling.records.wandb import read_offline_run
from herd.scaling.sweep.wandb import SweepWandbConfig, log_sweep

from ..conftest import make_sweep

pytest.importorskip("wandb")


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
