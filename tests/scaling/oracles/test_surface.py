"""Published fits of the loss surface: Llama 3's digitised points (row 5) and Chinchilla's (rows 6 to 9)."""

import csv
import itertools

import numpy as np
import pytest
from scipy import optimize

from herd.scaling.surface.bootstrap import bootstrap_surface
from herd.scaling.surface.fit import fit_surface
from herd.scaling.surface.model import LARGEST_EXPONENT, SMALLEST_EXPONENT, Problem
from herd.scaling.surface.solvers import SOLVERS, best_amounts, minimise

BEST_240 = 0.0010182745  # summed Huber loss of row 6
START_GRID = (range(0, 30, 5), range(0, 30, 5), np.arange(-1, 1.5, 0.5), np.arange(0, 2.5, 0.5), np.arange(0, 2.5, 0.5))


@pytest.fixture(scope="module")
def llama(reference_data):  # type: ignore[no-untyped-def]
    with (reference_data / "scaling" / "llama3-isoflop" / "llama_3_isoflops.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["experiment"] == "llama_3__raw_loss"]
    return tuple(np.array([float(row[name]) for row in rows]) for name in ("params", "tokens", "loss", "budget"))


@pytest.fixture(scope="module")
def epoch(reference_data):  # type: ignore[no-untyped-def]
    path = reference_data / "scaling" / "epoch-research-analyzing-chinchilla" / "svg_extracted_data.csv"
    with path.open() as file:
        rows = list(csv.DictReader(file))
    n = np.array([float(r["Model Size"]) for r in rows])
    c = np.array([float(r["Training FLOP"]) for r in rows])
    return n, c / 6 / n, np.array([float(r["loss"]) for r in rows]), c


@pytest.fixture(scope="module")
def epoch240(epoch):  # type: ignore[no-untyped-def]
    keep = np.argsort(epoch[2])[:240]  # the five highest losses dropped
    return tuple(column[keep] for column in epoch[:3])


@pytest.mark.parametrize("solver", SOLVERS.names())
def test_row_5_llama(llama, solver: str) -> None:  # type: ignore[no-untyped-def]
    n, d, y, _ = llama
    surface = fit_surface(n, d, y, "squared", solver=solver)
    assert len(y) == 133 and surface.status == "ok"
    assert (surface.E, surface.a, surface.b) == pytest.approx((0.6047, 0.3100, 0.3136), abs=1e-3)
    assert pytest.approx((59.1, 155.1), rel=0.02) == (surface.A, surface.B)


def test_row_5_rolled_out(llama) -> None:  # type: ignore[no-untyped-def]
    n, d, y, c = llama
    below = c <= 1.0001e21
    surface = fit_surface(n[below], d[below], y[below], "squared")
    error = np.abs(surface.loss(n[~below], d[~below]) / y[~below] - 1)
    assert len(error) == 12 and 100 * error.mean() == pytest.approx(1.15, abs=0.1)


@pytest.mark.parametrize("solver", SOLVERS.names())
def test_row_6_chinchilla_huber(epoch240, solver: str) -> None:  # type: ignore[no-untyped-def]
    surface = fit_surface(*epoch240, solver=solver)
    assert surface.status == "ok" and surface.value <= BEST_240
    assert pytest.approx(1.8172, abs=1e-3) == surface.E
    assert surface.a == pytest.approx(0.3473, abs=5e-4) and surface.b == pytest.approx(0.3672, abs=7e-4)
    assert pytest.approx(477.8, rel=0.02) == surface.A and pytest.approx(2143, rel=0.03) == surface.B


def test_row_6_from_every_start(epoch240) -> None:  # type: ignore[no-untyped-def]
    """Exponents are all that a start consists of: the 25 pairs of the usual grid, and a grid twice as fine."""
    for start in itertools.product(np.arange(0, 2.5, 0.5), repeat=2):
        surface = fit_surface(*epoch240, starts=np.array([start]), check=False)
        assert surface.status == "ok" and surface.value <= BEST_240, start
    problem = Problem.of(*epoch240, objective="huber_log", delta=1e-3)
    target = problem.target(epoch240[2])[None]
    exponents = np.clip(np.array(list(itertools.product(np.linspace(0, 2, 9), repeat=2))), SMALLEST_EXPONENT, LARGEST_EXPONENT)
    starts = best_amounts(problem, exponents, target, np.ones_like(target))[0][0]
    ends = minimise(problem, starts, np.broadcast_to(target, (len(starts), 240)))
    assert ends.converged.all() and (ends.cost <= BEST_240).all()


@pytest.mark.slow
def test_scipy_as_it_comes_calls_success_away_from_the_optimum(epoch240) -> None:  # type: ignore[no-untyped-def]
    """Why the solver is not scipy's L-BFGS-B with its defaults: 92% of the usual 4,500 starts (here 200 of them)."""
    log_n, log_d, log_y = map(np.log, epoch240)

    def objective(t: np.ndarray) -> float:
        with np.errstate(over="ignore"):
            r = np.abs(np.log(np.exp(t[0] - t[3] * log_n) + np.exp(t[1] - t[4] * log_d) + np.exp(t[2])) - log_y)
        return float(np.where(r <= 1e-3, 0.5 * r * r, 1e-3 * (r - 0.5e-3)).sum())

    grid = np.array(np.meshgrid(*START_GRID)).reshape(5, -1).T
    assert len(grid) == 4500
    chosen = np.random.default_rng(0).choice(grid, 200, replace=False)
    with np.errstate(invalid="ignore"):
        ends = [optimize.minimize(objective, start, method="L-BFGS-B") for start in chosen]
    away = [end.success and end.fun > BEST_240 * 1.001 for end in ends]
    assert np.mean(away) == pytest.approx(0.92, abs=0.05)


def test_row_7_bootstrap(epoch240) -> None:  # type: ignore[no-untyped-def]
    found = bootstrap_surface(fit_surface(*epoch240), *epoch240, replicates=1000)
    assert found.status == "ok" and found.moved == 0
    assert [found.standard_error(name) for name in "ABEab"] == pytest.approx([124.5, 1293, 0.0257, 0.0154, 0.0206], rel=0.2)


@pytest.mark.parametrize("solver", SOLVERS.names())
def test_row_8_nothing_dropped(epoch, solver: str) -> None:  # type: ignore[no-untyped-def]
    surface = fit_surface(*epoch[:3], solver=solver)
    assert surface.points == 245 and surface.status == "ok"
    assert pytest.approx(12846, rel=0.03) == surface.B
    assert (surface.E, surface.b) == pytest.approx((1.8913, 0.4530), abs=1e-3)


@pytest.mark.parametrize("solver", SOLVERS.names())
def test_row_9_squared_error(epoch, solver: str) -> None:  # type: ignore[no-untyped-def]
    n, d, y, c = epoch
    keep = np.argsort(y)[:240]
    keep = keep[c[keep] < 1e21]
    surface = fit_surface(n[keep] / 1e6, d[keep] / 1e9, y[keep], "squared", solver=solver)
    assert len(keep) == 217 and 2 * surface.value == pytest.approx(0.062414, abs=2e-6)
    expected = (1.9051, 4.0005, 1.0509, 0.3511, 0.4587)
    assert (surface.E, surface.A, surface.B, surface.a, surface.b) == pytest.approx(expected, abs=2e-4)
