"""Roll-out validation: what the numbers mean, published and known cases, refusals."""

import dataclasses
import json

import numpy as np
import pytest

from herd.config.errors import UserError
from herd.scaling.laws import LawsConfig, SurfaceConfig, fit_laws
from herd.scaling.records.readers import read_table
from herd.scaling.records.record import Record
from herd.scaling.validation import roll_out

from .conftest import LAPTOP, make_sweep, optimum

BUDGETS = tuple(np.geomspace(1e11, 6.4e12, 7))
FAST = LawsConfig(surface=SurfaceConfig("squared_log"), replicates=100)


def test_laws_without_noise_are_right_above_the_cut() -> None:
    # One exponent, so that the over-training law holds too; +-4x with no two runs at mirrored sizes, which would tie.
    factors, truth = (0.25, 0.4, 1.0, 2.0, 3.0), (1.9, 60.0, 180.0, 0.33, 0.33)
    found = roll_out(make_sweep(1e-6, budgets=BUDGETS, factors=factors, truth=truth), 8.1e11, FAST)
    assert len(found.fitted) == 4 and found.held_out == pytest.approx(BUDGETS[4:], rel=1e-5)
    for law in ("surface", "overtraining"):
        score = found.score(law)
        assert (score.status, score.decision_accuracy, score.pairs) == ("ok", 1.0, 30)
        assert score.error < 1e-4 and len(score.predictions) == 15
    # A parabola through +-4x is low by a part that does not change with the budget.
    assert found.score("tokens").error < 1e-2 and found.score("frontier").error < 1e-3
    assert found.score("frontier").decision_accuracy is None and found.score("frontier").pairs == 0
    largest = found.score("forecast").predictions[-1]
    assert largest.extrapolation_ratio == pytest.approx(8) and largest.flops == pytest.approx(BUDGETS[-1])


def test_error_bias_coverage_and_decisions_are_what_they_say() -> None:
    """The runs above the cut are made 10% worse than the law, and two of them swapped."""
    rows = make_sweep(1e-4, budgets=BUDGETS[:5])
    worse = [dataclasses.replace(r, loss=1.1 * r.loss) if r.budget > 1e12 else r for r in rows]
    first, second = (next(i for i, r in enumerate(worse) if r.cell.endswith(f"-{k}") and r.budget > 1e12) for k in (1, 2))
    one, other = worse[first], worse[second]
    worse[first], worse[second] = dataclasses.replace(one, loss=other.loss), dataclasses.replace(other, loss=one.loss)
    score = roll_out(worse, 1e12, FAST).score("surface")
    errors = [p.predicted / p.measured - 1 for p in score.predictions]
    assert score.bias == pytest.approx(np.mean(errors)) and score.bias == pytest.approx(1 / 1.1 - 1, abs=2e-3)
    assert score.error == pytest.approx(np.mean(np.abs(errors)))
    assert score.coverage == 0.0
    # Of the ten pairs the swapped one itself is wrong, and those with a run that lies between the two.
    between = sum(min(one.loss, other.loss) < r.loss < max(one.loss, other.loss) for r in worse if r.budget > 1e12)
    assert score.decision_accuracy == pytest.approx(1 - (1 + 2 * between) / 10)


def test_the_forecast_from_budgets_up_to_an_eighth_covers_the_run_at_c() -> None:
    hits, count = 0, 40
    for seed in range(count):
        rows = make_sweep(0.02, seed, BUDGETS[:4])
        n, d, loss = optimum(LAPTOP, 6.4e12)
        noise = 0.02 * np.random.default_rng(seed + 1000).normal()
        rows.append(Record("flagship", 6.4e12, n, d, 6.4e12, loss + noise))
        found = roll_out(rows, 8.1e11, dataclasses.replace(FAST, seed=seed))
        assert found.score("tokens").status == "nothing_measured"
        hits += found.score("forecast").coverage
    assert hits >= 0.9 * count, hits


def test_oracle_5_the_surface_below_1e21_is_1_15_percent_off_above(reference_data) -> None:  # type: ignore[no-untyped-def]
    path = reference_data / "scaling" / "llama3-isoflop" / "llama_3_isoflops.csv"
    rows = read_table(path, {"parameters": "params"}, {"condition": "raw_loss"})
    found = roll_out(rows, 1e21, LawsConfig(surface=SurfaceConfig("squared"), replicates=100))
    score = found.score("surface")
    assert len(score.predictions) == 12
    assert 100 * score.error == pytest.approx(1.15, abs=0.1)
    assert score.bias > 0  # the surface flattens too early
    assert found.score("frontier").error < score.error


def test_what_is_not_fitted_says_why_and_nothing_hides_in_json() -> None:
    rows = make_sweep(0.01, budgets=BUDGETS[:3])
    found = roll_out(rows, 1.5e11, FAST)
    assert {s.law: s.status for s in found.scores} == {
        "tokens": "not_fitted", "frontier": "not_fitted", "surface": "not_fitted", "overtraining": "not_fitted",
        "forecast": "not_fitted",
    }  # fmt: skip
    assert all(score.reason for score in found.scores)
    json.dumps(dataclasses.asdict(found), allow_nan=False)


def test_a_cut_without_runs_on_both_sides_is_refused() -> None:
    rows = make_sweep(budgets=BUDGETS[:3])
    for cut, says in ((1e10, "No usable run up to the cut"), (1e13, "No usable run above the cut")):
        with pytest.raises(UserError, match=says):
            roll_out(rows, cut, FAST)


def test_the_laws_are_those_of_the_runs_below_alone() -> None:
    rows = make_sweep(0.02, budgets=BUDGETS)
    below = fit_laws([r for r in rows if r.budget <= 8.1e11], FAST)
    found = roll_out(rows, 8.1e11, FAST)
    for prediction in found.score("tokens").predictions:
        assert prediction.predicted == pytest.approx(below.tokens.predict(prediction.flops), rel=1e-12)
