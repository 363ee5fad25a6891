"""How far a document's words are from those of its corpus: Kullback-Leibler divergence (paper, section 3.1.1).

"We use a token-distribution Kullback-Leibler divergence to filter out documents containing excessive numbers of outlier
tokens compared to the training corpus distribution." The paper gives neither tokens, direction nor threshold; here:

*Tokens* are words (:mod:`herd.curation.text`), each in the bucket of its hash: no tokenizer is needed, and two words share
one of 65,536 buckets at random. *Reference* are the counts C_b of all documents of a language, exact integers, so merging the
counts of any number of partitions in any order gives the same bits. With B buckets, pseudo-count a and C = sum of C_b,

    q_b = (C_b + a) / (C + a B),        p_b = share of the document's N words in bucket b,
    KL(p || q) = sum over b with p_b > 0 of p_b ln(p_b / q_b), in nats.

*Length*: N words drawn from q itself have KL(p || q) > 0, and much more when N is small, for a sample is never spread as
its source is. So the excess over that expectation is measured too, and is what a limit should be put on:

    E_N = H(q) - ln N + sum_b q_b E[ln(1 + K_b)],   K_b ~ Binomial(N - 1, q_b),   excess = KL(p || q) - E_N,

which follows from E[K f(K)] = N q E[f(1 + K')] for a binomial K of N trials and K' of N - 1. K' is taken as Poisson with the
same mean (q_b is small). The excess of real documents is above 0, for words come in bursts.
"""

from dataclasses import dataclass

import numpy as np

from herd.config.errors import UserError

_POISSON_LIMIT = 64.0  # above it a Taylor expansion replaces the sum over the Poisson distribution


@dataclass(frozen=True)
class KLConfig:
    """The reference distribution; limits are rules (max_kl, max_kl_excess, max_unseen_words)."""

    enabled: bool = True
    buckets: int = 65_536  # a power of two
    pseudo_count: float = 1.0  # added to each bucket
    min_words: int = 100_000  # words a language must have before its documents are measured against it

    def __post_init__(self) -> None:
        if self.buckets < 2 or self.buckets & (self.buckets - 1):
            raise UserError(f"kl.buckets = {self.buckets}: must be a power of two.")
        if self.pseudo_count <= 0:
            raise UserError(f"kl.pseudo_count = {self.pseudo_count}: must be positive.")


def bucket_counts(hashes: np.ndarray, buckets: int) -> np.ndarray:
    """Counts (buckets,) int64 of word hashes (words,) uint64; counts of several documents or partitions add up."""
    return np.bincount(_buckets(hashes, buckets), minlength=buckets)


def _buckets(hashes: np.ndarray, buckets: int) -> np.ndarray:
    return (hashes >> np.uint64(64 - (buckets.bit_length() - 1))).astype(
        np.int64
    )  # leading bits: the last ones choose partitions


class Reference:
    """Word distribution of a corpus, ready to be compared with documents.

    Args:
        counts: (buckets,) integers, by :func:`bucket_counts`.
        pseudo_count: added to each bucket.
    """

    def __init__(self, counts: np.ndarray, pseudo_count: float = 1.0) -> None:
        self.buckets = len(counts)
        self.words = int(counts.sum())
        share = (counts + pseudo_count) / (self.words + pseudo_count * len(counts))
        self._log = np.log(share)  # (buckets,)
        self._seen = counts > 0
        self._grid, self._expected = _expected_divergence(share)

    def divergence(self, hashes: np.ndarray) -> tuple[float, float, float]:
        """(KL in nats, KL - expectation at this length, share of words in buckets that the reference never saw).

        All 0 for a text without words.
        """
        total = len(hashes)
        if not total:
            return 0.0, 0.0, 0.0
        found = _buckets(hashes, self.buckets)
        found.sort()
        edges = np.flatnonzero(found[1:] != found[:-1]) + 1
        counts = np.diff(edges, prepend=0, append=total)
        found = found[np.concatenate([[0], edges])]
        kl = float((counts * (np.log(counts / total) - self._log[found])).sum()) / total
        unseen = float(counts[~self._seen[found]].sum()) / total
        return kl, kl - float(np.interp(np.log(total), self._grid, self._expected)), unseen


def _expected_divergence(share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(ln N, E_N) for N = 1, 2, 4 ... 2^20 words, to be interpolated."""
    sizes = 2.0 ** np.arange(21)
    entropy = -float((share * np.log(share)).sum())
    means = np.geomspace(1e-9, _POISSON_LIMIT, 2_000)
    table = _poisson_log(means)
    expected = []
    for size in sizes:
        mean = (size - 1) * share
        small = np.interp(mean, means, table, left=0.0)
        large = np.log1p(mean) - mean / (2 * (1 + mean) ** 2)  # second order around the mean
        expected.append(entropy - np.log(size) + float((share * np.where(mean < _POISSON_LIMIT, small, large)).sum()))
    return np.log(sizes), np.array(expected)


def _poisson_log(means: np.ndarray) -> np.ndarray:
    """E[ln(1 + K)] for K ~ Poisson(mean), by summing 200 terms."""
    terms = np.exp(-means)  # P(K = 0)
    total = np.zeros_like(means)
    for k in range(1, 200):
        terms = terms * means / k
        total += terms * np.log1p(k)
    return total
