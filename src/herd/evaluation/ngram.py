"""Unigram and interpolated bigram models: what a language model must beat to have learned more than frequencies.

p(next | previous) = weight * c(previous, next) / c(previous) + (1 - weight) * p(next), with p(next) the add-one
unigram. The weight is fitted on training documents kept apart from the counts (Jelinek and Mercer 1980, "deleted
interpolation" with one weight); counts are then taken from all training documents. Held-out text plays no part. All
sums are float64.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import optimize, sparse

_CHUNK = 4_000_000  # pairs counted at once: bounds the memory of the sparse build


@dataclass(frozen=True)
class NgramModel:
    """A fitted pair of baselines over a vocabulary of V entries."""

    unigram: np.ndarray  # (V,) float64, p(next), sums to 1, nowhere 0
    conditional: sparse.csr_array  # (V, V) float64, c(previous, next) / c(previous); rows of unseen histories are empty
    weight: float  # of the bigram in the interpolation
    tokens: int  # training tokens counted (as targets)

    def unigram_nll(self, targets: np.ndarray) -> np.ndarray:
        """-ln p(target), (n,) float64 nats."""
        return -np.log(self.unigram[targets])

    def bigram_nll(self, previous: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """-ln p(target | previous), (n,) float64 nats; a history never seen in training falls back to the unigram."""
        weight = np.where(np.diff(self.conditional.indptr)[previous] > 0, self.weight, 0.0)
        seen = np.asarray(self.conditional[previous, targets]).ravel()
        return -np.log(weight * seen + (1.0 - weight) * self.unigram[targets])


def transitions(tokens: np.ndarray, offsets: np.ndarray, first: int, last: int) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """(previous, next) token arrays within documents ``first`` to ``last`` (exclusive), chunk by chunk; never across
    two documents.

    Args:
        tokens: (n,) token ids of all documents, one after the other.
        offsets: (documents + 1,) where each begins.
    """
    start, stop = int(offsets[first]), int(offsets[last])
    begins = np.zeros(stop - start + 1, dtype=bool)
    begins[np.asarray(offsets[first : last + 1], dtype=np.int64) - start] = True
    for low in range(start, stop - 1, _CHUNK):
        high = min(low + _CHUNK, stop - 1)
        inside = ~begins[low + 1 - start : high + 1 - start]  # the next token does not begin a document
        yield (
            np.asarray(tokens[low:high])[inside].astype(np.int32),
            np.asarray(tokens[low + 1 : high + 1])[inside].astype(np.int32),
        )


def fit_ngram(
    domains: Mapping[str, tuple[np.ndarray, np.ndarray]], mix: Mapping[str, float], vocab_size: int, apart: float = 0.05
) -> NgramModel:
    """Fit both baselines on the training side.

    Args:
        domains: domain -> (tokens (n,), offsets (documents + 1,)) of the training split.
        mix: domain -> share in what the language model was trained on; counts are weighted so that domains have these
            shares.
        vocab_size: V.
        apart: share of each domain's documents (the last ones) kept apart to fit the interpolation weight.
    """
    shares = _shares(domains, mix)
    counts = {}
    for domain in shares:
        tokens, offsets = domains[domain]
        documents = len(offsets) - 1
        cut = documents - max(1, round(apart * documents)) if documents > 1 else documents
        counts[domain] = [_count(tokens, offsets, *span, vocab_size) for span in ((0, cut), (cut, documents))]
    pairs = {domain: fitted.sum() + kept.sum() for domain, (fitted, kept) in counts.items()}
    # Weighted so that the sum of all counts stays what it was: the add-one of the unigram keeps its meaning.
    scale = {domain: share * sum(pairs.values()) / max(pairs[domain], 1.0) for domain, share in shares.items()}
    fitted, kept = (
        sum((scale[d] * counts[d][part] for d in shares), sparse.csr_array((vocab_size, vocab_size))) for part in (0, 1)
    )
    weight = _fit_weight(_model(fitted, weight=0.5), kept) if kept.nnz else 0.5
    return _model(fitted + kept, weight, tokens=int(sum(pairs.values())))


def _shares(domains: Mapping[str, tuple[np.ndarray, np.ndarray]], mix: Mapping[str, float]) -> dict[str, float]:
    present = {d: mix.get(d, 0.0) for d, (tokens, _) in domains.items() if len(tokens) and mix.get(d, 0.0) > 0}
    assert present, f"no training tokens in any domain of the mix {dict(mix)}"
    return {domain: share / sum(present.values()) for domain, share in present.items()}


def _count(tokens: np.ndarray, offsets: np.ndarray, first: int, last: int, vocab_size: int) -> sparse.csr_array:
    counts = sparse.csr_array((vocab_size, vocab_size), dtype=np.float64)
    for previous, following in transitions(tokens, offsets, first, last):
        pairs = (np.ones(len(previous)), (previous, following))
        counts = counts + sparse.coo_array(pairs, shape=(vocab_size, vocab_size)).tocsr()
    return counts


def _model(counts: sparse.csr_array, weight: float, tokens: int = 0) -> NgramModel:
    following = np.asarray(counts.sum(axis=0)).ravel()
    unigram = (following + 1.0) / (following.sum() + len(following))
    history = np.asarray(counts.sum(axis=1)).ravel()
    inverse = np.divide(1.0, history, out=np.zeros_like(history), where=history > 0)
    conditional = sparse.csr_array(sparse.diags_array(inverse) @ counts)
    conditional.sort_indices()
    return NgramModel(unigram, conditional, weight, tokens)


def _fit_weight(model: NgramModel, apart: sparse.csr_array) -> float:
    """The weight of greatest likelihood on the counts kept apart; the likelihood is concave in it."""
    pairs = apart.tocoo()
    previous, following = pairs.coords
    known = np.diff(model.conditional.indptr)[previous] > 0  # elsewhere the weight has no say
    previous, following, times = previous[known], following[known], pairs.data[known]
    seen = np.asarray(model.conditional[previous, following]).ravel()
    unigram = model.unigram[following]

    def nll(weight: float) -> float:
        return -float(times @ np.log(weight * seen + (1.0 - weight) * unigram))

    return float(optimize.minimize_scalar(nll, bounds=(1e-4, 1.0 - 1e-4), method="bounded").x)
