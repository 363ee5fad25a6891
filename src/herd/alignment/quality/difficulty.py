"""Difficulty (paper, section 4.2.3): how many intentions a prompt has (Lu et al. 2023, InsTag), and a judge's grade of 3.

More intentions, more to do. InsTag has a large model name them freely; here they are of a closed list, found by patterns, or by
a judge that is asked about each.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from herd.alignment.quality.dialogs import Dialog
from herd.alignment.quality.judges import Judge, Question, Verdict
from herd.alignment.quality.rating import mid_ranks
from herd.config.errors import UserError, nearest
from herd.dialog.messages import Role

TAGGERS = ("none", "patterns", "judge")
_POINTS = ("1", "2", "3")
_NO, _YES = "no", "yes"


@dataclass(frozen=True)
class DifficultyConfig:
    """How difficulty is measured."""

    tagger: str  # who finds the intentions: none, patterns, or judge
    tags: dict[str, str]  # intention -> pattern that finds it in a user's message (Python's syntax, any case)
    question: str  # the judge's, on the 3-point scale; {dialog} marks the dialog's place
    tag_question: str  # the judge's about one intention, yes or no; {tag} and {dialog}

    def __post_init__(self) -> None:
        if self.tagger not in TAGGERS:
            raise UserError(
                f"difficulty.tagger: no '{self.tagger}'.{nearest(self.tagger, TAGGERS)} Choices: {', '.join(TAGGERS)}."
            )
        if "{dialog}" not in self.question or not all(mark in self.tag_question for mark in ("{dialog}", "{tag}")):
            raise UserError("difficulty: question needs {dialog}, and tag_question {tag} and {dialog}.")
        for tag, pattern in self.tags.items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(f"difficulty.tags.{tag}: {pattern!r} is no regular expression ({error}).") from None
        if self.tagger != "none" and not self.tags:
            raise UserError("difficulty: name at least one intention in difficulty.tags.")


def found_tags(dialogs: Sequence[Dialog], config: DifficultyConfig) -> list[list[str]]:
    """Intentions whose patterns occur in the user's messages, in alphabetic order."""
    compiled = {tag: re.compile(pattern, re.IGNORECASE) for tag, pattern in sorted(config.tags.items())}
    asked = ["\n".join(m.content for m in d.messages if m.role is Role.USER) for d in dialogs]
    return [[tag for tag, pattern in compiled.items() if pattern.search(text)] for text in asked]


def ask_tags(dialogs: Sequence[Dialog], config: DifficultyConfig, judge: Judge) -> list[list[str] | None]:
    """As :func:`found_tags`, by a judge; None where it said nothing to any of them."""
    tags = sorted(config.tags)
    questions = [
        Question(d, "tags", config.tag_question.replace("{tag}", tag).replace("{dialog}", d.transcript), (_NO, _YES), tag)
        for d in dialogs
        for tag in tags
    ]
    verdicts = iter(judge.ask(questions))
    found: list[list[str] | None] = []
    for _ in dialogs:
        said = {tag: next(verdicts).choice for tag in tags}
        found.append(None if all(c is None for c in said.values()) else [tag for tag, choice in said.items() if choice == 1])
    return found


def ask_difficulty(dialogs: Sequence[Dialog], config: DifficultyConfig, judge: Judge) -> list[Verdict]:
    """A grade of each dialog, 3 the most difficult."""
    return judge.ask([Question(d, "difficulty", config.question.replace("{dialog}", d.transcript), _POINTS) for d in dialogs])


def measure(
    dialogs: Sequence[Dialog], tags: Sequence[list[str] | None] | None, verdicts: Sequence[Verdict] | None
) -> tuple[list[Dialog], dict[str, Any]]:
    """The dialogs with their difficulty, and a report.

    Notes: `tags`, `difficulty_grade`, and `difficulty` in (0, 1], the mean of the rank of the number of tags and the expected
    grade / 3, of those that are known.
    """
    if tags is None and verdicts is None:
        raise UserError("difficulty: nothing to measure it by; set difficulty.tagger or judge.kind, or leave it out of steps.")
    named = list(tags) if tags is not None else [None] * len(dialogs)
    counted = [i for i, found in enumerate(named) if found is not None]
    ranks = dict(zip(counted, mid_ranks([float(len(named[i] or ())) for i in counted]).tolist(), strict=True))
    measured = []
    for i, dialog in enumerate(dialogs):
        notes, parts = dict(dialog.notes), []
        if i in ranks:
            notes["tags"] = named[i]
            parts.append(ranks[i])
        expected = verdicts[i].expected_grade if verdicts is not None else None
        if verdicts is not None and expected is not None:
            notes["difficulty_grade"] = verdicts[i].grade
            parts.append(expected / len(_POINTS))
        if parts:
            notes["difficulty"] = sum(parts) / len(parts)
        measured.append(replace(dialog, notes=notes))
    numbers = [len(named[i] or ()) for i in counted]
    grades = [v.grade for v in verdicts or () if v.grade is not None]
    report: dict[str, Any] = {
        "tagged": len(counted),
        "tags": {str(n): numbers.count(n) for n in sorted(set(numbers))},
        "graded": len(grades),
        "grades": {str(g): grades.count(g) for g in sorted(set(grades))},
        "tags_against_grade": _correlation(
            [(len(d.notes["tags"]), d.notes["difficulty_grade"]) for d in measured if {"tags", "difficulty_grade"} <= {*d.notes}]
        ),
    }
    return measured, report


def _correlation(pairs: Sequence[tuple[int, int]]) -> float | None:
    """Spearman's rank correlation; None of fewer than three pairs, or where one side never changes."""
    from scipy.stats import spearmanr

    first, second = zip(*pairs, strict=True) if len(pairs) > 2 else ((), ())
    return float(spearmanr(first, second).statistic) if min(len(set(first)), len(set(second))) > 1 else None
