"""Rows as their source holds them, before any meaning: CSV, Parquet, the folder of a sweep, W&B runs."""

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path

from herd.config.errors import UserError

WANDB = "wandb:"  # wandb:ENTITY/PROJECT (online) or wandb:FOLDER (offline runs)


@dataclass(frozen=True)
class RawTable:
    """Texts by column; a missing value is an empty text."""

    header: list[str]
    rows: list[dict[str, str]]
    labels: list[str]  # where each row stands: "line 4"


def read_raw(source: str) -> RawTable:
    """Read any source of rows.

    Args:
        source: a ``.csv`` (commas, else tabs or semicolons) or ``.parquet`` file, a folder with a ``table.csv`` (a sweep of
            ours), ``wandb:ENTITY/PROJECT`` or ``wandb:FOLDER``.

    Raises:
        UserError: there is none, or it is not what its name says.
    """
    if source.startswith(WANDB):
        from herd.scaling.records.wandb import read_wandb

        return read_wandb(source.removeprefix(WANDB))
    path = Path(source)
    if path.is_dir():
        if not (path / "table.csv").is_file():
            raise UserError(f"'{path}' is a folder without table.csv: give the CSV or Parquet file, or a finished sweep.")
        path = path / "table.csv"
    if not path.is_file():
        raise UserError(f"No run table '{path}': give table=FILE, or inputs.sweep=FOLDER of a finished sweep.")
    return _parquet(path) if path.suffix in (".parquet", ".pq") else _csv(path)


def _csv(path: Path) -> RawTable:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"'{path}' is not a UTF-8 CSV file ({type(error).__name__}).") from None
    if not text.strip():
        raise UserError(f"'{path}' is empty.")
    first = text.lstrip("\n").splitlines()[0]
    # A header without a comma is one column, or has another separator.
    separator = next((mark for mark in "\t;" if mark in first and "," not in first), ",")
    reader = csv.DictReader(io.StringIO(text), restkey="", restval="", delimiter=separator)
    header = list(reader.fieldnames or [])
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise UserError(f"'{path}' has the column '{repeated[0]}' more than once: rename one.")
    table = RawTable(header, [], [])
    for row in reader:
        if row.pop("", None):  # fields beyond the header's
            raise UserError(f"'{path}' line {reader.line_num} has more fields than the header: quote texts that hold commas.")
        table.rows.append({name: (value or "").strip() for name, value in row.items()})
        table.labels.append(f"line {reader.line_num}")
    return table


def _parquet(path: Path) -> RawTable:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"'{path}' is not a Parquet file ({str(error).splitlines()[0][:80]}).") from None
    rows = [{name: text_of(value) for name, value in row.items()} for row in table.to_pylist()]
    return RawTable(list(table.column_names), rows, [f"row {i}" for i in range(1, len(rows) + 1)])


def text_of(value: object) -> str:
    """A value as a CSV field: numbers with all their digits, nothing for what is missing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return repr(float(value)) if isinstance(value, float) else " ".join(str(value).split())
