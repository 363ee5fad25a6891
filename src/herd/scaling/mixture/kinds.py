"""Kinds of mixture laws. Each is fitted to many weightings of the same rows at once: folds, replicates, or the rows as they are.

A fitter takes shares (n, k), losses (n,), weights (R, n) and model sizes relative to their mean (n,) or None, and returns a
:class:`Fitted`, which predicts (R, m) losses for m mixtures.

``exponential``: L = c + exp(sum t_i r_i) (Ye et al. 2024, "Data Mixing Laws", eq. 7; their k is e to the mean of t, since shares
sum to 1). With sizes, L = c + (A + exp(sum t_i r_i)) s^-a: what the mixture can change shrinks with size like the rest.
``gbdt``: gradient-boosted trees, as Liu et al. 2024, "RegMix", fit them. ``linear`` and ``log_linear``: L linear in the shares or
in their logarithms.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from herd.config.registry import Registry
from herd.scaling.levenberg import minimise

Sizes = np.ndarray | None
Fitter = Callable[[np.ndarray, np.ndarray, np.ndarray, Sizes], "Fitted"]
KINDS: Registry[Fitter] = Registry("mixture law")

HUBER = 0.02  # nats beyond which an error counts linearly in the exponential law, as in Ye et al. 2024
_STEEPEST = 30.0  # bound of t: e^30 is far beyond any loss
_TRACE = 1e-3  # share added before a logarithm: none at all is not infinitely less than a little


@dataclass(frozen=True)
class Fitted:
    """R fitted laws."""

    curve: Callable[[Any, np.ndarray, Sizes], np.ndarray]  # laws, shares (m, k), sizes (m,) -> losses (R, m)
    laws: Any  # sequence of R laws: coefficients (R, p), or models
    parameters: list[dict[str, Any]]  # of each law, plain values
    converged: np.ndarray  # (R,)
    smooth: bool = True  # losses change with every change of a share

    def predict(self, shares: np.ndarray, sizes: Sizes) -> np.ndarray:
        """Losses (R, m) of mixtures (m, k)."""
        return self.curve(self.laws, shares, sizes)

    def only(self, row: int) -> "Fitted":
        """The law ``row`` alone."""
        return replace(self, laws=self.laws[row : row + 1])


@KINDS.register("exponential")
def exponential(x: np.ndarray, y: np.ndarray, weights: np.ndarray, sizes: Sizes) -> Fitted:
    """Huber loss by Levenberg-Marquardt, from logarithmic least squares for several c."""
    k, sized = x.shape[1], sizes is not None
    scale = float(np.median(y))
    low = np.array([0.0, *[-_STEEPEST] * k, *([0.0, 0.0] if sized else [])])
    high = np.array([y.max(), *[_STEEPEST] * k, *([y.max(), 3.0] if sized else [])])

    def curve(theta: np.ndarray, at: np.ndarray, s: Sizes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        e = np.exp(np.clip(theta[:, 1 : k + 1] @ at.T, -_STEEPEST, _STEEPEST))
        if s is None:
            return theta[:, :1] + e, e, np.ones_like(e)
        shrink = s ** -theta[:, -1:]
        return theta[:, :1] + (theta[:, -2:-1] + e) * shrink, e, shrink

    def evaluate(theta: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        value, e, shrink = curve(theta, x, sizes)
        residual, w = value - y, problem_weights[rows]
        size = np.abs(residual)
        cost = (w * np.where(size <= HUBER, 0.5 * residual**2, HUBER * (size - 0.5 * HUBER))).sum(axis=1)
        columns = [np.ones_like(e)[..., None], (e * shrink)[..., None] * x]
        if sizes is not None:
            columns += [shrink[..., None], (-(value - theta[:, :1]) * np.log(sizes))[..., None]]
        jacobian = np.concatenate(columns, axis=2)
        weighted = jacobian * (w * np.minimum(1.0, HUBER / np.maximum(size, 1e-300)))[..., None]
        return cost, (weighted * residual[..., None]).sum(axis=1), weighted.transpose(0, 2, 1) @ jacobian

    rows = len(weights)
    start_levels = np.array([0.0, 0.5, 0.8, 0.95, 0.99]) * y.min()
    starts = []
    for level in start_levels:
        t = _least_squares(x, np.log(np.maximum(y - level, 1e-3 * scale)), np.ones((1, len(y))))[0]
        start = np.array([level, *t, *([0.0, 0.1] if sized else [])])
        starts.append(np.clip(start, low, high))
    problem_weights = np.ones((len(starts), len(y)))
    first, cost, converged = minimise(evaluate, np.array(starts), low, high, iterations=500)
    best = int(cost.argmin())
    theta, done = first[best : best + 1], converged[best : best + 1]
    if rows > 1 or not np.all(weights == 1):
        problem_weights = weights
        theta, _, done = minimise(evaluate, np.repeat(theta, rows, axis=0), low, high, iterations=100, precision=1e-9)
    parameters = [
        {"c": float(row[0]), "t": row[1 : k + 1].tolist(), **({"A": float(row[-2]), "a": float(row[-1])} if sized else {})}
        for row in theta
    ]
    return Fitted(lambda laws, at, s: curve(laws, at, s)[0], theta, parameters, done)


@KINDS.register("linear")
def linear(x: np.ndarray, y: np.ndarray, weights: np.ndarray, sizes: Sizes) -> Fitted:
    """L = sum b_i r_i (the shares sum to 1, so there is no intercept), and b ln s with sizes."""
    return _linear(lambda at: at, x, y, weights, sizes)


@KINDS.register("log_linear")
def log_linear(x: np.ndarray, y: np.ndarray, weights: np.ndarray, sizes: Sizes) -> Fitted:
    """L = b_0 + sum b_i ln(r_i + 0.001), and b ln s with sizes."""
    return _linear(lambda at: np.column_stack([np.ones(len(at)), np.log(at + _TRACE)]), x, y, weights, sizes)


def _linear(
    features: Callable[[np.ndarray], np.ndarray], x: np.ndarray, y: np.ndarray, weights: np.ndarray, sizes: Sizes
) -> Fitted:
    def design(at: np.ndarray, s: Sizes) -> np.ndarray:
        return features(at) if s is None else np.column_stack([features(at), np.log(s)])

    solved = _least_squares(design(x, sizes), y, weights)
    parameters: list[dict[str, Any]] = [{"coefficients": row.tolist()} for row in solved]
    done = np.ones(len(solved), dtype=bool)
    return Fitted(lambda laws, at, s: laws @ design(at, s).T, solved, parameters, done)


@KINDS.register("gbdt")
def gbdt(x: np.ndarray, y: np.ndarray, weights: np.ndarray, sizes: Sizes) -> Fitted:
    """scikit-learn's histogram trees of 31 leaves; 300 at a rate of 0.05 rank as well as RegMix's 1,000 at 0.01."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    def design(at: np.ndarray, s: Sizes) -> np.ndarray:
        return at if s is None else np.column_stack([at, np.log(s)])

    columns = design(x, sizes)
    models = []
    for row in weights:
        # Leaves of 20 rows, as in RegMix, but a small sweep must be allowed a split.
        leaf = min(20, max(2, int((row > 0).sum()) // 8))
        model = HistGradientBoostingRegressor(
            learning_rate=0.05, max_iter=300, max_leaf_nodes=31, min_samples_leaf=leaf, early_stopping=False, random_state=0
        )
        used = row > 0
        models.append(model.fit(columns[used], y[used], sample_weight=row[used]))
    parameters: list[dict[str, Any]] = [{"trees": model.n_iter_} for model in models]
    return Fitted(
        lambda laws, at, s: np.stack([model.predict(design(at, s)) for model in laws]),
        models,
        parameters,
        np.ones(len(models), dtype=bool),
        smooth=False,
    )


def _least_squares(design: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted least squares for each row of weights (R, n) -> (R, p), with the least norm where it is not unique."""
    root = np.sqrt(weights)
    return np.asarray((np.linalg.pinv(design * root[..., None], rcond=1e-10) @ (root * y)[..., None])[..., 0])
