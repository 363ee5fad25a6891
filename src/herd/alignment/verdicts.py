"""Verdicts of people on pairs of answers: read from their files, checked, and brought together where several judged one pair."""

from __future__ import annotations

import csv
import io
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from herd.alignment.fine_tuning import wilson_interval
from herd.config.errors import UserError, nearest
from herd.dialog.preferences import Grade
from herd.dialog.rows import read_jsonl

COLUMNS = ("id", "better", "grade", "edited")  # of a file of verdicts; others are passed over
_CHOICES = ("a", "b", "tie")
_GRADES = tuple(grade.value for grade in Grade)  # best first


@dataclass(frozen=True)
class Verdict:
    """What one person says of one pair."""

    annotator: str
    better: str  # a | b | tie
    grade: Grade | None  # None for a tie
    edited: str | None  # the better answer, improved


def read_verdicts(path: Path, annotator: str, pairs: Iterable[str]) -> dict[str, Verdict]:
    """Pair -> verdict of a CSV or JSONL file with the columns `id`, `better` (a, b or tie), `grade` and perhaps `edited`.

    A row whose `better` is empty was not judged yet and is left out.

    Raises:
        UserError: names the line: an id that is none of ``pairs``, or that comes twice, or a choice or grade that is none.
    """
    known, found = list(pairs), dict[str, Verdict]()
    members = set(known)
    for where, row in _rows(path):
        pair, better, grade, edited = (_text(row, column, where) for column in COLUMNS)
        if pair not in members:
            raise UserError(f"{where}: no pair has the id '{pair}'.{nearest(pair, known)}")
        if pair in found:
            raise UserError(f"{where}: '{pair}' comes a second time; a file holds one verdict of a pair")
        if not better:
            continue
        if better not in _CHOICES:
            raise UserError(f"{where}: `better` is '{better:.40}'; write a, b or tie.{nearest(better, _CHOICES)}")
        if better == "tie":
            if edited:
                raise UserError(f"{where}: a tie has no better answer to edit; leave `edited` empty")
            found[pair] = Verdict(annotator, better, None, None)
            continue
        if grade not in _GRADES:
            raise UserError(f"{where}: `grade` is '{grade:.40}'; write one of {', '.join(_GRADES)}.{nearest(grade, _GRADES)}")
        found[pair] = Verdict(annotator, better, Grade(grade), edited or None)
    return found


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(`file, line N`, row); a spreadsheet's lines are counted as a text editor counts them."""
    if path.suffix == ".jsonl":
        yield from read_jsonl(path)
        return
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; save it as CSV in UTF-8") from None
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
    missing = [column for column in COLUMNS[:3] if column not in (reader.fieldnames or ())]
    if missing:
        raise UserError(f"{path}: has no column '{missing[0]}'; its first line must name {', '.join(COLUMNS)}")
    line = 2
    try:
        for row in reader:
            yield f"{path}, line {line}", row
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {line}: no CSV ({error}); mend the quotes of this line") from None


def _delimiter(text: str) -> str:
    """Comma, or what spreadsheets of other countries write."""
    head = text.partition("\n")[0]
    return max(",;\t", key=head.count)


def _text(row: Mapping[str, Any], column: str, where: str) -> str:
    value = row.get(column)
    if not isinstance(value, str | None):
        raise UserError(f"{where}: `{column}` must be text, not {value!r:.40}")
    text = (value or "").strip()
    return text if column in ("id", "edited") else text.lower()


def resolve(verdicts: list[Verdict]) -> Verdict | str:
    """One verdict out of several people's, or why there is none.

    All must prefer the same answer; the grade is the weakest that anyone gave, the edit the first annotator's who made one.
    """
    if len({verdict.better for verdict in verdicts}) > 1:
        return "annotators_disagree"
    if verdicts[0].grade is None:
        return "tie"
    weakest = max((verdict.grade for verdict in verdicts if verdict.grade), key=list(Grade).index)
    editor = next((verdict for verdict in verdicts if verdict.edited), verdicts[0])
    return Verdict(editor.annotator, verdicts[0].better, weakest, editor.edited)


def agreement(by_pair: Iterable[list[Verdict]]) -> dict[str, Any]:
    """How far people agree on the better answer, over all couples of verdicts on the same pair.

    ``agree`` is a share with Wilson's 95% interval; ``chance_corrected`` is Scott's pi, (agree - p) / (1 - p) with p what the
    shares of a, b and tie among these verdicts would give by chance, None where all verdicts are alike. ``same_grade`` is the
    share of equal grades where both prefer the same answer.
    """
    several = [verdicts for verdicts in by_pair if len(verdicts) > 1]
    couples = [couple for verdicts in several for couple in itertools.combinations(verdicts, 2)]
    if not couples:
        return {"pairs_with_several": 0}
    alike = [(one, other) for one, other in couples if one.better == other.better]
    choices = Counter(verdict.better for couple in couples for verdict in couple)
    chance = sum((count / (2 * len(couples))) ** 2 for count in choices.values())
    graded = [one.grade == other.grade for one, other in alike if one.grade]
    return {
        "pairs_with_several": len(several),
        "agree": len(alike) / len(couples),
        "agree_interval": wilson_interval(len(alike), len(couples)),
        "chance_corrected": (len(alike) / len(couples) - chance) / (1 - chance) if chance < 1 else None,
        "same_grade": sum(graded) / len(graded) if graded else None,
    }
