"""`herd scaling-forecast`: runs law by law, given runs, benchmarks, refusals."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from herd.config.errors import UserError
from herd.config.loader import compose
from herd.recipe.job import make_job
from herd.runs.stage import Artifact
from herd.scaling.forecast import forecast
from herd.scaling.forecast_stage import show
from herd.scaling.laws import LawsConfig, fit_laws
from herd.scaling.records.record import Record, write_table
from herd.scaling.run_forecasts import _by_surface, forecast_runs

from .conftest import LAPTOP, make_sweep, optimum


def forecast_of(folder: Path, records: list[Record], *overrides: str, command: str = "scaling-forecast") -> Artifact:
    write_table(folder / "runs.csv", records)
    settings = [f"table={folder}/runs.csv", "replicates=200", f"run.root={folder}/r", *overrides]
    return make_job(command, compose(command, settings)).execute()


def result_of(artifact: Artifact) -> dict[str, Any]:
    return dict(json.loads((artifact / "forecast.json").read_text()))


def test_every_law_names_its_optimum_with_interval_ratio_and_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = forecast_of(tmp_path, make_sweep(noise=0.005), "target_flops=[4e11,8e13]")
    inside, beyond = result_of(artifact)["runs"]
    assert (inside["status"], beyond["status"]) == ("interpolation", "extrapolation")
    assert beyond["extrapolation_ratio"] == pytest.approx(100)
    n, d, loss = optimum(LAPTOP, 8e13)
    for law in ("power_law", "surface"):
        found = beyond["optima"][law]
        assert found["status"] == "ok" and found["tokens_interval"][0] < d < found["tokens_interval"][1]
        assert found["parameters_interval"][0] < n < found["parameters_interval"][1]
    assert beyond["loss_interval"][0] < loss < beyond["loss_interval"][1]
    for law in ("frontier", "surface"):
        low, high = beyond["losses"][law]["interval"]
        assert beyond["loss_interval"][0] <= low < beyond["losses"][law]["loss"] < high <= beyond["loss_interval"][1]
    show(artifact)
    text = capsys.readouterr().out
    assert "8e13 FLOPs, 100x the largest budget (extrapolation)" in text and "loss, all laws" in text


def test_the_forecast_of_a_fit_is_that_of_its_table(tmp_path: Path) -> None:
    records = make_sweep(noise=0.01)
    fit = forecast_of(tmp_path, records, "target_flops=[8e12]", command="scaling-fit")
    by_table = result_of(forecast_of(tmp_path, records, "target_flops=[8e12]"))
    job = make_job(
        "scaling-forecast", compose("scaling-forecast", ["target_flops=[8e12]", f"++inputs.fit={fit.path}", "replicates=100"])
    )
    by_fit = result_of(replace(job, run=replace(job.run, root=str(tmp_path / "r"))).execute())
    assert by_fit["runs"] == by_table["runs"]
    in_fit = json.loads((fit / "fit.json").read_text())["forecasts"][0]
    assert by_fit["runs"][0]["optima"]["power_law"]["tokens_interval"] == in_fit["tokens_interval"]
    assert by_fit["runs"][0]["losses"]["frontier"]["loss"] == in_fit["by_law"]["frontier"]["loss"]


def test_a_given_run_is_held_against_the_best_of_its_compute() -> None:
    laws = fit_laws(make_sweep(noise=0.002, factors=(0.1, 0.3, 1.0, 3.0, 10.0)), LawsConfig(replicates=300))
    n, d, best = optimum(LAPTOP, 8e12)
    small = n / 4
    (one,) = forecast_runs(laws, [(8e12, small)])
    E, A, B, a, b = LAPTOP
    truth = E + A / small**a + B / (8e12 / 6 / small) ** b
    assert one.given and one.over_training == pytest.approx(4, rel=0.1) and one.tokens_per_parameter == pytest.approx(16 * d / n)
    assert one.loss_interval is not None and one.loss_interval == one.losses["surface"].interval
    assert one.loss_interval[0] < truth < one.loss_interval[1]
    assert one.penalty_interval is not None and one.penalty_interval[0] < truth - best < one.penalty_interval[1]
    assert one.penalty == pytest.approx(truth - best, rel=0.3)
    (same,) = forecast_runs(laws, [(8e12, None)])
    assert not same.given and same.penalty is None and same.tokens == forecast(laws, 8e12).tokens


def test_what_could_not_be_fitted_says_so_and_nothing_at_all_is_refused() -> None:
    two = fit_laws(make_sweep(noise=0.004, budgets=(1e11, 4e11)), LawsConfig(replicates=100))
    (one,) = forecast_runs(two, [(8e12, None)])
    assert one.optima["power_law"].status == "exact" and one.optima["power_law"].tokens is None
    assert one.losses["frontier"].status == "no_law" and "3 needed" in one.losses["frontier"].reason
    one_budget = fit_laws(make_sweep(noise=0.01, budgets=(1e11,), factors=(0.5, 1, 2)), LawsConfig(replicates=100))
    with pytest.raises(UserError, match=r"No law for the optimal tokens \(power_law: .*; surface: .*give parameters and tokens"):
        forecast_runs(one_budget, [(8e12, None)])
    (bare,) = forecast_runs(one_budget, [(8e12, 1e5)])
    assert bare.loss_interval is None and {x.status for x in bare.losses.values()} == {"no_law"}
    with pytest.raises(UserError, match="above 0"):
        forecast_runs(one_budget, [(math.inf, None)])


def scored(noise: float = 0.0, own_loss: bool = True) -> list[Record]:
    """A sweep whose benchmark follows 0.25 + 0.75 / (1 + exp(6 (l - 3.5))) of its own loss l = loss - 0.5."""
    rng = np.random.default_rng(0)
    rows = []
    for row in make_sweep(noise=0.003, budgets=np.geomspace(1e11, 1e14, 6), factors=(0.1, 0.3, 1.0, 3.0, 10.0)):
        task_loss = row.loss - 0.5
        score = 0.25 + 0.75 / (1 + math.exp(6 * (task_loss - 3.5))) + noise * rng.normal()
        rows.append(replace(row, tasks={"arc": score, "piqa": 0.5} | ({"arc/loss": task_loss} if own_loss else {})))
    return rows


@pytest.mark.parametrize("own_loss", [True, False])
def test_benchmarks_are_forecast_from_their_own_loss_or_the_held_out_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], own_loss: bool
) -> None:
    artifact = forecast_of(
        tmp_path, scored(0.004, own_loss), "target_flops=[5e14]", "++tasks.arc={chance: 0.25, ceiling: 1.0, questions: 5000}"
    )
    result = result_of(artifact)
    (task,) = result["tasks"]
    assert task["loss"] == ("task" if own_loss else "held-out") and result["tasks_not_forecast"] == ["piqa"]
    (one,) = task["forecasts"]
    truth = 0.25 + 0.75 / (1 + math.exp(6 * (optimum(LAPTOP, 5e14)[2] - 4.0)))
    assert one["accuracy_interval"][0] < truth < one["accuracy_interval"][1]
    assert one["extrapolation_ratio"] == pytest.approx(5)
    show(artifact)
    text = capsys.readouterr().out
    assert f"linked to the {task['loss']} loss" in text and "Not forecast: piqa (give ++tasks.piqa.chance=SHARE" in text


def test_refusals(tmp_path: Path) -> None:
    rows = scored()
    for overrides, says in (
        ([], "Nothing to forecast"),
        (["target_flops=[-1]"], "target_flops -1.0: give a number above 0"),
        (["parameters=1e6"], "needs two of parameters, tokens and target_flops"),
        (["parameters=1e6", "tokens=1e7", "target_flops=[1e13]"], "already say the compute"),
        (["target_flops=[1e13]", "++tasks.ark.chance=0.25"], r"no scores 'task/ark'\. Did you mean 'arc'"),
        (["target_flops=[1e13]", "++tasks.arc.chance=25"], "chance 25.0 is no share"),
    ):
        with pytest.raises(UserError, match=says):
            forecast_of(tmp_path, rows, *overrides)
    with pytest.raises(UserError, match="needs one source"):
        make_job("scaling-forecast", compose("scaling-forecast", ["target_flops=[1e13]", f"run.root={tmp_path}/x"])).execute()


def test_an_optimum_that_noise_puts_anywhere_is_no_number() -> None:
    laws = fit_laws(make_sweep(noise=0.005), LawsConfig(replicates=100))
    assert _by_surface(laws, 1e13, (1e6, 1e11)).tokens is not None
    for interval in ((1e6, 1e13), (0.0, 1e9), (1e6, math.inf)):
        lost = _by_surface(laws, 1e13, interval)
        assert lost.status == "undetermined" and lost.tokens is None and "lost in the noise" in lost.reason


def test_the_loss_of_an_optimum_is_within_the_span_of_both_laws() -> None:
    (one,) = forecast_runs(fit_laws(make_sweep(noise=0.005), LawsConfig(replicates=200)), [(1e12, None)])
    ends = [law.interval for law in one.losses.values() if law.interval is not None]
    assert len(ends) == 2 and one.loss_interval == (min(e[0] for e in ends), max(e[1] for e in ends))
    assert one.loss_interval not in ends  # neither alone


def test_the_surface_reads_parameters_off_the_flops() -> None:
    """Whatever convention counted: a table whose parameters leave the head out has the laws of its FLOPs."""
    records = make_sweep(noise=0.005)
    fewer = [replace(r, parameters=0.6 * r.parameters, flops_convention="unstated") for r in records]
    one, other = (fit_laws(rows, LawsConfig(replicates=100)).surface for rows in (records, fewer))
    assert one is not None and other is not None and (one.E, one.A, one.a) == (other.E, other.A, other.a)
