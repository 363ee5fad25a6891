"""Any table of runs to typed, checked records: column names, units and conventions, and what becomes of bad rows."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from herd.config.errors import UserError, nearest
from herd.scaling.records.checks import Problem, find_problems, refuse
from herd.scaling.records.notes import find_notes
from herd.scaling.records.raw_tables import WANDB, read_raw
from herd.scaling.records.record import COLUMNS, STATUSES, TASK, Record, near_groups
from herd.scaling.records.units import check_convention, check_unit, convert_loss, recount_flops

_INTEGERS = (
    "batch_tokens", "steps", "block_parameters", "head_parameters", "embedding_parameters", "layers", "width", "seq_len", "seed",
)  # fmt: skip
_NUMBERS = ("budget", "parameters", "tokens", "flops", "loss", "lr", "seconds", "bytes_per_token", *_INTEGERS)


@dataclass(frozen=True)
class TableOptions:
    """How a table that is not ours becomes records."""

    columns: dict[str, str] = field(default_factory=dict)  # our column -> the table's; task/NAME -> the table's
    where: dict[str, Any] = field(default_factory=dict)  # the table's column -> value that its rows must have
    constants: dict[str, Any] = field(default_factory=dict)  # our column -> the value of all rows, where the table has none
    loss_unit: str | None = None  # convert every loss to this unit; null = as stated
    flops_convention: str | None = None  # count all FLOPs anew by this convention; null = as stated
    same_budget: float = 0.0  # budgets within this share of each other are one (their geometric mean); 0 = as stated
    on_bad_rows: str = "refuse"  # refuse: one bad row ends it; drop: fit the others, and show what was dropped

    def __post_init__(self) -> None:
        if self.on_bad_rows not in ("refuse", "drop"):
            hint = nearest(self.on_bad_rows, ("refuse", "drop"))
            raise UserError(f"Unknown on_bad_rows '{self.on_bad_rows}'.{hint} Choices: refuse, drop.")
        if not 0 <= self.same_budget < 0.5:
            raise UserError(f"same_budget {self.same_budget}: give a share from 0 to 0.5, such as 0.05.")
        if self.loss_unit is not None:
            check_unit(self.loss_unit)
        if self.flops_convention is not None:
            check_convention(self.flops_convention)


@dataclass(frozen=True)
class RunTable:
    """A table that has been read and checked."""

    records: tuple[Record, ...]  # rows without a problem, in file order
    dropped: tuple[Problem, ...]  # problems of the rows left out, empty unless on_bad_rows is "drop"
    notes: tuple[Problem, ...] = ()  # kept rows that deserve a look


def read_table(path: Path, columns: Mapping[str, str] | None = None, where: Mapping[str, str] | None = None) -> list[Record]:
    """Rows of a table of which none may be bad: :func:`read_runs` with nothing but a column map."""
    return list(read_runs(str(path), TableOptions(dict(columns or {}), dict(where or {}))).records)


def read_runs(source: str, options: TableOptions | None = None) -> RunTable:
    """Read and check a run table.

    Args:
        source: a CSV or Parquet file, the folder of a sweep, ``wandb:ENTITY/PROJECT`` or ``wandb:FOLDER``. It must give the
            loss, and two of tokens (or steps and batch_tokens), parameters and FLOPs (flops or budget).
        options: names, units, and what to do with bad rows.

    Raises:
        UserError: no such table, missing columns, or bad rows, each with its line and what to do.
    """
    options = options or TableOptions()
    raw = read_raw(source)
    names = _names(raw.header, options, source)
    records: list[Record] = []
    labels: list[str] = []
    problems: list[Problem] = []
    for label, row in zip(raw.labels, raw.rows, strict=True):
        if any(row[column] != str(value) for column, value in options.where.items()):
            continue
        texts = {ours: row.get(theirs, "") for ours, theirs in names.items()}
        texts |= {name: str(value) for name, value in options.constants.items() if not texts.get(name)}
        try:
            record = _record(texts, f"row{len(labels) + 1}")
        except UserError as error:
            problems.append(Problem(len(labels), label, str(error)))
            record = Record(texts.get("cell") or f"row{len(labels) + 1}", 0, 0, 0, 0, 0, status="unreadable")
        records.append(record)
        labels.append(f"{label} ({record.cell})")
    if not records:
        raise UserError(f"'{source}' has no rows{f' where {dict(options.where)}' if options.where else ''}.")
    records = _convention_of_table(records)
    records, unconverted = _restate(records, labels, options)
    records = _merge_budgets(records, options.same_budget)
    problems += unconverted + find_problems(records, labels)
    if options.on_bad_rows == "refuse":
        refuse(problems, source)
    bad = {problem.index for problem in problems}
    good = [i for i in range(len(records)) if i not in bad]
    if not good:
        refuse(problems, f"{source}: no row is left to fit")
    kept = tuple(records[i] for i in good)
    return RunTable(kept, tuple(problems), tuple(find_notes(kept, [labels[i] for i in good])))


def _names(header: Sequence[str], options: TableOptions, source: str) -> dict[str, str]:
    """Our column -> the table's; UserError where a needed one is missing or a given one unknown."""
    if source.startswith(WANDB):
        from herd.scaling.records.wandb import default_columns

        names = default_columns(header)
    else:
        names = {name: name for name in header if name in COLUMNS or name.startswith(TASK)}
    for ours, theirs in options.columns.items():
        if ours not in COLUMNS and not ours.startswith(TASK):
            raise UserError(f"columns: '{ours}' is no field of a run.{nearest(ours, COLUMNS)} Fields: {', '.join(COLUMNS)}.")
        if theirs not in header:
            raise UserError(f"'{source}' has no column '{theirs}'.{nearest(theirs, header)} It has: {_listed(header)}.")
        names[ours] = theirs
    for ours in options.constants:
        if ours not in COLUMNS:
            raise UserError(f"constants: '{ours}' is no field of a run.{nearest(ours, COLUMNS)} Fields: {', '.join(COLUMNS)}.")
    for column in options.where:
        if column not in header:
            raise UserError(f"where: '{source}' has no column '{column}'.{nearest(column, header)} It has: {_listed(header)}.")
    known = {*names, *options.constants}
    have = {
        "tokens": "tokens" in known or {"steps", "batch_tokens"} <= known,
        "budget": bool({"budget", "flops"} & known),
        "parameters": "parameters" in known or {"block_parameters", "head_parameters"} <= known,
    }
    missing = [] if "loss" in known else ["loss"]
    if sum(have.values()) < 2:
        missing += [name for name, there in have.items() if not there][: 2 - sum(have.values())]
    if missing:
        raise UserError(
            f"'{source}' lacks the column {', '.join(missing)} (it has: {_listed(header)}): "
            f"name it with ++columns.{missing[0]}=COLUMN."
        )
    return names


def _listed(header: Sequence[str]) -> str:
    more = f" and {len(header) - 20} more" if len(header) > 20 else ""
    return f"{', '.join(header[:20])}{more}" if header else "nothing"


def _record(texts: Mapping[str, str], name: str) -> Record:
    """One row; UserError for what is no number, or not enough of them."""
    numbers: dict[str, float] = {}
    tasks: dict[str, float] = {}
    for key, text in texts.items():
        if not text or not (key in _NUMBERS or key.startswith(TASK)):
            continue
        try:
            number = float(text)
        except ValueError:
            raise UserError(f"{key} '{text}' is not a number") from None
        if key in _INTEGERS and not number.is_integer():
            raise UserError(f"{key} '{text}' is not a whole number")
        if key.startswith(TASK):
            tasks[key.removeprefix(TASK)] = number
        else:
            numbers[key] = number
    status = texts.get("status") or "ok"
    if status not in STATUSES:
        raise UserError(f"status '{status}' is none of {', '.join(STATUSES)}")
    flops = numbers.get("flops", numbers.get("budget"))
    parameters = numbers.get("parameters")
    if parameters is None and {"block_parameters", "head_parameters"} <= set(numbers):
        parameters = numbers["block_parameters"] + numbers["head_parameters"]
    tokens = numbers.get("tokens")
    if tokens is None and {"steps", "batch_tokens"} <= set(numbers):
        tokens = numbers["steps"] * numbers["batch_tokens"]
    if tokens is None:
        if not (flops and parameters):
            raise UserError("tokens is empty")
        tokens = flops / (6 * parameters)
    if parameters is None:
        parameters = (math.nan if flops is None else flops) / (6 * tokens) if tokens else math.nan
    # Without a stated convention FLOPs are 6ND where the table says so itself; see _convention_of_table.
    convention = texts.get("flops_convention") or ("6N" if flops is None else "")
    if flops is None:
        flops = 6 * parameters * tokens
    return Record(
        cell=texts.get("cell") or name,
        budget=numbers.get("budget", flops),
        parameters=parameters,
        tokens=tokens,
        flops=flops,
        loss=numbers.get("loss", math.nan),
        flops_convention=convention,
        lr=numbers.get("lr"),
        status=status,
        error=texts.get("error", ""),
        seconds=numbers.get("seconds"),
        loss_unit=texts.get("loss_unit") or "nats/token",
        bytes_per_token=numbers.get("bytes_per_token"),
        schedule=texts.get("schedule", ""),
        mixture=texts.get("mixture", ""),
        tasks=tasks,
        **{name: int(numbers[name]) for name in _INTEGERS if name in numbers},
    )


def _convention_of_table(records: Sequence[Record]) -> list[Record]:
    """A table that does not say how it counted has counted 6ND, if that is what all of its rows hold."""
    silent = [r for r in records if not r.flops_convention and r.status == "ok"]
    plain = all(abs(r.flops / (6 * r.parameters * r.tokens) - 1) < 0.01 for r in silent if r.parameters * r.tokens)
    name = "6N" if plain else "unstated"
    return [r if r.flops_convention else replace(r, flops_convention=name) for r in records]


def _restate(records: Sequence[Record], labels: Sequence[str], options: TableOptions) -> tuple[list[Record], list[Problem]]:
    """Rows in the wanted unit and convention; a row that cannot be restated has a problem."""
    result, problems = list(records), []
    for i, record in enumerate(records):
        if record.status != "ok":
            continue
        try:
            if options.loss_unit:
                check_unit(record.loss_unit)
                record = convert_loss(record, options.loss_unit)
            if options.flops_convention:
                record = recount_flops(record, options.flops_convention)
            result[i] = record
        except UserError as error:
            problems.append(Problem(i, labels[i], str(error)))
    if options.flops_convention:
        result, uneven = _rebudget(records, result, labels)
        problems += uneven
    return result, problems


def _merge_budgets(records: Sequence[Record], within: float) -> list[Record]:
    """Budgets that differ by no more than rounding as one; the FLOPs of a row stay its own."""
    if not within:
        return list(records)
    groups = near_groups((r.budget for r in records if math.isfinite(r.budget) and r.budget > 0), within)
    middle = {budget: math.exp(sum(map(math.log, group)) / len(group)) for group in groups for budget in group}
    return [replace(record, budget=middle.get(record.budget, record.budget)) for record in records]


def _rebudget(before: Sequence[Record], after: Sequence[Record], labels: Sequence[str]) -> tuple[list[Record], list[Problem]]:
    """Budgets in the new FLOPs: the geometric mean of each group, which no row may miss by more than a tenth."""
    groups: dict[float, list[int]] = {}
    for i, (old, new) in enumerate(zip(before, after, strict=True)):
        if old.status == "ok" and old.flops_convention != new.flops_convention and new.flops > 0:
            groups.setdefault(float(f"{old.budget:.5e}"), []).append(i)
    result, problems = list(after), []
    for rows in groups.values():
        budget = math.exp(sum(math.log(after[i].flops) for i in rows) / len(rows))
        for i in rows:
            result[i] = replace(after[i], budget=budget)
            ratio, convention = after[i].flops / budget, after[i].flops_convention
            if abs(ratio - 1) > 0.1:
                what = f"has {ratio:.2f} x its budget's FLOPs by {convention}: by that count the budget is no IsoFLOP curve"
                problems.append(Problem(i, labels[i], what))
    return result, problems
