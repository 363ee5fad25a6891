"""`herd scaling-fit`: fit.json, what it prints, where it puts things, and the paper's example in one command."""

import contextlib
import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from herd.cli import main
from herd.config.errors import UserError
from herd.config.loader import compose
from herd.recipe.job import make_job
from herd.runs.stage import Artifact
from herd.scaling.fit_json import surface_json
from herd.scaling.fit_report import show_fit
from herd.scaling.numbers import compute, power, si, span, times
from herd.scaling.records.record import Record, write_table
from herd.scaling.study import laws_of, load_study
from herd.scaling.surface.fit import fit_surface

from .conftest import make_sweep


def fit_of(folder: Path, records: list[Record], *overrides: str) -> Artifact:
    write_table(folder / "runs.csv", records)
    job = make_job("scaling-fit", compose("scaling-fit", ["replicates=200", f"run.root={folder}/runs", *overrides]))
    return replace(job, config=replace(job.config, table=str(folder / "runs.csv"))).execute()


def printed(artifact: Artifact, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    show_fit(artifact)
    return capsys.readouterr().out


def test_fit_json_holds_every_law_with_status_and_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = make_sweep(noise=0.01)
    records[3] = replace(records[3], status="failed", loss=float("nan"), error="out of memory")
    artifact = fit_of(tmp_path, records, "target_flops=[8e12,8e13]")
    fit = json.loads((artifact / "fit.json").read_text())
    assert fit["status"] == "ok" and fit["alpha_interval"][0] < fit["alpha"] < fit["alpha_interval"][1]
    assert [curve["status"] for curve in fit["curves"]] == ["ok"] * 4
    assert fit["dropped"] == [{"cell": records[3].cell, "reason": "out of memory"}] and fit["dropped_rows"] == []
    assert fit["table"]["usable"] == 19 and fit["table"]["flops_convention"] == "6N"
    assert [row["budget"] for row in fit["jackknife"]["left_out"]] == [1e11, 2e11, 4e11, 8e11]
    assert fit["forecast"] is None and [round(one["extrapolation_ratio"]) for one in fit["forecasts"]] == [10, 100]
    assert all(one["tokens_interval"] and one["loss_interval"] for one in fit["forecasts"])
    assert not (artifact.path / "flagship.json").exists() and "flagship" not in artifact.metrics
    text = printed(artifact, capsys)
    assert f"not used {records[3].cell}: out of memory" in text and "8e13" in text and "100x" in text
    assert f"alpha {fit['alpha']:.4f} [{fit['alpha_interval'][0]:.4f}, " in text


def test_a_study_without_a_flagship_opens(tmp_path: Path) -> None:
    artifact = fit_of(tmp_path, make_sweep(noise=0.01), "run.name=x")
    study = load_study(tmp_path / "runs" / "x")
    assert study.flagship is None and study.forecast is None and study.curves == {}
    fit = json.loads((artifact / "fit.json").read_text())
    laws = laws_of(artifact)
    assert laws.tokens is not None and laws.tokens.exponent == fit["alpha"]
    (tmp_path / "runs.csv").unlink()  # the fit keeps the table that it read
    assert load_study(tmp_path / "runs" / "x").laws.tokens == laws.tokens


@pytest.mark.parametrize(
    ("budgets", "factors", "status", "says"),
    [
        ((1e11,), (0.25, 0.5, 1.0, 2.0, 4.0), "no_law", "1 of 1 budgets have an optimum, 2 needed"),
        ((1e11, 4e11, 8e11), (0.5, 1.0), "no_law", "0 of 3 budgets have an optimum"),
        ((1e11, 4e11), (0.25, 0.5, 1.0, 2.0, 4.0), "no_law", "no interval"),
    ],
)
def test_too_little_for_a_law_has_a_status_instead_of_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], budgets: Any, factors: Any, status: str, says: str
) -> None:
    artifact = fit_of(tmp_path, make_sweep(noise=0.01, budgets=budgets, factors=factors))
    fit = json.loads((artifact / "fit.json").read_text())
    assert fit["status"] == status
    assert says in " ".join(printed(artifact, capsys).split())
    with pytest.raises(UserError, match="No law for the optimal tokens"):
        fit_of(tmp_path, make_sweep(noise=0.01, budgets=budgets, factors=factors), "flagship_flops=1e13")


def test_hundreds_of_budgets_give_one_short_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    factors = np.exp(np.random.default_rng(0).uniform(-1.5, 1.5, 60))
    budgets = np.geomspace(1e11, 1e13, 60)
    records = [make_sweep(0.003, i, (c,), (factors[i],))[0] for i, c in enumerate(budgets)]
    artifact = fit_of(tmp_path, records)
    text = printed(artifact, capsys)
    assert "60 budgets  1 each" in text and "no two runs share a budget" in text
    assert "0 of 60 budgets have an optimum, 2 needed (1e+11 to 1e+13 FLOPs, 60 budgets: too_few_points" in text
    assert max(map(len, text.splitlines())) < 500 and "same_budget" not in text
    with pytest.raises(UserError) as refused:
        fit_of(tmp_path, records, "target_flops=[1e14]")
    assert len(str(refused.value)) < 300
    by_surface = fit_of(tmp_path, records, "target_flops=[1e14]", "fallback=surface")
    (one,) = json.loads((by_surface / "fit.json").read_text())["forecasts"]
    assert one["method"] == "surface" and one["tokens_interval"][0] < one["tokens"] < one["tokens_interval"][1]


def test_a_surface_lost_in_noise_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = fit_of(tmp_path, make_sweep(noise=0.4, seed=3, factors=(0.5, 0.7, 1.0, 1.4, 2.0)))
    surface = json.loads((artifact / "fit.json").read_text())["surface"]
    assert surface["intervals"] is None or surface["status"] == "weak"
    assert surface["status"] != "ok" and surface["reason"] in " ".join(printed(artifact, capsys).split())


def test_budgets_torn_apart_by_rounding_are_named_and_joined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exact = make_sweep(noise=0.01)
    torn = [replace(r, budget=(c := r.flops * (1 + 0.01 * math.sin(i))), flops=c, tokens=c / 6 / r.parameters)
            for i, r in enumerate(exact)]  # fmt: skip
    text = printed(fit_of(tmp_path, torn), capsys)
    assert "4 budgets if those within 5% of each other are one: same_budget=0.05" in text
    joined = fit_of(tmp_path, torn, "same_budget=0.05")
    fit = json.loads((joined / "fit.json").read_text())
    assert [curve["status"] for curve in fit["curves"]] == ["ok"] * 4
    assert [curve["budget"] for curve in fit["curves"]] == pytest.approx([1e11, 2e11, 4e11, 8e11], rel=0.01)
    assert fit["alpha"] == pytest.approx(json.loads((fit_of(tmp_path, exact) / "fit.json").read_text())["alpha"], abs=0.02)
    with pytest.raises(UserError, match=r"same_budget 0\.6: give a share"):
        fit_of(tmp_path, torn, "same_budget=0.6")


def test_the_forecast_names_the_interval_that_spans_all_laws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = fit_of(tmp_path, make_sweep(noise=0.01), "target_flops=[8e12]")
    (one,) = json.loads((artifact / "fit.json").read_text())["forecasts"]
    ends = [law["interval"] for law in one["by_law"].values()]
    assert len(ends) == 2 and one["loss_interval"] == [min(e[0] for e in ends), max(e[1] for e in ends)]
    assert any("{:.4f}, {:.4f}".format(*one["loss_interval"]) in line and "all laws" in line
               for line in printed(artifact, capsys).splitlines())  # fmt: skip


def test_dropped_rows_are_in_the_json_and_on_the_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = make_sweep(noise=0.01)
    records[3] = replace(records[3], loss=-1.0)
    with pytest.raises(UserError, match=r"runs\.csv: line 5 \(1e\+11-3\): loss is -1\.0; must be finite and above 0"):
        fit_of(tmp_path, records)
    artifact = fit_of(tmp_path, records, "on_bad_rows=drop")
    fit = json.loads((artifact / "fit.json").read_text())
    assert [row["row"] for row in fit["dropped_rows"]] == ["line 5 (1e+11-3)"] and fit["table"]["rows"] == 19
    assert "dropped line 5 (1e+11-3): loss is -1.0" in printed(artifact, capsys)


def test_out_is_a_copy_that_a_second_command_replaces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(tmp_path / "runs.csv", make_sweep(noise=0.01))
    command = ["scaling-fit", f"table={tmp_path}/runs.csv", "replicates=200", f"run.root={tmp_path}/r", f"out={tmp_path}/out"]
    main(command)
    first = capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"fit.json", "table.csv", "figures", "manifest.json"}
    (tmp_path / "out" / "mine.txt").write_text("stays")
    (tmp_path / "out" / "fit.json").write_text("{}")
    main([*command, "confidence=0.9"])
    again = capsys.readouterr().out
    assert "alpha" in first and "(95%;" in first and "(90%;" in again
    assert json.loads((tmp_path / "out" / "fit.json").read_text())["confidence"] == 0.9
    assert (tmp_path / "out" / "mine.txt").read_text() == "stays"
    main(command)  # finished before: copied and shown again
    assert "(95%;" in capsys.readouterr().out
    (tmp_path / "file").write_text("")
    for bad, says in ((f"out={tmp_path}/file", "is a file"), ("out.x=1", "out")):
        with pytest.raises(SystemExit) as caught:
            main([*command[:-1], bad])
        assert caught.value.code == 2 and says in capsys.readouterr().err
    plan = ["scaling-plan", "plan.vocab_size=1024", f"run.root={tmp_path}/r"]
    with pytest.raises(SystemExit):
        main([*plan, f"out={tmp_path}/out"])


def test_surface_intervals_follow_from_the_covariance() -> None:
    """Coverage of the exponent of tokens over 100 noisy sweeps of one truth: 95% within binomial error."""
    hits, truth = 0, 0.35 / 0.68
    for seed in range(100):
        rows = make_sweep(noise=0.004, seed=seed, factors=(0.1, 0.3, 1.0, 3.0, 10.0), budgets=np.geomspace(1e11, 1e15, 8))
        n, d, y = (np.array([getattr(r, name) for r in rows]) for name in ("parameters", "tokens", "loss"))
        low, high = surface_json(fit_surface(n, d, y, "squared"), 0.95)["intervals"]["tokens_exponent"]
        hits += low < truth < high
    assert 88 <= hits <= 100


def test_numbers_as_people_read_them() -> None:
    assert [si(v) for v in (16.1e12, 9.56e12, 393.3e9, 4.408e9, 1234.0, 999.6, 0.5, 12.0, None)] == [
        "16.1T", "9.56T", "393B", "4.41B", "1.23K", "1.00K", "0.50", "12.0", "-",
    ]  # fmt: skip
    assert [compute(v) for v in (3.8e25, 1e22, 1.234e9)] == ["3.8e25", "1e22", "1.23e9"]
    assert (power(3e11), power(1e22)) == ("3×10¹¹", "10²²")
    assert span((0.4948, 0.5787)) == "[0.495, 0.579]" and span(None) == "no interval"
    assert (times(3800), times(2.5)) == ("3,800x", "2.5x")


@pytest.fixture(scope="module")
def paper(reference_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The paper's example in one command: its fit.json, and what it prints."""
    folder = tmp_path_factory.mktemp("paper")
    table = reference_data / "scaling" / "llama3-isoflop" / "llama_3_isoflops.csv"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        main(["scaling-fit", "+experiment=llama3_isoflop", f"table={table}", f"out={folder}/out", f"run.root={folder}/runs"])
    return json.loads((folder / "out" / "fit.json").read_text()), printed.getvalue()


def test_the_papers_example_gives_the_papers_numbers(paper: tuple[dict[str, Any], str]) -> None:
    fit, _ = paper
    assert fit["alpha"] == pytest.approx(0.53678, abs=5e-4) and fit["A"] == pytest.approx(0.29936, abs=1.5e-3)
    vertices = [4.408, 5.135, 7.558, 11.533, 15.321, 25.309, 40.965, 54.601, 98.165, 238.24]
    assert [curve["tokens"] / 1e9 for curve in fit["curves"]] == pytest.approx(vertices, rel=5e-3)
    first, second = fit["forecast"], fit["forecasts"][0]
    assert (first["tokens"], first["parameters"]) == pytest.approx((16.10e12, 393.3e9), rel=1e-3)
    assert (second["tokens"], second["parameters"]) == pytest.approx((16.55e12, 402.8e9), rel=1e-3)
    assert all(len(curve["used"]) >= 6 and not curve["dropped"] for curve in fit["curves"])
    assert sum(len(curve["used"]) for curve in fit["curves"]) == 133


def test_beside_it_stands_what_the_paper_does_not_print(paper: tuple[dict[str, Any], str]) -> None:
    fit, text = paper
    assert fit["alpha_interval"] == pytest.approx((0.4948, 0.5787), abs=1e-3)
    assert fit["forecast"]["tokens_interval"] == pytest.approx((9.56e12, 27.12e12), rel=0.01)
    without = {row["budget"]: row["exponent"] for row in fit["jackknife"]["left_out"]}
    assert (without[1e22], without[6e18]) == pytest.approx((0.5108, 0.5562), abs=5e-4)
    surface = fit["surface"]
    assert (surface["E"], surface["a"], surface["b"]) == pytest.approx((0.6047, 0.3100, 0.3136), abs=1e-3)
    assert (surface["A"], surface["B"]) == pytest.approx((59.1, 155.1), rel=0.02) and surface["status"] == "ok"
    for part in ("[0.4948, 0.5787]", "[0.5108, 0.5562]", "16.10T  [9.56T, 27.1T]", "402.8B", "3,800x", "0.6047", "jackknife"):
        assert part in text


def test_the_experiment_composes_without_its_data() -> None:
    job = make_job("scaling-fit", compose("scaling-fit", ["+experiment=llama3_isoflop", "table=points.csv", "out=x"]))
    assert job.config.surface.objective == "squared" and job.config.flagship_flops == 3.8e25 and job.out == "x"


def test_numbers_beyond_any_run_stay_short() -> None:
    assert si(5.6957e80) == "5.7e80" and si(9.9e15) == "9,900T" and span((1.8e-110, 3e40), "si") == "[1.8e-110, 3e40]"
