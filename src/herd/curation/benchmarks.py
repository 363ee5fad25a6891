"""Examples of benchmarks and scores of models on them, read from files of any of three formats."""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from herd.config.errors import UserError, nearest
from herd.curation.sources.streams import Damaged, blocks, lines
from herd.runs.tables import iterate_rows

_SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".parquet")
_LONGEST = 10_000_000  # bytes of a line


@dataclass(frozen=True)
class BenchmarkConfig:
    """Where the examples of one benchmark lie, and what of them is text."""

    name: str
    path: str  # .jsonl, .jsonl.gz, .csv or .parquet, or a folder of them
    fields: list[str] = field(default_factory=list)  # read one after the other; empty = every string of the example
    id_field: str = ""  # "" = examples are numbered from 0, in the order of the files' names and rows
    language: str = "en"
    header: bool = True  # csv: the first row names the columns; otherwise they are called 0, 1, ...


def read_examples(config: BenchmarkConfig) -> tuple[list[str], list[str]]:
    """Ids and texts of all examples.

    Raises:
        UserError: no such file, a damaged one, a missing field, or an id that occurs twice.
    """
    ids: list[str] = []
    texts: list[str] = []
    for where, row in _rows(config.path, config.header, f"benchmark '{config.name}'"):
        for name in (*config.fields, *([config.id_field] if config.id_field else [])):
            if name not in row:
                raise UserError(f"{where}: no field '{name}' (benchmark '{config.name}').{nearest(name, row)}")
        ids.append(_name(row, config.id_field, where) if config.id_field else str(len(ids)))
        texts.append("\n".join(_strings([row[name] for name in config.fields] if config.fields else row)))
    twice = next((name for name, count in Counter(ids).items() if count > 1), None)
    if twice is not None:
        raise UserError(f"benchmark '{config.name}': the id '{twice}' occurs twice (id_field '{config.id_field}').")
    if not ids:
        raise UserError(f"benchmark '{config.name}': {config.path} holds no examples.")
    return ids, texts


def read_scores(path: str) -> dict[str, dict[str, dict[str, float]]]:
    """task -> model -> example id -> score, from rows with `task`, `model`, `id` and `score` (a number in [0, 1]).

    Raises:
        UserError: no such file, a missing field, or a score that is none.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for where, row in _rows(path, True, "scores"):
        for name in ("task", "model", "id", "score"):
            if name not in row:
                raise UserError(f"{where}: no field '{name}' (scores).{nearest(name, row)}")
        try:
            score = float(row["score"])
        except (TypeError, ValueError):
            score = -1.0
        if not 0 <= score <= 1:
            raise UserError(f"{where}: score {row['score']!r} is no number in [0, 1].")
        task, model, example = (_name(row, field_, where) for field_ in ("task", "model", "id"))
        scores = found.setdefault(task, {}).setdefault(model, {})
        if example in scores:
            raise UserError(f"{where}: a second score of model '{model}' on example '{example}'.")
        scores[example] = score
    return found


def in_order(scores: dict[str, float], ids: Sequence[str], model: str, benchmark: str) -> np.ndarray:
    """(examples,) float64 scores in the order of ``ids``; UserError unless each has one, and no other."""
    missing = [name for name in ids if name not in scores]
    if missing:
        raise UserError(
            f"scores: model '{model}' has none for {len(missing)} examples of '{benchmark}', the first is '{missing[0]}'."
        )
    unknown = sorted(set(scores) - set(ids))
    if unknown:
        raise UserError(f"scores: '{unknown[0]}' (model '{model}') is no example of benchmark '{benchmark}'.")
    return np.array([scores[i] for i in ids])


def _name(row: dict[str, Any], field_: str, where: str) -> str:
    """A value that goes into tables as a name; no file can hold half a surrogate pair."""
    name = str(row[field_])
    if any("\ud800" <= character <= "\udfff" for character in name):
        raise UserError(f"{where}: {field_} {name!a} holds half a surrogate pair, which is no character.")
    return name


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _strings(list(value.values()))
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)


def _rows(path: str, header: bool, what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) of a file, or of a folder's files by name."""
    root = Path(path)
    if not path or not root.exists():
        raise UserError(f"{what}: no file or folder '{path}'.")
    files = sorted(p for p in root.rglob("*") if p.name.endswith(_SUFFIXES)) if root.is_dir() else [root]
    if not files or not all(file.name.endswith(_SUFFIXES) for file in files):
        raise UserError(f"{what}: '{path}' is neither one of {', '.join(_SUFFIXES)} nor a folder of them.")
    for file in files:
        if file.name.endswith(".parquet"):
            rows: Iterator[tuple[int, Any]] = enumerate(iterate_rows(file), start=1)
        else:
            rows = _csv_rows(file, header) if file.name.endswith(".csv") else _json_rows(file)
        for number, row in rows:
            yield f"{file}:{number}", row


def _json_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, row) of each line that is not blank."""
    try:
        for number, line in enumerate(lines(blocks(file), _LONGEST), start=1):
            if isinstance(line, bytes) and not line.strip():
                continue
            try:
                row = json.loads(line) if isinstance(line, bytes) else None
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise UserError(f"{file}:{number}: not a JSON object.")
            yield number, row
    except Damaged as problem:
        raise UserError(f"{file}: {problem.detail}.") from problem


def _csv_rows(file: Path, header: bool) -> Iterator[tuple[int, dict[str, str]]]:
    """(number, row) of each row that is not blank, the header not counted; spreadsheets begin files with a byte-order mark."""
    try:
        table = list(csv.reader(io.StringIO(file.read_text(encoding="utf-8-sig"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file}: no CSV file in UTF-8 ({error}).") from error
    names = table.pop(0) if header and table else [str(i) for i in range(max(map(len, table), default=0))]
    for number, row in enumerate(table, start=1):
        if row:
            yield number, dict(zip(names, row, strict=False))
