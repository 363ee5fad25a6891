"""The run table: one typed row per training run, read from our sweeps or from anybody's CSV.

Columns of ``table.csv``: cell, budget, parameters, tokens, flops, flops_convention, lr, batch_tokens, steps, loss, status,
error, seconds. Every row is checked on the way in; a bad one is refused by its line number instead of bending a fit.
"""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from herd.config.errors import UserError, nearest
from herd.runs.atomic import write_text

STATUSES = ("ok", "failed", "diverged")


@dataclass(frozen=True)
class Record:
    """One run of a sweep."""

    cell: str  # name of the run, unique in its table
    budget: float  # planned training compute that groups an IsoFLOP curve, FLOPs
    parameters: float  # in matrix products, output head included; C / 6D where a table has none
    tokens: float  # training tokens
    flops: float  # training compute by `flops_convention`, FLOPs
    loss: float  # held-out negative log-likelihood, nats per token; NaN when there is none
    flops_convention: str = "6N"  # how `flops` was counted
    lr: float | None = None  # peak learning rate
    batch_tokens: int | None = None  # tokens of one optimizer step
    steps: int | None = None  # optimizer steps
    status: str = "ok"  # ok, failed (no loss) or diverged (a loss no better than chance)
    error: str = ""  # why it failed
    seconds: float | None = None  # wall time


REQUIRED = ("tokens", "loss")
_NUMBERS = ("budget", "parameters", "tokens", "flops", "loss", "lr", "seconds")
_INTEGERS = ("batch_tokens", "steps")
_COLUMNS = tuple(field.name for field in fields(Record))


def read_table(path: Path, columns: Mapping[str, str] | None = None, where: Mapping[str, str] | None = None) -> list[Record]:
    """Read and check a CSV run table.

    Args:
        path: the file. ``tokens`` and ``loss`` are required, and one of ``budget`` and ``flops``; ``parameters`` defaults to
            flops / (6 tokens), ``status`` to ok.
        columns: our name -> name in the file, for foreign tables (``{"parameters": "Model Size"}``).
        where: column of the file -> value; only rows that match all are read.

    Returns:
        Records in file order.

    Raises:
        UserError: no such file, not UTF-8, missing columns, or bad rows, each with its line and what to do.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"No run table '{path}': give table=FILE, or inputs.sweep=FOLDER of a finished sweep.") from None
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise UserError(f"'{path}' is not a UTF-8 CSV file ({type(error).__name__}).") from None
    reader = csv.DictReader(io.StringIO(text))
    header = list(reader.fieldnames or [])
    names = {name: (columns or {}).get(name, name) for name in _COLUMNS}
    for ours, theirs in (columns or {}).items():
        if ours not in _COLUMNS:
            raise UserError(f"columns: '{ours}' is no field of a run.{nearest(ours, _COLUMNS)} Fields: {', '.join(_COLUMNS)}.")
        if theirs not in header:
            raise UserError(f"'{path}' has no column '{theirs}'.{nearest(theirs, header)} It has: {', '.join(header)}.")
    missing = [name for name in REQUIRED if names[name] not in header]
    if names["budget"] not in header and names["flops"] not in header:
        missing.append("budget")
    if missing:
        raise UserError(
            f"'{path}' lacks the column {', '.join(missing)} (it has: {', '.join(header) or 'nothing'}): "
            f"name it with columns.{missing[0]}=COLUMN."
        )
    for column in where or {}:
        if column not in header:
            raise UserError(f"where: '{path}' has no column '{column}'.{nearest(column, header)}")
    records: list[Record] = []
    problems: list[str] = []
    for row in reader:
        if any((row[column] or "").strip() != str(value) for column, value in (where or {}).items()):
            continue
        try:
            records.append(_record({ours: row.get(theirs) for ours, theirs in names.items()}, f"row{len(records) + 1}"))
        except UserError as error:
            problems.append(f"line {reader.line_num}: {error}")
    _refuse(problems, path)
    if not records:
        raise UserError(f"'{path}' has no rows{f' where {dict(where)}' if where else ''}.")
    check_table(records, str(path))
    return records


def _record(row: Mapping[str, str | None], name: str) -> Record:
    text = {key: (value or "").strip() for key, value in row.items()}
    numbers: dict[str, float] = {}
    for key in (*_NUMBERS, *_INTEGERS):
        if text[key]:
            try:
                numbers[key] = float(text[key])
            except ValueError:
                raise UserError(f"{key} '{text[key]}' is not a number") from None
    status = text["status"] or "ok"
    if status not in STATUSES:
        raise UserError(f"status '{status}' is none of {', '.join(STATUSES)}")
    if "tokens" not in numbers:
        raise UserError("tokens is empty")
    flops = numbers.get("flops", numbers.get("budget", math.nan))
    return Record(
        cell=text["cell"] or name,
        budget=numbers.get("budget", flops),
        parameters=numbers.get("parameters", flops / (6 * numbers["tokens"]) if numbers["tokens"] else math.nan),
        tokens=numbers["tokens"],
        flops=flops,
        loss=numbers.get("loss", math.nan),
        flops_convention=text["flops_convention"] or "6N",
        lr=numbers.get("lr"),
        batch_tokens=int(numbers["batch_tokens"]) if "batch_tokens" in numbers else None,
        steps=int(numbers["steps"]) if "steps" in numbers else None,
        status=status,
        error=text["error"],
        seconds=numbers.get("seconds"),
    )


def check_table(records: Sequence[Record], source: str = "the run table") -> None:
    """Refuse rows that no fit should see; rows whose status is failed or diverged may hold any loss.

    Raises:
        UserError: non-finite or non-positive numbers, units that do not fit together, one cell or row twice, several FLOP
            conventions in one table.
    """
    problems: list[str] = []
    cells: dict[str, int] = {}
    values: dict[tuple[float, ...], int] = {}
    for number, record in enumerate(records, 1):
        row = f"row {number} ({record.cell})"
        if record.cell in cells:
            problems.append(f"{row} has the same name as row {cells[record.cell]}: keep one")
        cells.setdefault(record.cell, number)
        if record.status != "ok":
            continue
        bad = [
            f"{name} is {value!r}"
            for name in ("budget", "parameters", "tokens", "flops", "loss")
            if not (math.isfinite(value := getattr(record, name)) and value > 0)
        ]
        if bad:
            problems.append(f"{row}: {', '.join(bad)}; must be finite and above 0 (mark a run without a loss status=failed)")
            continue
        ratio = record.budget / (6 * record.parameters * record.tokens)
        if not 0.02 < ratio < 50:
            problems.append(
                f"{row}: budget is {ratio:.2g} x 6 x parameters x tokens; give all three in single units, not millions"
            )
        key = (record.budget, record.parameters, record.tokens, record.loss, record.lr or 0.0, record.batch_tokens or 0)
        if key in values:
            problems.append(f"{row} repeats row {values[key]}: drop one")
        values.setdefault(key, number)
    _refuse(problems, source)
    conventions = sorted({record.flops_convention for record in records if record.status == "ok"})
    if len(conventions) > 1:
        raise UserError(
            f"{source} mixes the FLOP conventions {', '.join(conventions)}: recount all rows by one of them before fitting."
        )


def _refuse(problems: Sequence[str], source: Path | str) -> None:
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise UserError(f"{source}: {'; '.join(problems[:3])}{more}.")


def write_table(path: Path, records: Iterable[Record]) -> None:
    """Write ``table.csv`` in one piece; missing numbers are empty fields."""
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=TABLE_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for record in records:
        row = asdict(record)
        writer.writerow({name: _text(row[name]) for name in TABLE_COLUMNS})
    write_text(path, out.getvalue())


TABLE_COLUMNS = (
    "cell", "budget", "parameters", "tokens", "flops", "flops_convention", "lr", "batch_tokens", "steps", "loss", "status",
    "error", "seconds",
)  # fmt: skip


def _text(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return repr(value) if isinstance(value, float) else " ".join(str(value).split())


def usable(records: Iterable[Record]) -> list[Record]:
    """Rows whose loss a fit may use."""
    return [record for record in records if record.status == "ok"]


def by_budget(records: Iterable[Record]) -> dict[float, list[Record]]:
    """Rows of each budget, budgets ascending; budgets equal to six digits are one."""
    groups: dict[float, list[Record]] = {}
    for record in sorted(records, key=lambda r: (r.budget, r.tokens, r.cell)):
        groups.setdefault(float(f"{record.budget:.5e}"), []).append(record)
    return groups
