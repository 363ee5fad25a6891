"""Resampling of runs as weights, and intervals from what it gives.

A bootstrap replicate draws as many units as there are, with replacement; a unit is a row, or all rows of one budget or one run.
A replicate is written as how often each row was drawn, so that a solver that takes weights fits all replicates as one batch.
Rows that share noise (checkpoints of one run, cells of one budget) must be drawn together, or intervals come out too narrow.

Intervals: ``percentile``, or ``bca``, which corrects for bias and skewness by the share of replicates below the estimate and by
the jackknife (Efron 1987, "Better Bootstrap Confidence Intervals").
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from herd.config.errors import UserError, nearest
from herd.scaling.curves.power_law import Interval

UNITS = ("row", "budget", "run")
INTERVALS = ("bca", "percentile")
_FEWEST = 4  # units below which resampling says nothing


def labels_of(unit: str, rows: int, groups: Sequence[Any] | np.ndarray | None) -> np.ndarray:
    """Which unit each of ``rows`` rows belongs to, as integers (rows,).

    Args:
        unit: ``row``, ``budget`` or ``run``.
        groups: the budget or the run of every row; not used for ``row``.

    Raises:
        UserError: an unknown unit, no or too few groups.
    """
    if unit not in UNITS:
        raise UserError(f"Unknown unit '{unit}' of a bootstrap.{nearest(unit, UNITS)} Choices: {', '.join(UNITS)}.")
    if unit == "row":
        return np.arange(rows)
    if groups is None or len(groups) != rows:
        count = "none" if groups is None else len(groups)
        raise UserError(f"A bootstrap by {unit} needs the {unit} of each of the {rows} rows; {count} given.")
    labels = np.unique(np.asarray(groups), return_inverse=True)[1]
    if labels.max() + 1 < _FEWEST:
        raise UserError(f"A bootstrap by {unit} needs at least {_FEWEST} {unit}s; there are {labels.max() + 1}. Use unit=row.")
    return labels


def bootstrap_counts(labels: np.ndarray, replicates: int, rng: np.random.Generator) -> np.ndarray:
    """How often each row is drawn in each replicate, (replicates, rows)."""
    units = int(labels.max()) + 1
    drawn = rng.multinomial(units, np.full(units, 1 / units), size=replicates)
    return drawn[:, labels].astype(float)


def jackknife_groups(groups: Sequence[Any] | np.ndarray) -> list[np.ndarray]:
    """For each group, ascending, the mask (rows,) of the rows that are left when it is taken out."""
    values, labels = np.unique(np.asarray(groups), return_inverse=True)
    return [labels != i for i in range(len(values))]


def interval(
    replicates: np.ndarray,
    confidence: float = 0.95,
    kind: str = "percentile",
    estimate: float | None = None,
    left_out: np.ndarray | None = None,
) -> Interval:
    """Two-sided interval of a number.

    Args:
        replicates: (R,) its bootstrap replicates, all finite.
        confidence: of the interval.
        kind: ``percentile`` or ``bca``; the latter needs the next two.
        estimate: the number on the data themselves.
        left_out: (units,) the number with each unit left out.
    """
    if kind not in INTERVALS:
        raise UserError(f"Unknown interval '{kind}'.{nearest(kind, INTERVALS)} Choices: {', '.join(INTERVALS)}.")
    tails = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    if kind == "bca":
        assert estimate is not None and left_out is not None
        count = len(replicates)
        below = (np.sum(replicates < estimate) + 0.5 * np.sum(replicates == estimate)) / count
        bias = stats.norm.ppf(np.clip(below, 0.5 / count, 1 - 0.5 / count))
        away = left_out.mean() - left_out
        spread = float(np.sum(away**2)) ** 1.5
        skewness = float(np.sum(away**3)) / (6 * spread) if spread > 0 else 0.0
        z = bias + stats.norm.ppf(tails)
        tails = stats.norm.cdf(bias + z / (1 - skewness * z))
    low, high = np.quantile(replicates, tails)
    return float(low), float(high)
