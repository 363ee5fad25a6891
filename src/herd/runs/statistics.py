"""Intervals and paired tests for scores on a finite set of examples.

The paper (section 5.1.1) prints the Wald interval, 1.96 sqrt(S (1 - S) / N), which collapses at 0 and 1 (its Table 17
has "100.0 +-0.0"). `herd` prints Wilson's, which never does, and keeps Wald's half-width beside it to compare with
the paper. Scores that are no mean of independent 0/1 outcomes (a ratio of sums, a score with ties at one half) get a
percentile bootstrap.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

Z95 = 1.96  # as the paper writes it


@dataclass(frozen=True)
class Interval:
    """A 95% interval, ``low <= high``, in the unit of the score."""

    low: float
    high: float

    def to_list(self) -> list[float]:
        """``[low, high]``, as results.json holds it."""
        return [self.low, self.high]


def wald_half_width(score: float, n: int) -> float:
    """The paper's confidence interval: half-width 1.96 sqrt(S (1 - S) / N) of a share S in [0, 1] of N examples."""
    _check(score, n)
    return float(Z95 * np.sqrt(score * (1.0 - score) / n))


def wilson(score: float, n: float) -> Interval:
    """Wilson's 95% score interval of a share ``score`` in [0, 1] of ``n`` examples, in effect (Wilson 1927)."""
    _check(score, n)
    z2 = Z95**2
    centre = (score + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * np.sqrt(score * (1 - score) / n + z2 / (4 * n * n))
    # At 0 and 1 one end is exactly the score; rounding must not push it past.
    return Interval(float(max(0.0, min(centre - half, score))), float(min(1.0, max(centre + half, score))))


def clustered_wilson(values: ArrayLike, clusters: Sequence[Hashable]) -> Interval:
    """Wilson's 95% interval of a share whose examples come in clusters (several pairs of one prompt).

    Examples of a cluster resemble each other, so they count as fewer: n over the design effect (Kish 1965, section 5.4),
    the variance of the mean between clusters divided by that of as many independent examples, never taken below 1. A share
    of 0 or 1 shows no variance; then each cluster counts as one example.

    Args:
        values: (n,) in [0, 1]; 0 or 1, a half for a tie.
        clusters: (n,), the cluster of each.
    """
    x = np.asarray(values, dtype=np.float64)
    sums, counts = cluster_sums(x, clusters)
    n, mean = len(x), float(x.mean())
    if len(counts) == n:
        return wilson(mean, n)
    independent = mean * (1.0 - mean) / (n - 1)
    if independent == 0.0 or len(counts) == 1:
        return wilson(mean, len(counts))
    between = len(counts) / (len(counts) - 1) * float(((sums - mean * counts) ** 2).sum()) / n**2
    return wilson(mean, n / max(1.0, between / independent))


def cluster_sums(values: ArrayLike, clusters: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """(clusters,) sums of ``values`` (n,) over each cluster, and (clusters,) sizes, in order of first appearance."""
    x = np.asarray(values, dtype=np.float64)
    numbers = {cluster: i for i, cluster in enumerate(dict.fromkeys(clusters))}
    index = np.array([numbers[cluster] for cluster in clusters])
    assert len(index) == len(x) > 0, (len(index), len(x))
    return np.bincount(index, weights=x), np.bincount(index)


def mean_stderr(values: ArrayLike) -> float:
    """Standard error of a mean, std / sqrt(n) with n - 1 in the variance (lm-eval's `mean_stderr`); 0 for one value."""
    x = np.asarray(values, dtype=np.float64)
    return float(x.std(ddof=1) / np.sqrt(len(x))) if len(x) > 1 else 0.0


def bootstrap_ratio(numerators: ArrayLike, denominators: ArrayLike, rng: np.random.Generator, resamples: int = 1000) -> Interval:
    """Percentile bootstrap of sum(numerators) / sum(denominators) over units drawn with replacement.

    Args:
        numerators, denominators: (units,), one entry a unit (a document, an example).
        rng: source of the resamples.
        resamples: how many; 1,000 leave the ends uncertain by a few percent of the width.
    """
    return Interval(*_percentiles(bootstrap_ratios(numerators, denominators, rng, resamples)))


def bootstrap_ratios(
    numerators: ArrayLike, denominators: ArrayLike, rng: np.random.Generator, resamples: int = 1000
) -> np.ndarray:
    """The resampled ratios themselves, (resamples,) float64, for weighted sums over several sets of units.

    Of (units, models) the same units are drawn for all models: (resamples, models).
    """
    top, bottom = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    assert top.shape == bottom.shape and len(top), (top.shape, bottom.shape)
    # Multinomial counts: how often each unit is drawn. One matrix product instead of a gather of resamples x units.
    counts = rng.multinomial(len(top), np.full(len(top), 1.0 / len(top)), size=resamples)
    return (counts @ top) / (counts @ bottom)


def bootstrap_mean(values: ArrayLike, rng: np.random.Generator, resamples: int = 1000) -> Interval:
    """Percentile bootstrap of a mean over units drawn with replacement."""
    x = np.asarray(values, dtype=np.float64)
    return bootstrap_ratio(x, np.ones_like(x), rng, resamples)


@dataclass(frozen=True)
class Paired:
    """Two models on the same examples: difference of their means, first less second."""

    difference: float
    interval: Interval  # 95%, paired bootstrap over examples
    only_first: int  # examples that the first alone has right
    only_second: int
    p_value: float  # exact two-sided McNemar


def paired(first: ArrayLike, second: ArrayLike, rng: np.random.Generator, resamples: int = 1000) -> Paired:
    """Compare two models' 0/1 outcomes on the same examples, (n,) each.

    McNemar's exact test asks whether the discordant examples fall to both sides alike: under the null, the first
    model's share of them is Binomial(discordant, 1/2).
    """
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    assert a.shape == b.shape == (len(a),) != (0,), (a.shape, b.shape)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    p_value = float(stats.binomtest(only_a, only_a + only_b, 0.5).pvalue) if only_a + only_b else 1.0
    difference = a.astype(np.float64) - b.astype(np.float64)
    return Paired(float(difference.mean()), bootstrap_mean(difference, rng, resamples), only_a, only_b, p_value)


def percentile_interval(samples: np.ndarray) -> Interval:
    """The central 95% of resampled scores."""
    return Interval(*_percentiles(samples))


def _percentiles(samples: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(samples, [0.025, 0.975])
    return float(low), float(high)


def _check(score: float, n: float) -> None:
    assert 0.0 <= score <= 1.0, f"a share lies in [0, 1], not {score}"
    assert n > 0, "no examples, no interval"
