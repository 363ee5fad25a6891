"""Greedy deduplication against the plain O(n^2) algorithm in float64, and what must hold of every outcome."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.alignment.quality import semantic
from herd.alignment.quality.embeddings import EmbeddingConfig, embed
from herd.alignment.quality.semantic import TOLERANCE, DedupConfig, clusters, keep_greedily
from herd.runs.stage import Inputs

NO_INPUTS = Inputs({}, {})


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.sqrt((vectors**2).sum(axis=1, keepdims=True))


def naive(vectors: np.ndarray, cluster: np.ndarray, order: list[int], threshold: float) -> list[int]:
    """The algorithm as it is written down: one pair at a time."""
    kept: list[int] = []
    for i in order:
        like = [float(np.dot(vectors[i], vectors[j])) for j in kept if cluster[j] == cluster[i]]
        if all(value < threshold - TOLERANCE for value in like):
            kept.append(i)
    return sorted(kept)


@settings(max_examples=40)
@given(st.integers(1, 60), st.integers(1, 4), st.floats(0.05, 1.0), st.integers(0, 10**6), st.integers(1, 7))
def test_keeps_what_the_plain_algorithm_keeps(n: int, groups: int, threshold: float, seed: int, block: int) -> None:
    rng = np.random.default_rng(seed)
    # Few directions on a coarse grid: many exact copies and many cosines that are equal.
    vectors = unit(rng.integers(-1, 2, size=(n, 3)) + np.array([0.0, 0.0, 1.5]))
    cluster, order = rng.integers(0, groups, n), rng.permutation(n).tolist()
    before, semantic._BLOCK = semantic._BLOCK, block
    try:
        found = keep_greedily(vectors, cluster, order, threshold)
    finally:
        semantic._BLOCK = before
    assert np.flatnonzero(found.kept).tolist() == naive(vectors, cluster, order, threshold)
    for i in np.flatnonzero(~found.kept):
        twin = found.twin[i]
        assert found.kept[twin] and cluster[twin] == cluster[i] and order.index(twin) < order.index(i)
        assert float(vectors[i] @ vectors[twin]) == pytest.approx(found.cosine[i], abs=1e-12)
        assert found.cosine[i] >= threshold - TOLERANCE


def test_the_better_of_two_copies_is_kept_even_at_threshold_one() -> None:
    vectors = unit(np.array([[0.1, 0.2, 0.7], [0.1, 0.2, 0.7], [0.7, 0.1, 0.0]]))
    found = keep_greedily(vectors, np.zeros(3, np.int64), [1, 2, 0], 1.0)
    assert found.kept.tolist() == [False, True, True] and found.twin[0] == 1


def test_clusters_are_the_same_again_and_never_more_than_there_are_different_vectors() -> None:
    rng = np.random.default_rng(0)
    vectors = unit(rng.normal(size=(90, 6)))
    config = DedupConfig(0.9, 30)
    assert (clusters(vectors, config, 1) == clusters(vectors, config, 1)).all()
    assert len(set(clusters(vectors, config, 1).tolist())) == 3
    assert clusters(np.ones((50, 2)), DedupConfig(0.9, 5), 0).max() == 0
    assert clusters(vectors, DedupConfig(0.9, 0), 0).max() == 0


@pytest.mark.parametrize("dimensions", [0, 8])
def test_word_statistics_find_copies_and_keep_strangers_apart(dialog, dimensions) -> None:
    words = [f"word{i}" for i in range(60)]
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words[5 * (i % 6) : 5 * (i % 6) + 5], 12)) for i in range(40)]
    dialogs = [dialog(str(i), text, question="") for i, text in enumerate([*texts, texts[0], "", ""])]
    vectors = embed(dialogs, EmbeddingConfig("tfidf", dimensions), NO_INPUTS, 0)
    assert np.allclose((vectors**2).sum(axis=1), 1)
    assert vectors[0] @ vectors[40] == pytest.approx(1)
    assert abs(vectors[0] @ vectors[1]) < 0.5 and abs(vectors[0] @ vectors[41]) < 1e-9
    assert (vectors == embed(dialogs, EmbeddingConfig("tfidf", dimensions), NO_INPUTS, 0)).all()


def test_nothing_and_one_dialog_are_no_special_case(dialog) -> None:
    config = EmbeddingConfig("tfidf", 8)
    assert len(embed([], config, NO_INPUTS, 0)) == 0
    vectors = embed([dialog("a", "one word")], config, NO_INPUTS, 0)
    found = keep_greedily(vectors, clusters(vectors, DedupConfig(0.9, 1), 0), [0], 0.9)
    assert found.kept.tolist() == [True]
    assert keep_greedily(np.zeros((0, 2)), np.zeros(0, np.int64), [], 0.9).kept.tolist() == []
