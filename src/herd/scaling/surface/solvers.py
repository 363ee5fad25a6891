"""Solvers of the surface: variable projection with a Newton finish (batched), and L-BFGS-B with analytic gradients beside it.

Variable projection (Golub and Pereyra 1973): at given exponents (a, b) the best E, A, B >= 0 follow by linear least squares, so a
start needs two numbers and a grid over both exponents covers all starts. From the best of the grid all five parameters move
together, by Newton's method on the exact Hessian of the objective, damped where it is not convex. (Solving for the amounts again
after every step, as the nested form does, takes the same steps near the optimum and costs more: benchmarks/scaling.)
A fit has converged when it passes the second-order test of a minimum; it is never taken on the word of a small step.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from scipy import optimize

from herd.config.registry import Registry
from herd.scaling.surface.model import SMALLEST_LOG, Derivatives, Problem

SOLVERS: Registry[str] = Registry("surface solver")
SOLVERS.register("varpro")("variable projection over a grid of exponents, then damped Newton in all parameters")
SOLVERS.register("lbfgs")("scipy L-BFGS-B with analytic gradients, from the same starts, restarted until it stays")

GRID = np.geomspace(0.02, 1.5, 24)  # of each exponent, for the starts
_NEIGHBOUR = 0.35  # starts differ by more than this in ln a or ln b
_TOLERANCE = 1e-13  # of the decrease that is still promised, relative to the objective
_ROUNDING = 1e-27  # squared residual of a point that is rounding alone
_ROWS = 250  # replicates whose starts are searched at once


@dataclass(frozen=True)
class Solution:
    """Where R replicates ended."""

    free: np.ndarray  # (R, k)
    cost: np.ndarray  # (R,) sum of the objective
    converged: np.ndarray  # (R,) passed the second-order test
    evaluations: int  # of one replicate's objective, over all

    def lower(self, other: "Solution") -> "Solution":
        """The lower end of each replicate; a converged one where both are equally low."""
        margin = 1e-9 * np.minimum(self.cost, other.cost)
        take = (other.cost < self.cost - margin) | (~self.converged & other.converged & (other.cost < self.cost + margin))
        free = np.where(take[:, None], other.free, self.free)
        converged = np.where(take, other.converged, self.converged)
        return Solution(free, np.where(take, other.cost, self.cost), converged, self.evaluations + other.evaluations)


def best_amounts(
    problem: Problem, exponents: np.ndarray, target: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Least squares of L, relative for objectives of ln L, in the free ones of E, A, B >= 0 at given exponents.

    Args:
        exponents: (G, 2) a and b.
        target, weight: (R, n).

    Returns:
        free parameters (R, G, k) and cost (R, G). Exact: the best feasible one of all choices of vanishing terms.
    """
    y = target if problem.objective == "squared" else np.exp(target)
    w = weight if problem.objective == "squared" else weight / y**2
    count = len(exponents)
    free = np.zeros((count, len(problem.free)))
    for column, i in enumerate(problem.free):
        if i >= 3:
            free[:, column] = exponents[:, i - 3]
    terms = np.stack(np.broadcast_arrays(*problem.terms(problem.theta(free))), axis=1)  # (G, 3, n), amounts of 1 where free
    if not problem.amounts.any():
        fixed = terms.sum(axis=1)
        squares = (w * y * y).sum(axis=1)[:, None] - 2 * (w * y) @ fixed.T + w @ (fixed**2).T
        return np.repeat(free[None], len(y), axis=0), squares
    open_terms = [i for i in problem.free if i < 3]
    fixed = terms[:, [i for i in range(3) if i not in open_terms]].sum(axis=1)  # (G, n)
    columns = terms[:, open_terms]
    size = len(open_terms)
    squares = (w * y * y).sum(axis=1)[:, None] - 2 * (w * y) @ fixed.T + w @ (fixed**2).T  # (R, G) of what is left to explain
    right = np.stack([(w * y) @ columns[:, i].T - w @ (columns[:, i] * fixed).T for i in range(size)], axis=-1)
    normal = np.empty((len(y), count, size, size))
    for i, j in itertools.combinations_with_replacement(range(size), 2):
        normal[..., i, j] = normal[..., j, i] = w @ (columns[:, i] * columns[:, j]).T
    best, chosen = np.full(squares.shape, np.inf), np.zeros((*squares.shape, size))
    for kept in itertools.chain.from_iterable(itertools.combinations(range(size), r) for r in range(size, 0, -1)):
        index = list(kept)
        diagonal = np.sqrt(np.einsum("rgii->rgi", normal[..., index, :][..., index]))
        scaled = normal[..., index, :][..., index] / diagonal[..., :, None] / diagonal[..., None, :]
        scaled = scaled + 1e-13 * np.eye(len(index))  # two equal exponents of equal points would be singular
        solved = np.linalg.solve(scaled, (right[..., index] / diagonal)[..., None])[..., 0] / diagonal
        left = squares - (solved * right[..., index]).sum(axis=-1)
        better = (solved > 0).all(axis=-1) & (left < best)
        best = np.where(better, left, best)
        full = np.zeros_like(chosen)
        full[..., index] = solved
        chosen = np.where(better[..., None], full, chosen)
    result = np.repeat(free[None], len(y), axis=0)
    # A vanished term starts as a trace, from which the objective's own gradient can raise it again.
    result[..., problem.amounts] = np.log(np.maximum(chosen, np.exp(0.5 * SMALLEST_LOG)))
    return np.clip(result, problem.low, problem.high), np.where(np.isfinite(best), best, squares)


def grid_starts(
    problem: Problem, target: np.ndarray, weight: np.ndarray | None, keep: int, grid: np.ndarray = GRID
) -> np.ndarray:
    """Best ``keep`` pairs of exponents of a grid that are no neighbours of a better one, with their amounts: (R, keep, k)."""
    unpinned = [i - 3 for i in problem.free if i >= 3]
    pairs = np.array(list(itertools.product(grid, repeat=len(unpinned))))
    exponents = np.zeros((len(pairs), 2))
    exponents[:, unpinned] = pairs
    places = np.log(pairs)
    weight = np.ones_like(target) if weight is None else weight
    result = np.empty((len(target), keep, len(problem.free)))
    for first in range(0, len(target), _ROWS):
        rows = slice(first, first + _ROWS)
        free, cost = best_amounts(problem, exponents, target[rows], weight[rows])
        every = np.arange(len(cost))
        for i in range(keep):
            best = cost.argmin(axis=1)
            result[rows, i] = free[every, best]
            distance = np.abs(places[None] - places[best][:, None]).max(axis=2, initial=0.0)
            cost[distance < _NEIGHBOUR] = np.inf
    return result


def minimise(
    problem: Problem, start: np.ndarray, target: np.ndarray, weight: np.ndarray | None = None, iterations: int = 1000
) -> Solution:
    """Damped Newton on a batch: start (R, k), target (R, n), weight (R, n) or None, within the bounds of the parameters."""
    low, high = problem.low, problem.high
    free = np.clip(start, low, high)
    at = problem.evaluate(free, target, weight)
    damping = np.full(len(free), 1e-3)
    converged = np.zeros(len(free), dtype=bool)
    active, evaluations = np.arange(len(free)), len(free)
    for _ in range(iterations):
        here = at.take(active)
        step, promise, curvature = _newton_step(here, free[active], low, high, damping[active])
        done = (promise <= _TOLERANCE * here.cost + _ROUNDING * len(problem.u)) & (curvature > -1e-9)
        converged[active[done]] = True
        # The step is taken all the same: near the optimum it is the one that squares the error.
        trial = np.clip(free[active] + step, low, high)
        there = problem.evaluate(trial, target[active], None if weight is None else weight[active])
        evaluations += len(active)
        better = there.cost < here.cost
        free[active[better]] = trial[better]
        at.put(active[better], there, better)
        damping[active] = np.where(better, np.maximum(damping[active] * 0.2, 1e-12), damping[active] * 5.0)
        active = active[~done & (damping[active] < 1e8)]
        if not len(active):
            break
    return Solution(free, at.cost, converged, evaluations)


def _newton_step(
    at: Derivatives, free: np.ndarray, low: np.ndarray, high: np.ndarray, damping: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Damped step (R, k), the decrease that the undamped one promises (R,), and the smallest curvature in natural scale (R,).

    A parameter at its bound that wants to go further out sits out. Directions of negative curvature are walked downhill.
    """
    held = ((free <= low) & (at.gradient > 0)) | ((free >= high) & (at.gradient < 0))
    scale = np.where(held, 0.0, 1 / np.sqrt(np.maximum(at.size, 1e-300)))
    hessian = at.hessian * scale[:, :, None] * scale[:, None, :]
    hessian += np.where(held, 1.0, 0.0)[:, :, None] * np.eye(free.shape[1])
    curvature, axes = np.linalg.eigh(hessian)
    along = (axes.transpose(0, 2, 1) @ (at.gradient * scale)[..., None])[..., 0]
    stiff = np.maximum(np.abs(curvature), 1e-13)
    step = -(axes @ (along / (stiff + damping[:, None]))[..., None])[..., 0] * scale
    return step, 0.5 * (along**2 / stiff).sum(axis=1), curvature[:, 0]


def lbfgs(problem: Problem, starts: np.ndarray, target: np.ndarray, restarts: int = 10) -> Solution:
    """L-BFGS-B of one data set from each start: starts (S, k), target (n,).

    Left alone it reports success where the objective merely changes little (the Chinchilla points: from most starts). So the
    objective is measured in units of its first value, the parameters in their natural scale, and a run is taken up again with a
    fresh memory from where it ended until it stays there. `converged` says that it stayed.
    """
    ends, costs, stayed, evaluations = [], [], [], 0
    for start in starts:
        free, staying = np.clip(start, problem.low, problem.high), False
        cost = problem.slope(free, target)[0]
        for _ in range(restarts):
            at = problem.evaluate(free[None], target[None])
            scale, unit = np.sqrt(np.maximum(at.size[0], 1e-300) / max(at.size.max(), 1e-300)), max(cost, 1e-300)

            def scaled(x: np.ndarray, scale: np.ndarray = scale, unit: float = unit) -> tuple[float, np.ndarray]:
                value, gradient = problem.slope(x / scale, target)
                return value / unit, gradient / scale / unit

            bounds = list(zip(problem.low * scale, problem.high * scale, strict=True))
            options = {"maxiter": 5000, "maxfun": 5000, "ftol": 0.0, "gtol": 1e-12, "maxcor": 20}
            found = optimize.minimize(scaled, free * scale, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
            evaluations += int(found.nfev)
            staying = found.fun >= 1 - 1e-9
            if found.fun < 1:
                free, cost = found.x / scale, float(found.fun) * unit
            if staying or cost <= _ROUNDING * len(problem.u):
                staying = True
                break
        ends.append(free)
        costs.append(cost)
        stayed.append(staying)
    return Solution(np.array(ends), np.array(costs), np.array(stayed), evaluations)
