"""What is wrong with the rows of a run table, row by row, each with what to do about it."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from herd.config.errors import UserError
from herd.scaling.records.units import FLOPS_CONVENTIONS, LOSS_UNITS

if TYPE_CHECKING:
    from herd.scaling.records.record import Record

_POSITIVE = ("budget", "parameters", "tokens", "flops", "loss")


@dataclass(frozen=True)
class Problem:
    """One thing that keeps a row out of any fit."""

    index: int  # of the row among those read, from 0
    row: str  # where a person finds it: "line 4 (cell)"
    what: str  # what is wrong, and what to do

    def __str__(self) -> str:
        return f"{self.row}: {self.what}"


def find_problems(records: Sequence["Record"], labels: Sequence[str]) -> list[Problem]:
    """Everything that no fit should see; rows whose status is failed or diverged may hold any loss.

    Args:
        records: the rows.
        labels: where each stands, for people.

    Returns:
        Problems by row: non-finite or non-positive numbers, units that do not fit together, one cell or row twice, another
        loss unit or FLOP convention than most rows have.
    """
    problems: list[Problem] = []
    cells: dict[str, int] = {}
    values: dict[tuple[object, ...], int] = {}
    usual = {
        name: Counter(getattr(r, name) for r in records if r.status == "ok").most_common(1)
        for name in ("loss_unit", "flops_convention")
    }
    for i, record in enumerate(records):

        def add(what: str, i: int = i) -> None:
            problems.append(Problem(i, labels[i], what))

        if record.cell in cells:
            add(f"has the same name as {labels[cells[record.cell]]}: keep one")
        cells.setdefault(record.cell, i)
        if record.status != "ok":
            continue
        bad = [f"{name} is {v!r}" for name in _POSITIVE if not (math.isfinite(v := getattr(record, name)) and v > 0)]
        if bad:
            add(f"{', '.join(bad)}; must be finite and above 0 (mark a run without a loss status=failed)")
            continue
        ratio = record.budget / (6 * record.parameters * record.tokens)
        if not 0.02 < ratio < 50:
            add(f"budget is {ratio:.2g} x 6 x parameters x tokens; give all three in single units, not millions")
        key = tuple(getattr(record, name) for name in (*_POSITIVE, "lr", "batch_tokens", "seed", "mixture", "schedule"))
        if key in values:
            add(f"repeats {labels[values[key]]}: drop one")
        values.setdefault(key, i)
        for name, known in (("loss_unit", LOSS_UNITS), ("flops_convention", FLOPS_CONVENTIONS)):
            own, most = getattr(record, name), usual[name][0][0]
            if own not in known:
                add(f"{name} '{own}' is none of {', '.join(known)}")
            elif own != most:
                add(f"{name} is {own}, that of most rows {most}: restate all with {name}={most}, or keep one kind with where")
    return problems


def refuse(problems: Sequence[Problem], source: object) -> None:
    """UserError that counts all problems and names the first three; nothing happens without problems."""
    if not problems:
        return
    first = "; ".join(str(problem) for problem in problems[:3])
    if len(problems) == 1:
        raise UserError(f"{source}: {first}.")
    more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
    rows = len({problem.index for problem in problems})
    raise UserError(f"{source}: {len(problems)} problems in {rows} {'row' if rows == 1 else 'rows'}: {first}{more}.")
