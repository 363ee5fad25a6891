"""Graded preference pairs, some with an edited third response, and which of them are trained on.

Section 4.2.1 of the paper: two responses from two different models, graded by how much better the chosen one is, the
chosen one sometimes edited further (edited > chosen > rejected). Reward model and DPO keep only the two upper grades;
near-equal responses are filtered.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from herd.config.errors import UserError, nearest
from herd.dialog.messages import Message, Role, parse_messages, reject_reason
from herd.dialog.rows import Counted, parse_response, read_jsonl, require


class Grade(StrEnum):
    """How much better the chosen response is, best first."""

    SIGNIFICANTLY_BETTER = "significantly_better"
    BETTER = "better"
    SLIGHTLY_BETTER = "slightly_better"
    MARGINALLY_BETTER = "marginally_better"


@dataclass(frozen=True)
class Preference:
    """One comparison. `prompt` ends with the message before the response; each response is one or more messages."""

    id: str
    prompt_id: str
    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    grade: Grade
    edited: tuple[Message, ...] | None = None
    models: dict[str, str] = field(default_factory=dict)  # response -> the model that wrote it
    scores: dict[str, float] = field(default_factory=dict)  # response -> the grader's score

    @property
    def best(self) -> tuple[Message, ...]:
        """The edited response where there is one, else the chosen."""
        return self.edited if self.edited is not None else self.chosen

    @property
    def prompt_key(self) -> object:
        """What tells its prompt from others: the id where there is one, else the prompt itself."""
        return self.prompt_id or self.prompt

    def to_dict(self) -> dict[str, Any]:
        row: dict[str, Any] = {
            "id": self.id,
            "prompt_id": self.prompt_id,
            "messages": [m.to_dict() for m in self.prompt],
        }
        for name in ("chosen", "rejected", "edited"):
            response = getattr(self, name)
            if response is not None:
                row[name] = [m.to_dict() for m in response]
        return row | {"grade": self.grade.value, "models": self.models, "scores": self.scores}


def read_preferences(path: Path) -> list[Preference]:
    """Reads preference rows; UserError names the bad line."""
    rows = []
    for where, row in read_jsonl(path):
        grade = require(row, "grade", where)
        if grade not in list(Grade):
            raise UserError(f"{where}: unknown grade `{grade}`; use one of {', '.join(Grade)}.{nearest(grade, list(Grade))}")
        edited = row.get("edited")
        rows.append(
            Preference(
                id=require(row, "id", where),
                prompt_id=str(row.get("prompt_id", "")),
                prompt=parse_messages(row.get("messages"), where),
                chosen=parse_response(row.get("chosen"), f"{where}, chosen"),
                rejected=parse_response(row.get("rejected"), f"{where}, rejected"),
                grade=Grade(grade),
                edited=None if edited is None else parse_response(edited, f"{where}, edited"),
                models=dict(row.get("models", {})),
                scores=dict(row.get("scores", {})),
            )
        )
    return rows


@dataclass(frozen=True)
class PreferenceFilter:
    """Which pairs are trained on."""

    grades: list[str] = field(default_factory=lambda: ["significantly_better", "better"])  # grades kept
    max_similarity: float = 0.95  # a row whose rejected response is more like its chosen or edited one (0..1) is dropped

    def __post_init__(self) -> None:
        for grade in self.grades:
            if grade not in list(Grade):
                raise UserError(f"grades: unknown grade `{grade}`; use {', '.join(Grade)}.{nearest(grade, list(Grade))}")
        if not self.grades:
            raise UserError(f"grades is empty, so every pair would be dropped; use some of {', '.join(Grade)}")
        if not 0.0 < self.max_similarity <= 1.0:
            raise UserError(f"max_similarity must be in (0, 1], not {self.max_similarity}")

    def reason(self, row: Preference) -> str | None:
        """Why the pair is not trained on, as a word to count; None when it is.

        An edited response that is one of the other two would rank a text above itself. One that is like the rejected one is
        filtered as a chosen one is, for both are ranked above it. Edited and chosen are alike by their making: not compared.
        """
        for response in (row.chosen, row.rejected, *([row.edited] if row.edited is not None else [])):
            reason = reject_reason(row.prompt + response, first=len(row.prompt))
            if reason:
                return reason
            if response[-1].role is not Role.ASSISTANT:
                return "ends_with_tool_output"  # there is no answer yet that could be judged
        if row.chosen == row.rejected:
            return "chosen_equals_rejected"
        if row.edited in (row.chosen, row.rejected):
            return "edited_equals_chosen" if row.edited == row.chosen else "edited_equals_rejected"
        if row.grade.value not in self.grades:
            return f"grade_{row.grade.value}"
        if more_alike(row.chosen, row.rejected, self.max_similarity):
            return "similar_responses"
        if row.edited is not None and more_alike(row.edited, row.rejected, self.max_similarity):
            return "edited_similar_to_rejected"
        return None

    def select(self, rows: Iterable[Preference], counted: Counted) -> list[Preference]:
        """The rows to train on, in order; the others are counted by reason."""
        kept = []
        for row in rows:
            reason = self.reason(row)
            if reason:
                counted.drop(reason)
            else:
                kept.append(row)
        counted.kept += len(kept)
        return kept


def similarity(a: Sequence[Message], b: Sequence[Message]) -> float:
    """2 x LCS / (characters of both): the share of two responses that is a common subsequence, in [0, 1]."""
    first, second = response_text(a), response_text(b)
    total = len(first) + len(second)
    return 2 * longest_common_subsequence(first, second) / total if total else 1.0


def more_alike(a: Sequence[Message], b: Sequence[Message], threshold: float) -> bool:
    """Whether `similarity` exceeds `threshold`; where the lengths alone rule it out, nothing is compared."""
    lengths = sorted((len(response_text(a)), len(response_text(b))))
    return 2 * lengths[0] >= threshold * sum(lengths) and similarity(a, b) > threshold


def longest_common_subsequence(a: str, b: str) -> int:
    """Its length in characters, by Hyyro's bit-parallel recurrence (2004): one row of the table is one integer.

    At 1,000 characters a side 45 times as fast as difflib's matcher, whose time grows faster still.
    """
    places: dict[str, int] = {}  # character -> bit i set where b[i] is it
    for i, character in enumerate(b):
        places[character] = places.get(character, 0) | 1 << i
    every = (1 << len(b)) - 1
    row = every  # bit i is 0 where the subsequence of a so far with b[: i + 1] is longer than with b[:i]
    for character in a:
        matched = row & places.get(character, 0)
        row = ((row + matched) | (row - matched)) & every
    return len(b) - row.bit_count()


def response_text(response: Sequence[Message]) -> str:
    """All that a response says, tool calls included, to compare it and to count its characters."""
    return "\n".join(m.content + (m.call or "") + "".join(map(str, m.tool_calls or ())) for m in response)
