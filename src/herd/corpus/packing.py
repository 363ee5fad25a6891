"""Rows of packed documents: what the model reads, what it is asked for, and where documents begin.

A row is ``seq_len`` tokens. Attention, positions and targets stay within a document: ``lengths`` says how many tokens
of each document lie in a row, positions restart with each, and the last token of a document has no target.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from herd.config.errors import UserError
from herd.corpus.epochs import shuffled
from herd.corpus.shards import TokenSource

IGNORE = -100  # target of a position without one, as torch's cross-entropy has it
_WINDOWS_PACKED_TOGETHER = 4096


@dataclass(frozen=True)
class PackedRows:
    """B rows of T tokens."""

    tokens: torch.Tensor  # (B, T) int64, inputs
    targets: torch.Tensor  # (B, T) int64, the next token of the same document, or -100
    positions: torch.Tensor  # (B, T) int64, place within the part of the document that lies in the row, from 0
    lengths: tuple[tuple[int, ...], ...]  # per row: tokens of each document in it (padding last), sums to T
    sources: tuple[str, ...]  # per row: the domain it comes from
    bytes: tuple[int, ...] = ()  # per row: bytes of text behind its targets, for bits per byte
    owners: torch.Tensor | None = None  # (B, T) int64, document of each target, 0 where there is none; evaluation alone has it

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def target_count(self) -> int:
        """Number of positions that have a target. Reads the tensor: call it before the rows move to a device."""
        return int((self.targets != IGNORE).sum())

    def split(self, rows_per_micro_batch: int) -> list["PackedRows"]:
        """Consecutive groups of at most ``rows_per_micro_batch`` rows (views, no copies)."""
        assert rows_per_micro_batch >= 1
        groups = [slice(i, i + rows_per_micro_batch) for i in range(0, len(self), rows_per_micro_batch)]
        return [
            PackedRows(self.tokens[g], self.targets[g], self.positions[g], self.lengths[g], self.sources[g], self.bytes[g])
            for g in groups
        ]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PackedRows":
        """The same rows with their tensors on ``device`` (Lightning moves a batch by this method)."""
        moved = [t.to(device, non_blocking=non_blocking) for t in (self.tokens, self.targets, self.positions)]
        return PackedRows(moved[0], moved[1], moved[2], self.lengths, self.sources, self.bytes)

    def pin_memory(self) -> "PackedRows":
        """The same rows in page-locked memory (DataLoader calls this)."""
        pinned = [t.pin_memory() for t in (self.tokens, self.targets, self.positions)]
        return PackedRows(pinned[0], pinned[1], pinned[2], self.lengths, self.sources, self.bytes)


@dataclass(frozen=True)
class RowArrays:
    """Rows of one source as numpy arrays, before they are put in their places in a batch."""

    tokens: np.ndarray  # (n, T) int64
    targets: np.ndarray  # (n, T) int64
    positions: np.ndarray  # (n, T) int64
    starts: np.ndarray  # (n, T) bool, the first token of each part; column 0 is always True

    def lengths(self) -> list[tuple[int, ...]]:
        """Per row: the length of each part."""
        rows, places = np.nonzero(self.starts)  # column 0 is always a start
        ends = np.append(places[1:], 0)
        ends[ends == 0] = self.starts.shape[1]
        cuts = np.searchsorted(rows, np.arange(1, len(self.starts)))
        return [tuple(part.tolist()) for part in np.split(ends - places, cuts)]


def cut_rows(tokens: np.ndarray, starts: np.ndarray) -> RowArrays:
    """Rows of stretches of a stream; each row's last target is the token after it.

    Args:
        tokens: (n, T + 1) ids, documents end to end.
        starts: (n, T + 1) bool, True at the first token of a document.
    """
    inputs = tokens[:, :-1]
    # The token after position t is its target, unless another document begins there.
    targets = np.where(starts[:, 1:], IGNORE, tokens[:, 1:])
    parts = starts[:, :-1].copy()
    parts[:, :1] = True
    place = np.arange(parts.shape[1])
    positions = place - np.maximum.accumulate(np.where(parts, place, 0), axis=1)
    return RowArrays(inputs, targets, positions, parts)


def bytes_of(targets: np.ndarray, token_bytes: np.ndarray) -> list[int]:
    """Per row of ``targets`` (n, T): bytes of text behind them."""
    return np.where(targets == IGNORE, 0, token_bytes[np.maximum(targets, 0)]).sum(axis=1).tolist()


def evaluation_rows(
    source: TokenSource, seq_len: int, limit_tokens: int | None = None, rows_per_batch: int = 8
) -> Iterator[PackedRows]:
    """Held-out text as rows: every token but a document's first is a target exactly once.

    A document is cut from its start into windows of at most ``seq_len`` inputs, and no window sees another. Windows are
    packed several to a row (best fit, longest first); what is left of a row is padding. Summed over rows, targets and
    ``bytes`` give the loss per token and per byte.

    Args:
        source: tokens of one domain.
        seq_len: T.
        limit_tokens: score at most this many tokens (but one window at least): a fixed random choice of windows, the
            same for every model, so that the mean estimates that of the whole without bias. None scores all.
        rows_per_batch: rows in each yielded batch, fewer in the last.
    """
    if seq_len < 1 or rows_per_batch < 1 or (limit_tokens is not None and limit_tokens < 1):
        raise UserError("evaluation_rows: seq_len, rows_per_batch and limit_tokens must be 1 or more.")
    begins, sizes, owners = _windows(source.offsets_of(0, source.documents), seq_len)
    order = shuffled(len(sizes), 0, "evaluation windows")
    if limit_tokens is not None:
        order = order[: max(1, int(np.searchsorted(np.cumsum(sizes[order]), limit_tokens, side="right")))]
    pending: list[list[int]] = []
    for first in range(0, len(order), _WINDOWS_PACKED_TOGETHER):
        chosen = order[first : first + _WINDOWS_PACKED_TOGETHER]
        pending += [[int(chosen[i]) for i in row] for row in best_fit(sizes[chosen].tolist(), seq_len)]
        while len(pending) >= rows_per_batch:
            yield _evaluation_batch(source, seq_len, begins, sizes, owners, pending[:rows_per_batch])
            pending = pending[rows_per_batch:]
    if pending:
        yield _evaluation_batch(source, seq_len, begins, sizes, owners, pending)


def best_fit(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: item indices of each bin, no bin over ``capacity`` (nor any item)."""
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free space, bin), sorted: the tightest fit is the first that is large enough
    for item in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        assert sizes[item] <= capacity
        at = bisect_left(room, (sizes[item], -1))
        if at < len(room):
            free, chosen = room.pop(at)
        else:
            free, chosen = capacity, len(bins)
            bins.append([])
        bins[chosen].append(item)
        if free > sizes[item]:
            insort(room, (free - sizes[item], chosen))
    return bins


def _windows(offsets: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Start in the token file, number of inputs and document of every window; n tokens have n - 1 inputs with a target."""
    inputs = np.diff(offsets) - 1
    count = -(-inputs // seq_len)
    within = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
    begins = np.repeat(offsets[:-1], count) + within * seq_len
    return begins, np.minimum(np.repeat(inputs, count) - within * seq_len, seq_len), np.repeat(np.arange(len(count)), count)


def _evaluation_batch(
    source: TokenSource, seq_len: int, begins: np.ndarray, sizes: np.ndarray, owners: np.ndarray, rows: list[list[int]]
) -> PackedRows:
    tokens = np.full((len(rows), seq_len), source.pad_id, dtype=np.int64)
    targets = np.full((len(rows), seq_len), IGNORE, dtype=np.int64)
    positions, owner = (np.zeros((len(rows), seq_len), dtype=np.int64) for _ in range(2))
    lengths = []
    for r, windows in enumerate(rows):
        at, parts = 0, []
        for w in windows:
            begin, size = int(begins[w]), int(sizes[w])
            text = source.check_tokens(np.asarray(source.tokens[begin : begin + size + 1], dtype=np.int64))
            tokens[r, at : at + size], targets[r, at : at + size] = text[:-1], text[1:]
            positions[r, at : at + size], owner[r, at : at + size] = np.arange(size), owners[w]
            parts.append(size)
            at += size
        if at < seq_len:
            positions[r, at:] = np.arange(seq_len - at)
            parts.append(seq_len - at)
        lengths.append(tuple(parts))
    return PackedRows(
        torch.from_numpy(tokens),
        torch.from_numpy(targets),
        torch.from_numpy(positions),
        tuple(lengths),
        (source.name,) * len(rows),
        tuple(bytes_of(targets, source.token_bytes)),
        torch.from_numpy(owner),
    )
