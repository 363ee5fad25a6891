"""The loss surface and the frontier law: recovery, invariance, refusals, published optima."""

import csv
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.config.errors import UserError
from herd.scaling.loss_law import fit_loss_law
from herd.scaling.surface import OBJECTIVES, bootstrap_surface, fit_surface

CHINCHILLA = (1.8172, 477.8, 2143.0, 0.3473, 0.3672)


def points(truth=CHINCHILLA, count: int = 40, seed: int = 0):  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(seed)
    n, d = 10 ** rng.uniform(7, 10, count), 10 ** rng.uniform(9, 12, count)
    E, A, B, a, b = truth
    return n, d, E + A / n**a + B / d**b


@pytest.mark.parametrize("objective", OBJECTIVES.names())
@settings(max_examples=10)
@given(st.floats(0.3, 3), st.floats(50, 2000), st.floats(50, 5000), st.floats(0.2, 0.5), st.floats(0.2, 0.5))
def test_all_five_parameters_are_recovered(objective: str, E: float, A: float, B: float, a: float, b: float) -> None:
    surface = fit_surface(*points((E, A, B, a, b)), objective)
    assert surface.status == "ok"
    assert (surface.E, surface.A, surface.B, surface.a, surface.b) == pytest.approx((E, A, B, a, b), rel=1e-6)


def test_units_and_row_order_do_not_matter() -> None:
    n, d, y = points()
    y = y * np.exp(0.01 * np.random.default_rng(1).normal(size=len(y)))
    one = fit_surface(n, d, y)
    other = fit_surface(n[::-1] / 1e6, d[::-1] / 1e9, y[::-1] / math.log(2))
    assert (other.E * math.log(2), other.a, other.b) == pytest.approx((one.E, one.a, one.b), rel=1e-5)
    assert other.A * 1e6**other.a * math.log(2) == pytest.approx(one.A, rel=1e-4)
    assert other.value == pytest.approx(one.value, rel=1e-9)


def test_the_closed_form_optimum_is_the_minimum_along_the_budget() -> None:
    surface = fit_surface(*points())
    n, d = surface.optimum(1e21)
    assert 6 * n * d == pytest.approx(1e21)
    grid = n * np.geomspace(0.5, 2, 2001)
    assert grid[np.argmin(surface.loss(grid, 1e21 / 6 / grid))] == pytest.approx(n, rel=1e-3)


def test_the_jacobian_is_the_derivative() -> None:
    truth = np.array([0.5, 6.0, 7.0, 0.35, 0.4])

    def log_loss(t: np.ndarray) -> np.ndarray:
        E, A, B = np.exp(t[:3])
        return np.log(E + A / n ** t[3] + B / d ** t[4])

    n, d, y = points((*np.exp(truth[:3]), *truth[3:]))
    surface = fit_surface(n, d, y)
    numeric = [(log_loss(truth + h) - log_loss(truth - h)) / 2e-6 for h in 1e-6 * np.eye(5)]
    assert surface.jacobian(n, d) == pytest.approx(np.stack(numeric, axis=1), rel=1e-4, abs=1e-7)
    assert surface.jacobian(1e9, 1e10).shape == (5,)


@pytest.mark.parametrize("objective", OBJECTIVES.names())
def test_the_covariance_is_the_scatter_of_refits(objective: str) -> None:
    n, d, y = points(count=80)
    rng = np.random.default_rng(3)
    fits = [fit_surface(n, d, y * np.exp(0.003 * rng.normal(size=80)), objective, delta=3e-3) for _ in range(60)]
    theta = np.array([[*np.log([s.E, s.A, s.B]), s.a, s.b] for s in fits])
    said = np.mean([np.sqrt(np.diag(np.array(s.covariance))) for s in fits], axis=0)
    assert said == pytest.approx(theta.std(axis=0), rel=0.25)


def test_replicates_scatter_as_refits_do() -> None:
    n, d, y = points(count=60)
    rng = np.random.default_rng(2)
    losses = y * np.exp(0.01 * rng.normal(size=(40, 60)))
    batch = bootstrap_surface(fit_surface(n, d, y, "squared_log"), n, d, losses)
    alone = [fit_surface(n, d, row, "squared_log") for row in losses]
    assert batch.a == pytest.approx([s.a for s in alone], rel=1e-4)
    assert batch.loss(1e9, 1e11) == pytest.approx([float(s.loss(1e9, 1e11)) for s in alone], rel=1e-6)
    assert batch.optimal_tokens(1e22) == pytest.approx([s.optimum(1e22)[1] for s in alone], rel=1e-4)


def test_a_surface_that_the_data_do_not_determine_says_so() -> None:
    n, d, _ = points()
    flat = fit_surface(n, d, 2 + 500 / n**0.4)  # tokens do not matter at all
    assert flat.status == "at_bound" and "B" in flat.reason


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda n, d, y: (n[:5], d[:5], y[:5]), "too few"),
        (lambda n, d, y: (n * 0 + 1e8, d, y), "1 sizes"),
        (lambda n, d, y: (n, d, np.where(y > 2.5, np.nan, y)), "finite"),
        (lambda n, d, y: (n, -d, y), "above 0"),
        (lambda n, d, y: (n, d[:-1], y), "equally many"),
    ],
)
def test_refusals(change, says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=says):
        fit_surface(*change(*points()))


def test_unknown_objective() -> None:
    with pytest.raises(UserError, match="Did you mean 'huber_log'"):
        fit_surface(*points(), objective="huber-log")


@given(st.floats(0.0, 3), st.floats(0.5, 3), st.floats(0.05, 0.8))
def test_the_frontier_law_is_recovered(E: float, k: float, g: float) -> None:
    budgets = np.geomspace(1e11, 1e13, 5)
    reference = np.exp(np.log(budgets).mean())
    law = fit_loss_law(budgets, E + k * (budgets / reference) ** -g)
    assert law.reference == pytest.approx(reference)
    assert float(law.loss(1e14)) == pytest.approx(E + k * (1e14 / reference) ** -g, rel=1e-3)
    assert law.residual_std == pytest.approx(0, abs=1e-4)


def test_the_frontier_law_says_what_it_is() -> None:
    budgets = np.array([1e11, 2e11, 4e11])
    assert fit_loss_law(budgets, np.array([5.0, 4.5, 4.2])).status == "exact"
    # Losses that fall faster and faster have no irreducible part.
    assert fit_loss_law(np.geomspace(1e11, 8e11, 4), np.array([5.0, 4.8, 4.4, 3.5])).status == "at_bound"
    with pytest.raises(UserError, match="2 budgets are too few"):
        fit_loss_law(budgets[:2], np.array([5.0, 4.5]))


@pytest.fixture(scope="module")
def epoch(reference_data):  # type: ignore[no-untyped-def]
    path = reference_data / "scaling" / "epoch-research-analyzing-chinchilla" / "svg_extracted_data.csv"
    rows = list(csv.DictReader(path.open()))
    n = np.array([float(r["Model Size"]) for r in rows])
    c = np.array([float(r["Training FLOP"]) for r in rows])
    return n, c / 6 / n, np.array([float(r["loss"]) for r in rows]), c


def test_oracle_6_chinchilla_huber(epoch) -> None:  # type: ignore[no-untyped-def]
    n, d, y, _ = epoch
    keep = np.argsort(y)[:240]
    surface = fit_surface(n[keep], d[keep], y[keep])
    assert surface.value <= 0.0010182745
    assert (surface.E, surface.a, surface.b) == pytest.approx((1.8172, 0.3473, 0.3672), abs=5e-4)
    terms = (surface.A / 477.8, surface.B / 2143)
    assert terms == pytest.approx((1, 1), rel=0.02)


def test_oracle_8_nothing_dropped(epoch) -> None:  # type: ignore[no-untyped-def]
    surface = fit_surface(*epoch[:3])
    assert pytest.approx(1, rel=0.03) == surface.B / 12846
    assert (surface.E, surface.b) == pytest.approx((1.8913, 0.4530), abs=1e-3)


def test_oracle_9_squared_error(epoch) -> None:  # type: ignore[no-untyped-def]
    n, d, y, c = epoch
    keep = np.argsort(y)[:240]
    keep = keep[c[keep] < 1e21]
    surface = fit_surface(n[keep] / 1e6, d[keep] / 1e9, y[keep], "squared")
    assert len(keep) == 217 and 2 * surface.value == pytest.approx(0.062414, abs=2e-6)
    expected = (1.9051, 4.0005, 1.0509, 0.3511, 0.4587)
    assert (surface.E, surface.A, surface.B, surface.a, surface.b) == pytest.approx(expected, abs=2e-4)
