"""Packing of sequences of different lengths into rows of one length."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(lengths: Sequence[int], window: int) -> list[list[int]]:
    """Best-fit decreasing: the indices of the sequences in each row, no row longer than `window`, no sequence cut.

    Deterministic: equal lengths keep their order. The longest are placed first, each into the fullest row that still
    has room.
    """
    assert all(0 < length <= window for length in lengths), "sequences are cut or dropped before they are packed"
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # sorted (free places, row)
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = bisect_left(room, (lengths[index], -1))
        if place == len(room):
            rows.append([])
            free, row = window, len(rows) - 1
        else:
            free, row = room.pop(place)
        rows[row].append(index)
        insort(room, (free - lengths[index], row))
    return rows
