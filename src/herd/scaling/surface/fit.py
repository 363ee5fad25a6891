"""Loss surface L(N, D) = E + A / N^a + B / D^b (Hoffmann et al. 2022, "Training Compute-Optimal Large Language Models", eq. 2).

`fit_surface` fits it to a sweep by one of the solvers of `surface_solvers`; exponents may be tied (a = b) and any of the five
parameters pinned. L-BFGS is run beside the default solver, and a fit on which the two disagree says so.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from herd.config.errors import UserError
from herd.scaling.surface.model import HIGH, LOW, OBJECTIVES, PARAMETERS, Problem, log_optimal_size
from herd.scaling.surface.solvers import SOLVERS, Solution, best_amounts, grid_starts, lbfgs, minimise

_SPARE_POINTS = 3  # degrees of freedom to judge the parameters by
_STARTS = 6
_DISAGREE = 1e-6  # of the objective: solvers that differ by more have found different optima
_ROUNDING = 1e-12  # squared residual of a point, below which two fits are equally exact
_SINGULAR = 1e8  # condition beyond which the parameters are not told apart

Covariance = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Surface:
    """A fitted surface; N in parameters, D in tokens, L in nats per token."""

    # ok | not_converged | at_bound (a term vanished or an exponent ran away) | undetermined (parameters that the runs cannot tell
    # apart) | solvers_disagree: read none but the first
    status: str
    reason: str
    E: float  # irreducible loss
    A: float
    B: float
    a: float  # exponent of parameters
    b: float  # exponent of tokens
    objective: str
    delta: float  # Huber's threshold on ln L, used by huber_log
    value: float  # sum of the objective at the optimum; Huber's is r^2 / 2 up to delta, squared errors are halved too
    residual_std: float  # scatter of ln L about the surface, degrees of freedom taken off
    condition: float  # condition number of the scaled Jacobian: above 1e4 single parameters mean little
    points: int
    largest_flops: float  # largest 6ND fitted
    covariance: Covariance | None = None  # (5, 5) of (ln E, ln A, ln B, a, b); None where undetermined
    free: int = 5  # parameters that were fitted
    tie_exponents: bool = False
    pins: tuple[tuple[str, float], ...] = ()  # parameters that were given, not fitted
    solver: str = "varpro"

    @property
    def freedom(self) -> int:
        """Degrees of freedom left."""
        return self.points - self.free

    def loss(self, parameters: np.ndarray | float, tokens: np.ndarray | float) -> np.ndarray:
        """L(N, D), broadcast."""
        return np.asarray(self.E + self.A * np.power(parameters, -self.a) + self.B * np.power(tokens, -self.b))

    def optimum(self, flops: float) -> tuple[float, float]:
        """Compute-optimal (parameters, tokens) under 6ND = flops."""
        best = math.exp(log_optimal_size(math.log(self.A), math.log(self.B), self.a, self.b, flops))
        return best, flops / 6 / best

    def jacobian(self, parameters: np.ndarray | float, tokens: np.ndarray | float) -> np.ndarray:
        """d ln L / d (ln E, ln A, ln B, a, b) at (parameters, tokens), broadcast to (..., 5)."""
        log_n, log_d = np.broadcast_arrays(np.log(parameters), np.log(tokens))
        n_term, d_term = self.A * np.exp(-self.a * log_n), self.B * np.exp(-self.b * log_d)
        columns = [np.full_like(n_term, self.E), n_term, d_term, -log_n * n_term, -log_d * d_term]
        return np.stack(columns, axis=-1) / (self.E + n_term + d_term)[..., None]


def fit_surface(
    parameters: np.ndarray,
    tokens: np.ndarray,
    loss: np.ndarray,
    objective: str = "huber_log",
    delta: float = 1e-3,
    *,
    solver: str = "varpro",
    check: bool = True,
    tie_exponents: bool = False,
    pins: Mapping[str, float] | None = None,
    starts: np.ndarray | None = None,
) -> Surface:
    """Fit the surface.

    Args:
        parameters, tokens, loss: (n,) arrays, all finite and above 0; at least three points more than free parameters, and three
            different sizes and token counts (fewer when the terms that they determine are pinned).
        objective: ``huber_log``, ``squared_log`` or ``squared``, summed over the points.
        delta: Huber's threshold on ln L.
        solver: ``varpro`` or ``lbfgs`` (see :mod:`herd.scaling.surface.solvers`).
        check: run L-BFGS beside ``varpro`` (the reverse for ``lbfgs``) from the best start. Where their objectives differ by more
            than 1e-6 of the larger, the lower one is returned with status ``solvers_disagree``.
        tie_exponents: one exponent for both, a = b.
        pins: parameters that are given, such as ``{"E": 1.69}``, in the units of the data.
        starts: (S, 2) exponents (a, b) to start from instead of the best ones of a grid. E, A and B follow from them.

    Raises:
        UserError: bad numbers, contradictory pins, or too few points to determine the free parameters.
    """
    OBJECTIVES.get(objective)
    SOLVERS.get(solver)
    if not (math.isfinite(delta) and delta > 0):
        raise UserError(f"delta {delta}: Huber's threshold must be above 0.")
    n, d, y = checked_points(parameters, tokens, loss)
    problem = Problem.of(n, d, y, objective, delta, tie_exponents, pins)
    _check_determined(problem, n, d)
    target = problem.target(y)
    if starts is None:
        begin = grid_starts(problem, target[None], None, keep=_STARTS)[0]
    else:
        exponents = np.clip(np.asarray(starts, dtype=float), LOW[3:], HIGH[3:])
        begin = best_amounts(problem, exponents, target[None], np.ones((1, len(y))))[0][0]
    solved = {name: _solve(name, problem, begin if name == solver else begin[:1], target) for name in _sides(solver, check)}
    best = min(solved, key=lambda name: (solved[name].cost[0], name != solver))
    free, cost = solved[best].free[:1], solved[best].cost
    status, reason = _judge(problem, free[0], cost[0], solved, solver)
    condition, covariance = _covariance(problem, free, target)
    if status == "ok" and condition > _SINGULAR:
        status, reason = "undetermined", f"the runs do not tell the parameters apart (condition {condition:.1e})"
    log_e, log_a, log_b, a, b = problem.unscaled(problem.theta(free))[0].tolist()
    residual = np.log(problem.loss(free)[0]) + problem.log_scale - np.log(y)
    return Surface(
        status=status,
        reason=reason,
        E=math.exp(log_e),
        A=float(np.exp(log_a)),
        B=float(np.exp(log_b)),
        a=a,
        b=b,
        objective=objective,
        delta=delta,
        value=float(cost[0]) * (math.exp(2 * problem.log_scale) if objective == "squared" else 1.0),
        residual_std=math.sqrt(float(residual @ residual) / (len(y) - len(problem.free))),
        condition=condition,
        points=len(y),
        largest_flops=float((6 * n * d).max()),
        covariance=covariance if status == "ok" else None,
        free=len(problem.free),
        tie_exponents=tie_exponents,
        pins=tuple(sorted((name, float(value)) for name, value in (pins or {}).items())),
        solver=solver,
    )


def checked_points(parameters: np.ndarray, tokens: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The three columns as (n,) floats; refuses unequal lengths and numbers without a logarithm."""
    n, d, y = (np.asarray(v, dtype=float) for v in (parameters, tokens, loss))
    if not (n.shape == d.shape == y.shape and n.ndim == 1):
        raise UserError("A surface needs equally many parameters, tokens and losses.")
    if not all(np.isfinite(v).all() and (v > 0).all() for v in (n, d, y)):
        raise UserError("A surface needs finite parameters, tokens and losses above 0.")
    return n, d, y


def _check_determined(problem: Problem, n: np.ndarray, d: np.ndarray) -> None:
    free = [PARAMETERS[i] for i in problem.free]
    tied = problem.tied
    needed = len(free) + _SPARE_POINTS
    sizes, counts = len(np.unique(n)), len(np.unique(d))
    of_n = 1 + ("A" in free) + ("a" in free and not tied)
    of_d = 1 + ("B" in free) + ("b" in free)
    if len(n) < needed or sizes < of_n or counts < of_d or (tied and "a" in free and max(sizes, counts) < 3):
        raise UserError(
            f"A surface has {len(free)} parameters to fit: {len(n)} runs with {sizes} sizes and {counts} token counts "
            f"are too few (at least {needed}, {of_n} and {of_d}{', 3 of either' if tied else ''})."
        )


def _sides(solver: str, check: bool) -> list[str]:
    return [solver, *(name for name in SOLVERS.names() if check and name != solver)]


def _solve(solver: str, problem: Problem, starts: np.ndarray, target: np.ndarray) -> Solution:
    """The best end of all starts, as a batch of one."""
    if solver == "lbfgs":
        found = lbfgs(problem, starts, target)
    else:
        found = minimise(problem, starts, np.broadcast_to(target, (len(starts), len(target))))
    best = [int(np.argmin(found.cost))]
    return Solution(found.free[best], found.cost[best], found.converged[best], found.evaluations)


def _judge(problem: Problem, free: np.ndarray, cost: float, solved: dict[str, Solution], solver: str) -> tuple[str, str]:
    """Status and reason of the better of the solutions."""
    out = problem.out(free)
    if out.any():
        names = ", ".join(PARAMETERS[i] for i, at in zip(problem.free, out, strict=True) if at)
        return "at_bound", f"{names} at the edge of what is allowed: the runs do not determine it"
    if not solved[solver].converged[0]:
        return "not_converged", "the solver stopped before the optimum"
    costs = {name: float(found.cost[0]) for name, found in solved.items()}
    if max(costs.values()) - cost > _DISAGREE * max(costs.values()) + _ROUNDING * len(problem.u):
        return "solvers_disagree", "the objective is " + ", ".join(f"{value:.9g} by {name}" for name, value in costs.items())
    return "ok", ""


def _covariance(problem: Problem, free: np.ndarray, target: np.ndarray) -> tuple[float, Covariance | None]:
    """Condition number of the scaled Jacobian, and the covariance of (ln E, ln A, ln B, a, b) in single parameters and tokens.

    s^2 (J'J)^-1 with s^2 the residual variance; for Huber's loss s^2 = mean psi^2 / (mean psi')^2 (Huber 1981, section 7.6).
    One size of noise for all points is assumed; where it is not so, the bootstrap by rows is right and this is not.
    """
    jacobian, residual = problem.jacobian(free, target)
    size = np.linalg.norm(jacobian, axis=0)
    if not (size > 0).all():
        return math.inf, None
    condition = float(np.linalg.cond(jacobian / size))
    square, bend = problem.noise(residual)
    if condition > _SINGULAR or bend == 0:
        return condition, None
    inverse = np.linalg.inv((jacobian / size).T @ (jacobian / size)) / np.outer(size, size)
    to_single = np.eye(5)  # ln A = ln A' + a mean(ln N) + constant
    to_single[1, 3], to_single[2, 4] = problem.log_n0, problem.log_d0
    moved = to_single @ problem.basis
    return condition, tuple(tuple(row) for row in (moved @ inverse @ moved.T * square / bend**2).tolist())
