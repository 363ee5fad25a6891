"""Topics of dialogs, coarse and fine: labels from a file, a built-in set or a judge; a linear classifier for all the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from herd.alignment.quality.dialogs import Dialog
from herd.alignment.quality.judges import Judge, Question
from herd.config.errors import UserError
from herd.curation.classifiers.examples import load_examples
from herd.curation.classifiers.linear import Example, LinearConfig, LinearModel, train

BY_JUDGE = "judge"
_REPORTED = ("accuracy", "accuracy_interval", "most_frequent_class", "expected_calibration_error", "documents", "train_documents")


@dataclass(frozen=True)
class TopicConfig:
    """Where the labels come from. A label is `coarse/fine`, or `coarse` alone."""

    labels: str  # JSONL file with text and label (and group), a built-in set as python:knowledge, or judge
    names: list[str]  # judge: the labels that it chooses among
    sample: int  # judge: dialogs that it labels
    question: str  # the judge's; {dialog} marks the dialog's place
    model: LinearConfig = field(default_factory=LinearConfig)

    def __post_init__(self) -> None:
        if "{dialog}" not in self.question or self.sample < 1:
            raise UserError("topics: question needs {dialog}, and sample must be at least 1.")
        if self.labels == BY_JUDGE and len(set(self.names)) < 2:
            raise UserError("topics.labels=judge needs topics.names: two labels or more to choose among.")


@dataclass(frozen=True)
class TopicModel:
    """A classifier of coarse topics, and one of the whole labels that chooses within the coarse topic."""

    coarse: LinearModel
    fine: LinearModel | None  # None: no label has a fine part

    def topics(self, texts: Sequence[str]) -> list[tuple[str, str, float]]:
        """(coarse, label, probability of the coarse topic) of each text."""
        shares = self.coarse.probabilities(texts)
        names = [self.coarse.classes[i] for i in shares.argmax(axis=1).tolist()]
        labels = names if self.fine is None else self._labels(self.fine, texts, names)
        return list(zip(names, labels, shares.max(axis=1).tolist(), strict=True))

    @staticmethod
    def _labels(fine: LinearModel, texts: Sequence[str], names: Sequence[str]) -> list[str]:
        within = np.array([[coarse_of(label) == name for label in fine.classes] for name in names]).reshape(len(names), -1)
        best = np.where(within, fine.probabilities(texts), -1.0).argmax(axis=1)
        return [fine.classes[i] for i in best.tolist()]


def coarse_of(label: str) -> str:
    """`mathematics` of `mathematics/geometry`."""
    return label.partition("/")[0]


def train_topics(examples: Sequence[Example], config: LinearConfig, seed: int) -> tuple[TopicModel, dict[str, Any]]:
    """Both classifiers, and their accuracy on held-out examples with intervals.

    Raises:
        UserError: fewer than two labels, or one with fewer than two (groups of) examples.
    """
    coarse_examples = [Example(e.text, coarse_of(e.label), e.group) for e in examples]
    coarse, report = train(coarse_examples, config, seed)
    reports = {"coarse": _short(report)}
    if not any("/" in e.label for e in examples):
        return TopicModel(coarse, None), reports
    fine, report = train(examples, config, seed)
    return TopicModel(coarse, fine), reports | {"fine": _short(report)}


def _short(report: dict[str, Any]) -> dict[str, Any]:
    return {"classes": len(report["classes"])} | {name: report[name] for name in _REPORTED if name in report}


def label_topics(
    dialogs: Sequence[Dialog], config: TopicConfig, judge: Judge | None, seed: int
) -> tuple[list[Dialog], dict[str, Any]]:
    """The dialogs with `topic` (coarse), `fine_topic` (the whole label) and `topic_probability`, and a report."""
    examples = load_examples(config.labels) if judge is None else _judged(dialogs, config, judge, seed)
    model, report = train_topics(examples, config.model, seed)
    found = model.topics([dialog.text for dialog in dialogs])
    labelled = [
        replace(dialog, notes=dialog.notes | {"topic": coarse, "fine_topic": label, "topic_probability": round(share, 6)})
        for dialog, (coarse, label, share) in zip(dialogs, found, strict=True)
    ]
    counts = Counter(coarse for coarse, _, _ in found)
    return labelled, report | {"labelled_examples": len(examples), "dialogs": dict(sorted(counts.items()))}


def _judged(dialogs: Sequence[Dialog], config: TopicConfig, judge: Judge, seed: int) -> list[Example]:
    """Labels of a sample that a seeded hash of the ids chooses; what the judge says nothing about is left out."""
    chosen = sorted(dialogs, key=lambda d: (d.place(seed, "topics"), d.name))[: config.sample]
    names = tuple(sorted(set(config.names)))
    questions = [Question(d, "topic", config.question.replace("{dialog}", d.transcript), names) for d in chosen]
    verdicts = zip(chosen, judge.ask(questions), strict=True)
    return [Example(d.text, names[v.choice], str(d.row.get("entry_id", ""))) for d, v in verdicts if v.choice is not None]
