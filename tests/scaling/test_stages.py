"""Stages: the child process of a sweep, the fit and its flagship, the study that a notebook opens."""

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from herd.config.errors import UserError
from herd.config.loader import compose, data_root, load
from herd.runs.stage import Artifact, Inputs, Stage, StageRun, execute
from herd.scaling import sweep_stage
from herd.scaling.fit_stage import STAGE as FIT
from herd.scaling.fit_stage import ScalingFitConfig
from herd.scaling.next_stage import STAGE as NEXT
from herd.scaling.next_stage import ScalingNextConfig
from herd.scaling.records.readers import read_table
from herd.scaling.records.record import Record, write_table
from herd.scaling.study import load_study
from herd.scaling.sweep.plan import PlanConfig, plan_cells, read_plan, write_plan
from herd.scaling.sweep.plan_rules import SizeRule, TrainingRule
from herd.scaling.sweep_stage import ScalingSweepConfig, check_sweep, run_child
from herd.training.pretrain_stage import PretrainConfig, as_forecast

from .conftest import LAPTOP, make_sweep, optimum, run_script

PLAN = PlanConfig(budgets=[1e11, 2e11, 4e11, 8e11], sizes=SizeRule(span=6), training=TrainingRule(), seq_len=256, vocab_size=1024)


def schema_of(schema: Any, command: str) -> Any:
    """The command's own configuration as composed without overrides."""
    composed = OmegaConf.to_container(compose(command), resolve=True)
    assert isinstance(composed, dict)
    return load(schema, {str(k): v for k, v in composed.items() if k not in ("run", "inputs")})


def finished_sweep(root: Path, records: list[Record], curves: bool = False) -> Artifact:
    """A scaling-sweep artifact as the stage would leave it, with a synthetic table."""

    def run(config: ScalingSweepConfig, inputs: Inputs, stage_run: StageRun) -> dict[str, Any]:
        write_table(stage_run.folder / "table.csv", records)
        for record in records[:3] if curves else []:
            rows = [{"step": i, "num_tokens": record.tokens * i / 20, "loss": 7 - 0.1 * i} for i in range(1, 21)]
            path = stage_run.folder / "curves" / f"{record.cell}.jsonl"
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return {"vocab_size": 1024}

    stage = Stage("scaling-sweep", 1, ScalingSweepConfig, run, "synthetic")
    return execute(stage, ScalingSweepConfig(PLAN, "cells"), {}, root, "study", "sweep")


def fit(root: Path, records: list[Record], **changes: Any) -> Artifact:
    finished_sweep(root, records, curves=True)
    config = ScalingFitConfig(**{"flagship_flops": 8e12, "replicates": 200, **changes})
    return execute(FIT, config, {"sweep": root / "study" / "sweep"}, root, "study", "fit")


def test_the_fit_chooses_a_flagship_that_pretraining_takes(tmp_path: Path) -> None:
    artifact = fit(tmp_path, make_sweep(noise=0.01))
    chosen = json.loads((artifact / "flagship.json").read_text())
    law = json.loads((artifact / "fit.json").read_text())
    n, d, loss = optimum(LAPTOP, 8e12)
    assert law["status"] == "ok" and law["alpha_interval"][0] < 0.35 / 0.68 < law["alpha_interval"][1]
    assert law["alpha"] == pytest.approx(0.35 / 0.68, abs=0.05)
    assert chosen["optimal_tokens"] == pytest.approx(d, rel=0.2)
    assert chosen["parameters"] == pytest.approx(n, rel=0.4)  # the nearest member of a coarse family
    assert chosen["flops"] == pytest.approx(8e12, rel=0.01)
    assert chosen["flops"] == 6 * chosen["parameters"] * chosen["tokens"]
    assert chosen["tokens"] % chosen["batch_tokens"] == 0 and chosen["batch_tokens"] % 1024 == 0
    assert chosen["lr"] == PLAN.training.learning_rate(chosen["parameters"])
    assert chosen["predicted_loss_interval"][0] < loss < chosen["predicted_loss_interval"][1]
    assert chosen["extrapolation_ratio"] == pytest.approx(10, rel=0.01)
    flagship = artifact.metrics["flagship"]
    assert {name: flagship[name] for name in ("parameters", "tokens", "flops")}.items() <= chosen.items()
    assert flagship["tokens_interval"] == chosen["optimal_tokens_interval"]
    assert flagship["parameters_interval"][0] < n < flagship["parameters_interval"][1]
    assert artifact.metrics["optima"] == 4 and artifact.metrics["best_cell_loss"] > loss
    config = as_forecast(schema_of(PretrainConfig, "pretrain"), artifact)
    assert (config.curriculum.tokens, config.optimizer.lr, config.model.vocab_size) == (chosen["tokens"], chosen["lr"], 1024)


@pytest.mark.usefixtures("pictures")
def test_figures_are_drawn_and_equal_inputs_give_equal_files(tmp_path: Path) -> None:
    records = make_sweep(noise=0.02)
    records[2] = replace(records[2], status="failed", loss=float("nan"), error="boom")
    records[7] = replace(records[7], status="diverged", loss=9.0, error="above")
    one, other = fit(tmp_path / "a", records), fit(tmp_path / "b", records)
    names = sorted(path.name for path in (one / "figures").iterdir())
    assert names == ["isoflop.png", "loss_law.png", "overtraining.png", "tokens_law.png"]
    for name in (*(f"figures/{name}" for name in names), "fit.json", "flagship.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    law = json.loads((one / "fit.json").read_text())
    assert [dropped["reason"] for dropped in law["dropped"]] == ["boom", "above"]


def test_a_foreign_table_gives_laws_without_a_model(tmp_path: Path) -> None:
    write_table(tmp_path / "table.csv", make_sweep(noise=0.01))
    config = ScalingFitConfig(flagship_flops=8e12, table=str(tmp_path / "table.csv"), replicates=200)
    artifact = execute(FIT, config, {}, tmp_path / "runs", "x")
    chosen = json.loads((artifact / "flagship.json").read_text())
    assert "model" not in chosen and chosen["tokens"] == chosen["optimal_tokens"] and chosen["flops"] == 8e12
    # Another content under the same name is another fit.
    write_table(tmp_path / "table.csv", make_sweep(noise=0.01, seed=1))
    assert execute(FIT, config, {}, tmp_path / "runs", "x").path != artifact.path


def test_a_sweep_without_a_law_is_refused_or_falls_back(tmp_path: Path) -> None:
    records = make_sweep(noise=0.01, budgets=(1e11, 4e11))
    with pytest.raises(UserError, match="No law for the optimal tokens"):
        fit(tmp_path / "a", records)
    surface = fit(tmp_path / "b", records, fallback="surface")
    law = json.loads((surface / "fit.json").read_text())
    assert law["status"] == "surface" and law["alpha"] is not None and law["alpha_interval"] is None
    guess = fit(tmp_path / "c", make_sweep(noise=0.01, budgets=(1e11,), factors=(0.5, 1, 2)), fallback="ratio")
    law = json.loads((guess / "fit.json").read_text())
    chosen = json.loads((guess / "flagship.json").read_text())
    assert law["status"] == "ratio" and law["alpha"] is None and "tokens" in law["reasons"]
    assert chosen["predicted_loss"] is None and chosen["model"]["dim"] > 0


def test_a_flagship_outside_the_family_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="outside the family of shapes"):
        fit(tmp_path, make_sweep(noise=0.01), flagship_flops=1e24)


def test_fit_refusals(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"give table=FILE or inputs\.sweep=FOLDER"):
        execute(FIT, ScalingFitConfig(flagship_flops=8e12), {}, tmp_path, "x")
    with pytest.raises(UserError, match="No run table"):
        execute(FIT, ScalingFitConfig(flagship_flops=8e12, table="/nowhere.csv"), {}, tmp_path, "x")
    for change, says in (
        ({"flagship_flops": -1}, "above 0"),
        ({"fallback": "guess"}, "Choices: refuse, surface, ratio"),
        ({"batch_multiple": 0}, "at least 1"),
    ):
        with pytest.raises(UserError, match=says):
            replace(ScalingFitConfig(flagship_flops=8e12), **change)


def test_a_child_streams_its_output_and_ends_with_us(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, last = run_child([sys.executable, "-c", "import os; print(os.environ['OMP_NUM_THREADS']); print('end'); exit(3)"])
    assert (code, last) == (3, "end")
    assert capsys.readouterr().err == "1\nend\n"
    # Under torchrun it is no rank: a cell would wait for others that never come.
    launch = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x", "SLURM_PROCID": "0"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in launch.items():
            patch.setenv(name, value)
        script = f"import os; print([name for name in {list(launch)} if name in os.environ])"
        assert run_child([sys.executable, "-c", script]) == (0, "[]")
        capsys.readouterr()
    # A child of the child sleeps on; an interrupt of ours must end it too.
    script = (
        "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        "print(p.pid, flush=True); p.wait()"
    )

    def interrupted(*args: Any, **options: Any) -> None:
        pids.append(int(args[0]))
        raise KeyboardInterrupt

    pids: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep_stage, "print", interrupted, raising=False)
        with pytest.raises(KeyboardInterrupt):
            run_child([sys.executable, "-c", script])
    for _ in range(200):
        if not _alive(pids[0]):
            break
        time.sleep(0.05)
    assert not _alive(pids[0])


def _alive(pid: int) -> bool:
    """Whether a process runs; one that ended but was not yet reaped does not."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout.strip()
    return bool(state) and not state.startswith("Z")


def test_a_terminal_gets_a_table_and_the_lines_that_it_lacks(tmp_path: Path) -> None:
    """In a pseudo-terminal: cells' lines are in the table, other lines above it."""
    plan = plan_cells(PLAN)
    write_plan(tmp_path / "cells.json", plan)
    script = f"""
import sys
from pathlib import Path
from herd.scaling.sweep.plan import read_plan
from herd.scaling.sweep_stage import run_child
from herd.scaling.sweep.view import SweepView
child = "print('  cell 1/9: 1e11 FLOPs: loss 3'); print('  cells/c1: 5/9 steps'); print('herd: a word to the person')"
with SweepView(read_plan(Path({str(tmp_path / "cells.json")!r})).cells, Path({str(tmp_path)!r})).shown() as view:
    result = run_child([sys.executable, "-c", child], view.line)
print(result)
"""
    ours, theirs = os.openpty()
    done = subprocess.run([sys.executable, "-c", script], stderr=theirs, stdout=subprocess.PIPE, text=True, check=True)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the end of a pseudo-terminal is an error
        while part := os.read(ours, 65536):
            shown += part
    os.close(ours)
    text = shown.decode()
    assert done.stdout == "(0, 'herd: a word to the person')\n"
    assert "herd: a word to the person" in text and plan.cells[0].id in text and "waiting" in text
    assert "cell 1/9" not in text and "5/9 steps" not in text


def finished_plan(root: Path, noise: float = 0.02) -> Artifact:
    """A scaling-sweep artifact of planned cells whose losses are a known surface's."""
    E, A, B, a, b = LAPTOP
    plan, rng = plan_cells(PLAN), np.random.default_rng(0)
    losses = [E + A / c.parameters**a + B / c.tokens**b + noise * rng.normal() for c in plan.cells]
    rows = [
        Record(c.id, c.budget, c.parameters, c.tokens, c.flops, loss, steps=c.steps, seconds=c.seconds)
        for c, loss in zip(plan.cells, losses, strict=True)
    ]

    def run(config: ScalingSweepConfig, inputs: Inputs, stage_run: StageRun) -> dict[str, Any]:
        write_table(stage_run.folder / "table.csv", rows)
        write_plan(stage_run.folder / "cells.json", plan)
        return {"vocab_size": 1024}

    stage = Stage("scaling-sweep", 1, ScalingSweepConfig, run, "synthetic")
    return execute(stage, ScalingSweepConfig(PLAN, "cells"), {}, root, "study", "sweep")


NEXT_PLAN = replace(PLAN, sizes=replace(PLAN.sizes, count=9), seeds=[0, 1])


def test_scaling_next_ranks_untrained_cells_that_a_sweep_can_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = finished_plan(tmp_path)
    config = ScalingNextConfig(NEXT_PLAN, budget=1.5e12, goal="log_tokens", goal_flops=8e12)
    artifact = execute(NEXT, config, {"sweep": sweep.path}, tmp_path, "study")
    content = json.loads((artifact / "next.json").read_text())
    assert content["status"] == "ok" and 0 < content["cost"] <= 1.5e12
    assert content["variance_after"] < content["variance_before"] == content["ranked"][0]["variance_before"]
    per_cost = [row["gain_per_cost"] for row in content["ranked"]]
    assert per_cost == sorted(per_cost, reverse=True) and len(content["ranked"]) > 30
    now = content["now"]["all"]
    assert now["interval"][0] < np.log(optimum(LAPTOP, 8e12)[1]) < now["interval"][1]
    assert content["misallocation"]["wasted_flops_mean"] > 0
    # What it writes is a plan: the earlier cells and the new ones, none of them the same run twice.
    earlier, cells = read_plan(sweep / "cells.json").cells, read_plan(artifact / "cells.json").cells
    assert cells[: len(earlier)] == earlier
    assert [cell.id for cell in cells[len(earlier) :]] == [row["cell"] for row in content["chosen"]]
    trained = {(cell.budget, cell.parameters) for cell in earlier}
    assert all(row["seed"] == 1 or (row["budget"], row["parameters"]) not in trained for row in content["ranked"])
    seeded = sweep_stage._with_seeds(read_plan(artifact / "cells.json"), 0)
    assert len({cell.id for cell in seeded.cells}) == len(cells) and all(cell.seed is not None for cell in seeded.cells)
    said = capsys.readouterr().err
    assert "10 times the largest fitted compute" in said and said.count("train c") == len(content["chosen"])
    assert "the interval should shrink to" in said and "wastes" in said


def test_scaling_next_for_a_decision_between_two_settings(tmp_path: Path) -> None:
    rows = [
        replace(r, cell=f"{mix}-{r.cell}", loss=r.loss + more, mixture=mix)
        for mix, more, seed in (("web", 0.0, 0), ("code", 0.01, 1))
        for r in make_sweep(noise=0.03, seed=seed)
    ]
    write_table(tmp_path / "runs.csv", rows)
    config = ScalingNextConfig(
        NEXT_PLAN,
        budget=0.02,
        unit="hours",
        goal="decision",
        goal_flops=8e12,
        table=str(tmp_path / "runs.csv"),
        compare="mixture",
        settings={"web": ["mix=web"], "code": ["mix=code"]},
    )
    artifact = execute(NEXT, config, {}, tmp_path / "runs", "x")
    content = json.loads((artifact / "next.json").read_text())
    assert 0.5 < content["right_before"] < content["right_after"] < 1 and content["cost"] <= 0.02
    for cell, row in zip(read_plan(artifact / "cells.json").cells, content["chosen"], strict=True):
        assert cell.overrides[-1] == f"mix={row['setting']}"


def test_scaling_next_refusals(tmp_path: Path) -> None:
    good = {"plan": NEXT_PLAN, "budget": 1e12, "goal": "alpha", "goal_flops": 8e12}
    for change, says in (
        ({"goal": "aplha"}, "Did you mean 'alpha'"),
        ({"budget": 0}, "above 0"),
        ({"unit": "days"}, "Choices: flops, hours"),
        ({"goal": "decision"}, "between two settings"),
        ({"compare": "mixture"}, "Other goals take neither"),
        ({"confidence": 90}, "fraction between 0 and 1"),
    ):
        with pytest.raises(UserError, match=says):
            ScalingNextConfig(**{**good, **change})
    with pytest.raises(UserError, match="reads one table"):
        execute(NEXT, ScalingNextConfig(**good), {}, tmp_path, "x")
    with pytest.raises(UserError, match="No run table"):
        execute(NEXT, ScalingNextConfig(**good, table="/nowhere.csv"), {}, tmp_path, "x")
    sweep = finished_plan(tmp_path)
    with pytest.raises(UserError, match="Every cell of the plan is trained"):
        execute(NEXT, ScalingNextConfig(**{**good, "plan": PLAN}), {"sweep": sweep.path}, tmp_path, "x")


def test_too_few_cells_are_one_clear_line() -> None:
    records = make_sweep()
    check_sweep(records, 20, 4)
    bad = [replace(r, status="failed", error="out of memory") for r in records[3:]]
    with pytest.raises(UserError, match=r"Only 3 of 20 cells of the sweep succeeded, 4 are needed.* out of memory"):
        check_sweep([*records[:3], *bad], 20, 4)
    with pytest.raises(UserError, match=r"stopped after 10 of 20 cells \(status -9\)"):
        check_sweep(records[:10], 20, 4, -9, "")
    check_sweep(records[:3], 3, 4)  # a plan of three cells cannot give four


@pytest.mark.parametrize("name", ["plain", "with space", "a=b,c", "quote's", "back\\slash", "end\\", "odd\\'s"])
def test_paths_reach_hydra_as_they_are(name: str) -> None:
    override = OverridesParser.create().parse_override(f"inputs.tokens={sweep_stage._quoted(Path('/tmp') / name)}")
    assert str(override.value()) == f"/tmp/{name}"


def test_what_cells_train_with_is_part_of_the_sweeps_address() -> None:
    config = schema_of(ScalingSweepConfig, "scaling-sweep")
    first = sweep_stage.fingerprint(config)
    other = sweep_stage.fingerprint(replace(config, plan=replace(config.plan, overrides=["curriculum=cosine", "eval_tokens=7"])))
    assert first["optimizer"] == other["optimizer"] and first != other


def test_the_sweep_files_compose_with_what_they_sweep() -> None:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    with initialize_config_dir(config_dir=str(data_root() / "conf"), version_base="1.3"):
        for name in ("cells", "isoflop_laptop", "isoflop_ci", "lr_laptop"):
            path = [f"hydra.searchpath=[file://{data_root()}]", f"+sweeps={name}"]
            composed = hydra_compose("pretrain", path, return_hydra_config=True)
            if name.startswith("isoflop"):
                plan = load(PlanConfig, composed.hydra.sweeper.plan)
                assert len(plan_cells(plan, 2048).cells) >= 4
                assert composed.hydra.sweeper._target_.endswith("CellSweeper")
            assert composed.hydra.sweep.dir.endswith(name)


def test_a_study_opens_what_the_stages_left(tmp_path: Path) -> None:
    artifact = fit(tmp_path, make_sweep(noise=0.02))
    study = load_study(tmp_path / "study")
    law = json.loads((artifact / "fit.json").read_text())
    assert study.laws.tokens is not None and study.laws.tokens.exponent == law["alpha"]
    assert study.forecast.loss == study.flagship["predicted_loss"]
    assert list(study.forecast.loss_interval) == study.flagship["predicted_loss_interval"]
    assert study.measured is None and len(study.curves) == 3
    with pytest.raises(UserError, match="no finished scaling-fit"):
        load_study(tmp_path)
    with pytest.raises(UserError, match="No run folder"):
        load_study(tmp_path / "none")


def test_the_notebook_runs_and_is_the_script(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import jupytext

    fit(tmp_path, make_sweep(noise=0.02))
    script = data_root() / "notebooks" / "scaling_laws.py"
    monkeypatch.setenv("HERD_RUN_FOLDER", str(tmp_path / "study"))
    monkeypatch.setenv("HERD_FIGURES_FOLDER", str(tmp_path / "figures"))
    run_script(script)
    said = capsys.readouterr().out
    assert "flagship: 8" in said and said.count("\nwithout") == 4
    assert "tokens_exponent" in said and "standard error of alpha" in said
    names = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert names == {"isoflop", "tokens_law", "loss_law", "residuals", "training_curves"}
    notebook = jupytext.read(script.with_suffix(".ipynb"))
    assert all(not cell.get("outputs") for cell in notebook.cells)
    assert [cell.source for cell in notebook.cells] == [cell.source for cell in jupytext.read(script).cells]


def test_tables_of_finished_sweeps_read_back(tmp_path: Path) -> None:
    artifact = finished_sweep(tmp_path, make_sweep(noise=0.1))
    assert read_table(artifact / "table.csv") == make_sweep(noise=0.1)
