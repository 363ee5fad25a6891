"""The quality classifier learns a difference, measures it on documents it has not seen, and is reproducible."""

import json

import numpy as np
import pytest

from herd.config.errors import UserError
from herd.curation.classifier import QualityClassifier, chunks, reference_documents
from herd.curation.config import ClassifierConfig
from herd.runs.seeds import stream

GOOD = [
    "the",
    "method",
    "explains",
    "why",
    "each",
    "result",
    "follows",
    "from",
    "the",
    "argument",
    "that",
    "came",
    "before",
    "it",
]
BAD = ["login", "menu", "click", "share", "home", "next", "page", "404", "cart", "price", "sale", "item", "subscribe"]
CONFIG = ClassifierConfig(features=4096, chunk_words=20, max_chunks=200)


def documents(vocabulary: list[str], count: int, name: str) -> list[str]:
    rng = stream(0, name)
    return [" ".join(rng.choice(vocabulary, 60)) for _ in range(count)]


def test_separates_and_ranks():
    classifier = QualityClassifier(CONFIG)
    facts = classifier.fit(documents(GOOD, 20, "good"), documents(BAD, 20, "bad"), seed=0)
    assert facts["auc"] > 0.99
    scores = classifier.score([*documents(GOOD, 3, "x"), *documents(BAD, 3, "y"), ""])
    assert scores[:3].min() > scores[3:6].max()
    assert scores[6] == 0
    assert scores.dtype == np.float32
    assert ((scores >= 0) & (scores <= 1)).all()


def test_auc_of_indistinguishable_text_is_a_coin_toss():
    facts = QualityClassifier(CONFIG).fit(documents(GOOD, 150, "a"), documents(GOOD, 150, "b"), seed=0)
    assert 0.3 < facts["auc"] < 0.7


def test_same_seed_same_scores():
    def scores() -> np.ndarray:
        classifier = QualityClassifier(CONFIG)
        classifier.fit(documents(GOOD, 10, "good"), documents(BAD, 10, "bad"), seed=3)
        return classifier.score(documents(GOOD, 5, "new"))

    assert np.array_equal(scores(), scores())


def test_chunks_have_equal_size():
    assert chunks("a b c d e f g", 3) == ["a b c", "d e f"]
    assert chunks("a b c d e", 3) == ["a b c", "d e"]
    assert chunks("a", 3) == ["a"]
    assert chunks("", 3) == []


def test_reference(tmp_path):
    assert len(reference_documents("")) > 50
    rows = tmp_path / "good.jsonl"
    rows.write_text("\n".join(json.dumps({"text": t}) for t in ("one", "two")), encoding="utf-8")
    assert reference_documents(str(rows)) == ["one", "two"]
    with pytest.raises(UserError, match="does not exist"):
        reference_documents(str(tmp_path / "absent"))
    rows.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        reference_documents(str(rows))


def test_too_little_to_learn_from():
    with pytest.raises(UserError, match="at least 2 reference"):
        QualityClassifier(CONFIG).fit(["one"], ["two", "three"], seed=0)
