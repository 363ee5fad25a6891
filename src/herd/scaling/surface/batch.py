"""Many surfaces at once: one surface fitted again to many versions of its data, as one batch."""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np

from herd.scaling.surface.fit import Surface, checked_points
from herd.scaling.surface.model import Problem, log_optimal_size
from herd.scaling.surface.solvers import grid_starts, minimise

_COARSE_GRID = np.geomspace(0.05, 1.5, 10)  # exponents of the fresh starts
_MOVED = 1e-6  # of the objective


@dataclass(frozen=True)
class SurfaceBatch:
    """Many surfaces: arrays (R,), in single parameters and tokens; ln A and ln B, since A and B may overflow."""

    E: np.ndarray
    log_A: np.ndarray
    log_B: np.ndarray
    a: np.ndarray
    b: np.ndarray

    @classmethod
    def of(cls, surface: Surface) -> "SurfaceBatch":
        """One fitted surface as a batch."""
        with np.errstate(divide="ignore"):
            logs = np.log([surface.A, surface.B])
        return cls(*(np.array([x]) for x in (surface.E, *logs, surface.a, surface.b)))

    def take(self, rows: np.ndarray) -> Self:
        """Some of the surfaces, by mask or index."""
        return type(self)(*(values[rows] for values in vars(self).values()))

    def loss(self, parameters: np.ndarray | float, tokens: np.ndarray | float) -> np.ndarray:
        """Loss of each surface at its own (parameters, tokens), (R,)."""
        n, d = np.log(parameters), np.log(tokens)
        return np.asarray(self.E + np.exp(self.log_A - self.a * n) + np.exp(self.log_B - self.b * d))

    def optimal_tokens(self, flops: float) -> np.ndarray:
        """Compute-optimal tokens of each surface under 6ND = flops, (R,)."""
        with np.errstate(over="ignore", divide="ignore"):  # a term that vanished has its optimum at infinity
            return np.asarray(flops / 6 / np.exp(log_optimal_size(self.log_A, self.log_B, self.a, self.b, flops)))


@dataclass(frozen=True)
class Refits(SurfaceBatch):
    """Surfaces with what became of each fit."""

    value: np.ndarray  # objective at the optimum
    converged: np.ndarray  # passed the second-order test of a minimum
    at_bound: np.ndarray  # a term vanished or an exponent ran away
    moved: np.ndarray  # a fresh start ended lower than the point estimate's did: never, without fresh starts


def refit_surface(
    surface: Surface,
    parameters: np.ndarray,
    tokens: np.ndarray,
    losses: np.ndarray,
    weights: np.ndarray | None = None,
    fresh_starts: int = 0,
) -> Refits:
    """Refit the surface, with its objective, ties and pins, to many versions of its data at once.

    Args:
        surface: the point estimate, where each refit starts.
        parameters, tokens: (n,).
        losses: (R, n) replicated losses, or (n,) for all alike.
        weights: (R, n) of the points, such as how often each was drawn; None for 1.
        fresh_starts: also start from this many of each replicate's own best exponents, and keep the lowest end.
    """
    losses = np.atleast_2d(np.asarray(losses, dtype=float))
    count = len(losses) if weights is None else len(weights)
    n, d, y = checked_points(parameters, tokens, np.exp(np.log(losses).mean(axis=0)))
    problem = Problem.of(n, d, y, surface.objective, surface.delta, surface.tie_exponents, dict(surface.pins))
    target = np.broadcast_to(problem.target(losses), (count, len(y)))
    warm = problem.scaled(surface.E, surface.A, surface.B, surface.a, surface.b)
    first = best = minimise(problem, np.repeat(warm[None], count, axis=0), target, weights)
    if fresh_starts:
        starts = grid_starts(problem, target, weights, fresh_starts, _COARSE_GRID)
        for i in range(fresh_starts):
            best = best.lower(minimise(problem, starts[:, i], target, weights))
    log_e, log_a, log_b, a, b = problem.unscaled(problem.theta(best.free)).T
    value = best.cost * (math.exp(2 * problem.log_scale) if surface.objective == "squared" else 1.0)
    at_bound, moved = np.asarray(problem.out(best.free).any(axis=1)), best.cost < first.cost * (1 - _MOVED)
    return Refits(np.exp(log_e), log_a, log_b, a, b, value, best.converged, at_bound, moved)
