"""Greedy deduplication against the plain O(n^2) algorithm in float64, and what must hold of every outcome."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.alignment.quality import semantic
from herd.alignment.quality.embeddings import EmbeddingConfig, embed
from herd.alignment.quality.semantic import TOLERANCE, DedupConfig, clusters, keep_greedily
from herd.corpus.tokenizer import TokenizerConfig, train_tokenizer
from herd.dialog.render import render
from herd.model.config import ModelConfig
from herd.model.encoder import DocumentEncoder, save_encoder
from herd.model.heads import RewardModel
from herd.model.io import save_model
from herd.model.masks import Dense, Documents
from herd.model.transformer import Transformer
from herd.runs.stage import Artifact, Inputs

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
    rng = np.random.default_rng(0)
    rounded = next(v for v in (unit(rng.normal(size=(1, 5))) for _ in range(99)) if (v @ v.T).item() < 1)
    assert keep_greedily(np.repeat(rounded, 2, axis=0), np.zeros(2, np.int64), [0, 1], 1.0).kept.tolist() == [True, False]


def test_clusters_are_the_same_again_and_never_more_than_there_are_different_vectors() -> None:
    rng = np.random.default_rng(0)
    vectors = unit(rng.normal(size=(90, 6)))
    config = DedupConfig(0.9, 30)
    assert (clusters(vectors, config, 1) == clusters(vectors, config, 1)).all()
    assert len(set(clusters(vectors, config, 1).tolist())) == 3
    assert clusters(np.ones((50, 2)), DedupConfig(0.9, 5), 0).max() == 0
    assert clusters(vectors, DedupConfig(0.9, 0), 0).max() == 0


@pytest.mark.parametrize("dimensions", [8, 10_000])
def test_word_statistics_find_copies_and_keep_strangers_apart(dialog, dimensions) -> None:
    words = [f"word{i}" for i in range(60)]
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words[5 * (i % 6) : 5 * (i % 6) + 5], 12)) for i in range(40)]
    dialogs = [dialog(str(i), text, question="") for i, text in enumerate([*texts, texts[0], "", ""])]
    config = EmbeddingConfig("tfidf", dimensions)
    found = embed(dialogs, config, NO_INPUTS, 0, "meta")
    cosines = (found.of_words @ found.of_words.T).toarray()
    assert np.allclose(np.diag(cosines), [1] * 41 + [0] * 2)
    assert cosines[0, 40] == pytest.approx(1) and cosines[0, 1] < 0.5 and not cosines[41].any()
    assert np.allclose((found.reduced**2).sum(axis=1), [1] * 41 + [0] * 2)
    assert (found.reduced == embed(dialogs, config, NO_INPUTS, 0, "meta").reduced).all()
    sparse, dense = (keep_greedily(v, np.zeros(43, np.int64), range(43), 0.9) for v in (found.of_words, found.of_words.toarray()))
    assert sparse.kept.tolist() == dense.kept.tolist() and not sparse.kept[40] and sparse.kept[[0, 41, 42]].all()


def test_a_rare_word_that_makes_the_difference_is_not_forgotten(dialog) -> None:
    rng = np.random.default_rng(0)
    common = [" ".join(rng.choice([f"w{i}" for i in range(30)], 8)) for _ in range(60)]
    dialogs = [dialog(str(i), f"{text} rare{i}") for i, text in enumerate([*common, *common[:5]])]
    found = embed(dialogs, EmbeddingConfig("tfidf", 8, word_ngrams=1), NO_INPUTS, 0, "meta")
    assert (found.of_words[0] @ found.of_words[60].T).toarray().item() < 0.9 < found.reduced[0] @ found.reduced[60]


def test_a_models_vectors_are_means_over_each_dialog_alone(dialog, tmp_path) -> None:
    text = "Why? one two three four user assistant \n\n" * 30
    tokenizer = train_tokenizer(
        [text], TokenizerConfig(vocab_size=300, special_tokens=11, training_characters=50_000, fill_with_reserved=True)
    )
    tokenizer.save(tmp_path / "tokens/tokenizer")
    shape = ModelConfig(dim=16, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=32, vocab_size=300, max_seq_len=64)
    model = Transformer(shape)
    model.init_weights(0)
    save_model(model, tmp_path / "lm/model")
    save_model(RewardModel(model), tmp_path / "rm/model")
    save_encoder(DocumentEncoder(model, ["a", "b"]), tmp_path / "enc/encoder")
    dialogs = [dialog("a", "one"), dialog("b", "two three four one two"), dialog("c", "four three " * 60), dialog("d", "one")]

    def vectors(kind: str, folder: str, batch_tokens: int) -> np.ndarray:
        inputs = Inputs({"embedder": Artifact(tmp_path / folder, {}), "tokens": Artifact(tmp_path / "tokens", {})}, {})
        return embed(dialogs, EmbeddingConfig(kind, batch_tokens=batch_tokens), inputs, 0, "meta").of_words

    for kind, folder, mask in (("model", "lm", None), ("model", "rm", None), ("encoder", "enc", True)):
        together, alone = vectors(kind, folder, 4096), vectors(kind, folder, 1)
        assert np.allclose(together, alone, atol=1e-6) and np.allclose(together[0], together[3])
        tokens = torch.from_numpy(render(dialogs[1].messages, tokenizer).tokens)[None]
        size = tokens.shape[1]
        seen = Dense(torch.ones(1, size, size, dtype=torch.bool)) if mask else Documents(((size,),))
        with torch.no_grad():
            mean = model(tokens, torch.arange(size)[None], seen)[0].double().mean(dim=0).numpy()
        assert np.allclose(together[1], mean / np.sqrt((mean**2).sum()), atol=1e-6)


def test_nothing_and_one_dialog_are_no_special_case(dialog) -> None:
    config = EmbeddingConfig("tfidf", 8)
    found = embed([dialog("a", "one word")], config, NO_INPUTS, 0, "meta")
    kept = keep_greedily(found.of_words, clusters(found.reduced, DedupConfig(0.9, 1), 0), [0], 0.9)
    assert kept.kept.tolist() == [True]
    assert keep_greedily(np.zeros((0, 2)), np.zeros(0, np.int64), [], 0.9).kept.tolist() == []
