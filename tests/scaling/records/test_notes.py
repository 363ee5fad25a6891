"""Rows that are fitted and yet deserve a look: twins with other losses, FLOPs counted in two ways."""

from dataclasses import replace

from herd.scaling.records.notes import find_notes
from herd.scaling.records.record import Record

from ..conftest import make_sweep


def notes_of(records: list[Record]) -> list[tuple[int, str]]:
    return [(note.index, note.what) for note in find_notes(records, [record.cell for record in records])]


def test_a_clean_sweep_has_no_notes() -> None:
    records = make_sweep(noise=0.01)
    assert notes_of(records) == []
    attention = [replace(r, flops=r.flops * (1 + 0.1 * i / 20), flops_convention="unstated") for i, r in enumerate(records)]
    assert notes_of(attention) == []  # FLOPs with attention differ from 6ND in every row by its own share


def test_runs_that_share_every_setting_name_their_seeds() -> None:
    records = make_sweep(noise=0.01)
    twin = replace(records[3], cell="again", loss=4.5)
    ((index, what),) = notes_of([*records, twin])
    assert index == 20 and what.startswith(f"has every setting of {records[3].cell} and another loss (4.5, ")
    seeded = [replace(r, seed=0) for r in records]
    assert notes_of([*seeded, replace(twin, seed=1)]) == []
    assert notes_of([*records, replace(twin, lr=1e-3)]) == []


def test_flops_counted_in_two_ways_are_told_by_row() -> None:
    mixed = [replace(r, flops=r.flops * (1.4 if i < 6 else 1.0), flops_convention="unstated") for i, r in enumerate(make_sweep())]
    found = notes_of(mixed)
    assert [index for index, _ in found] == list(range(6))
    assert found[0][1].startswith("its FLOPs are 1.4 x 6ND, those of most rows 1 x: state each row's flops_convention")
    assert [index for index, _ in notes_of(mixed[:9])] == [6, 7, 8]
    assert notes_of([replace(r, flops_convention="6N_total") for r in mixed]) == []
