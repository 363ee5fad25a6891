"""What looks wrong with rows that may well be right: shown by row, and fitted all the same."""

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from herd.scaling.records.checks import Problem

if TYPE_CHECKING:
    from herd.scaling.records.record import Record

_SETTINGS = ("budget", "parameters", "tokens", "lr", "batch_tokens", "schedule", "mixture")
_EXACT, _OFF = 1e-3, 0.02  # FLOPs this near to 6ND are 6ND; this far from it they are something else


def find_notes(records: Sequence["Record"], labels: Sequence[str]) -> list[Problem]:
    """Rows to look at.

    Args:
        records: the rows, without a problem that keeps them out of a fit.
        labels: where each stands, for people.

    Returns:
        Runs that share every setting and name no seed, but have other losses (another loss column, another evaluation, a copy
        gone wrong); and FLOPs counted in another way than those of most rows, where no row says how they were.
    """
    return _twins(records, labels) + _miscounted(records, labels)


def _twins(records: Sequence["Record"], labels: Sequence[str]) -> list[Problem]:
    notes: list[Problem] = []
    first: dict[tuple[object, ...], int] = {}
    for i, record in enumerate(records):
        if record.status != "ok" or record.seed is not None:
            continue
        twin = first.setdefault(tuple(getattr(record, name) for name in _SETTINGS), i)
        if twin != i:
            what = (
                f"has every setting of {labels[twin]} and another loss ({record.loss:.4g}, {records[twin].loss:.4g}): name the "
                "seeds in a column seed, or keep one kind of rows with where"
            )
            notes.append(Problem(i, labels[i], what))
    return notes


def _miscounted(records: Sequence["Record"], labels: Sequence[str]) -> list[Problem]:
    """Rows off 6ND in a table of which other rows are exactly 6ND, or the reverse: one of two ways of counting."""
    silent = [i for i, r in enumerate(records) if r.status == "ok" and r.flops_convention == "unstated"]
    ratio = {i: records[i].flops / (6 * records[i].parameters * records[i].tokens) for i in silent}
    exact = [i for i in silent if abs(ratio[i] - 1) < _EXACT]
    off = [i for i in silent if abs(ratio[i] - 1) > _OFF]
    if min(len(exact), len(off)) < 2:
        return []
    fewer, most = (exact, off) if len(exact) < len(off) else (off, exact)
    usual = statistics.median(ratio[i] for i in most)
    advice = "state each row's flops_convention, or keep one kind with where"
    return [
        Problem(i, labels[i], f"its FLOPs are {ratio[i]:.3g} x 6ND, those of most rows {usual:.3g} x: {advice}")
        for i in sorted(fewer)
    ]
