"""Who holds which page of the key-value store: reference counts, and where a sequence's keys and values are.

The pages of a prompt are held by all of its samples, the last, partly filled one too: a sample's own tokens begin on a page of
its own, so that nothing shared is ever written to and nothing is ever copied. A sample gets the pages of its longest answer when
it enters, as a run: pages that follow each other, in which each head's keys lie as one matrix, of which a step reads as much as
is written. Runs begin at a multiple of their length and are taken from the low end, prompts from the high end, so that each kind
lies together and is mostly read in place.
"""

from dataclasses import dataclass

import numpy as np

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
