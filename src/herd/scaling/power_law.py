"""Power laws by least squares in log-log: y = A x^alpha, with intervals.

Llama 3, section 3.2.1: N*(C) = A C^alpha, where N* counts the compute-optimal training TOKENS.

Every interval is the wider of two. Student's t on the scatter of the points about the line needs no other knowledge, but a
few points can lie on a line by luck. Where the points' own standard errors are known, they are carried through the same
least squares (a linear function of ln y) with the normal quantile, and the interval is never narrower than that.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from herd.config.errors import UserError

Interval = tuple[float, float]


@dataclass(frozen=True)
class PowerLaw:
    """y = coefficient * x^exponent, fitted on ``points`` pairs. Intervals are None when nothing is left to estimate them."""

    status: str  # ok | exact (two points: a line through both, no interval)
    exponent: float
    coefficient: float
    exponent_interval: Interval | None  # two-sided, at `confidence`
    coefficient_interval: Interval | None
    residual_std: float | None  # scatter of ln y about the law
    points: int
    confidence: float
    mean_log_x: float  # centre of ln x
    mean_log_y: float
    spread: float  # sum of squared deviations of ln x
    largest_x: float  # for extrapolation ratios
    log_x: tuple[float, ...] = ()  # ln x of the points
    errors: tuple[float, ...] | None = None  # standard errors of ln y of the points, None when not known
    widened: bool = False  # True: the exponent's interval comes from the points' own errors, not from their scatter

    def predict(self, x: float) -> float:
        """y at ``x``."""
        return math.exp(self.mean_log_y + self.exponent * (math.log(x) - self.mean_log_x))

    def interval(self, x: float, kind: str = "mean") -> Interval | None:
        """Interval of the law at ``x``: ``mean`` of where the law lies, ``prediction`` of where one more point would."""
        assert kind in ("mean", "prediction")
        if self.residual_std is None:
            return None
        distance = math.log(x) - self.mean_log_x
        variance = 1 / self.points + distance**2 / self.spread
        half = self._t() * self.residual_std * math.sqrt(variance + (kind == "prediction"))
        weights = 1 / self.points + distance * self._slope_weights()
        half = max(half, self._own(weights, 1.0 if kind == "prediction" else 0.0))
        centre = math.log(self.predict(x))
        return math.exp(centre - half), math.exp(centre + half)

    def _t(self) -> float:
        return float(stats.t.ppf(0.5 + self.confidence / 2, self.points - 2))

    def _slope_weights(self) -> np.ndarray:
        """Weights (points,) with which ln y enters the exponent."""
        return (np.array(self.log_x) - self.mean_log_x) / self.spread

    def _own(self, weights: np.ndarray, more: float = 0.0) -> float:
        """Half-width from the points' own errors of a sum of ln y with ``weights``, and of ``more`` typical points beside it."""
        if self.errors is None:
            return 0.0
        squares = np.array(self.errors) ** 2
        return float(stats.norm.ppf(0.5 + self.confidence / 2)) * math.sqrt(float(weights**2 @ squares) + more * squares.mean())


def fit_power_law(
    x: Sequence[float], y: Sequence[float], confidence: float = 0.95, errors: Sequence[float] | None = None
) -> PowerLaw:
    """Ordinary least squares of ln y on ln x.

    Args:
        x, y: pairs, all above 0, at least two different ``x``.
        confidence: of the two-sided intervals.
        errors: standard errors of ln y, where they are known; the points still weigh alike.

    Raises:
        UserError: fewer than two different x, or values that have no logarithm.
    """
    if not 0 < confidence < 1:
        raise UserError(f"confidence {confidence}: give a fraction between 0 and 1, such as 0.95.")
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if xs.shape != ys.shape or not (np.isfinite(xs).all() and np.isfinite(ys).all() and (xs > 0).all() and (ys > 0).all()):
        raise UserError("A power law needs pairs of finite numbers above 0.")
    if len(np.unique(xs)) < 2:
        raise UserError(f"A power law needs at least two different budgets with an optimum; there is {len(np.unique(xs))}.")
    log_x, log_y = np.log(xs), np.log(ys)
    mean_x, mean_y = float(log_x.mean()), float(log_y.mean())
    spread = float(((log_x - mean_x) ** 2).sum())
    exponent = float(((log_x - mean_x) * (log_y - mean_y)).sum() / spread)
    intercept = mean_y - exponent * mean_x
    law = PowerLaw(
        status="exact",
        exponent=exponent,
        coefficient=math.exp(intercept),
        exponent_interval=None,
        coefficient_interval=None,
        residual_std=None,
        points=len(xs),
        confidence=confidence,
        mean_log_x=mean_x,
        mean_log_y=mean_y,
        spread=spread,
        largest_x=float(xs.max()),
        log_x=tuple(log_x.tolist()),
        errors=tuple(map(float, errors)) if errors is not None else None,
    )
    if len(xs) == 2:
        return law
    residual = log_y - intercept - exponent * log_x
    std = math.sqrt(float(residual @ residual) / (len(xs) - 2))
    scatter, own = law._t() * std / math.sqrt(spread), law._own(law._slope_weights())
    half = max(scatter, own)
    half_intercept = law._t() * std * math.sqrt(1 / len(xs) + mean_x**2 / spread)
    half_intercept = max(half_intercept, law._own(1 / len(xs) - mean_x * law._slope_weights()))
    values = vars(law) | {
        "status": "ok",
        "exponent_interval": (exponent - half, exponent + half),
        "coefficient_interval": (math.exp(intercept - half_intercept), math.exp(intercept + half_intercept)),
        "residual_std": std,
        "widened": own > scatter,
    }
    return PowerLaw(**values)
