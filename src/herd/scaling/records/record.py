"""The run table: one typed row per training run, which says what its numbers count.

Parameters by part, FLOPs with the convention that counted them, a loss with its unit. :mod:`herd.scaling.records.readers` reads
tables of any origin into such rows.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from herd.runs.atomic import write_text
from herd.scaling.records.checks import find_problems, refuse
from herd.scaling.records.raw_tables import text_of

STATUSES = ("ok", "failed", "diverged")
TASK = "task/"  # columns task/<name> hold scores of downstream tasks


@dataclass(frozen=True)
class Record:
    """One run of a sweep; None is what its source does not say."""

    cell: str  # name of the run, unique in its table
    budget: float  # planned training compute that groups an IsoFLOP curve, FLOPs
    parameters: float  # in matrix products, output head included; C / 6D where a table has none
    tokens: float  # training tokens
    flops: float  # training compute by `flops_convention`, FLOPs
    loss: float  # held-out negative log-likelihood in `loss_unit`; NaN when there is none
    flops_convention: str = "6N"  # how `flops` was counted, of record_units.FLOPS_CONVENTIONS
    lr: float | None = None  # peak learning rate
    batch_tokens: int | None = None  # tokens of one optimizer step
    steps: int | None = None  # optimizer steps
    status: str = "ok"  # ok, failed (no loss) or diverged (a loss no better than chance)
    error: str = ""  # why it failed
    seconds: float | None = None  # wall time
    loss_unit: str = "nats/token"  # of record_units.LOSS_UNITS
    bytes_per_token: float | None = None  # of the held-out text under the run's tokenizer
    block_parameters: int | None = None  # matrices of the layers (norms, under 0.1%, left out)
    head_parameters: int | None = None  # output head
    embedding_parameters: int | None = None  # input embedding as a matrix of its own; 0 where the head is tied to it
    layers: int | None = None  # for FLOPs of attention
    width: int | None = None  # model width, for FLOPs of attention
    seq_len: int | None = None  # tokens that attend to each other
    seed: int | None = None  # of weights and data order
    schedule: str = ""  # learning-rate schedule, a name
    mixture: str = ""  # data mix: a name, or weights as "web=0.8 code=0.2"
    tasks: Mapping[str, float] = field(default_factory=dict, hash=False)  # task -> score


COLUMNS = tuple(f.name for f in fields(Record) if f.name != "tasks")
# Always written, so that tables of different sweeps line up; the others only where a row has them.
TABLE_COLUMNS = (
    "cell", "budget", "parameters", "tokens", "flops", "flops_convention", "lr", "batch_tokens", "steps", "loss", "status",
    "error", "seconds",
)  # fmt: skip


def check_table(records: Sequence[Record], source: str = "the run table") -> None:
    """Refuse rows that no fit should see (see :func:`herd.scaling.records.checks.find_problems`)."""
    refuse(find_problems(records, [f"row {i} ({record.cell})" for i, record in enumerate(records, 1)]), source)


def write_table(path: Path, records: Iterable[Record]) -> None:
    """Write ``table.csv`` in one piece; missing numbers are empty fields."""
    rows = [dict(vars(record)) | {f"{TASK}{name}": score for name, score in record.tasks.items()} for record in records]
    blank = {name: vars(Record("", 0, 0, 0, 0, 0)).get(name) for name in COLUMNS}
    more = [n for n in COLUMNS if n not in TABLE_COLUMNS and any(row[n] != blank[n] for row in rows)]
    tasks = sorted({name for row in rows for name in row if name.startswith(TASK)})
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=(*TABLE_COLUMNS, *more, *tasks), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: text_of(row.get(name)) for name in writer.fieldnames} for row in rows)
    write_text(path, out.getvalue())


def usable(records: Iterable[Record]) -> list[Record]:
    """Rows whose loss a fit may use."""
    return [record for record in records if record.status == "ok"]


def near_groups(values: Iterable[float], within: float) -> list[list[float]]:
    """Different values, ascending, in groups: each at most ``within`` (a share) above the smallest of its group."""
    groups: list[list[float]] = []
    for value in sorted(set(values)):
        if groups and value <= groups[-1][0] * (1 + within):
            groups[-1].append(value)
        else:
            groups.append([value])
    return groups


def by_budget(records: Iterable[Record]) -> dict[float, list[Record]]:
    """Rows of each budget, budgets ascending; budgets equal to six digits are one."""
    groups: dict[float, list[Record]] = {}
    for record in sorted(records, key=lambda r: (r.budget, r.tokens, r.cell)):
        groups.setdefault(float(f"{record.budget:.5e}"), []).append(record)
    return groups
