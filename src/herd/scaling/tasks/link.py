"""Link: accuracy of a benchmark as a function of a loss on it (NLL or bits per byte of the right answer).

accuracy(x) = chance + (ceiling - chance) g(slope (x - midpoint)), with g one of the shapes of `link_shapes`, falling from 1 to
0. Chance and ceiling are each pinned, bounded or free. The grid of midpoints and slopes is searched by variable projection
(for fixed g the curve is linear in chance and ceiling), and the best starts are polished by Levenberg-Marquardt.
Llama 3, section 3.2.1, step 2 (sigmoid); Bhagia et al. 2024, "Establishing Task Scaling Laws via Compute-Efficient Model
Ladders", section 2.3.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from herd.config.errors import UserError
from herd.scaling.curves.power_law import Interval
from herd.scaling.tasks.link_problem import Level, LinkProblem
from herd.scaling.tasks.link_shapes import curves_and_slopes, predict_links

NAMES = ("chance", "ceiling", "midpoint", "slope", "asymmetry")
_ILL = 1e5  # condition number of the scaled Jacobian above which the parameters trade off against each other


@dataclass(frozen=True)
class Link:
    """A fitted link; accuracies are shares from 0 to 1, x a loss in the unit it was given in."""

    status: str  # ok | at_bound | ill_determined (parameters trade off; the curve holds among the points) | not_converged
    reason: str
    kind: str  # sigmoid | probit | gompertz | logistic5
    chance: float  # accuracy at a large loss
    ceiling: float  # accuracy at a small loss
    midpoint: float  # loss half-way between the two
    slope: float  # per unit of loss, above 0
    asymmetry: float  # of logistic5; 1 for the others
    free: tuple[str, ...]  # parameters that were estimated and lie inside their bounds
    covariance: tuple[tuple[float, ...], ...]  # of `free`, in that order
    objective: str  # binomial (deviance) | squared
    value: float  # sum of the objective at the optimum
    dispersion: float  # squared: residual variance; binomial: Pearson's chi-square per degree of freedom
    freedom: int  # points less estimated parameters
    condition: float  # of the scaled Jacobian
    points: int
    range: Interval  # smallest and largest loss among the points

    @property
    def parameters(self) -> np.ndarray:
        """(5,) in the order of ``NAMES``."""
        return np.array([getattr(self, name) for name in NAMES])

    @property
    def standard_errors(self) -> dict[str, float]:
        """Of the free parameters; a parameter that is pinned or at a bound has none."""
        return {name: math.sqrt(self.covariance[i][i]) for i, name in enumerate(self.free)}

    def predict(self, x: np.ndarray | float) -> np.ndarray:
        """Accuracy at losses ``x``, of x's shape."""
        return predict_links(self.kind, self.parameters, np.asarray(x, dtype=float))

    def interval(self, x: float, kind: str = "mean", questions: int | None = None, confidence: float = 0.95) -> Interval:
        """Interval at loss ``x`` by the delta method: ``mean`` of the curve, ``prediction`` of one more measured accuracy.

        Args:
            questions: of the predicted benchmark, whose binomial error then counts; needed by a prediction from a binomial fit.
        """
        assert kind in ("mean", "prediction")
        if self.freedom < 1:
            raise UserError(f"This link has {self.points} points for as many parameters: no interval.")
        centre = float(self.predict(x))
        gradient = curves_and_slopes(self.kind, self.parameters[None], np.array([x]))[1][
            0, 0, [NAMES.index(name) for name in self.free]
        ]
        variance = float(gradient @ np.array(self.covariance).reshape(len(self.free), -1) @ gradient) if self.free else 0.0
        if kind == "prediction":
            variance += float(self.noise_variance(centre, questions))
        half = float(stats.t.ppf(0.5 + confidence / 2, self.freedom)) * math.sqrt(variance)
        return max(0.0, centre - half), min(1.0, centre + half)

    def noise_variance(self, accuracy: np.ndarray | float, questions: int | None = None) -> np.ndarray | float:
        """Variance of a measured accuracy about the curve."""
        if self.objective == "squared":
            return self.dispersion
        if not questions:
            raise UserError("A prediction from a binomial link needs `questions`, the size of the benchmark it predicts.")
        return max(self.dispersion, 1.0) * accuracy * (1 - accuracy) / questions


def fit_link(
    x: Sequence[float] | np.ndarray,
    accuracy: Sequence[float] | np.ndarray,
    kind: str = "sigmoid",
    chance: Level = None,
    ceiling: Level = None,
    questions: int | Sequence[int] | np.ndarray | None = None,
    weights: Sequence[float] | np.ndarray | None = None,
) -> Link:
    """Fit a link.

    Args:
        x: (n,) losses, lower is better.
        accuracy: (n,) shares from 0 to 1.
        kind: shape of the curve.
        chance, ceiling: pinned (a number), bounded (a pair) or free in [0, 1] (None).
        questions: of the benchmark, one number or (n,): the fit is then of maximum binomial likelihood, with errors widened by
            whatever scatter exceeds the binomial. None: least squares.
        weights: (n,) of the rows, 0 or more; None = 1 each.

    Raises:
        UserError: bad numbers, too few different losses, or points that lie on a plateau: no link can be told from a constant.
    """
    problem = LinkProblem.of(x, accuracy, kind, chance, ceiling, questions, weights)
    theta, cost, converged = problem.solve(problem.starts(keep=6))
    best = int(cost.argmin())
    problem.refuse_plateau(theta[best], float(cost[best]))
    return _describe(problem, theta[best], float(cost[best]), bool(converged[best]))


def refit_links(
    link: Link,
    x: np.ndarray,
    accuracy: np.ndarray,
    chance: Level = None,
    ceiling: Level = None,
    questions: int | np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """Refit to replicates from the point estimate, all at once -> parameters (R, 5).

    Args:
        accuracy: (n,) or (R, n); weights: (n,) or (R, n); the other arguments as for :func:`fit_link`.
    """
    rows = max(1, *(len(v) for v in (accuracy, weights) if v is not None and v.ndim == 2))
    problem = LinkProblem.of(x, accuracy, link.kind, chance, ceiling, questions, weights)
    return problem.solve(np.repeat(link.parameters[None], rows, axis=0), iterations=60, precision=1e-8)[0]


def _describe(problem: LinkProblem, theta: np.ndarray, cost: float, converged: bool) -> Link:
    """The solution with its errors and a status."""
    ease = 1e-5 * (problem.high - problem.low)
    stuck = (problem.low < problem.high) & ((theta <= problem.low + ease) | (theta >= problem.high - ease))
    inside = np.flatnonzero((problem.low < problem.high) & ~stuck)
    p, along = curves_and_slopes(problem.kind, theta[None], problem.x)
    jacobian = np.sqrt(problem.objective(p, np.array([0]))[2][0])[:, None] * along[0][:, inside]
    lengths = np.maximum(np.linalg.norm(jacobian, axis=0), 1e-300)
    scaled = jacobian / lengths
    condition = float(np.linalg.cond(scaled)) if len(inside) else 1.0
    dispersion, freedom = problem.dispersion(theta)
    spread = max(dispersion, 1.0) if problem.questions is not None else dispersion
    covariance = np.linalg.pinv(scaled.T @ scaled) / np.outer(lengths, lengths) * (spread if freedom > 0 else math.nan)
    status, reason = "ok", ""
    if condition > _ILL:
        status, reason = "ill_determined", f"condition number {condition:.1e}: the points do not hold the parameters apart"
    if stuck.any():
        names = ", ".join(NAMES[i] for i in np.flatnonzero(stuck))
        status, reason = "at_bound", f"{names} at the edge of what is allowed: the points do not determine it"
    if not converged:
        status, reason = "not_converged", "the solver stopped before the optimum"
    return Link(
        status=status,
        reason=reason,
        kind=problem.kind,
        **{name: float(value) for name, value in zip(NAMES, theta, strict=True)},
        free=tuple(NAMES[i] for i in inside),
        covariance=tuple(tuple(row) for row in covariance.tolist()),
        objective="squared" if problem.questions is None else "binomial",
        value=cost,
        dispersion=dispersion,
        freedom=freedom,
        condition=condition,
        points=problem.y.size,
        range=(float(problem.x.min()), float(problem.x.max())),
    )
