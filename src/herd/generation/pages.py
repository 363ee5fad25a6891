"""Who holds which page of the key-value store: reference counts, and the plan of a decoding step.

The pages of a prompt are held by all of its samples, the last, partly filled one too: a sample's own tokens begin on a page of
its own, so that nothing shared is ever written to and nothing is ever copied. A sample gets the pages of its longest answer when
it enters, as a run: pages that follow each other, in which each head's keys lie as one matrix, of which a step reads as much as
is written. Runs begin at a multiple of their length and are taken from the low end, prompts from the high end, so that each kind
lies together and is mostly read in place.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from herd.model.cache import Decode, Paged, PagedCache, Whole
from herd.products import operand

_SPARSE = 1.25  # pages in a stretch are read in place when it is at most this many times as long as they are many
# Products of fewer than four rows, and of small heads and an odd number, take other kernels, which round otherwise.
_FEWEST_USERS = 4
_WHOLE = 4, 8  # pages and samples, see is_whole


class PagePool:
    """Reference counts of pages.

    Args:
        pages: how many there are.
    """

    def __init__(self, pages: int) -> None:
        self.holders = np.zeros(pages, dtype=np.int64)

    @property
    def used(self) -> int:
        """Pages that someone holds."""
        return int((self.holders > 0).sum())

    @property
    def spare(self) -> int:
        """Pages that nobody holds."""
        return len(self.holders) - self.used

    def take(self, count: int) -> np.ndarray:
        """Pages for a prompt, (count,), held once each: the highest that follow each other, or else the highest."""
        assert count <= self.spare, "fewer pages than asked for"
        free = np.flatnonzero(self.holders == 0)
        runs = np.flatnonzero(free[count - 1 :] - free[: len(free) - count + 1] == count - 1)
        first = runs[-1] if len(runs) else len(free) - count
        pages = free[first : first + count]
        self.holders[pages] = 1
        return pages

    def free_run(self, count: int) -> np.ndarray | None:
        """The lowest ``count`` free pages that follow each other from a multiple of ``count`` on; None if there are none."""
        whole = len(self.holders) // count * count
        runs = np.flatnonzero((self.holders[:whole] == 0).reshape(-1, count).all(1))
        return np.arange(runs[0] * count, (runs[0] + 1) * count) if len(runs) else None

    def hold(self, pages: np.ndarray) -> None:
        """One more holder of each page."""
        self.holders[pages] += 1

    def release(self, pages: np.ndarray) -> None:
        """One holder less of each page; without any it is free."""
        assert (self.holders[pages] > 0).all(), "a page was released more often than held"
        self.holders[pages] -= 1


@dataclass(frozen=True, eq=False)
class Place:
    """Where a sequence's keys and values are.

    Attributes:
        prompt: pages of the prompt, in order.
        length: tokens of the prompt.
        own: its run, where what follows is.
        position: of the token that comes next, in the sequence.
        group: sequences of one prompt have the same number.
        samples: how many were asked of the prompt, though some may have ended.
    """

    prompt: np.ndarray
    length: int
    own: np.ndarray
    position: int
    group: int
    samples: int


def is_whole(pages: int, samples: int) -> bool:
    """Whether a prompt of so many pages, of which so many samples are drawn, is read as one matrix.

    The pages of all other prompts share a call, which is faster than a call for each. What runs beside it is not asked: how a
    sample is rounded must not depend on that.
    """
    return pages >= _WHOLE[0] and samples >= _WHOLE[1]


def pages_read(positions: int, run: int, page_size: int) -> int:
    """How many pages of its run a sample with ``positions`` of its own reads: a power of two, or all.

    Samples that read as many share a call, and what runs beside a sample does not change how much it reads.
    """
    return min(1 << (-(-positions // page_size) - 1).bit_length(), run)


def in_place(pages: np.ndarray) -> slice | None:
    """``pages`` as a slice if they follow each other."""
    return slice(int(pages[0]), int(pages[-1]) + 1) if (np.diff(pages) == 1).all() else None


def decode_plan(storage: PagedCache, places: Sequence[Place]) -> Decode:
    """What a step that adds one position to each of ``places`` reads and writes; a group's places stand together.

    The arithmetic of a sequence must not depend on the others: a prompt that is read whole, or a page of another, is one product
    with the queries of all its users, made up to a multiple of four by stand-ins; what a sequence has of its own is one with its
    query.
    """
    size, device, heads = storage.page_size, storage.keys.device, storage.keys.shape[2]
    dtype = operand(storage.keys[:0], storage.keys.dtype).dtype  # of scores
    length = np.array([p.length for p in places])
    written = np.array([p.position for p in places]) - length + 1  # of a sequence's own positions, once this step is done
    shared = np.array([len(p.prompt) for p in places])
    table = np.zeros((len(places), int(shared.max())), dtype=np.int64)
    for row, place in zip(table, places, strict=True):
        row[: len(place.prompt)] = place.prompt
    rows, columns = np.indices(table.shape)
    _, first, group, members = np.unique([p.group for p in places], return_index=True, return_inverse=True, return_counts=True)
    leader, members = first[group], members[group]  # of each row: the first row of its group, and how many they are
    users = -(-members // _FEWEST_USERS) * _FEWEST_USERS
    whole = np.array([is_whole(len(p.prompt), p.samples) for p in places])
    merge = np.full((len(places), table.shape[1] + 1), -1)  # results of each row: of its prompt's pages, and of its own
    parts: list[Paged] = []
    results = 0

    def to_device(x: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(x).to(device)

    def in_order(x: np.ndarray, count: int) -> bool:
        return np.array_equal(x.ravel(), np.arange(count))

    def add(read: slice | np.ndarray, run: int, readers: np.ndarray, filled: np.ndarray, width: int, newest: np.ndarray) -> None:
        """One part: each of ``readers`` (n, u) sees the first ``filled`` (n,) of the ``width`` positions that are read."""
        nonlocal results
        hidden = torch.zeros(len(readers) * heads, 1, width, dtype=dtype)
        hidden.masked_fill_(torch.from_numpy(np.arange(width) >= filled.repeat(heads)[:, None])[:, None], -torch.inf)
        of_heads = ((newest[:, None] // width * heads + np.arange(heads)) * width + newest[:, None] % width).ravel()
        asking = None if in_order(readers, len(places)) else to_device(readers.ravel())
        place = read if isinstance(read, slice) else to_device(read)
        parts.append(Paged(place, run, width, asking, hidden.to(device), to_device(of_heads)))
        results += readers.size

    prompts = []
    for row in first[whole[first]]:
        standing_in = users[row] > members[row]
        asking = to_device(row + np.minimum(np.arange(users[row]), members[row] - 1)) if standing_in else None
        pages_of = in_place(places[row].prompt) or to_device(places[row].prompt)
        prompts.append(Whole(pages_of, int(length[row]), slice(int(row), int(row + members[row])), asking))
    for of_each in np.unique(users[~whole]):
        taken = (columns < shared[:, None]) & (~whole & (users == of_each))[:, None]
        asked = taken & (rows == leader[:, None])
        reader = rows[asked]
        pages, found, count = _stretch(table[asked], len(storage))
        readers = np.zeros((count, int(of_each)), dtype=np.int64)
        readers[found[table[asked]]] = reader[:, None] + np.minimum(np.arange(of_each), members[reader][:, None] - 1)
        filled = np.full(count, size)
        filled[found[table[asked]]] = (length[:, None] - columns * size)[asked]
        merge[:, :-1][taken] = (results + found[table] * of_each + rows - leader[:, None])[taken]
        add(pages, 1, readers, filled, size, np.zeros(0, dtype=np.int64))
    first_own = np.array([p.own[0] for p in places])
    kinds = np.array([(len(p.own), pages_read(int(w), len(p.own), size)) for p, w in zip(places, written, strict=True)])
    for run, of_run in np.unique(kinds, axis=0):
        mine = np.flatnonzero((kinds == (run, of_run)).all(1))
        start = first_own[mine] // run
        runs, found, count = _stretch(start, len(storage) // run)
        readers = np.zeros((count, 1), dtype=np.int64)
        readers[found[start], 0] = mine
        width = int(of_run * size)
        filled = np.full(count, width)
        filled[found[start]] = written[mine]
        merge[mine, -1] = results + found[start]
        add(runs, int(run), readers, filled, width, found[start] * width + written[mine] - 1)
    # What is there first, and no more columns than the row with most of it needs.
    merge = np.take_along_axis(merge, (merge < 0).argsort(1, kind="stable"), 1)[:, : int((merge >= 0).sum(1).max())]
    absent = None
    if (merge < 0).any():
        absent = torch.zeros(*merge.shape, 1, device=device).masked_fill_(to_device(merge < 0).unsqueeze(2), -torch.inf)
    return Decode(
        storage,
        storage.slots(to_device(first_own), to_device(written - 1), to_device(kinds[:, :1].copy())),
        prompts,
        parts,
        merge.shape[1],
        None if in_order(merge, results) else to_device(np.maximum(merge, 0).ravel()),
        absent,
    )


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
