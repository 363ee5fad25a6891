"""The parts of the surface's solvers: derivatives, linear amounts, starts, batches."""

import itertools

import numpy as np
import pytest
from scipy import optimize
from scipy.special import huber

from herd.scaling.surface.model import OBJECTIVES, Problem
from herd.scaling.surface.solvers import best_amounts, grid_starts, lbfgs, minimise

from .test_fit import CHINCHILLA, points

RESTRICTIONS = [
    {},
    {"tie_exponents": True},
    {"pins": {"A": 400.0}},
    {"pins": {"B": 2000.0}, "tie_exponents": True},
    {"pins": {"E": 0.0}},
]


def noisy(count: int = 40, noise: float = 0.01, seed: int = 0):  # type: ignore[no-untyped-def]
    n, d, y = points(count=count)
    return n, d, y * np.exp(noise * np.random.default_rng(seed).normal(size=count))


@pytest.mark.parametrize("objective", OBJECTIVES.names())
@pytest.mark.parametrize("restriction", RESTRICTIONS)
def test_derivatives_are_those_of_the_objective(objective: str, restriction) -> None:  # type: ignore[no-untyped-def]
    n, d, y = noisy()
    problem = Problem.of(n, d, y, objective, 2e-2, **restriction)
    rng = np.random.default_rng(1)
    weight = rng.integers(0, 3, (1, 40)).astype(float)
    target = problem.target(y)[None]
    free = problem.scaled(*CHINCHILLA)[None] + rng.uniform(-0.02, 0.02, (1, len(problem.free)))
    at = problem.evaluate(free, target, weight)
    steps = 1e-6 * np.eye(free.shape[1])
    up, down = (
        problem.evaluate(free + s * steps, np.repeat(target, len(steps), 0), np.repeat(weight, len(steps), 0)) for s in (1, -1)
    )
    assert at.gradient[0] == pytest.approx((up.cost - down.cost) / 2e-6, rel=1e-5, abs=1e-7)
    assert at.hessian[0] == pytest.approx((up.gradient - down.gradient) / 2e-6, rel=1e-5, abs=1e-5)
    cost, gradient = problem.slope(free[0], target[0])
    plain = problem.evaluate(free, target)
    assert cost == pytest.approx(plain.cost[0]) and gradient == pytest.approx(plain.gradient[0])


def test_the_objective_is_huber_as_scipy_sums_it() -> None:
    n, d, y = noisy()
    E, A, B, a, b = CHINCHILLA
    problem = Problem.of(n, d, y, "huber_log", 1e-2)
    residual = np.log(E + A / n**a + B / d**b) - np.log(y)
    cost = problem.evaluate(problem.scaled(*CHINCHILLA)[None], problem.target(y)[None]).cost[0]
    assert cost == pytest.approx(huber(1e-2, residual).sum(), rel=1e-12)


def test_amounts_are_those_of_non_negative_least_squares() -> None:
    n, d, y = noisy()
    problem = Problem.of(n, d, y, "squared", 1e-3)
    exponents = np.array(list(itertools.product([0.05, 0.3, 0.9, 1.9], repeat=2)))
    rng = np.random.default_rng(0)
    weight = rng.integers(0, 4, (2, 40)).astype(float)
    free, cost = best_amounts(problem, exponents, np.repeat(problem.target(y)[None], 2, 0), weight)
    for i, (row, (a, b)) in itertools.product(range(2), enumerate(exponents)):
        columns = np.stack([np.ones(40), np.exp(-a * problem.u), np.exp(-b * problem.v)], axis=1) * np.sqrt(weight[i])[:, None]
        expected, norm = optimize.nnls(columns, problem.target(y) * np.sqrt(weight[i]))
        assert np.exp(free[i, row, :3]) == pytest.approx(expected, rel=1e-5, abs=3e-3)  # a vanished term starts as a trace
        assert cost[i, row] == pytest.approx(norm**2, rel=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES.names())
def test_every_start_ends_at_one_optimum(objective: str) -> None:
    n, d, y = noisy(80)
    problem = Problem.of(n, d, y, objective, 1e-3)
    target = problem.target(y)[None]
    exponents = np.maximum(np.array(list(itertools.product(np.linspace(0, 2, 9), repeat=2))), 1e-3)
    starts = best_amounts(problem, exponents, target, np.ones_like(target))[0][0]
    ends = minimise(problem, starts, np.repeat(target, len(starts), axis=0))
    assert ends.converged.all() and ends.cost == pytest.approx(ends.cost.min(), rel=1e-9)
    beside = lbfgs(problem, starts[::16], target[0])
    assert beside.cost == pytest.approx(ends.cost.min(), rel=1e-6)


def test_a_batch_with_counts_is_the_fit_of_repeated_rows() -> None:
    n, d, y = noisy(30)
    rng = np.random.default_rng(5)
    counts = rng.multinomial(30, np.full(30, 1 / 30), 6)
    problem = Problem.of(n, d, y, "huber_log", 1e-3)
    target = np.repeat(problem.target(y)[None], 6, axis=0)
    starts = grid_starts(problem, target, counts.astype(float), keep=1)[:, 0]
    together = problem.unscaled(problem.theta(minimise(problem, starts, target, counts.astype(float)).free))
    for row, count in zip(together, counts, strict=True):
        rows = np.repeat(np.arange(30), count)
        alone = Problem.of(n[rows], d[rows], y[rows], "huber_log", 1e-3)
        aim = alone.target(y[rows])[None]
        found = minimise(alone, grid_starts(alone, aim, None, keep=1)[0], aim)
        assert row == pytest.approx(alone.unscaled(alone.theta(found.free))[0], rel=1e-5)
