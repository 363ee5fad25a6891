"""Theil-Sen lines: the median of the slopes through all pairs of points, which a few wild points cannot turn.

Sen 1968, "Estimates of the regression coefficient based on Kendall's tau": a slope belongs to the interval while Kendall's S
of the residuals about it stays likely, so the interval is cut from the sorted pairwise slopes by the distribution of S. That
distribution is taken exactly: the usual normal approximation covers 92% instead of 95% with five points.
"""

import numpy as np
from scipy import stats

from herd.runs.seeds import stream

_CHUNK = 4_000_000  # pairwise slopes held at once


def slopes_of(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Slopes (..., pairs) through all pairs with different x; x (n,), y (..., n)."""
    i, j = np.triu_indices(len(x), 1)
    i, j = i[x[i] != x[j]], j[x[i] != x[j]]
    return np.asarray((y[..., j] - y[..., i]) / (x[j] - x[i]))


def fit_line(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Level at x = 0 and slope, both (...,), of lines through x (n,), y (..., n)."""
    slope = np.median(slopes_of(x, y), axis=-1)
    return np.median(y - slope[..., None] * x, axis=-1), slope


def sen_interval(x: np.ndarray, y: np.ndarray, confidence: float) -> tuple[float, float] | None:
    """Sen's interval of the slope; None where even all pairs together are not that sure (under 5 points at 95%)."""
    slopes = np.sort(slopes_of(x, y))
    if len(np.unique(x)) < len(x):  # Kendall's S has other odds where x repeats: scipy corrects its variance for them
        low, high = stats.theilslopes(y, x, alpha=confidence)[2:4]
        return float(low), float(high)
    # Discordant pairs of a random order: the product of (1 + q + ... + q^j) / (j + 1).
    odds = np.ones(1)
    for j in range(1, len(x)):
        odds = np.convolve(odds, np.full(j + 1, 1 / (j + 1)))
    below = np.cumsum(odds)
    outside = int(np.searchsorted(below, (1 - confidence) / 2, side="right"))  # the most pairs that may lie beyond an end
    if outside == 0:
        return None
    return float(slopes[outside - 1]), float(slopes[len(slopes) - outside])


def resampled_lines(x: np.ndarray, draw: np.ndarray, level: float, slope: float) -> tuple[np.ndarray, np.ndarray]:
    """Levels and slopes (R,) of lines through the fitted line plus ``draw`` (R, n)."""
    pairs = len(x) * (len(x) - 1) // 2
    step = max(_CHUNK // max(pairs, 1), 1)
    parts = [fit_line(x, level + slope * x + draw[i : i + step]) for i in range(0, len(draw), step)]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def residual_draws(residual: np.ndarray, replicates: int, seed: int) -> np.ndarray:
    """Residuals (n,) drawn with replacement, (replicates, n), scaled for the two parameters that they were fitted with."""
    n = len(residual)
    chosen = stream(seed, "theil-sen residuals").integers(0, n, (replicates, n))
    return np.asarray(residual[chosen] * np.sqrt(n / (n - 2)))
