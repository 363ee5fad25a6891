"""Classifiers learn a difference, measure it on documents they have not seen, and are the same in every process."""

import json
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.config.errors import UserError
from herd.curation.classifiers import calibration
from herd.curation.classifiers.examples import ClassifierTask, load_examples
from herd.curation.classifiers.linear import Example, LinearConfig, LinearModel, hashed, passages, train
from herd.curation.classifiers.quality import QualityClassifier, reference_documents
from herd.curation.classifiers.topics import category_of
from herd.curation.config import ClassifierConfig
from herd.curation.text import word_set
from herd.runs.seeds import stream

GOOD = sorted(word_set("the method explains why each result follows from the argument that came before it"))
BAD = sorted(word_set("login menu click share home next page 404 cart price sale item subscribe"))
NEWS = sorted(word_set("minister election parliament budget vote reform court treaty border summit coalition"))
CONFIG = ClassifierConfig(features=4096, chunk_words=20, max_chunks=200)
SMALL = LinearConfig(features=4096, passage_words=20, max_passages=200)


def documents(vocabulary: list[str], count: int, name: str, words: int = 60) -> list[str]:
    rng = stream(0, name)
    return [" ".join(rng.choice(vocabulary, words)) for _ in range(count)]


def examples(count: int = 40) -> list[Example]:
    return [Example(t, label) for label, v in (("a", GOOD), ("b", BAD), ("c", NEWS)) for t in documents(v, count, label)]


# Quality.


def test_quality_separates_and_ranks():
    classifier = QualityClassifier(CONFIG)
    facts = classifier.fit(documents(GOOD, 20, "good"), documents(BAD, 20, "bad"), seed=0)
    assert facts["auc"] > 0.99
    scores = classifier.score([*documents(GOOD, 3, "x"), *documents(BAD, 3, "y"), ""])
    assert scores[:3].min() > scores[3:6].max()
    assert scores[6] == 0
    assert scores.dtype == np.float32
    assert ((scores >= 0) & (scores <= 1)).all()


def test_indistinguishable_text_is_a_coin_toss_and_says_so():
    facts = QualityClassifier(CONFIG).fit(documents(GOOD, 150, "a"), documents(GOOD, 150, "b"), seed=0)
    low, high = facts["auc_interval"]
    assert 0.3 < facts["auc"] < 0.7 and high - low > 0.1
    assert facts["expected_calibration_error"] < 0.15
    assert facts["uncalibrated"].keys() == {"brier", "expected_calibration_error"}


def test_same_seed_same_scores_in_any_order(tmp_path):
    def scores(turn: int) -> np.ndarray:
        classifier = QualityClassifier(CONFIG)
        classifier.fit(documents(GOOD, 10, "good")[::turn], documents(BAD, 10, "bad")[::turn], seed=3)
        return classifier.score(documents(GOOD, 5, "new"))

    assert np.array_equal(scores(1), scores(-1))


def test_quality_survives_saving(tmp_path):
    classifier = QualityClassifier(CONFIG)
    classifier.fit(documents(GOOD, 10, "good"), documents(BAD, 10, "bad"), seed=3)
    classifier.save(tmp_path / "quality.npz")
    again = QualityClassifier.load(CONFIG, tmp_path / "quality.npz")
    texts = documents(GOOD, 5, "new")
    assert np.array_equal(classifier.score(texts), again.score(texts))
    first = (tmp_path / "quality.npz").read_bytes()
    again.save(tmp_path / "quality.npz")
    assert (tmp_path / "quality.npz").read_bytes() == first


def test_register_is_told_from_content():
    """Classes that differ in layout alone: the surface explains all; within one register nothing is left."""
    rng = stream(1, "layout")
    plain = documents(GOOD, 60, "p", 100)
    shouted = [t.upper() + "!" if rng.random() < 0.9 else t for t in documents(GOOD, 60, "q", 100)]
    _, report = train([Example(t, "a") for t in plain] + [Example(t, "b") for t in shouted], SMALL, 0)
    assert report["register"]["surface_auc"] > 0.8
    # Classes of one layout that differ in words: the surface knows less than the words do.
    _, report = train([e for e in examples() if e.label != "a"], SMALL, 0)
    assert report["auc"] == 1.0
    assert report["register"]["auc_within"] in (None, 1.0)


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
    with pytest.raises(UserError, match="two classes"):
        train([Example("x y", "a")] * 5, SMALL, 0)
    with pytest.raises(UserError, match="at least 2 documents"):
        train([Example("x y", "a"), *(Example("z w", "b", str(i)) for i in range(3))], SMALL, 0)


# The linear model.


def test_many_classes():
    model, report = train(examples(), SMALL, 0)
    assert model.classes == ("a", "b", "c")
    assert report["accuracy"] == 1.0 and report["accuracy_interval"][0] > 0.8
    assert report["calibrated"] is False  # 12 documents are too few
    found = model.probabilities([*documents(NEWS, 2, "new"), ""])
    assert found[:2].argmax(axis=1).tolist() == [2, 2]
    assert np.allclose(found.sum(axis=1), 1)
    assert report["confusion"]["a"] == {"a": report["per_class"]["a"]["documents"]}


@pytest.mark.parametrize(("words", "characters"), [([1, 2], [0, 0]), ([0, 0], [2, 4]), ([1, 1], [3, 3])])
def test_features_words_and_characters(words, characters):
    config = replace(SMALL, word_ngrams=words, character_ngrams=characters)
    buckets, values = hashed("A rose is a rose", config)
    assert (np.diff(buckets) > 0).all() and buckets[-1] < config.features
    assert np.isclose((values**2).sum(), 1, atol=0.05)  # exactly 1 but for buckets that words and characters share
    assert len(hashed("", config)[0]) == 0
    _, report = train(examples(15), config, 0)
    assert report["accuracy"] > 0.9


def test_word_counts_by_hand():
    config = replace(SMALL, word_ngrams=[1, 1], features=2**20)
    _, values = hashed("a b b", config)
    assert sorted(values) == pytest.approx(
        [1 / math.hypot(1, 1 + math.log(2)), (1 + math.log(2)) / math.hypot(1, 1 + math.log(2))]
    )


def test_scoring_is_a_pure_function_of_one_text():
    model, _ = train(examples(15), SMALL, 0)
    texts = [*documents(GOOD, 5, "n", 300), "", "\ud800 x", documents(BAD, 1, "long", 3000)[0]]
    together = model.probabilities(texts)
    alone = np.concatenate([pickle.loads(pickle.dumps(model)).probabilities([t]) for t in texts])
    assert np.array_equal(together, alone)
    assert model.probabilities([]).shape == (0, 3)


def test_groups_are_never_split():
    grouped = [replace(e, group=f"{e.label}{i // 5}") for i, e in enumerate(examples(30))]
    marked = [replace(e, text=e.text + f" mark{e.group}") for e in grouped]
    _, report = train(marked, SMALL, 0)
    assert report["documents"] % 5 == 0 and report["train_documents"] % 5 == 0


def test_calibration_helps_where_passages_are_many():
    """Documents of many weak passages: their mean is more certain than a passage, which calibration learns."""
    weak = GOOD + BAD
    rng = stream(2, "weak")
    texts = []
    for label, tilt in (("a", 0.55), ("b", 0.45)):
        p = np.array([tilt / len(GOOD)] * len(GOOD) + [(1 - tilt) / len(BAD)] * len(BAD))
        texts += [Example(" ".join(rng.choice(weak, 400, p=p / p.sum())), label) for _ in range(150)]
    _, report = train(texts, SMALL, 0)
    assert report["calibrated"]
    assert report["expected_calibration_error"] < report["uncalibrated"]["expected_calibration_error"]
    assert report["brier"] < report["brier_of_base_rate"]


def test_damaged_models_are_refused(tmp_path):
    model, _ = train(examples(10), SMALL, 0)
    path = tmp_path / "model.npz"
    model.save(path)
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"not a model", content[:100] + b"\x00" * 50 + content[150:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="train"):
            LinearModel.load(path)
    with pytest.raises(UserError, match="train"):
        LinearModel.load(tmp_path / "absent.npz")
    np.savez(path, weights=np.array([object()], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="train"):
        LinearModel.load(path)


@pytest.mark.parametrize(
    "changes",
    [{"features": 1000}, {"word_ngrams": [2, 1]}, {"word_ngrams": [0, 0]}, {"heldout_share": 0.0}, {"calibration_share": 0.7}],
)
def test_bad_settings(changes):
    with pytest.raises(UserError):
        replace(SMALL, **changes)


def test_passages_have_equal_size():
    assert passages("a b c d e f g", 3) == ["a b c", "d e f"]
    assert passages("a b c d e", 3) == ["a b c", "d e"]
    assert passages("a", 3) == ["a"]
    assert passages("", 3) == []


# Examples.


def test_examples_from_a_file(tmp_path):
    path = tmp_path / "labels.jsonl"
    path.write_text('{"text": "x", "label": 1}\n\n{"text": "y", "label": "no", "group": "g"}\n', encoding="utf-8")
    found = load_examples(str(path))
    assert found == [Example("x", "1"), Example("y", "no", "g")]
    assert ClassifierTask(str(path), positive="1").classes(found) == ["no", "1"]
    with pytest.raises(UserError, match="no label"):
        ClassifierTask(str(path), positive="yes").classes(found)
    for line in ("{", "[1]", '{"text": "x"}', '{"text": 1, "label": 1}', '{"text": "x", "label": null}'):
        path.write_text(line + "\n", encoding="utf-8")
        with pytest.raises(UserError, match="line 1"):
            load_examples(str(path))
    path.write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="no example"):
        load_examples(str(path))
    with pytest.raises(UserError, match="no file"):
        load_examples(str(tmp_path / "absent"))
    with pytest.raises(UserError, match="python:maths"):
        load_examples("python:math")


def test_categories():
    assert category_of("http.client") == "networking"
    assert category_of("scipy.stats._distn") == "statistics"
    assert category_of("sympy.solvers.solvers") == "mathematics"
    assert category_of("sympy.printing.latex") is None
    assert category_of("nothing") is None


def test_built_in_maths_is_learned_within_one_register(monkeypatch):
    from herd.curation.classifiers import examples as module

    monkeypatch.setattr(module, "_LIMIT", 60)
    monkeypatch.setattr(module, "_MATHS_PACKAGES", ("numpy",))
    found = load_examples("python:maths")
    assert not any(":math:" in e.text for e in found)
    _, report = train(found, replace(SMALL, features=2**15, passage_words=80), 0, ["other", "maths"])
    assert report["auc_interval"][0] > 0.6


# Calibration: by hand, and against scikit-learn.


def test_auc_by_hand():
    assert calibration.auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]) == 0.75
    assert calibration.auc([0, 1], [0.5, 0.5]) == 0.5


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=60))
def test_auc_is_scikit_learns(rows):
    from sklearn.metrics import roc_auc_score

    labels, scores = [a for a, _ in rows], [b / 5 for _, b in rows]
    if len(set(labels)) == 2:
        assert calibration.auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))
        low, high = calibration.auc_interval(calibration.auc(labels, scores), sum(labels), len(labels) - sum(labels))
        assert 0 <= low <= calibration.auc(labels, scores) + 1e-9 and calibration.auc(labels, scores) - 1e-9 <= high <= 1


def test_auc_interval_covers():
    """Two normal distributions one standard deviation apart: AUC Phi(1 / sqrt 2) = 0.7602 lies inside 19 times of 20."""
    rng = stream(0, "coverage")
    inside = 0
    for _ in range(300):
        scores = np.concatenate([rng.normal(1, 1, 30), rng.normal(0, 1, 40)])
        low, high = calibration.auc_interval(calibration.auc([1] * 30 + [0] * 40, scores), 30, 40)
        inside += low <= 0.76025 <= high
    assert 0.92 <= inside / 300 <= 0.99
    low, high = calibration.auc_interval(1.0, 20, 20)
    assert 0.8 < low < 1 and high == 1  # does not collapse


def test_reliability_by_hand():
    bins = calibration.reliability([0.05, 0.95, 0.95, 1.0], [0, 1, 0, 1])
    assert [(b["from"], b["documents"]) for b in bins] == [(0.0, 1), (0.9, 3)]
    assert bins[1]["held"] == pytest.approx(2 / 3)
    error = (0.05 + 3 * abs(2.9 / 3 - 2 / 3)) / 4
    assert calibration.expected_calibration_error(bins) == pytest.approx(error)


def test_precision_and_recall_by_hand():
    rows = calibration.precision_recall([1, 1, 0, 0], [0.9, 0.4, 0.6, 0.1], thresholds=(0.5, 0.95))
    assert (rows[0]["precision"], rows[0]["recall"], rows[0]["kept"]) == (0.5, 0.5, 0.5)
    assert rows[1]["precision"] is None and rows[1]["recall"] == 0


def test_stratified_auc_compares_within_strata_only():
    value, pairs = calibration.stratified_auc([1, 0, 1, 0], [0.2, 0.1, 0.9, 0.95], ["x", "x", "y", "y"])
    assert (value, pairs) == (0.5, 2)
    assert calibration.stratified_auc([1, 0], [1, 0], ["x", "y"]) == (None, 0)
