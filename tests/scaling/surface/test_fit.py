"""The loss surface and the frontier law: recovery, invariance, refusals, published optima."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from herd.config.errors import UserError
from herd.scaling.loss_law import fit_loss_law
from herd.scaling.surface.batch import refit_surface
from herd.scaling.surface.fit import OBJECTIVES, fit_surface
from herd.scaling.surface.solvers import SOLVERS, Solution, minimise

CHINCHILLA = (1.8172, 477.8, 2143.0, 0.3473, 0.3672)


def points(truth=CHINCHILLA, count: int = 40, seed: int = 0):  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(seed)
    n, d = 10 ** rng.uniform(7, 10, count), 10 ** rng.uniform(9, 12, count)
    E, A, B, a, b = truth
    return n, d, E + A / n**a + B / d**b


@pytest.mark.parametrize("objective", OBJECTIVES.names())
@pytest.mark.parametrize("solver", SOLVERS.names())
@settings(max_examples=6)
@given(st.floats(0.3, 3), st.floats(50, 2000), st.floats(50, 5000), st.floats(0.2, 0.5), st.floats(0.2, 0.5))
def test_all_five_parameters_are_recovered(objective: str, solver: str, E: float, A: float, B: float, a: float, b: float) -> None:
    surface = fit_surface(*points((E, A, B, a, b)), objective, solver=solver, check=False)
    assert surface.status == "ok"
    assert (surface.E, surface.A, surface.B, surface.a, surface.b) == pytest.approx((E, A, B, a, b), rel=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES.names())
@settings(max_examples=8)
@given(st.floats(1e-9, 1e3), st.floats(1e-12, 1e3), st.floats(0.1, 10), st.integers(0, 99))
def test_units_and_row_order_do_not_matter(objective: str, of_n: float, of_d: float, of_loss: float, seed: int) -> None:
    n, d, y = points()
    rng = np.random.default_rng(seed)
    y = y * np.exp(0.01 * rng.normal(size=len(y)))
    order = rng.permutation(len(y))
    one = fit_surface(n, d, y, objective)
    other = fit_surface(n[order] * of_n, d[order] * of_d, y[order] * of_loss, objective)
    assert (other.E / of_loss, other.a, other.b) == pytest.approx((one.E, one.a, one.b), rel=1e-6)
    assert other.A / of_n**other.a / of_loss == pytest.approx(one.A, rel=1e-5)
    assert other.B / of_d**other.b / of_loss == pytest.approx(one.B, rel=1e-5)
    assert other.value == pytest.approx(one.value * (of_loss**2 if objective == "squared" else 1), rel=1e-9)


@pytest.mark.parametrize("pins", [{}, {"E": 1.7}, {"A": 480.0}, {"B": 2000.0, "a": 0.35}, {"E": 0.0}, {"a": 0.3, "b": 0.4}])
@pytest.mark.parametrize("tie", [False, True])
def test_ties_and_pins_against_a_naive_least_squares(pins: dict[str, float], tie: bool) -> None:
    if tie and len(pins) == 2 and "b" in pins:
        pins = {"a": pins["a"]}
    n, d, y = points(count=60)
    y = y * np.exp(0.01 * np.random.default_rng(4).normal(size=60))
    surface = fit_surface(n, d, y, "squared_log", tie_exponents=tie, pins=pins)
    names = [name for name in "EABab" if name not in pins and not (tie and (name == "b" or (name == "a" and "b" in pins)))]

    def residual(x: np.ndarray) -> np.ndarray:
        v = dict(zip(names, np.exp(x), strict=True)) | pins
        if tie:
            v["b"] = v["a"]
        return np.log(v["E"] + v["A"] / n ** v["a"] + v["B"] / d ** v["b"]) - np.log(y)

    start = [math.log(dict(zip("EABab", CHINCHILLA, strict=True))[name]) for name in names]
    naive = optimize.least_squares(residual, start, x_scale=0.1, xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=20_000)
    assert surface.status == "ok" and surface.free == len(names) and surface.freedom == 60 - len(names)
    assert surface.value <= naive.cost * (1 + 1e-9) and surface.value == pytest.approx(naive.cost, rel=1e-6)
    assert surface.residual_std**2 * surface.freedom == pytest.approx(2 * surface.value, rel=1e-9)
    for name, value in pins.items():
        assert getattr(surface, name) == pytest.approx(value, rel=1e-12)
    assert not tie or surface.a == surface.b
    variance = np.diag(np.array(surface.covariance))
    zero = [name in pins or (tie and {"a", "b"} & set(pins) != set() and name in "ab") for name in "EABab"]
    assert (variance[zero] < 1e-18).all() and (variance[~np.array(zero)] > 0).all()


def test_a_pinned_surface_needs_fewer_points_and_says_how_many() -> None:
    n, d, y = points(count=7)
    with pytest.raises(UserError, match=r"5 parameters to fit: 7 runs .* \(at least 8, 3 and 3\)"):
        fit_surface(n, d, y)
    assert fit_surface(n, d, y, pins={"E": CHINCHILLA[0]}).status == "ok"
    assert fit_surface(n, d, y, tie_exponents=True).free == 4
    two = np.where(np.arange(7) % 2, 1e8, 1e9)
    surface = fit_surface(two, d, CHINCHILLA[0] + 477.8 / two**0.35 + 2143 / d**0.37, pins={"a": 0.35})
    assert (surface.status, surface.A, surface.b) == ("ok", pytest.approx(477.8), pytest.approx(0.37))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"pins": {"alpha": 0.3}}, "Cannot pin 'alpha'.*Choices: E, A, B, a, b"),
        ({"pins": {"A": 0.0}}, "Cannot pin A at 0.0: give a finite number above 0"),
        ({"pins": {"E": -1.0}}, "or E = 0"),
        ({"pins": {"a": 0.3, "b": 0.4}, "tie_exponents": True}, "Tied exponents cannot be pinned at a = 0.3 and b = 0.4"),
        ({"pins": dict(zip("EABab", CHINCHILLA, strict=True))}, "nothing is left to fit"),
        ({"solver": "newton"}, "Unknown surface solver 'newton'"),
        ({"delta": 0.0}, "must be above 0"),
    ],
)
def test_options_are_refused(options, says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=says):
        fit_surface(*points(), **options)


def test_solvers_that_disagree_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    n, d, y = points()
    y = y * np.exp(0.01 * np.random.default_rng(1).normal(size=len(y)))
    honest = fit_surface(n, d, y)

    def astray(problem, starts, target, restarts=10):  # type: ignore[no-untyped-def]
        return Solution(starts, np.array([problem.slope(s, target)[0] for s in starts]), np.ones(len(starts), dtype=bool), 1)

    monkeypatch.setattr("herd.scaling.surface.fit.lbfgs", astray)
    surface = fit_surface(n, d, y)
    assert surface.status == "solvers_disagree" and surface.value == honest.value
    assert "by varpro" in surface.reason and "by lbfgs" in surface.reason and surface.covariance is None
    assert fit_surface(n, d, y, check=False).status == "ok"


def test_a_solver_cut_short_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("herd.scaling.surface.fit.minimise", lambda *a: minimise(*a, iterations=2))
    assert fit_surface(*points(), check=False).status == "not_converged"


def test_runs_along_one_line_do_not_tell_the_terms_apart() -> None:
    n = np.geomspace(1e7, 1e10, 12)
    surface = fit_surface(n, 20 * n, 1.8 + 500 / n**0.35, tie_exponents=True)  # A and B are one number here
    assert surface.status in ("undetermined", "at_bound") and surface.covariance is None


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
@pytest.mark.parametrize("delta", [4e-4, 1e-3, 3e-3])  # Huber's: nearly absolute values, the usual, nearly squares
def test_the_covariance_is_the_scatter_of_refits(objective: str, delta: float) -> None:
    if objective != "huber_log" and delta != 1e-3:
        return
    n, d, y = points(count=60)
    exact = fit_surface(n, d, y, objective, delta)
    noise = np.exp(0.004 * np.random.default_rng(3).normal(size=(200, 60)))
    batch = refit_surface(exact, n, d, y * noise)
    theta = np.stack([np.log(batch.E), batch.log_A, batch.log_B, batch.a, batch.b], axis=1)
    fits = [fit_surface(n, d, y * row, objective, delta, check=False) for row in noise[:30]]
    said = np.mean([np.sqrt(np.diag(np.array(s.covariance))) for s in fits], axis=0)
    assert said == pytest.approx(theta.std(axis=0), rel=0.2)


def test_replicates_scatter_as_refits_do() -> None:
    n, d, y = points(count=60)
    rng = np.random.default_rng(2)
    losses = y * np.exp(0.01 * rng.normal(size=(20, 60)))
    batch = refit_surface(fit_surface(n, d, y, "squared_log"), n, d, losses)
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
        (lambda n, d, y: (n * 0 + 1e8, d, y), "with 1 sizes"),
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
