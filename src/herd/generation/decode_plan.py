"""The plan of a decoding step: which pages it reads for whom, and where it writes.

The arithmetic of a sequence must not depend on the others: a prompt that is read whole, or a page of another, is one product with
the queries of all its users, made up to a multiple of four by stand-ins; what a sequence has of its own is one with its query.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from herd.generation.pages import Place, in_place, is_whole, pages_read
from herd.model.cache import Decode, Own, Paged, PagedCache, Whole
from herd.products import operand

_SPARSE = 1.25  # pages in a stretch are read in place when it is at most this many times as long as they are many
# Products of fewer than four rows, and of small heads and an odd number, take other kernels, which round otherwise.
_FEWEST_USERS = 4

Count = TypeVar("Count", int, np.ndarray)


def decode_plan(storage: PagedCache, places: Sequence[Place]) -> Decode:
    """What a step that adds one position to each of ``places`` reads and writes; a group's places stand together."""
    whole = np.array([is_whole(len(p.prompt), p.samples) for p in places])
    paged, merge = _paged(storage, places, np.flatnonzero(~whole))
    absent = None
    if (merge < 0).any():
        absent = _tensor(storage, np.where(merge < 0, -np.inf, 0)[:, :, None]).float()
    own, found = _own(storage, places)
    runs, written = np.array([[p.own[0], len(p.own)] for p in places]), np.array([p.position - p.length for p in places])
    return Decode(
        storage,
        storage.slots(*(_tensor(storage, x) for x in (runs[:, 0], written, runs[:, 1:]))),
        _whole(storage, places, np.flatnonzero(whole)),
        paged,
        merge.shape[1],
        _tensor(storage, np.maximum(merge, 0).ravel()),
        absent,
        _order(storage, np.argsort(~whole, kind="stable").argsort(), len(places)),
        own,
        found,
    )


def _whole(storage: PagedCache, places: Sequence[Place], rows: np.ndarray) -> list[Whole]:
    """The prompts of ``rows``, each read as one matrix."""
    parts = []
    first, members = _groups(places, rows)
    for row in np.unique(rows[first]):
        place, count = places[row], int(members[rows == row][0])
        users = _padded(count)
        asking = _tensor(storage, row + np.minimum(np.arange(users), count - 1)) if users > count else None
        pages = in_place(place.prompt) or _tensor(storage, place.prompt)
        parts.append(Whole(pages, place.length, slice(int(row), int(row) + count), asking))
    return parts


def _paged(storage: PagedCache, places: Sequence[Place], rows: np.ndarray) -> tuple[list[Paged], np.ndarray]:
    """The prompts of ``rows``, page by page; pages that have as many users share a call.

    Returns:
        The calls, and which of their results belong to each row, (rows, pages of the longest prompt), -1 where it has fewer.
    """
    size = storage.page_size
    prompts = [places[row].prompt for row in rows]
    length = np.array([places[row].length for row in rows], dtype=np.int64)
    table = np.zeros((len(rows), max(map(len, prompts), default=0)), dtype=np.int64)
    for pages, prompt in zip(table, prompts, strict=True):
        pages[: len(prompt)] = prompt
    index, column = np.indices(table.shape)
    exists = column * size < length[:, None]
    first, members = _groups(places, rows)
    users = _padded(members)
    merge = np.full(table.shape, -1)
    parts: list[Paged] = []
    results = 0
    for of_each in np.unique(users):
        taken = exists & (users == of_each)[:, None]
        asked = taken & (index == first[:, None])  # each page once
        leader = index[asked][:, None]
        read, found, count = _stretch(table[asked], len(storage))
        readers = np.full((count, of_each), rows[leader[0, 0]])
        readers[found[table[asked]]] = rows[leader + np.minimum(np.arange(of_each), members[leader] - 1)]
        filled = np.full(count, size)
        filled[found[table[asked]]] = (length[:, None] - column * size)[asked]
        merge[taken] = (results + found[table] * of_each + index - first[:, None])[taken]
        parts.append(Paged(_read(storage, read), _tensor(storage, readers.ravel()), _hidden(storage, filled, size)))
        results += readers.size
    return parts, merge


def _own(storage: PagedCache, places: Sequence[Place]) -> tuple[list[Own], Tensor | None]:
    """What each of ``places`` has of its own, once this step is done; runs that are as long and read as far share a call.

    Returns:
        The calls, and where each row stands among their results; None where in order.
    """
    heads = storage.keys.shape[2]
    start, written = np.array([p.own[0] for p in places]), np.array([p.position - p.length + 1 for p in places])
    kinds = [(len(p.own), pages_read(int(n), len(p.own), storage.page_size)) for p, n in zip(places, written, strict=True)]
    stands = np.zeros(len(places), dtype=np.int64)
    parts: list[Own] = []
    results = 0
    for run, pages in sorted(set(kinds)):
        mine = np.array([row for row, kind in enumerate(kinds) if kind == (run, pages)])
        runs, found, count = _stretch(start[mine] // run, len(storage) // run)
        at = found[start[mine] // run]
        width = pages * storage.page_size
        readers, filled = np.full(count, mine[0]), np.full(count, width)
        readers[at], filled[at] = mine, written[mine]
        newest = (at[:, None] * heads + np.arange(heads)) * width + written[mine][:, None] - 1
        users = _order(storage, readers, len(places))
        parts.append(
            Own(_read(storage, runs), run, width, users, _hidden(storage, filled, width), _tensor(storage, newest.ravel()))
        )
        stands[mine] = results + at
        results += count
    return parts, _order(storage, stands, results)


def _groups(places: Sequence[Place], rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each of ``rows``: the index of the first row of its group among them, and how many of them its group has."""
    if not len(rows):
        return rows, rows
    group = [places[row].group for row in rows]
    _, first, inverse, count = np.unique(group, return_index=True, return_inverse=True, return_counts=True)
    return first[inverse], count[inverse]


def _padded(users: Count) -> Count:
    """``users`` made up to a multiple of four."""
    return -(-users // _FEWEST_USERS) * _FEWEST_USERS


def _hidden(storage: PagedCache, filled: np.ndarray, width: int) -> Tensor:
    """To be added to the scores of n pages or runs whose first ``filled`` (n,) positions are used: (n * kv_heads, 1, width)."""
    dtype = operand(storage.keys[:0], storage.keys.dtype).dtype
    unused = torch.from_numpy(np.arange(width) >= filled.repeat(storage.keys.shape[2])[:, None])
    return torch.zeros(unused.shape, dtype=dtype).masked_fill_(unused, -torch.inf)[:, None].to(storage.keys.device)


def _stretch(pages: np.ndarray, total: int) -> tuple[slice | np.ndarray, np.ndarray, int]:
    """How to read ``pages``: a slice that covers them where it is short enough, or they themselves.

    Returns:
        The choice, where each page is found in it (total,), and its length.
    """
    found = np.zeros(total, dtype=np.int64)
    low, high = int(pages.min()), int(pages.max()) + 1
    if high - low <= _SPARSE * len(pages):
        found[low:high] = np.arange(high - low)
        return slice(low, high), found, high - low
    found[pages] = np.arange(len(pages))
    return pages, found, len(pages)


def _read(storage: PagedCache, pages: slice | np.ndarray) -> slice | Tensor:
    return pages if isinstance(pages, slice) else _tensor(storage, pages)


def _order(storage: PagedCache, order: np.ndarray, total: int) -> Tensor | None:
    """``order`` of ``total`` things; None where it leaves them as they are."""
    return None if np.array_equal(order, np.arange(total)) else _tensor(storage, order)


def _tensor(storage: PagedCache, values: np.ndarray) -> Tensor:
    """Where the model is."""
    return torch.from_numpy(np.ascontiguousarray(values)).to(storage.keys.device)
