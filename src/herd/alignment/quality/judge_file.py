"""A judge that is a file: what people, or a model elsewhere, said of the dialogs before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from herd.alignment.quality.judges import GRADES, JudgeConfig, Question, Verdict, certain
from herd.config.errors import UserError, nearest
from herd.dialog.rows import read_jsonl

_KEYS = ("id", "source", "quality", "score", "difficulty", "topic", "tags")


class FileJudge:
    """Rows of JSONL: `id`, maybe `source`; grades from 1, `quality` (or `score`) and `difficulty`; `topic`; `tags`. Any of them.

    `herd prune` leaves such a file (`judged.jsonl`), so what a judge said once need not be asked again.
    """

    def __init__(self, said: dict[tuple[str, str], dict[str, Any]]) -> None:
        self._said = said

    @classmethod
    def open(cls, config: JudgeConfig) -> FileJudge:
        """Reads the file; UserError names the bad line."""
        said: dict[tuple[str, str], dict[str, Any]] = {}
        for where, row in read_jsonl(Path(config.path)):
            for key in row:
                if key not in _KEYS:
                    raise UserError(f"{where}: unknown key `{key}`.{nearest(key, _KEYS)} Keys: {', '.join(_KEYS)}.")
            if not isinstance(row.get("id"), str) or not isinstance(row.get("source", ""), str):
                raise UserError(f"{where}: `id` must be there and be text, as `source` where it is given")
            if "score" in row:
                row["quality"] = row.pop("score")
            for purpose in GRADES:
                grade = row.get(purpose)
                if grade is not None and (isinstance(grade, bool) or not isinstance(grade, int | float) or grade != int(grade)):
                    raise UserError(f"{where}: `{purpose}` is a grade, a whole number from 1, not {grade!r:.40}")
            if not isinstance(row.get("topic", ""), str) or not _are_texts(row.get("tags", [])):
                raise UserError(f"{where}: `topic` must be text, `tags` a list of texts")
            name = row.get("source", ""), row["id"]
            if name in said:
                raise UserError(f"{where}: a second row of '{row['id']}'")
            said[name] = row
        return cls(said)

    def ask(self, questions: Sequence[Question]) -> list[Verdict]:
        return [self._verdict(question) for question in questions]

    def _verdict(self, question: Question) -> Verdict:
        dialog, purpose, answers = question.dialog, question.purpose, question.answers
        row = self._said.get((dialog.source, dialog.id)) or self._said.get(("", dialog.id))
        said = None if row is None else row.get(purpose)
        if said is None:
            return Verdict((), f"the file has no {purpose} for it")
        if purpose == "tags":
            return certain(answers.index("yes" if question.tag in said else "no"), len(answers))
        answer = str(int(said)) if purpose in GRADES else said
        if answer not in answers:
            raise UserError(f"judge.path: '{dialog.id}' has {purpose} {said!r}, which is none of {', '.join(answers)}.")
        return certain(answers.index(answer), len(answers))


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
