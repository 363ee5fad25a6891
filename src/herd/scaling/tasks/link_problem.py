"""The optimisation behind a link: bounds, starts by variable projection, the objective, and the test for a plateau."""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from herd.config.errors import UserError
from herd.scaling.levenberg import minimise
from herd.scaling.tasks.link_shapes import LINKS, curves_and_slopes, predict_links

Level = float | tuple[float, float] | None  # a number pins, a pair bounds, None leaves anything from 0 to 1

_ASYMMETRY = (0.05, 20.0)
_STEEPEST = 200.0  # slope times the points' span: beyond, the curve is a step between two points
_LEVEL_OF_PLATEAU = 0.01  # significance with which a link must beat a constant


@dataclass(frozen=True)
class LinkProblem:
    x: np.ndarray  # (n,)
    y: np.ndarray  # (1 or R, n)
    kind: str
    low: np.ndarray  # (5,) bounds in the order of NAMES
    high: np.ndarray
    questions: np.ndarray | None  # (n,)
    weights: np.ndarray  # (1 or R, n)

    @classmethod
    def of(
        cls, x: object, accuracy: object, kind: str, chance: Level, ceiling: Level, questions: object, weights: object
    ) -> "LinkProblem":
        LINKS.get(kind)
        xs, ys = np.asarray(x, dtype=float), np.atleast_2d(np.asarray(accuracy, dtype=float))
        if xs.ndim != 1 or xs.shape != ys.shape[1:] or not np.isfinite(xs).all():
            raise UserError("A link needs as many finite losses as accuracies.")
        if not (np.isfinite(ys).all() and (ys >= 0).all() and (ys <= 1).all()):
            raise UserError("A link needs accuracies as shares from 0 to 1, not percent.")
        weighted = np.ones_like(ys[:1]) if weights is None else np.atleast_2d(np.asarray(weights, dtype=float))
        if weighted.shape[1:] != xs.shape or not (np.isfinite(weighted).all() and (weighted >= 0).all()):
            raise UserError("weights: one number of 0 or more for each point of the link.")
        asked = None if questions is None else np.broadcast_to(np.asarray(questions, dtype=float), xs.shape)
        if asked is not None and not (np.isfinite(asked).all() and (asked >= 1).all()):
            raise UserError("questions: the number of questions of the benchmark, 1 or more.")
        floor, top = _bounds("chance", chance), _bounds("ceiling", ceiling)
        if floor[0] >= top[1]:
            raise UserError(f"chance {chance} leaves no room below ceiling {ceiling}.")
        different = len(np.unique(xs[(weighted > 0).any(axis=0)]))
        needed = 2 + (floor[0] < floor[1]) + (top[0] < top[1]) + (kind == "logistic5")
        if different < needed:
            raise UserError(f"This link has {needed} free parameters; {different} different losses are too few.")
        span = float(np.ptp(xs))
        asymmetry = _ASYMMETRY if kind == "logistic5" else (1.0, 1.0)
        bounds = [floor, top, (xs.min() - 3 * span, xs.max() + 3 * span), (0.05 / span, _STEEPEST / span), asymmetry]
        low, high = np.array(bounds, dtype=float).T
        return cls(xs, ys, kind, low, high, asked, weighted)

    @property
    def free(self) -> np.ndarray:
        """Indices of the parameters to estimate."""
        return np.flatnonzero(self.low < self.high)

    def starts(self, keep: int) -> np.ndarray:
        """Variable projection: the best of a grid over midpoint, slope (and asymmetry), levels by least squares; (keep, 5)."""
        span = float(np.ptp(self.x))
        midpoints = np.linspace(self.x.min() - 0.5 * span, self.x.max() + 0.3 * span, 19)
        asymmetries = (0.2, 1.0, 5.0) if self.kind == "logistic5" else (1.0,)
        grid = np.stack(np.meshgrid(midpoints, np.geomspace(0.5 / span, 100 / span, 16), asymmetries), axis=-1).reshape(-1, 3)
        g = LINKS.get(self.kind)(grid[:, 1:2] * (self.x - grid[:, :1]), grid[:, 2:])[0]
        low, high = self._levels(g)
        error = (self.weights * (low[:, None] + (high - low)[:, None] * g - self.y) ** 2).sum(axis=1)
        best = np.argsort(error, kind="stable")[:keep]
        return np.column_stack([low, high, grid])[best]

    def _levels(self, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Chance and ceiling (G,) of least squares for given g (G, n), put into their bounds one after the other."""
        w, a, b = self.weights, 1 - g, g
        aa, ab, bb, ay, by = ((w * v).sum(axis=1) for v in (a * a, a * b, b * b, a * self.y, b * self.y))
        aa, bb = np.maximum(aa, 1e-300), np.maximum(bb, 1e-300)
        determinant = np.maximum(aa * bb - ab * ab, 1e-12 * aa * bb)
        low = np.clip((ay * bb - by * ab) / determinant, self.low[0], self.high[0])
        high = np.clip((by - low * ab) / bb, self.low[1], self.high[1])
        low = np.clip((ay - high * ab) / aa, self.low[0], self.high[0])
        return low, np.maximum(high, low)

    def objective(self, p: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Objective (r,) of accuracies p (r, n), its derivative by p (r, n), and the expected second one (r, n)."""
        y, w = self.y[rows % len(self.y)], self.weights[rows % len(self.weights)]
        if self.questions is None:
            return 0.5 * (w * (p - y) ** 2).sum(axis=1), w * (p - y), w
        p = np.clip(p, 1e-9, 1 - 1e-9)
        n = w * self.questions
        deviance = (n * (_entropy(y, p) + _entropy(1 - y, 1 - p))).sum(axis=1)
        information = n / (p * (1 - p))
        return deviance, information * (p - y), information

    def solve(
        self, start: np.ndarray, iterations: int = 300, precision: float = 1e-14
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Polish starts (R, 5) -> parameters (R, 5), objective (R,), converged (R,). Slope and asymmetry move in logarithms."""
        free = self.free
        fixed = np.where(self.low == self.high, self.low, np.nan)

        def full(values: np.ndarray) -> np.ndarray:
            theta = np.repeat(fixed[None], len(values), axis=0)
            theta[:, free] = values
            theta[:, 3:] = np.exp(theta[:, 3:])
            return theta

        def searched(theta: np.ndarray) -> np.ndarray:
            return np.concatenate([theta[..., :3], np.log(theta[..., 3:])], axis=-1)[..., free]

        def evaluate(values: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            theta = full(values)
            p, along = curves_and_slopes(self.kind, theta, self.x)
            along[..., 3:] *= theta[:, None, 3:]
            along = along[..., free]
            cost, first, second = self.objective(p, rows)
            normal = (along * second[..., None]).transpose(0, 2, 1) @ along
            return cost, (along * first[..., None]).sum(axis=1), normal

        fixed[4] = math.log(fixed[4])  # 1, or to be searched
        bounds = searched(self.low), searched(self.high)
        values, cost, converged = minimise(evaluate, searched(start), *bounds, iterations, precision)
        return full(values), cost, converged

    def dispersion(self, theta: np.ndarray) -> tuple[float, int]:
        """Residual variance, or Pearson's chi-square per degree of freedom; and those degrees."""
        p = predict_links(self.kind, theta, self.x)
        freedom = int((self.weights > 0).sum()) - len(self.free)
        scale = 1.0 if self.questions is None else self.questions / np.clip(p * (1 - p), 1e-9, None)
        total = float((self.weights * scale * (p - self.y) ** 2).sum())
        return (total / freedom if freedom > 0 else math.nan), freedom

    def refuse_plateau(self, theta: np.ndarray, cost: float) -> None:
        """UserError when the link is not significantly better than one accuracy for all points."""
        weight = self.weights if self.questions is None else self.weights * self.questions
        mean = (weight * self.y).sum() / weight.sum()
        flat = float(self.objective(np.full_like(self.y, mean), np.array([0]))[0][0])
        dispersion, freedom = self.dispersion(theta)
        extra = max(len(self.free) - 1, 1)
        gain = 2 * (flat - cost)
        chance = 0.0
        if gain <= 0 or np.ptp(self.y) == 0 or theta[1] <= theta[0]:
            chance = 1.0
        elif self.questions is not None and (freedom < 1 or dispersion <= 1):
            chance = float(stats.chi2.sf(gain, extra))
        elif freedom >= 1 and dispersion > 0:
            chance = float(stats.f.sf(gain / extra / dispersion, extra, freedom))
        if chance > _LEVEL_OF_PLATEAU:
            raise UserError(
                f"The {self.y.size} accuracies ({self.y.min():.3f} to {self.y.max():.3f}) lie on a plateau: they do not fall "
                "with the loss beyond their scatter, so no link is determined. Add models that do clearly better or worse."
            )


def _bounds(name: str, level: Level) -> tuple[float, float]:
    low, high = (0.0, 1.0) if level is None else level if isinstance(level, tuple | list) else (level, level)
    if not 0 <= low <= high <= 1:
        raise UserError(f"{name} {level}: give a share from 0 to 1, a pair of them in order, or None.")
    return float(low), float(high)


def _entropy(y: np.ndarray, p: np.ndarray) -> np.ndarray:
    """y ln(y / p), 0 at y = 0."""
    return np.where(y > 0, y * np.log(np.where(y > 0, y, 1.0) / p), 0.0)
