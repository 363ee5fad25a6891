"""Do two raters of the same dialogs agree? The share of disagreement, and Cohen's kappa with its interval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

_Z95 = 1.959963984540054


@dataclass(frozen=True)
class Agreement:
    """Two raters' labels of the same items."""

    status: str  # ok, or undefined: a rater who gives all items the same label agrees by chance alone
    reason: str
    items: int
    disagree: float | None  # share of the items that they label differently; None of nothing
    kappa: float | None  # 1 = perfect, 0 = as chance would have it
    interval: tuple[float, float] | None  # 95%, of kappa
    table: list[list[int]]  # [first rater's label][second rater's label], labels in ascending order


def agreement(first: ArrayLike, second: ArrayLike) -> Agreement:
    """Cohen's kappa (1960), kappa = (p_o - p_e) / (1 - p_e), of two raters.

    The interval is the normal one with the large-sample standard error of Fleiss, Cohen and Everitt (1969), equation 13: with
    cell shares p_ij, row shares p_i. and column shares p_.j,

        n (1 - p_e)^4 var = sum_i p_ii [(1 - p_e) - (p_.i + p_i.)(1 - p_o)]^2
                            + (1 - p_o)^2 sum_{i != j} p_ij (p_.i + p_j.)^2 - (p_o p_e - 2 p_e + p_o)^2,

    cut off at -1 and 1. It is no use below some dozens of items, and at perfect agreement it collapses to a point.

    Args:
        first, second: (items,) labels, e.g. booleans or grades.
    """
    a, b = np.asarray(first), np.asarray(second)
    assert a.shape == b.shape == (len(a),), (a.shape, b.shape)
    labels = np.unique(np.concatenate([a, b]))
    counts = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(counts, (np.searchsorted(labels, a), np.searchsorted(labels, b)), 1)
    table = counts.tolist()
    if not len(a):
        return Agreement("undefined", "no item has both labels", 0, None, None, None, table)
    share = counts / len(a)
    rows, columns = share.sum(axis=1), share.sum(axis=0)
    observed, expected = float(np.trace(share)), float(rows @ columns)
    if min(np.count_nonzero(rows), np.count_nonzero(columns)) < 2:
        return Agreement("undefined", "a rater gives all items the same label", len(a), 1 - observed, None, None, table)
    kappa = (observed - expected) / (1 - expected)
    both = columns[:, None] + rows[None, :]  # [i, j] = p_.i + p_j.
    diagonal = (np.diag(share) * ((1 - expected) - np.diag(both) * (1 - observed)) ** 2).sum()
    beside = ((share - np.diag(np.diag(share))) * both**2).sum() * (1 - observed) ** 2
    variance = (diagonal + beside - (observed * expected - 2 * expected + observed) ** 2) / (1 - expected) ** 4 / len(a)
    half = _Z95 * float(np.sqrt(max(variance, 0.0)))
    interval = max(-1.0, kappa - half), min(1.0, kappa + half)
    return Agreement("ok", "", len(a), 1 - observed, float(kappa), (float(interval[0]), float(interval[1])), table)
