"""How well scores rank held-out pairs, beside what the length of the responses alone would reach.

People tend to prefer the longer response, and a reward model learns that first: an accuracy says little without the
accuracy of length and without what is left among pairs of like length.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from herd.runs.seeds import stream
from herd.runs.statistics import Interval, bootstrap_ratio, cluster_sums, clustered_wilson

LIKE_LENGTH = 0.1  # two lengths are alike when they differ by at most this share of their mean


@dataclass(frozen=True)
class Share:
    """A share of pairs with its 95% interval over prompts."""

    share: float
    interval: list[float]
    pairs: int


@dataclass(frozen=True)
class RankingAccuracy:
    """Of n pairs, how many does a score put in the right order."""

    accuracy: float  # share with chosen > rejected; a tie is no hit
    accuracy_interval: list[float]  # 95%, over prompts: pairs of one prompt are not independent
    pairs: int
    prompts: int
    margin: float  # mean of chosen less rejected
    length_accuracy: float  # of always the longer, or always the shorter response, whichever is better on these very pairs
    length_prefers: str  # longer | shorter
    over_length: float  # accuracy less length_accuracy
    over_length_interval: list[float]  # 95%, paired bootstrap over prompts
    like_length: Share | None  # accuracy among pairs whose lengths differ by 10% at most; None where there are none

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def ranking_accuracy(scores: ArrayLike, lengths: ArrayLike, prompts: Sequence[Hashable]) -> RankingAccuracy:
    """Measures scores on n > 0 pairs.

    Args:
        scores: (n, 2), of chosen and rejected.
        lengths: (n, 2), of chosen and rejected, in any one unit.
        prompts: (n,), which prompt each pair answers.
    """
    leads = -np.diff(np.asarray(scores, dtype=np.float64))[:, 0]
    lengths = np.asarray(lengths, dtype=np.float64)
    hits = (leads > 0).astype(np.float64)
    longer = 0.5 + 0.5 * np.sign(lengths[:, 0] - lengths[:, 1])  # right if the longer is chosen; a tie is half right
    by_length, prefers = (longer, "longer") if longer.mean() >= 0.5 else (1 - longer, "shorter")
    alike = np.abs(lengths[:, 0] - lengths[:, 1]) <= LIKE_LENGTH * lengths.mean(axis=1)
    return RankingAccuracy(
        accuracy=float(hits.mean()),
        accuracy_interval=clustered_wilson(hits, prompts).to_list(),
        pairs=len(hits),
        prompts=len(set(prompts)),
        margin=float(leads.mean()),
        length_accuracy=float(by_length.mean()),
        length_prefers=prefers,
        over_length=float((hits - by_length).mean()),
        over_length_interval=paired_interval(hits - by_length, prompts).to_list(),
        like_length=_share(hits[alike], [p for p, a in zip(prompts, alike, strict=True) if a]) if alike.any() else None,
    )


def paired_interval(differences: ArrayLike, clusters: Sequence[Hashable], resamples: int = 2000) -> Interval:
    """95% interval of the mean of ``differences`` (n,), by a bootstrap that draws whole clusters; the same each time."""
    sums, counts = cluster_sums(differences, clusters)
    return bootstrap_ratio(sums, counts, stream(0, "paired interval"), resamples)


def _share(hits: np.ndarray, prompts: Sequence[Hashable]) -> Share:
    return Share(float(hits.mean()), clustered_wilson(hits, prompts).to_list(), len(hits))
