"""Difficulty: intentions found by patterns or by a judge, and a grade; topics by a classifier that learns them."""

import pytest

from herd.alignment.quality.difficulty import DifficultyConfig, ask_difficulty, ask_tags, found_tags, measure
from herd.alignment.quality.judges import Verdict, certain
from herd.alignment.quality.topics import TopicConfig, coarse_of, label_topics, train_topics
from herd.config.errors import UserError
from herd.curation.classifiers.linear import Example, LinearConfig
from herd.runs.seeds import stream

CONFIG = DifficultyConfig("patterns", {"write": r"\bwrite\b", "compare": r"\bcompare\b"}, "{dialog}?", "{tag}: {dialog}")


class Judge:
    """Says 3 to what has `hard` in it, nothing to what has `odd`, and yes to a tag that is in the text."""

    def ask(self, questions):
        return [
            Verdict((), "odd") if "odd" in q.text
            else certain(int(q.tag in q.dialog.text), 2) if q.purpose == "tags"
            else certain(2 if "hard" in q.text else 0, 3)
            for q in questions
        ]  # fmt: skip


def test_intentions_are_of_the_user_alone(dialog) -> None:
    dialogs = [dialog("a", "I write.", question="Write this and compare it."), dialog("b", "compare", question="Hm?")]
    assert found_tags(dialogs, CONFIG) == [["compare", "write"], []]


def test_a_judge_is_asked_about_each_intention(dialog) -> None:
    dialogs = [dialog("a", "write"), dialog("b", "odd"), dialog("c", "none")]
    assert ask_tags(dialogs, CONFIG, Judge()) == [["write"], None, []]


def test_difficulty_is_the_mean_of_what_is_known(dialog) -> None:
    dialogs = [dialog("a", "hard"), dialog("b", "easy"), dialog("c", "odd")]
    verdicts = ask_difficulty(dialogs, CONFIG, Judge())
    measured, report = measure(dialogs, [["compare", "write"], ["write"], []], verdicts)
    assert [d.notes["difficulty"] for d in measured] == [
        pytest.approx((2.5 / 3 + 1) / 2),
        pytest.approx((1.5 / 3 + 1 / 3) / 2),
        pytest.approx(0.5 / 3),
    ]
    assert "difficulty_grade" not in measured[2].notes and measured[0].notes["difficulty_grade"] == 3
    assert report == {"tagged": 3, "tags": {"0": 1, "1": 1, "2": 1}, "graded": 2, "grades": {"1": 1, "3": 1}} | {
        "tags_against_grade": None
    }
    with pytest.raises(UserError, match="nothing to measure it by"):
        measure(dialogs, None, None)


WORDS = {
    "maths/algebra": "polynomial ring ideal root",
    "maths/geometry": "triangle angle circle plane",
    "code/python": "def yield lambda import",
    "code/shell": "grep pipe sudo chmod",
}


def text_of(label: str, i: int) -> str:
    rng = stream(0, "topic", label, i)
    return " ".join(rng.choice([*WORDS[label].split(), "the", "of", "is", "it"], 20))


def examples() -> list[Example]:
    return [Example(text_of(label, i), label) for label in WORDS for i in range(24)]


def test_coarse_and_fine_topics_agree_with_each_other(dialog) -> None:
    model, report = train_topics(examples(), LinearConfig(features=1024), 0)
    assert report["coarse"]["accuracy"] > 0.9 and report["fine"]["accuracy"] > 0.9
    found = model.topics([text_of(label, 99) for label in WORDS])
    assert [label for _, label, _ in found] == list(WORDS)
    assert all(coarse_of(label) == coarse for coarse, label, _ in found)
    # A text without words still gets a fine topic within its coarse one.
    [(coarse, label, _)] = model.topics([""])
    assert coarse_of(label) == coarse


def test_a_judge_labels_a_sample_and_a_classifier_the_rest(dialog) -> None:
    class Namer:
        asked = 0

        def ask(self, questions):
            self.asked += len(questions)
            return [certain(q.answers.index(q.dialog.row["truth"]), len(q.answers)) for q in questions]

    dialogs = [dialog(f"{label}{i}", text_of(label, i), truth=label) for label in WORDS for i in range(30)]
    config = TopicConfig("judge", list(WORDS), 60, "{dialog}", LinearConfig(features=1024))
    namer = Namer()
    labelled, report = label_topics(dialogs, config, namer, 0)
    assert namer.asked == report["labelled_examples"] == 60
    right = [d.notes["fine_topic"] == d.row["truth"] and d.notes["topic"] == coarse_of(d.row["truth"]) for d in labelled]
    assert sum(right) > 0.9 * len(right) and sum(report["dialogs"].values()) == 120


def test_topics_by_a_judge_need_names() -> None:
    with pytest.raises(UserError, match=r"topics.names: two labels"):
        TopicConfig("judge", ["one"], 10, "{dialog}")
