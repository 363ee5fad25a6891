"""IsoFLOP curves: recovery, refusals, invariance, parabola against Akima."""

import dataclasses
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import Akima1DInterpolator

from herd.config.errors import UserError
from herd.scaling.curves.isoflop import IsoFLOPConfig, fit_isoflop
from herd.scaling.records.record import Record


def curve_of(xs, losses, budget=1e12, **config):  # type: ignore[no-untyped-def]
    rows = [
        Record(f"c{i}", budget, budget / 6 / 10**x, 10**x, budget, y) for i, (x, y) in enumerate(zip(xs, losses, strict=True))
    ]
    return fit_isoflop(rows, IsoFLOPConfig(**config))[0]


@given(st.floats(5.2, 6.8), st.floats(0.1, 2.0), st.floats(2.0, 8.0))
def test_an_exact_parabola_is_recovered(vertex: float, curvature: float, lowest: float) -> None:
    xs = np.linspace(5, 7, 5)
    curve = curve_of(xs, lowest + curvature * (xs - vertex) ** 2)
    assert curve.status == "ok"
    assert math.log10(curve.tokens) == pytest.approx(vertex, abs=1e-8)
    assert curve.loss == pytest.approx(lowest, abs=1e-8)
    assert curve.log10_tokens_se == pytest.approx(0, abs=1e-5)


def test_the_standard_errors_are_those_of_many_noisy_sweeps() -> None:
    xs, noise = np.linspace(5, 7, 9), 0.01
    rng = np.random.default_rng(0)
    curves = [curve_of(xs, 3 + 0.5 * (xs - 5.8) ** 2 + noise * rng.normal(size=9)) for _ in range(400)]
    vertices = np.array([math.log10(c.tokens) for c in curves])
    assert np.std(vertices) == pytest.approx(np.mean([c.log10_tokens_se for c in curves]), rel=0.1)
    assert np.std([c.loss for c in curves]) == pytest.approx(np.mean([c.loss_se for c in curves]), rel=0.1)


@pytest.mark.parametrize(
    ("losses", "status", "says"),
    [
        ([1, 2, 2.5, 2, 1], "concave", "opens downwards"),
        ([1, 2, 3, 4, 5], "concave", "opens downwards"),
        ([5, 4, 3.2, 2.6, 2.2], "no_interior_minimum", "add smaller models"),
        ([2.2, 2.6, 3.2, 4, 5], "no_interior_minimum", "add larger models"),
    ],
)
def test_a_curve_without_an_optimum_is_refused(losses: list[float], status: str, says: str) -> None:
    curve = curve_of(np.linspace(5, 7, 5), losses)
    assert (curve.status, curve.tokens, curve.loss) == (status, None, None)
    assert says in curve.reason


def test_too_few_points_are_refused_and_three_leave_no_standard_error() -> None:
    xs = np.array([5.0, 6.0, 7.0])
    losses = 3 + (xs - 6) ** 2
    assert curve_of(xs, losses).status == "too_few_points"
    curve = curve_of(xs, losses, min_points=3)
    assert (curve.status, curve.log10_tokens_se, curve.residual_std) == ("ok", None, None)
    # The same size five times is one point, not five.
    assert curve_of(np.full(5, 6.0), [3, 3.1, 3.2, 3.3, 3.4]).status == "too_few_points"
    with pytest.raises(UserError, match="at least 3"):
        IsoFLOPConfig(min_points=2)


def test_failed_diverged_and_far_points_are_left_out_and_named() -> None:
    xs = np.linspace(5, 7, 7)
    rows = [Record(f"c{i}", 1e12, 1e5, 10**x, 1e12, 3 + (x - 6) ** 2) for i, x in enumerate(xs)]
    rows[0] = dataclasses.replace(rows[0], status="failed", loss=math.nan, error="boom")
    rows[6] = dataclasses.replace(rows[6], loss=9.0)
    curve = fit_isoflop(rows, IsoFLOPConfig(max_excess_loss=2.0))[0]
    assert {d.cell: d.reason.split()[0] for d in curve.dropped} == {"c0": "boom", "c6": "loss"}
    assert curve.used == ("c5", "c4", "c3", "c2", "c1")[::-1]
    assert curve.tokens == pytest.approx(1e6)


def test_far_points_stay_when_too_few_would_remain() -> None:
    xs = np.linspace(5, 7, 5)
    curve = curve_of(xs, 3 + 4 * (xs - 6) ** 2, max_excess_loss=0.1)
    assert len(curve.used) == 4 and len(curve.dropped) == 1


def test_row_order_and_units_do_not_matter(sweep) -> None:  # type: ignore[no-untyped-def]
    rows = sweep(noise=0.02)
    shuffled = rows[:]
    random.Random(1).shuffle(shuffled)
    assert fit_isoflop(rows) == fit_isoflop(shuffled)
    scaled = [dataclasses.replace(r, tokens=r.tokens / 1e9, loss=r.loss / math.log(2)) for r in rows]
    for one, other in zip(fit_isoflop(rows), fit_isoflop(scaled), strict=True):
        assert other.tokens * 1e9 == pytest.approx(one.tokens, rel=1e-9)
        assert other.loss * math.log(2) == pytest.approx(one.loss, rel=1e-9)
        assert other.log10_tokens_se == pytest.approx(one.log10_tokens_se, rel=1e-6)


def asymmetric(x: np.ndarray) -> np.ndarray:
    """A valley at 6 that is steeper to its left."""
    return 3 + np.exp(-1.5 * (x - 6)) / 1.5 + np.exp(0.5 * (x - 6)) / 0.5 - 1 / 1.5 - 2


def test_akima_follows_a_lopsided_valley_where_a_parabola_is_pulled() -> None:
    xs = np.linspace(5.2, 7.0, 9)
    at = {name: math.log10(curve_of(xs, asymmetric(xs), curve=name).tokens) for name in ("parabola", "akima")}
    assert abs(at["akima"] - 6) < 0.02 < abs(at["parabola"] - 6)


def test_akimas_minimum_is_that_of_a_dense_search() -> None:
    for seed in range(30):
        rng = np.random.default_rng(seed)
        xs = np.sort(rng.uniform(5, 7, 8))
        losses = asymmetric(xs) + 0.03 * rng.normal(size=8)
        curve = curve_of(xs, losses, curve="akima")
        dense = np.linspace(xs[0], xs[-1], 200_001)
        values = Akima1DInterpolator(xs, losses)(dense)
        if curve.status == "ok":
            assert math.log10(curve.tokens) == pytest.approx(dense[values.argmin()], abs=2e-5)
            assert curve.loss == pytest.approx(values.min(), abs=1e-8)
            assert curve.loss_at(10 ** dense[1000]) == pytest.approx(values[1000], abs=1e-9)
        else:
            assert values.argmin() in (0, len(dense) - 1) or curve.status == "concave"


@pytest.mark.parametrize("curve", ["parabola", "akima"])
@pytest.mark.parametrize(
    ("losses", "status"),
    [([1, 2, 2.5, 2, 1], "concave"), ([5, 4, 3.2, 2.6, 2.2], "no_interior_minimum"), ([1, 2, 3, 4], "too_few_points")],
)
def test_both_curves_refuse_alike(curve: str, losses: list[float], status: str) -> None:
    result = curve_of(np.linspace(5, 7, len(losses)), losses, curve=curve, min_points=5)
    assert (result.status, result.tokens, result.parameters, result.log10_tokens_se) == (status, None, None, None)
    assert result.reason


def test_akimas_standard_error_is_that_of_many_noisy_sweeps() -> None:
    xs, noise = np.linspace(5, 7, 9), 0.01
    rng = np.random.default_rng(0)
    curves = [curve_of(xs, 3 + 0.5 * (xs - 5.8) ** 2 + noise * rng.normal(size=9), curve="akima") for _ in range(200)]
    vertices = np.array([math.log10(c.tokens) for c in curves])
    assert np.std(vertices) == pytest.approx(np.mean([c.log10_tokens_se for c in curves]), rel=0.25)
    parabolas = [curve_of(xs, 3 + 0.5 * (xs - 5.8) ** 2 + noise * rng.normal(size=9)) for _ in range(200)]
    assert np.std(vertices) > 1.3 * np.std([math.log10(c.tokens) for c in parabolas])  # it follows the noise, too


def test_akima_without_a_standard_error_says_why() -> None:
    xs = np.linspace(5, 7, 5)
    curve = curve_of(xs, [4.0, 3.3, 3.4, 2.999, 3.0], curve="akima")
    assert curve.status == "ok" and curve.log10_tokens_se is None
    assert "have no minimum inside their points" in curve.se_reason


def test_a_curve_in_parameters_reads_its_tokens_off_the_cells() -> None:
    """Parameters as a table counts them need not be C / 6D: the vertex is found in them, its tokens between the cells."""
    xs = np.linspace(5, 7, 7)
    rows = [Record(f"c{i}", 1e12, 3e3 * 10 ** (0.9 * (7 - x)), 10**x, 1e12, 3 + (x - 5.9) ** 2) for i, x in enumerate(xs)]
    curve = fit_isoflop(rows, IsoFLOPConfig(x="parameters"))[0]
    assert math.log10(curve.tokens) == pytest.approx(5.9, abs=1e-9)
    assert math.log10(curve.parameters / 3e3) == pytest.approx(0.9 * 1.1, abs=1e-9)
    tokens = fit_isoflop(rows, IsoFLOPConfig(x="tokens"))[0]
    assert curve.log10_tokens_se == pytest.approx(tokens.log10_tokens_se, abs=1e-9)
    assert tokens.parameters == pytest.approx(curve.parameters, rel=1e-9)
    noisy = [dataclasses.replace(r, loss=r.loss + 0.01 * (-1) ** i) for i, r in enumerate(rows)]
    ses = [fit_isoflop(noisy, IsoFLOPConfig(x=axis))[0].log10_tokens_se for axis in ("tokens", "parameters")]
    assert ses[0] == pytest.approx(ses[1], rel=1e-6)


@pytest.mark.parametrize("axis", ["tokens", "parameters"])
def test_the_models_to_add_are_the_same_on_both_axes(axis: str) -> None:
    for losses, says in (([5, 4, 3.2, 2.6, 2.2], "add smaller models"), ([2.2, 2.6, 3.2, 4, 5], "add larger models")):
        assert says in curve_of(np.linspace(5, 7, 5), losses, x=axis).reason  # losses by tokens, ascending


def test_settings_that_do_not_exist_are_refused() -> None:
    with pytest.raises(UserError, match="Did you mean 'tokens'"):
        IsoFLOPConfig(x="token")
    with pytest.raises(UserError, match="Unknown curve 'spline'"):
        IsoFLOPConfig(curve="spline")
    with pytest.raises(UserError, match="at least 100"):
        IsoFLOPConfig(redraws=3)
