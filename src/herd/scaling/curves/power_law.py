"""Power laws fitted in log-log: y = A x^alpha, with intervals.

Llama 3, section 3.2.1: N*(C) = A C^alpha, where N* counts the compute-optimal training TOKENS.

Methods: ``ols`` weighs the points alike; ``wls`` by 1 / error^2; ``theil_sen`` takes the median of all pairwise slopes.

Every interval comes from the larger of two standard errors. The first is that of the scatter of the points about the line, with
Student's t; it needs no other knowledge, but a few points can lie on a line by luck. The second carries the points' own standard
errors through the same fit, where they are known; its quantile is the one with which the rule as a whole covers exactly what it
promises if those errors are right (:func:`own_quantile`; the wider of two plain 95% intervals covers 98 to 99%). If they are too
small, the scatter takes over: with four points or more the coverage then stays above 91% (86% with three), measured for 95%.
The least-squares fits are linear in ln y, so both parts are exact. Theil-Sen's is not: its exponent has Sen's interval, and the
law's mean and predictions have Student's t times the standard deviation of a bootstrap of residuals.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from herd.config.errors import UserError
from herd.config.registry import Registry
from herd.runs.seeds import stream
from herd.scaling.curves import theil_sen

Interval = tuple[float, float]

METHODS: Registry[str] = Registry("power-law method")
METHODS.register("ols")("least squares of ln y, all points alike")
METHODS.register("wls")("least squares of ln y, weights 1 / error^2")
METHODS.register("theil_sen")("median of all pairwise slopes")


@dataclass(frozen=True)
class LineErrors:
    """Variances of a fitted line in ln y: of its level at ``mean_log_x``, its slope, both together, and one more point."""

    level: float
    slope: float
    both: float  # covariance of level and slope
    point: float  # scatter of one more typical point about the line

    def at(self, distance: float, kind: str) -> float:
        """Standard error at ``distance`` in ln x from ``mean_log_x``."""
        variance = self.level + 2 * distance * self.both + distance**2 * self.slope
        return math.sqrt(max(variance, 0.0) + (self.point if kind == "prediction" else 0.0))


@dataclass(frozen=True)
class PowerLaw:
    """y = coefficient * x^exponent, fitted on ``points`` pairs. Intervals are None when nothing is left to estimate them."""

    status: str  # ok | exact (two points: a line through both, no interval)
    reason: str  # what is missing and why, else ""
    method: str  # ols | wls | theil_sen
    exponent: float
    coefficient: float
    exponent_interval: Interval | None  # two-sided, at `confidence`
    coefficient_interval: Interval | None
    residual_std: float | None  # scatter of ln y about the law (wls: of a point of average weight)
    points: int
    confidence: float
    mean_log_x: float  # centre of ln x, weighted as the points are
    mean_log_y: float  # ln y of the law there
    smallest_x: float
    largest_x: float  # for extrapolation ratios
    scatter: LineErrors | None = None  # from the scatter of the points, with points - 2 degrees of freedom
    own: LineErrors | None = None  # from the points' own standard errors, where they are known
    from_errors: bool = False  # True: the exponent's interval comes from the points' own errors, not from their scatter

    def predict(self, x: float) -> float:
        """y at ``x``."""
        return math.exp(self.mean_log_y + self.exponent * (math.log(x) - self.mean_log_x))

    def interval(self, x: float, kind: str = "mean") -> Interval | None:
        """Interval of the law at ``x``: ``mean`` of where the law lies, ``prediction`` of where one more point would."""
        assert kind in ("mean", "prediction")
        if self.scatter is None:
            return None
        distance = math.log(x) - self.mean_log_x
        half = self._t() * self.scatter.at(distance, kind)
        if self.own is not None and self.own.at(distance, kind) > self.scatter.at(distance, kind):
            half = own_quantile(self.confidence, self.points - 2) * self.own.at(distance, kind)
        centre = math.log(self.predict(x))
        return math.exp(centre - half), math.exp(centre + half)

    def extrapolation_ratio(self, x: float) -> float:
        """``x`` over the largest x fitted; above 1 the law is read beyond its points."""
        return x / self.largest_x

    def _t(self) -> float:
        return float(stats.t.ppf(0.5 + self.confidence / 2, self.points - 2))


def fit_power_law(
    x: Sequence[float] | np.ndarray,
    y: Sequence[float] | np.ndarray,
    confidence: float = 0.95,
    errors: Sequence[float] | np.ndarray | None = None,
    method: str = "ols",
    replicates: int = 1000,
    seed: int = 0,
) -> PowerLaw:
    """Fit ln y = ln A + alpha ln x.

    Args:
        x, y: (n,) pairs, all above 0, at least two different ``x``; any units, in any order.
        confidence: of the two-sided intervals.
        errors: (n,) standard errors of ln y, where they are known. ``wls`` weighs the points by them and needs all above 0;
            the other methods only keep their intervals from being narrower than the errors allow.
        method: ``ols``, ``wls`` or ``theil_sen``.
        replicates, seed: of Theil-Sen's bootstrap.

    Raises:
        UserError: fewer than two different x, values that have no logarithm, ``wls`` without errors.
    """
    METHODS.get(method)
    if not 0 < confidence < 1:
        raise UserError(f"confidence {confidence}: give a fraction between 0 and 1, such as 0.95.")
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if xs.shape != ys.shape or not (np.isfinite(xs).all() and np.isfinite(ys).all() and (xs > 0).all() and (ys > 0).all()):
        raise UserError("A power law needs pairs of finite numbers above 0.")
    if len(np.unique(xs)) < 2:
        raise UserError(f"A power law needs at least two different budgets with an optimum; there is {len(np.unique(xs))}.")
    own = _checked_errors(errors, xs, method)
    order = np.lexsort((ys, xs))  # sums in one order, so that the rows' order cannot show in the last digit
    log_x, log_y = np.log(xs[order]), np.log(ys[order])
    own = own[order] if own is not None else None
    weights = 1 / own**2 if method == "wls" and own is not None else np.ones(len(log_x))
    weights = weights / weights.mean()
    mean_x = float(weights @ log_x / weights.sum())
    if method == "theil_sen":
        level, exponent = (float(v) for v in theil_sen.fit_line(log_x - mean_x, log_y))
    else:
        level = float(weights @ log_y / weights.sum())
        exponent = float(weights @ ((log_x - mean_x) * (log_y - level)) / (weights @ (log_x - mean_x) ** 2))
    law = PowerLaw(
        status="exact",
        reason="two points determine the law without an interval: add a budget",
        method=method,
        exponent=exponent,
        coefficient=math.exp(level - exponent * mean_x),
        exponent_interval=None,
        coefficient_interval=None,
        residual_std=None,
        points=len(xs),
        confidence=confidence,
        mean_log_x=mean_x,
        mean_log_y=level,
        smallest_x=float(xs.min()),
        largest_x=float(xs.max()),
    )
    if len(xs) == 2:
        return law
    residual = log_y - level - exponent * (log_x - mean_x)
    variance = float(weights @ residual**2) / (len(xs) - 2)
    if method == "theil_sen":
        scatter, own_errors = _resampled(log_x - mean_x, residual, law, own, replicates, seed)
    else:
        scatter = _carried(log_x - mean_x, weights, variance / weights, variance)
        own_errors = _carried(log_x - mean_x, weights, own**2, float((own**2).mean())) if own is not None else None
    law = replace(law, status="ok", reason="", residual_std=math.sqrt(variance), scatter=scatter, own=own_errors)
    law = replace(law, coefficient_interval=law.interval(1.0))
    if law.own is not None and law.own.slope > scatter.slope:
        half = own_quantile(confidence, len(xs) - 2) * math.sqrt(law.own.slope)
        return replace(law, exponent_interval=(exponent - half, exponent + half), from_errors=True)
    half = law._t() * math.sqrt(scatter.slope)
    interval = theil_sen.sen_interval(log_x, log_y, confidence) if method == "theil_sen" else (exponent - half, exponent + half)
    if interval is None:
        law = replace(law, reason=f"Sen's interval of the exponent at {confidence:.0%} needs more than {len(xs)} points")
    return replace(law, exponent_interval=interval)


@functools.lru_cache(maxsize=256)
def own_quantile(confidence: float, freedom: int) -> float:
    """Quantile of the points' own standard error, used where it exceeds that of their scatter.

    The z with which the rule misses with probability 1 - confidence if the errors are right: for a standard normal Z and
    S^2 ~ chi^2 / freedom independent, P(S > 1, |Z| > t S) + P(S <= 1) P(|Z| > z) = 1 - confidence.
    """
    t = stats.t.ppf(0.5 + confidence / 2, freedom)
    # S at the middles of slices of equal probability.
    scatter = np.sqrt(stats.chi2.ppf((np.arange(4000) + 0.5) / 4000, freedom) / freedom)
    by_scatter = float(np.where(scatter > 1, 2 * stats.norm.sf(t * scatter), 0.0).mean())
    return float(stats.norm.isf((1 - confidence - by_scatter) / float((scatter <= 1).mean()) / 2))


def _checked_errors(errors: Sequence[float] | np.ndarray | None, x: np.ndarray, method: str) -> np.ndarray | None:
    if errors is None:
        if method == "wls":
            raise UserError("method=wls weighs each point by 1 / error^2: give the standard errors of ln y, or method=ols.")
        return None
    own = np.asarray(errors, dtype=float)
    if own.shape != x.shape or not np.isfinite(own).all() or (own < 0).any():
        raise UserError("The errors of a power law's points must be as many as the points, finite and not negative.")
    if method == "wls" and not (own > 0).all():
        raise UserError("method=wls: a point with an error of 0 would outweigh all others; give errors above 0, or method=ols.")
    return own


def _carried(distance: np.ndarray, weights: np.ndarray, variances: np.ndarray, point: float) -> LineErrors:
    """Variances (n,) of the points carried through a weighted least-squares line, which is linear in them."""
    to_level = weights / weights.sum()
    to_slope = weights * distance / (weights @ distance**2)
    return LineErrors(
        float(to_level**2 @ variances), float(to_slope**2 @ variances), float((to_level * to_slope) @ variances), point
    )


def _resampled(
    distance: np.ndarray, residual: np.ndarray, law: PowerLaw, own: np.ndarray | None, replicates: int, seed: int
) -> tuple[LineErrors, LineErrors | None]:
    """The same for Theil-Sen, which is not linear: refitted to redrawn residuals, and to errors drawn from the points' own."""

    def errors(draws: np.ndarray, point: float) -> LineErrors:
        levels, slopes = theil_sen.resampled_lines(distance, draws, law.mean_log_y, law.exponent)
        covariance = np.cov(levels, slopes)
        return LineErrors(float(covariance[0, 0]), float(covariance[1, 1]), float(covariance[0, 1]), point)

    scatter = errors(theil_sen.residual_draws(residual, replicates, seed), float(residual @ residual) / (len(residual) - 2))
    if own is None:
        return scatter, None
    normal = stream(seed, "theil-sen errors").normal(size=(replicates, len(own)))
    return scatter, errors(normal * own, float((own**2).mean()))
