"""Who holds which page of the key-value store: reference counts, promises, and the plan of a decoding step.

The pages of a prompt are held by all of its samples, the last, partly filled one too: a sample's own tokens begin on a page of
its own, so that nothing shared is ever written to and nothing is ever copied. Prompts take pages from the high end, samples from
the low end, so that each kind lies together and is mostly read in place; a prompt takes pages that follow each other where it
can.
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
    """Reference counts of pages, and how many are promised to sequences that have yet to grow.

    Args:
        pages: how many there are.
    """

    def __init__(self, pages: int) -> None:
        self.holders = np.zeros(pages, dtype=np.int64)
        self.promised = 0

    @property
    def used(self) -> int:
        """Pages that someone holds."""
        return int((self.holders > 0).sum())

    @property
    def spare(self) -> int:
        """Pages neither held nor promised."""
        return len(self.holders) - self.used - self.promised

    def promise(self, pages: int) -> None:
        """Keep ``pages`` for later; negative gives them back."""
        assert -self.promised <= pages <= self.spare, "more pages promised than there are"
        self.promised += pages

    def take(self, count: int) -> np.ndarray:
        """Pages for a prompt, (count,), held once each: the highest that follow each other, or else the highest."""
        assert count <= self.spare, "fewer pages than asked for"
        free = np.flatnonzero(self.holders == 0)
        runs = np.flatnonzero(free[count - 1 :] - free[: len(free) - count + 1] == count - 1)
        first = runs[-1] if len(runs) else len(free) - count
        pages = free[first : first + count]
        self.holders[pages] = 1
        return pages

    def take_promised(self) -> int:
        """One of the promised pages, from the low end, held once."""
        page = int(np.flatnonzero(self.holders == 0)[0])
        self.promise(-1)
        self.holders[page] = 1
        return page

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
        own: pages of what follows, in order.
        position: of the token that comes next, in the sequence.
        group: sequences of one prompt have the same number.
        samples: how many were asked of the prompt, though some may have ended.
    """

    prompt: np.ndarray
    length: int
    own: Sequence[int]
    position: int
    group: int
    samples: int


def is_whole(pages: int, samples: int) -> bool:
    """Whether a prompt of so many pages, of which so many samples are drawn, is read as one matrix.

    The pages of all other prompts share a call, which is faster than a call for each. What runs beside it is not asked: how a
    sample is rounded must not depend on that.
    """
    return pages >= _WHOLE[0] and samples >= _WHOLE[1]


def in_place(pages: np.ndarray) -> slice | None:
    """``pages`` as a slice if they follow each other."""
    return slice(int(pages[0]), int(pages[-1]) + 1) if (np.diff(pages) == 1).all() else None


def decode_plan(storage: PagedCache, places: Sequence[Place]) -> Decode:
    """What a step that adds one position to each of ``places`` reads and writes; a group's places stand together.

    The arithmetic of a sequence must not depend on the others: a prompt that is read whole, or a page of another, is one product
    with the queries of all its users, made up to a multiple of four by stand-ins; a page of a sequence's own is one with its
    query.
    """
    size, device, heads = storage.page_size, storage.keys.device, storage.keys.shape[2]
    dtype = operand(storage.keys[:0], storage.keys.dtype).dtype  # of scores
    position = np.array([p.position for p in places])
    length = np.array([p.length for p in places])
    shared = np.array([len(p.prompt) for p in places])
    held = shared + np.array([len(p.own) for p in places])
    table = np.zeros((len(places), int(held.max())), dtype=np.int64)
    for row, place in zip(table, places, strict=True):
        row[: len(place.prompt)] = place.prompt
        row[len(place.prompt) : len(place.prompt) + len(place.own)] = place.own
    rows, columns = np.indices(table.shape)
    _, first, group, members = np.unique([p.group for p in places], return_index=True, return_inverse=True, return_counts=True)
    leader, members = first[group], members[group]  # of each row: the first row of its group, and how many they are
    users = -(-members // _FEWEST_USERS) * _FEWEST_USERS
    of_prompt = columns < shared[:, None]
    whole = np.array([is_whole(len(p.prompt), p.samples) for p in places])
    # Positions of a page that are filled once this step has written.
    written = np.where(
        of_prompt, length[:, None] - columns * size, (position - length + 1 + shared * size)[:, None] - columns * size
    )
    merge = np.full(table.shape, -1)
    parts: list[Paged] = []
    results = 0

    def add_paged(taken: np.ndarray, of_each: int, mine: np.ndarray) -> np.ndarray:
        """The pages ``taken`` of the table, one by one; ``mine`` is the number of each row among its pages' users.

        Returns:
            Where each page of the pool stands among those that are read.
        """
        nonlocal results
        reads = taken & (mine == 0)[:, None]
        pages, found, count = _stretch(table[reads], len(storage))
        reader = rows[reads]
        readers = np.zeros((count, of_each), dtype=np.int64)
        readers[found[table[reads]]] = reader[:, None] + np.minimum(np.arange(of_each), members[reader][:, None] - 1)
        filled = np.full(count, size)
        filled[found[table[reads]]] = written[reads]
        merge[taken] = (results + found[table] * of_each + mine[:, None])[taken]
        hidden = torch.zeros(count * heads, 1, size, dtype=dtype)
        hidden.masked_fill_(torch.from_numpy(np.arange(size) >= filled.repeat(heads)[:, None])[:, None], -torch.inf)
        read = pages if isinstance(pages, slice) else to_device(pages)
        users = None if in_order(readers, len(places)) else to_device(readers.ravel())
        parts.append(Paged(read, users, hidden.to(device)))
        results += readers.size
        return found

    def in_order(x: np.ndarray, count: int) -> bool:
        return np.array_equal(x.ravel(), np.arange(count))

    def to_device(x: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(x).to(device)

    prompts = []
    for row in first[whole[first]]:
        standing_in = users[row] > members[row]
        readers = to_device(row + np.minimum(np.arange(users[row]), members[row] - 1)) if standing_in else None
        pages = in_place(places[row].prompt) or to_device(places[row].prompt)
        prompts.append(Whole(pages, int(length[row]), slice(int(row), int(row + members[row])), readers))
    paged = of_prompt & ~whole[:, None]
    for of_each in np.unique(users[~whole]):
        add_paged(paged & (users == of_each)[:, None], int(of_each), rows[:, 0] - leader)
    found = add_paged(~of_prompt & (columns < held[:, None]), 1, np.zeros(len(places), dtype=np.int64))
    # What is there first, and no more columns than the row with most of it needs.
    merge = np.take_along_axis(merge, (merge < 0).argsort(1, kind="stable"), 1)[:, : int((merge >= 0).sum(1).max())]
    offset = position - length
    page, offset = table[rows[:, 0], shared + offset // size], offset % size
    absent = None
    if (merge < 0).any():
        absent = torch.zeros(*merge.shape, 1, device=device).masked_fill_(to_device(merge < 0).unsqueeze(2), -torch.inf)
    return Decode(
        storage,
        storage.slots(to_device(page), to_device(offset)),
        prompts,
        parts,
        merge.shape[1],
        None if in_order(merge, results) else to_device(np.maximum(merge, 0).ravel()),
        absent,
        to_device(((found[page][:, None] * heads + np.arange(heads)) * size + offset[:, None]).ravel()),
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
