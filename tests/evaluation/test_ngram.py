"""The baselines against a plain float64 version with dictionaries, and against a closed form."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from herd.evaluation.ngram import fit_ngram, transitions
from herd.runs.seeds import stream

BOS, EOS = 0, 1


def corpus(seed: int, documents: int, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Documents of a random Markov chain, each BOS ... EOS."""
    rng = stream(seed, "ngram")
    table = rng.dirichlet(np.full(vocab_size - 2, 0.2), size=vocab_size)
    pieces = []
    for _ in range(documents):
        tokens = [BOS]
        for _ in range(int(rng.integers(1, 40))):
            tokens.append(2 + int(rng.choice(vocab_size - 2, p=table[tokens[-1]])))
        pieces.append([*tokens, EOS])
    return np.concatenate(pieces).astype(np.uint16), np.cumsum([0, *map(len, pieces)])


def documents_of(tokens: np.ndarray, offsets: np.ndarray) -> list[list[int]]:
    return [tokens[a:b].tolist() for a, b in itertools.pairwise(offsets)]


def test_transitions_stay_within_documents_whatever_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, offsets = corpus(0, 20, 12)
    expected = [pair for d in documents_of(tokens, offsets)[3:17] for pair in itertools.pairwise(d)]
    for chunk in (1, 7, 10**6):
        monkeypatch.setattr("herd.evaluation.ngram._CHUNK", chunk)
        got = [pair for p, n in transitions(tokens, offsets, 3, 17) for pair in zip(p.tolist(), n.tolist(), strict=True)]
        assert got == expected
    assert not any(following == BOS for _, following in expected)


def naive_nll(train: list[list[int]], weight: float, text: list[int], vocab_size: int, bigram: bool) -> list[float]:
    pairs = Counter(p for d in train for p in itertools.pairwise(d))
    nexts, history = Counter(), Counter()
    for (a, b), n in pairs.items():
        nexts[b] += n
        history[a] += n
    result = []
    for a, b in itertools.pairwise(text):
        unigram = (nexts[b] + 1) / (sum(nexts.values()) + vocab_size)
        mixed = weight * pairs[a, b] / history[a] + (1 - weight) * unigram if history[a] else unigram
        result.append(-math.log(mixed if bigram else unigram))
    return result


def test_equals_the_naive_version_on_one_domain() -> None:
    vocab_size = 20  # some entries never occur in training
    tokens, offsets = corpus(1, 60, 15)
    model = fit_ngram({"general": (tokens, offsets)}, {"general": 1.0}, vocab_size, apart=0.1)
    assert 0 < model.weight < 1
    text = np.array([BOS, 5, 6, 17, 3, 4, EOS])
    train = documents_of(tokens, offsets)
    for bigram, got in ((False, model.unigram_nll(text[1:])), (True, model.bigram_nll(text[:-1], text[1:]))):
        assert got == pytest.approx(naive_nll(train, model.weight, text.tolist(), vocab_size, bigram), rel=1e-12)


def test_probabilities_sum_to_one_for_every_history() -> None:
    tokens, offsets = corpus(2, 40, 15)
    model = fit_ngram({"general": (tokens, offsets)}, {"general": 1.0}, 18)
    everything = np.arange(18)
    for history in (BOS, 5, 17):  # 17 was never seen
        assert np.exp(-model.bigram_nll(np.full(18, history), everything)).sum() == pytest.approx(1.0)


def test_closed_form_of_a_cycle() -> None:
    """2 3 2 3 ...: every bigram but the one that ends is certain, so the fitted weight is as large as allowed."""
    documents = [[BOS, *([2, 3] * 50), EOS]] * 40
    tokens = np.concatenate(documents)
    offsets = np.cumsum([0, *map(len, documents)])
    model = fit_ngram({"code": (tokens, offsets)}, {"code": 1.0}, 4)
    assert model.weight > 0.9
    unigram = (50 * 40 + 1) / (101 * 40 + 4)  # of token 2 among the targets: 50 twos, 50 threes and an end a document
    assert model.unigram_nll(np.array([2]))[0] == pytest.approx(-math.log(unigram))
    expected = model.weight * 1.0 + (1 - model.weight) * unigram
    assert model.bigram_nll(np.array([BOS]), np.array([2]))[0] == pytest.approx(-math.log(expected))


def test_weight_is_the_best_on_the_documents_kept_apart() -> None:
    tokens, offsets = corpus(4, 20, 40)  # few documents: the bigram counts are too sparse to be trusted alone
    model = fit_ngram({"general": (tokens, offsets)}, {"general": 1.0}, 40, apart=0.25)
    documents = documents_of(tokens, offsets)
    fitted, apart = documents[:15], documents[15:]

    def loss(weight: float) -> float:
        return sum(sum(naive_nll(fitted, weight, d, 40, bigram=True)) for d in apart)

    assert loss(model.weight) < min(loss(model.weight - 0.02), loss(model.weight + 0.02))


def test_counts_follow_the_mix_and_not_the_sizes() -> None:
    a, b = [BOS, *[2] * 98, EOS], [BOS, *[3] * 98, EOS]
    sets = {
        "general": (np.array(a * 30), np.arange(31) * 100),
        "code": (np.array(b * 3), np.arange(4) * 100),
    }
    model = fit_ngram(sets, {"general": 0.25, "code": 0.75}, 4)
    assert np.exp(-model.unigram_nll(np.array([3]))) == pytest.approx(0.75 * 98 / 99, rel=2e-3)
    assert np.exp(-model.unigram_nll(np.array([2]))) == pytest.approx(0.25 * 98 / 99, rel=2e-3)
