"""Rows of files, each with its place: JSON lines, a JSON list, Parquet."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from herd.config.errors import UserError, nearest
from herd.dialog.rows import parse_line, read_lines, require_object

Place = tuple[int, str]  # number of the row in its file (of the line, in JSON lines), and what an error message calls it
Row = Callable[[], dict[str, Any]]  # reads the row; UserError when it cannot be read


def _jsonl(path: Path) -> Iterator[tuple[Place, Row]]:
    for number, line in read_lines(path):
        where = f"{path}, line {number}"
        yield (number, where), partial(parse_line, line, where)


def _json(path: Path) -> Iterator[tuple[Place, Row]]:
    try:
        rows = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); a file of one object a line has the ending .jsonl") from None
    if not isinstance(rows, list):
        raise UserError(f"{path}: must hold a list of rows, not {type(rows).__name__}; a row a line has the ending .jsonl")
    for number, row in enumerate(rows, start=1):
        where = f"{path}, row {number}"
        yield (number, where), partial(require_object, row, where)


def _parquet(path: Path) -> Iterator[tuple[Place, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield (number, f"{path}, row {number}"), partial(without_nulls, row)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read as Parquet after row {number} ({str(error).splitlines()[0]})") from None


def without_nulls(value: Any) -> Any:
    """`value` without keys that have no value: a table's struct has every key in every row, JSON has those that were meant."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


READERS = {".jsonl": _jsonl, ".json": _json, ".parquet": _parquet}


def table_files(path: str) -> list[Path]:
    """The file, or every file of a folder (and of those in it) that can be read, in order of names; UserError for none."""
    given = Path(path)
    if not given.exists():
        raise UserError(f"source.path: no file or folder '{path}'; for a data set of the hub set source.kind=hub.")
    files = [given] if given.is_file() else sorted(p for p in given.rglob("*") if p.suffix in READERS and p.is_file())
    if not files:
        raise UserError(f"source.path: '{path}' has no file ending in {', '.join(READERS)}.")
    for file in files:
        if file.suffix not in READERS:
            hint = nearest(file.suffix, READERS)
            raise UserError(f"source.path: '{file}' does not end in {', '.join(READERS)}.{hint} Convert or rename it.")
    return files


def read_table(path: Path) -> Iterator[tuple[Place, Row]]:
    """Yields the place of each row and a function that reads it. UserError when the file itself cannot be read."""
    return READERS[path.suffix](path)
