"""The sweeper in real Hydra multiruns of a stand-in application: pairs, order, skips, failures, deaths, refusals."""

import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from rich.console import Console

from herd.config.errors import UserError
from herd.scaling.records.readers import read_table
from herd.scaling.records.record import Record, write_table
from herd.scaling.records.units import FLOPS_CONVENTIONS, recount_flops
from herd.scaling.sweep.folder import make_record
from herd.scaling.sweep.plan import PlanConfig, plan_cells, write_plan
from herd.scaling.sweep.plan_rules import SizeRule, TrainingRule
from herd.scaling.sweep.view import SweepView, law_so_far

from .conftest import make_sweep
from .sweep_app import job

APP = Path(__file__).with_name("sweep_app.py")
CONFIG = """
curriculum: {tokens: 1, batch_tokens: 1}
optimizer: {lr: 1.0}
model: {dim: 1, n_layers: 1, n_heads: 1, n_kv_heads: 1, ffn_dim: 1, tie_embeddings: false}
fail: ""
fail_dim: 24
log: ???
seed: 0
hydra: {output_subdir: null, job: {chdir: false}, job_logging: {root: {handlers: []}}}
"""
PLAN = PlanConfig(
    budgets=[1e10, 2e10],
    sizes=SizeRule(count=3, span=4, centre_parameters=6e4, centre_flops=1e10),
    training=TrainingRule(min_steps=5),
    seq_len=128,
    vocab_size=2048,
)


class Sweep:
    """A folder with the application's configuration and a plan, and the command that sweeps it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out, self.log = folder, folder / "out", folder / "log.txt"
        (folder / "conf").mkdir()
        (folder / "conf" / "app.yaml").write_text(CONFIG)
        self.plan = plan_cells(PLAN)
        write_plan(folder / "cells.json", self.plan)

    def arguments(self, *more: str, launcher: str = "basic") -> list[str]:
        return [
            *("hydra/sweeper=herd_cells", f"hydra/launcher={launcher}"),
            f"hydra.searchpath=[file://{Path(__file__).parents[2] / 'conf'}]",
            *(f"hydra.sweep.dir={self.out}", f"hydra.sweeper.cells={self.folder / 'cells.json'}", f"log={self.log}"),
            *more,
        ]

    def run(self, *more: str) -> Any:
        """A multirun in this process, as `hydra.main` starts it."""
        GlobalHydra.instance().clear()
        path = create_config_search_path(str(self.folder / "conf"))
        try:
            hydra = Hydra.create_main_hydra2(task_name="app", config_search_path=path)
            return hydra.multirun("app", job, self.arguments(*more), with_log_configuration=False)
        finally:
            GlobalHydra.instance().clear()

    def start(self, *more: str, launcher: str = "basic") -> "subprocess.Popen[str]":
        """A multirun in a process of its own."""
        command = [sys.executable, str(APP), str(self.folder / "conf"), "-m", *self.arguments(*more, launcher=launcher)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)

    def started(self) -> list[int]:
        """Tokens of each job in the order in which they began."""
        return [int(line.split()[0]) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def table(self) -> list[Record]:
        return read_table(self.out / "table.csv")


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return Sweep(tmp_path)


def dim_of(cell: Any) -> int:
    return next(int(o.split("=")[1]) for o in cell.overrides if o.startswith("model.dim="))


def test_pairs_run_costliest_first_and_a_second_run_skips_them(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    sweep.run()
    table = sweep.table()
    assert len(table) == len(sweep.plan.cells) == 6 and {r.status for r in table} == {"ok"}
    for record, cell in zip(table, sweep.plan.cells, strict=True):
        n, d = 100.0 * dim_of(cell) ** 2, float(cell.tokens)
        assert record.loss == pytest.approx(1.9 + 60 / n**0.35 + 180 / d**0.33)
        assert (record.cell, record.tokens, record.batch_tokens) == (cell.id, cell.tokens, cell.batch_tokens)
    seconds = {cell.tokens: cell.seconds for cell in sweep.plan.cells}
    order = [seconds[tokens] for tokens in sweep.started()]
    assert order == sorted(order, reverse=True)
    assert capsys.readouterr().err.count("loss ") == 6  # a line for each finished cell
    sweep.log.unlink()
    sweep.run()
    assert "6 finished before" in capsys.readouterr().err
    assert sweep.started() == []
    assert sweep.table() == table


@pytest.mark.parametrize(
    ("kind", "status", "says"),
    [
        ("raise", "failed", "RuntimeError: the machine is on fire"),
        ("exit", "failed", "SystemExit: 3"),
        ("metric", "failed", "returned no 'loss' (it returned perplexity)"),
        ("tokens", "failed", "trained on 7 tokens instead of"),
        ("not_finite", "diverged", "not finite"),
    ],
)
def test_a_bad_cell_is_recorded_and_the_others_go_on(
    sweep: Sweep, kind: str, status: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep.run(f"fail={kind}")
    table = sweep.table()
    bad = [r for r in table if r.status != "ok"]
    failing = [cell.id for cell in sweep.plan.cells if dim_of(cell) == 24]
    assert len(table) == 6 and [r.cell for r in bad] == failing != []
    assert all(r.status == status and says in r.error for r in bad)
    assert says in capsys.readouterr().err or status == "diverged"


def test_failed_cells_and_changed_settings_run_again(sweep: Sweep) -> None:
    sweep.run("fail=raise")
    sweep.log.unlink()
    failed = [r for r in sweep.table() if r.status == "failed"]
    sweep.run("fail=raise")
    assert len(sweep.started()) == len(failed) < 6  # the failed ones only
    sweep.log.unlink()
    sweep.run("fail=raise", "seed=1")
    assert len(sweep.started()) == 6  # another configuration is another run


def test_cells_in_batches(sweep: Sweep) -> None:
    sweep.run("hydra.sweeper.batch_size=4")
    assert len(sweep.table()) == len(sweep.started()) == 6


def test_a_dying_worker_costs_its_cell_only(sweep: Sweep) -> None:
    """joblib, two at a time: a killed worker takes down the pool, and with it the launcher's whole answer."""
    child = sweep.start("fail=kill", "hydra.launcher.n_jobs=2", launcher="joblib")
    _, errors = child.communicate(timeout=300)
    assert child.returncode == 0, errors
    table = sweep.table()
    lost = {r.cell: r.error for r in table if r.status == "failed"}
    assert len(table) == 6
    assert {cell.id for cell in sweep.plan.cells if dim_of(cell) == 24} <= set(lost)
    assert sum(r.status == "ok" for r in table) >= 2
    assert all("terminated" in error.lower() for error in lost.values())


def test_submitit_runs_the_cells_in_processes_of_its_own(sweep: Sweep) -> None:
    """Slurm's launcher with its executor for one machine: every cell is a job with folders and a pickle of its own."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs the extra `cluster`")
    child = sweep.start("hydra.launcher.timeout_min=5", "hydra.sweeper.batch_size=2", "fail=raise", launcher="submitit_local")
    _, errors = child.communicate(timeout=300)
    assert child.returncode == 0, errors
    table = sweep.table()
    failed = [r for r in table if r.status != "ok"]
    assert len(table) == 6 and [r.cell for r in failed] == [cell.id for cell in sweep.plan.cells if dim_of(cell) == 24]
    assert all("on fire" in r.error for r in failed)


def test_the_law_so_far_stands_beside_each_finished_cell(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    sweep.run()
    lines = [line for line in capsys.readouterr().err.splitlines() if "loss " in line]
    assert len(lines) == 6 and all("no alpha yet: 0 of " in line for line in lines)
    truth = make_sweep(noise=0.01)
    for count, says in ((3, "0 of 1"), (8, "1 of 2"), (10, "an interval needs 3"), (20, "from 4 of 4 budgets")):
        assert says in law_so_far(truth[:count])
    known = re.search(r"alpha so far ([\d.]+) \[([\d.]+), ([\d.]+)\]", law_so_far(truth))
    assert known and float(known[2]) < 0.35 / 0.68 < float(known[3])
    assert "above the largest" in law_so_far(make_sweep(factors=(0.1, 0.2, 0.3, 0.4)))


def test_the_law_so_far_counts_earlier_waves(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    earlier = make_sweep(noise=0.01)
    write_table(sweep.folder / "before.csv", earlier)
    sweep.run(f"hydra.sweeper.before={sweep.folder / 'before.csv'}")
    lines = [line for line in capsys.readouterr().err.splitlines() if "loss " in line]
    assert len(lines) == 6 and all("alpha so far" in line for line in lines)
    assert "of 6 budgets" in lines[-1]  # four of the earlier ones, two of the sweep's own
    assert len(sweep.table()) == 6  # the table is the sweep's own


def test_the_live_table_shows_every_cell_in_its_state(sweep: Sweep) -> None:
    sweep.run("fail=raise")
    (sweep.out / sweep.plan.cells[0].id / "result.json").unlink()
    rows = [r for r in sweep.table() if r.cell not in (sweep.plan.cells[0].id, sweep.plan.cells[1].id)]
    write_table(sweep.out / "table.csv", rows)
    (sweep.out / sweep.plan.cells[1].id / "started").unlink()
    view, out = SweepView(sweep.plan.cells, sweep.out), io.StringIO()
    Console(file=out, width=150).print(view.table())
    lines = {cell.id: next(line for line in out.getvalue().splitlines() if cell.id in line) for cell in sweep.plan.cells}
    assert "training" in lines[sweep.plan.cells[0].id] and "waiting" in lines[sweep.plan.cells[1].id]
    for record in rows:
        assert ("on fire" in lines[record.cell]) == (record.status == "failed")
        assert record.status != "ok" or f"{record.loss:.3f}" in lines[record.cell]
    assert "no alpha yet" in out.getvalue()
    empty = io.StringIO()
    Console(file=empty, width=150).print(SweepView(sweep.plan.cells, sweep.folder / "none").table())
    assert empty.getvalue().count("waiting") == 6


def test_all_cells_failing_is_an_error_with_the_first_reason(sweep: Sweep) -> None:
    plan = plan_cells(
        PlanConfig(
            budgets=[1e10], sizes=SizeRule(1, 1, 6.8e4, 1e10), training=TrainingRule(min_steps=5), seq_len=128, vocab_size=2048
        )
    )
    write_plan(sweep.folder / "cells.json", plan)
    with pytest.raises(UserError, match=r"None of the 1 cells has a usable loss.*on fire"):
        sweep.run("fail=raise")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["seed=1,2"], "cells are pairs"),
        (["optimizer.lr=1e-3"], "the cells set optimizer.lr themselves"),
        (["hydra.sweeper.cells=/nowhere/cells.json"], "No plan '/nowhere/cells.json'"),
        (["hydra.sweeper.cells=null"], "has no cells"),
        (["hydra.sweeper.plan={budgets: []}", "hydra.sweeper.cells=null"], "budgets"),
        (["hydra.sweeper.plan={budget: [1e9]}", "hydra.sweeper.cells=null"], "Did you mean 'budgets'"),
    ],
)
def test_refusals_before_any_cell_runs(sweep: Sweep, arguments: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        sweep.run(*arguments)
    assert sweep.started() == []


def test_a_killed_sweep_keeps_its_finished_cells(sweep: Sweep) -> None:
    child = sweep.start()
    while not list(sweep.out.glob("*/result.json")):
        assert child.poll() is None or child.returncode == 0
        time.sleep(0.005)
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()
    finished = len(list(sweep.out.glob("*/result.json")))
    before = len(sweep.started())
    sweep.run()
    assert len(sweep.table()) == 6
    assert len(sweep.started()) - before == 6 - finished


def test_a_sweep_ends_with_the_process_that_started_it(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERD_SWEEP_PARENT", "1")  # not its parent: as if that had died
    child = sweep.start("fail=sleep")
    assert child.wait(timeout=120) == -signal.SIGKILL
    child.communicate()


def test_a_loss_above_that_of_guessing_is_divergence() -> None:
    cell = plan_cells(PLAN).cells[0]
    above = math.log(2048)

    def status(**result: Any) -> tuple[str, str]:
        record = make_record(cell, {"metrics": {}, "error": "", "seconds": 1.0, **result}, "loss", above)
        return record.status, record.error

    assert status(metrics={"loss": above - 0.01}) == ("ok", "")
    assert status(metrics={"loss": above + 0.01})[0] == "diverged"
    assert status(metrics={"loss": None})[0] == "diverged"
    assert status(error="boom", metrics={"loss": 3.0}) == ("failed", "boom")
    assert status(metrics={"nll": 3.0})[0] == "failed"


def test_a_record_says_what_its_numbers_count() -> None:
    """Parameters by part add up to the count in matrix products, and the FLOPs can be counted by any convention."""
    for cell in plan_cells(PLAN).cells:
        job = {"loss": 3.0, "schedule": "cosine", "mixture": "code=0.2 web=0.8"}
        record = make_record(cell, {"metrics": job, "error": "", "seconds": 1.0}, "loss", 9.0)
        assert record.block_parameters + record.head_parameters == record.parameters  # type: ignore[operator]
        assert record.embedding_parameters == 0 and record.head_parameters % record.width == 0  # type: ignore[operator]
        assert (record.schedule, record.mixture, record.seq_len) == ("cosine", "code=0.2 web=0.8", PLAN.seq_len)
        for convention in FLOPS_CONVENTIONS.keys() - {"unstated", "6N_non_embedding"}:
            assert recount_flops(record, convention).flops >= record.flops
        blocks = recount_flops(record, "6N_non_embedding").flops
        assert blocks == 6 * record.block_parameters * record.tokens < record.flops  # type: ignore[operator]


def test_an_unreadable_result_counts_as_none(sweep: Sweep) -> None:
    sweep.run()
    cell = sweep.plan.cells[0].id
    (sweep.out / cell / "result.json").write_text('{"digest": "')
    other = sweep.plan.cells[1].id
    result = json.loads((sweep.out / other / "result.json").read_text())
    (sweep.out / other / "result.json").write_text(json.dumps({**result, "digest": "of another configuration"}))
    sweep.log.unlink()
    sweep.run()
    assert len(sweep.started()) == 2
