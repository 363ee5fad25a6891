"""What a table of runs knows about a law: its parameters, their covariance, and the interval of any goal that they decide.

Two laws, both of ln L so that a run's noise is a relative one:

surface   L = E + A / N^a + B / D^b (Hoffmann et al. 2022, eq. 2), five parameters.
parabola  ln L = quadratic in (ln C, ln D), six parameters: every budget's IsoFLOP curve is a parabola of one curvature, and its
          vertex lies on a straight line in log-log, D*(C) = A C^alpha (Llama 3, section 3.2.1) by construction.

Near the fit each law is taken as linear (Gauss-Newton): the precision of its parameters is J'J / noise^2, plus a weak prior about
the fit that keeps it invertible. A goal is a smooth function of the parameters; its variance is the delta method's. Where the
prior rather than the runs holds a goal, or where the goal bends within its own interval, the status says so.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from herd.config.errors import UserError, nearest
from herd.runs.seeds import stream
from herd.scaling.curves.power_law import Interval
from herd.scaling.records.record import Record, usable
from herd.scaling.surface.batch import SurfaceBatch
from herd.scaling.surface.fit import fit_surface

LAWS = ("surface", "parabola")
GOALS = ("log_tokens", "alpha", "loss")

# Standard deviations of the prior about the fit: e^2 = a factor of seven for a term; exponents; coefficients of the parabola.
_PRIOR = {"surface": (2.0, 2.0, 2.0, 0.5, 0.5), "parabola": (1.0,) * 6}
_HELD_BY_PRIOR = 1.1  # a goal whose variance would be this many times larger without the prior is not the runs' own
_BENT = 1.5  # a goal whose spread over the posterior is this many times the linear one (or 1 / it) is not linear there


@dataclass(frozen=True)
class Goal:
    """A number that further runs should pin down."""

    kind: str  # log_tokens (ln D*(C)) | alpha (exponent of D*) | loss (ln L at the optimum of C)
    flops: float = math.nan  # C, FLOPs; alpha needs none

    def __post_init__(self) -> None:
        if self.kind not in GOALS:
            raise UserError(f"Unknown goal '{self.kind}'.{nearest(self.kind, GOALS)} Choices: {', '.join(GOALS)}.")
        if self.kind != "alpha" and not (math.isfinite(self.flops) and self.flops > 0):
            raise UserError(f"goal {self.kind} at {self.flops} FLOPs: give the compute at which it is wanted, above 0.")


@dataclass(frozen=True)
class GoalEstimate:
    """A goal with its interval. ``value`` and ``interval`` are in the goal's own unit: ln tokens, none, ln nats."""

    status: str  # ok | prior (the weak prior holds it, not the runs) | nonlinear (bends within its interval) | the fit's status
    reason: str
    value: float
    std: float  # standard error
    interval: Interval  # two-sided
    confidence: float
    extrapolation_ratio: float | None  # the goal's compute / largest fitted compute; None for alpha

    @property
    def half_width(self) -> float:
        """Half of the interval's width."""
        return (self.interval[1] - self.interval[0]) / 2


@dataclass(frozen=True)
class Posterior:
    """A fitted law with the precision of its parameters. Parameters are in units of the runs' geometric means."""

    law: str  # surface | parabola
    status: str  # ok | at_bound | not_converged (as the surface's)
    reason: str
    theta: np.ndarray  # (p,) surface: ln E, ln A, ln B, a, b; parabola: coefficients of 1, t, x, t^2, tx, x^2
    precision: np.ndarray  # (p, p) prior included
    prior: np.ndarray  # (p,) its diagonal
    noise: float  # standard deviation of ln L of one run
    freedom: int  # degrees of freedom of the noise; 0 = it was given, not estimated
    log_n0: float  # mean of ln N
    log_d0: float  # mean of ln D
    largest_flops: float  # largest 6ND fitted

    @property
    def covariance(self) -> np.ndarray:
        """Of the parameters, (p, p)."""
        return np.linalg.inv(self.precision)

    def log_loss(self, parameters: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """ln L at (n,) sizes and tokens."""
        return self._predict(self.theta, np.log(parameters), np.log(tokens))

    def rows(self, parameters: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Derivative of ln L by the parameters at (n,) sizes and tokens, (n, p)."""
        u, v = np.log(np.asarray(parameters, dtype=float)), np.log(np.asarray(tokens, dtype=float))
        return _derivative(lambda theta: self._predict(theta, u, v), self.theta)

    def value(self, goal: Goal, theta: np.ndarray | None = None) -> Any:
        """The goal at ``theta`` (p,) or at each of (p, R) columns."""
        return _GOAL[self.law](self, goal, self.theta if theta is None else theta)

    def gradient(self, goal: Goal) -> np.ndarray:
        """Derivative of the goal by the parameters, (p,)."""
        return _derivative(lambda theta: np.asarray(self.value(goal, theta)), self.theta)

    def draw(self, count: int, seed: int) -> np.ndarray:
        """Parameters drawn from the posterior, (p, count); few degrees of freedom of the noise widen them."""
        rng = stream(seed, "posterior", self.law)
        factor = np.linalg.cholesky(self.covariance)
        scale = np.sqrt(self.freedom / rng.chisquare(self.freedom, count)) if self.freedom else 1.0
        return self.theta[:, None] + (factor @ rng.normal(size=(len(self.theta), count))) * scale

    def surfaces(self, count: int, seed: int) -> SurfaceBatch:
        """Surfaces drawn from the posterior (law ``surface`` only), for what no linear formula gives."""
        return self.batch(self.draw(count, seed))

    def batch(self, theta: np.ndarray) -> SurfaceBatch:
        """Columns of ``theta`` (5, R) as surfaces in single parameters and tokens."""
        assert self.law == "surface"
        log_e, log_a, log_b, a, b = theta
        a, b = np.maximum(a, 1e-3), np.maximum(b, 1e-3)  # an exponent below 0 is no surface
        return SurfaceBatch(np.exp(log_e), log_a + a * self.log_n0, log_b + b * self.log_d0, a, b)

    def estimate(self, goal: Goal, confidence: float = 0.9) -> GoalEstimate:
        """The goal, its standard error and its interval (Student's t where the noise was estimated)."""
        gradient = self.gradient(goal)
        std = math.sqrt(float(gradient @ self.covariance @ gradient))
        tail = 0.5 + confidence / 2
        half = std * float(stats.t.ppf(tail, self.freedom) if self.freedom else stats.norm.ppf(tail))
        value = float(self.value(goal))
        status, reason = self.status, self.reason
        if status == "ok":
            status, reason = self._appraise(goal, gradient, std)
        ratio = goal.flops / self.largest_flops if goal.kind != "alpha" else None
        return GoalEstimate(status, reason, value, std, (value - half, value + half), confidence, ratio)

    def _appraise(self, goal: Goal, gradient: np.ndarray, std: float) -> tuple[str, str]:
        alone = self.precision - np.diag(self.prior)
        if np.linalg.cond(alone) > 1e14 or not np.all(np.linalg.eigvalsh(alone) > 0):
            return "prior", "the runs alone do not determine the law: the interval rests on the weak prior"
        without = float(gradient @ np.linalg.solve(alone, gradient))
        if not 0 < without <= _HELD_BY_PRIOR * std**2:
            return "prior", f"without the weak prior the variance would be {without / std**2:.2g} times as large"
        with np.errstate(all="ignore"):
            drawn = np.asarray(self.value(goal, self.draw(400, 0)))
        finite = drawn[np.isfinite(drawn)]
        if len(finite) < 380:
            return "nonlinear", f"{400 - len(finite)} of 400 laws within the uncertainty have no optimum"
        low, high = np.quantile(finite, [0.159, 0.841])
        if not 1 / _BENT < (high - low) / 2 / std < _BENT:
            return "nonlinear", f"the goal's spread over the posterior is {(high - low) / 2 / std:.2g} times the linear one"
        return "ok", ""

    def _predict(self, theta: np.ndarray, log_n: np.ndarray, log_d: np.ndarray) -> np.ndarray:
        u, v = log_n - self.log_n0, log_d - self.log_d0
        if self.law == "surface":
            log_e, log_a, log_b, a, b = theta
            return np.asarray(np.log(np.exp(log_e) + np.exp(log_a - a * u) + np.exp(log_b - b * v)))
        return np.asarray(_quadratic(u + v, v) @ theta)


def fit_posterior(
    records: Sequence[Record], law: str = "surface", noise_floor: float = 0.0, noise: float | None = None
) -> Posterior:
    """Fit a law to the usable rows by least squares of ln L, and the precision of its parameters.

    Args:
        records: a run table; several seeds of one cell are several rows.
        law: ``surface`` or ``parabola``.
        noise_floor: smallest standard deviation of ln L between seeds that is believed.
        noise: its standard deviation where it is known; otherwise the scatter about the fit gives it.

    Raises:
        UserError: too few runs for the law, or IsoFLOP curves that open downwards.
    """
    if law not in LAWS:
        raise UserError(f"Unknown law '{law}'.{nearest(law, LAWS)} Choices: {', '.join(LAWS)}.")
    rows = usable(records)
    # Parameters as the FLOPs see them, so that 6ND is the compute whatever convention counted it.
    n = np.array([record.flops / (6 * record.tokens) for record in rows])
    d = np.array([record.tokens for record in rows], dtype=float)
    y = np.array([record.loss for record in rows], dtype=float)
    if law == "surface":
        status, reason, theta, centre = _fit_surface(n, d, y)
    else:
        status, reason, theta, centre = _fit_parabola(n, d, y)
    prior = 1 / np.array(_PRIOR[law]) ** 2
    empty = Posterior(law, status, reason, theta, np.diag(prior), prior, 1.0, 0, *centre, float((6 * n * d).max()))
    residual = np.log(y) - empty.log_loss(n, d)
    freedom = len(y) - len(theta)
    estimated = noise is None
    if noise is None:
        noise = max(math.sqrt(float(residual @ residual) / freedom), noise_floor)
    if not noise > 0:
        raise UserError("The runs lie on the law exactly: give noise_floor, the standard deviation between seeds.")
    design = empty.rows(n, d)
    precision = design.T @ design / noise**2 + np.diag(prior)
    return Posterior(
        **{**vars(empty), "precision": precision, "noise": noise, "freedom": freedom if estimated else 0},
    )


def pure_error(records: Sequence[Record]) -> tuple[float, int]:
    """Standard deviation of ln L between seeds of one and the same cell, pooled, and its degrees of freedom (0: no repeats)."""
    groups: dict[tuple[float, float, float | None, int | None], list[float]] = {}
    for record in usable(records):
        groups.setdefault((record.parameters, record.tokens, record.lr, record.batch_tokens), []).append(math.log(record.loss))
    squares = sum(float(np.var(group)) * len(group) for group in groups.values())
    freedom = sum(len(group) - 1 for group in groups.values())
    return (math.sqrt(squares / freedom) if freedom else math.nan), freedom


def _fit_surface(n: np.ndarray, d: np.ndarray, y: np.ndarray) -> tuple[str, str, np.ndarray, tuple[float, float]]:
    surface = fit_surface(n, d, y, "squared_log")
    log_n0, log_d0 = float(np.log(n).mean()), float(np.log(d).mean())
    smallest = 1e-6 * float(y.min())  # a term that vanished keeps a logarithm
    terms = (surface.E, surface.A * math.exp(-surface.a * log_n0), surface.B * math.exp(-surface.b * log_d0))
    theta = np.array([*(math.log(max(term, smallest)) for term in terms), surface.a, surface.b])
    return surface.status, surface.reason, theta, (log_n0, log_d0)


def _fit_parabola(n: np.ndarray, d: np.ndarray, y: np.ndarray) -> tuple[str, str, np.ndarray, tuple[float, float]]:
    log_n0, log_d0 = float(np.log(n).mean()), float(np.log(d).mean())
    u, v = np.log(n) - log_n0, np.log(d) - log_d0
    design = _quadratic(u + v, v)
    if len(y) < 7 or np.linalg.matrix_rank(design) < 6:
        raise UserError(
            f"IsoFLOP parabolas on one line have 6 parameters: {len(y)} runs at {len(set(np.round(u + v, 2)))} budgets are too "
            "few (at least 7 runs, 3 budgets, 3 sizes)."
        )
    theta = np.linalg.lstsq(design, np.log(y), rcond=None)[0]
    if not theta[5] > 0:
        raise UserError("The IsoFLOP parabolas open downwards: they have no minimum. Add sizes on both sides of the lowest loss.")
    return "ok", "", theta, (log_n0, log_d0)


def _quadratic(t: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Design (n, 6) of a quadratic in t = ln C and x = ln D."""
    return np.stack([np.ones_like(t), t, x, t * t, t * x, x * x], axis=1)


def _surface_goal(posterior: Posterior, goal: Goal, theta: np.ndarray) -> Any:
    log_e, log_a, log_b, a, b = theta
    if goal.kind == "alpha":
        return a / (a + b)
    # The optimum of A/N^a + B/D^b on ln N + ln D = ln C/6 in closed form (Hoffmann et al. 2022, eq. 4).
    total = math.log(goal.flops / 6) - posterior.log_n0 - posterior.log_d0
    v = (a * total - np.log(a / b) - log_a + log_b) / (a + b)
    if goal.kind == "log_tokens":
        return v + posterior.log_d0
    return np.log(np.exp(log_e) + np.exp(log_a - a * (total - v)) + np.exp(log_b - b * v))


def _parabola_goal(posterior: Posterior, goal: Goal, theta: np.ndarray) -> Any:
    constant, by_t, by_x, by_tt, by_tx, by_xx = theta
    if goal.kind == "alpha":
        return -by_tx / (2 * by_xx)
    t = math.log(goal.flops / 6) - posterior.log_n0 - posterior.log_d0
    x = -(by_x + by_tx * t) / (2 * by_xx)
    if goal.kind == "log_tokens":
        # Beyond a curvature of 0 there is no optimum; only draws from the posterior come there.
        return (x if np.iscomplexobj(theta) else np.where(by_xx > 0, x, np.nan)) + posterior.log_d0
    return constant + by_t * t + by_tt * t * t - by_xx * x * x


_GOAL: dict[str, Callable[[Posterior, Goal, np.ndarray], Any]] = {"surface": _surface_goal, "parabola": _parabola_goal}


def _derivative(function: Callable[[np.ndarray], np.ndarray], theta: np.ndarray) -> np.ndarray:
    """Derivative (..., p) by complex steps (Squire and Trapp 1998): exact to rounding, no difference is taken."""
    step = 1e-30
    columns = []
    for i in range(len(theta)):
        shifted = theta.astype(complex)
        shifted[i] += 1j * step
        columns.append(np.imag(function(shifted)) / step)
    return np.stack(columns, axis=-1)
