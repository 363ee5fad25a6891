"""Profile-likelihood intervals of a fitted surface: of each parameter, and of the compute-optimal tokens and parameters.

The interval of a quantity g is what it can be while the objective f stays within reach of its minimum,

    f(theta) <= f0 + s^2 F / 2,    F = the quantile of F(1, n - k),    s^2 = mean psi^2 / mean psi',

so its ends are the extremes of g over that region, found directly (Venzon and Moolgavkar 1988) instead of by a fit for every
value of g. For squared errors this is the likelihood-ratio region of Gaussian noise of unknown size (Bates and Watts 1988,
section 6.1). Huber's objective is no log-likelihood; s^2 scales its difference so that it is distributed as one, for independent
noise of one size (Ronchetti 1982), and `kind` says so. Unlike the covariance, the region follows the objective's bends; like it,
it takes the noise to be of one size for all points. Where it is not so, the bootstrap is wider and right.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from herd.config.errors import UserError, nearest
from herd.scaling.curves.power_law import Interval
from herd.scaling.surface.fit import Surface, checked_points
from herd.scaling.surface.model import PARAMETERS, Problem, log_optimal_size

OPTIMA = ("tokens", "parameters")
_SHORT = 1e-4  # share of the rise in the objective by which an end may miss the region's edge


@dataclass(frozen=True)
class Profile:
    """Interval of one quantity."""

    status: str  # ok | open (an end lies at the edge of the allowed parameters: the runs do not bound it) | not_converged
    reason: str
    quantity: str  # E, A, B, a, b, tokens (D*), parameters (N*)
    flops: float | None  # training compute of tokens and parameters
    kind: str  # likelihood (squared errors) | pseudo-likelihood (Huber, scaled)
    estimate: float
    interval: Interval
    confidence: float
    extrapolation_ratio: float | None  # flops / largest fitted compute


def profile_surface(
    surface: Surface,
    parameters: np.ndarray,
    tokens: np.ndarray,
    loss: np.ndarray,
    quantity: str,
    flops: float | None = None,
    confidence: float = 0.95,
) -> Profile:
    """Profile-likelihood interval.

    Args:
        surface: the fit, status ok.
        parameters, tokens, loss: (n,) the runs that it was fitted to.
        quantity: ``E``, ``A``, ``B``, ``a``, ``b``, or ``tokens`` or ``parameters`` of the compute-optimal run.
        flops: its training compute, for the last two.
        confidence: of the two-sided interval.

    Raises:
        UserError: an unknown or a pinned quantity, a surface without an optimum, other runs than its own.
    """
    _check(surface, quantity, flops, confidence)
    n, d, y = checked_points(parameters, tokens, loss)
    if surface.points != len(y):
        raise UserError(f"This surface was fitted to {surface.points} runs; {len(y)} were given to its profile.")
    problem = Problem.of(n, d, y, surface.objective, surface.delta, surface.tie_exponents, dict(surface.pins))
    region = _Region.of(problem, surface, problem.target(y), quantity, flops, confidence)
    ends = [region.extreme(sign) for sign in (-1.0, 1.0)]
    values = [end[0] if quantity in "ab" else math.exp(end[0]) for end in ends]
    status = next((s for s in ("not_converged", "open") if s in [end[1] for end in ends]), "ok")
    reason = {"ok": "", "open": "the runs do not bound it on at least one side", "not_converged": "an end was not found"}[status]
    return Profile(
        status=status,
        reason=reason,
        quantity=quantity,
        flops=flops,
        kind="pseudo-likelihood" if surface.objective == "huber_log" else "likelihood",
        estimate=_estimate(surface, quantity, flops),
        interval=(values[0], values[1]),
        confidence=confidence,
        extrapolation_ratio=flops / surface.largest_flops if flops is not None else None,
    )


def _check(surface: Surface, quantity: str, flops: float | None, confidence: float) -> None:
    choices = (*PARAMETERS, *OPTIMA)
    if quantity not in choices:
        raise UserError(f"No profile of '{quantity}'.{nearest(quantity, choices)} Choices: {', '.join(choices)}.")
    if (quantity in OPTIMA) != (flops is not None):
        raise UserError(f"The profile of {quantity} {'needs' if quantity in OPTIMA else 'takes no'} flops.")
    if flops is not None and not (math.isfinite(flops) and flops > 0):
        raise UserError(f"flops {flops}: give a training compute above 0.")
    if not 0 < confidence < 1:
        raise UserError(f"confidence {confidence}: give a fraction between 0 and 1, such as 0.95.")
    if quantity in dict(surface.pins):
        raise UserError(f"{quantity} is pinned: it has no profile.")
    if surface.status != "ok":
        raise UserError(f"Only a surface with status ok has a profile; this one is {surface.status}: {surface.reason}.")


def _estimate(surface: Surface, quantity: str, flops: float | None) -> float:
    if flops is None:
        return float(getattr(surface, quantity))
    return surface.optimum(flops)[OPTIMA[::-1].index(quantity)]


@dataclass(frozen=True)
class _Region:
    """Free parameters whose objective is within reach, in coordinates in which the region is about the unit ball."""

    problem: Problem
    target: np.ndarray  # (n,)
    centre: np.ndarray  # (k,) the optimum
    axes: np.ndarray  # (k, k) free = centre + axes @ x
    lowest: float  # objective at the centre
    rise: float  # by which it may rise
    quantity: str
    flops: float | None

    @classmethod
    def of(
        cls, problem: Problem, surface: Surface, target: np.ndarray, quantity: str, flops: float | None, confidence: float
    ) -> "_Region":
        centre = problem.scaled(surface.E, surface.A, surface.B, surface.a, surface.b)
        jacobian, residual = problem.jacobian(centre[None], target)
        square, bend = problem.noise(residual)
        rise = 0.5 * square / bend * float(stats.f.ppf(confidence, 1, surface.freedom))
        # The quadratic picture of the objective, bend J'J, sets the scale and the directions.
        curvature, directions = np.linalg.eigh(bend * jacobian.T @ jacobian)
        axes = directions * np.sqrt(2 * rise / curvature)
        return cls(problem, target, centre, axes, problem.slope(centre, target)[0], rise, quantity, flops)

    def goal(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """The quantity (ln of it, but for exponents) and its gradient by x (k,)."""
        problem = self.problem
        theta = problem.theta((self.centre + self.axes @ x)[None])
        full = problem.unscaled(theta)[0]
        to_single = np.eye(5)  # ln A = ln A' + a mean(ln N) + constant
        to_single[1, 3], to_single[2, 4] = problem.log_n0, problem.log_d0
        if self.flops is None:
            index = PARAMETERS.index(self.quantity)
            value, gradient = float(full[index]), np.eye(5)[index]
        else:
            value, gradient = log_optimum(full, self.flops, self.quantity)
        return value, gradient @ to_single @ problem.basis @ self.axes

    def slack(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """What is left of the rise, as a share of it, and its gradient."""
        cost, gradient = self.problem.slope(self.centre + self.axes @ x, self.target)
        return 1 - (cost - self.lowest) / self.rise, -gradient @ self.axes / self.rise

    def extreme(self, sign: float) -> tuple[float, str]:
        """The largest (sign 1) or smallest (-1) value of the goal in the region, and a status."""
        _, slope = self.goal(np.zeros(len(self.centre)))
        start = sign * slope / np.linalg.norm(slope)
        unit = float(np.linalg.norm(slope))
        with np.errstate(over="ignore", invalid="ignore"):  # of trial steps far outside; the end itself is judged below
            found = optimize.minimize(
                lambda x: -sign * self.goal(x)[0] / unit,
                start,
                jac=lambda x: -sign * self.goal(x)[1] / unit,
                constraints=[
                    {"type": "ineq", "fun": lambda x: self.slack(x)[0], "jac": lambda x: self.slack(x)[1]},
                    {"type": "ineq", "fun": lambda x: self._room(x), "jac": lambda _: self._room_gradient()},
                ],
                method="SLSQP",
                options={"maxiter": 500, "ftol": 1e-10},
            )
        value = self.goal(found.x)[0]
        slack, normal = self.slack(found.x)
        if self.problem.out(self.centre + self.axes @ found.x).any():
            return value, "open"
        # At an end the edge is reached and the goal can only grow across it.
        gradient = sign * self.goal(found.x)[1]
        across = float(gradient @ normal) / float(np.linalg.norm(gradient) * np.linalg.norm(normal))
        return value, "ok" if abs(slack) < _SHORT and across < -0.999 else "not_converged"

    def _room(self, x: np.ndarray) -> np.ndarray:
        free = self.centre + self.axes @ x
        return np.concatenate([free - self.problem.low, self.problem.high - free])

    def _room_gradient(self) -> np.ndarray:
        return np.concatenate([self.axes, -self.axes])


def log_optimum(theta: np.ndarray, flops: float, which: str) -> tuple[float, np.ndarray]:
    """ln of the compute-optimal ``tokens`` or ``parameters`` under 6ND = flops, and its gradient (5,).

    theta is (ln E, ln A, ln B, a, b) in single parameters and tokens.
    """
    a, b = theta[3:]
    log_n, x = float(log_optimal_size(theta[1], theta[2], a, b, flops)), math.log(flops / 6)
    gradient = np.array([0.0, 1.0, -1.0, 1 / a - log_n, x - 1 / b - log_n]) / (a + b)
    return (log_n, gradient) if which == "parameters" else (x - log_n, -gradient)
