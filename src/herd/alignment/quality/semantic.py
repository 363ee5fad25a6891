"""Semantic deduplication (paper, section 4.2.3): cluster the dialogs, sort each cluster by quality x difficulty, keep greedily.

A dialog is kept when its cosine to every dialog kept before it in its cluster is under the threshold (Abbas et al. 2023,
SemDeDup; Liu et al. 2024). Likeness across clusters is not looked for: with one cluster the result is exact, with more it is
faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix, issparse

from herd.config.errors import UserError

# Cosines of the same texts differ from 1 by rounding; without this, a threshold of 1 would keep exact copies.
TOLERANCE = 1e-9
_BLOCK = 256  # dialogs whose cosines to what is kept are computed at once


@dataclass(frozen=True)
class DedupConfig:
    """What counts as said before."""

    threshold: float  # largest cosine to a kept dialog of the cluster, exclusive
    rows_per_cluster: int  # dialogs in a cluster on average; 0 = all in one
    iterations: int = 50  # of k-means at most

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1 or self.rows_per_cluster < 0 or self.iterations < 1:
            raise UserError("dedup: threshold in (0, 1], rows_per_cluster >= 0 and iterations >= 1 are needed.")


@dataclass(frozen=True)
class Kept:
    """The outcome, (dialogs,) each, in the order of the embeddings."""

    cluster: np.ndarray  # int64
    twin: np.ndarray  # int64, index of the kept dialog that it is most like; -1 for a kept one
    cosine: np.ndarray  # float64, largest cosine to a dialog that was kept before it in its cluster; -1 for the first

    @property
    def kept(self) -> np.ndarray:
        """(dialogs,) bool."""
        return self.twin < 0


def clusters(embeddings: np.ndarray, config: DedupConfig, seed: int) -> np.ndarray:
    """(dialogs,) int64: k-means cluster of each of the (dialogs, dimensions) unit vectors.

    On one thread, because sums over threads depend on how many there are.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    count = -(-len(embeddings) // config.rows_per_cluster) if config.rows_per_cluster else 1
    count = min(count, len(np.unique(embeddings, axis=0)))
    if count <= 1:
        return np.zeros(len(embeddings), np.int64)
    with threadpool_limits(1):
        means = KMeans(count, n_init=1, max_iter=config.iterations, random_state=seed % 2**32)
        return np.asarray(means.fit_predict(embeddings), np.int64)


def keep_greedily(embeddings: csr_matrix | np.ndarray, cluster: np.ndarray, order: Sequence[int], threshold: float) -> Kept:
    """Who is kept.

    Args:
        embeddings: (dialogs, dimensions) float64 unit vectors, sparse or dense.
        cluster: (dialogs,) int64.
        order: all indices, the best dialog first.
        threshold: see :class:`DedupConfig`.
    """
    twin, cosine = np.full(len(cluster), -1, np.int64), np.full(len(cluster), -1.0)
    by_cluster = np.asarray(order, np.int64)[np.argsort(cluster[np.asarray(order, np.int64)], kind="stable")]
    for members in np.split(by_cluster, np.flatnonzero(np.diff(cluster[by_cluster])) + 1) if len(by_cluster) else ():
        _keep_in_cluster(embeddings, members, threshold, twin, cosine)
    return Kept(cluster, twin, cosine)


def _keep_in_cluster(
    embeddings: csr_matrix | np.ndarray, members: np.ndarray, threshold: float, twin: np.ndarray, cosine: np.ndarray
) -> None:
    """Fills `twin` and `cosine` of the members, given best first: a block at a time, within a block one after the other."""
    kept: list[int] = []
    for first in range(0, len(members), _BLOCK):
        block = members[first : first + _BLOCK]
        before = len(kept)
        # Columns: those kept before the block, then the block itself.
        like = embeddings[block] @ embeddings[[*kept, *block.tolist()]].T
        like = like.toarray() if issparse(like) else like
        columns = list(range(before))
        for i, index in enumerate(block.tolist()):
            if columns:
                best = columns[int(np.argmax(like[i, columns]))]
                cosine[index] = min(1.0, float(like[i, best]))
                if like[i, best] >= threshold - TOLERANCE:
                    twin[index] = kept[best] if best < before else block[best - before]
                    continue
            columns.append(before + i)
        kept += [int(block[c - before]) for c in columns if c >= before]
