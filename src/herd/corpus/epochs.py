"""One source as an endless stream: its documents end to end, in a new order each epoch, read from any place.

The order of an epoch is a function of (seed, domain, epoch). Nothing is written. A source of up to a million documents is
shuffled as a whole. A larger one is cut into blocks of 16,384 neighbours: the blocks come in a shuffled order, and so do the
documents within each; then a read needs the order of its own blocks alone, and memory does not grow with the source.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from herd.corpus.shards import TokenSource
from herd.runs.seeds import stream

_SHUFFLED_WHOLE = 1 << 20  # documents
_BLOCK = 1 << 14  # documents; half a millisecond to shuffle
_KEPT = 1 << 22  # documents whose order stays in memory, 24 bytes each


def shuffled(count: int, seed: int, *names: str | int) -> np.ndarray:
    """(count,) int64: 0 to ``count`` in an order that depends only on ``seed`` and ``names``.

    Sorts raw Philox words: numpy promises those for ever, but not what ``Generator.permutation`` makes of them.
    """
    return np.argsort(stream(seed, *names).bit_generator.random_raw(count))  # 64 bits: no ties to speak of


@dataclass(frozen=True)
class Spans:
    """Stretches of the stream, equally long."""

    tokens: np.ndarray  # (n, count), of the source's own type
    starts: np.ndarray  # (n, count) bool, True where a document begins
    documents: np.ndarray  # (n, count) int64, index of the document that each token belongs to


@dataclass(frozen=True)
class Block:
    """Documents of one block in the order of one epoch."""

    documents: np.ndarray  # (documents,) int64, their indices in the source
    begins: np.ndarray  # (documents + 1,) int64, where each begins within the block's stretch of the stream
    shift: np.ndarray  # (documents,) int64, what leads from a place in that stretch to one in the source's file


class DocumentStream:
    """The stream of a source that has tokens.

    Args:
        source: what is read.
        seed: decides the order of documents.
        whole: the most documents that are shuffled as one block.
        block: documents of a block, where there are more.
    """

    def __init__(self, source: TokenSource, seed: int, whole: int = _SHUFFLED_WHOLE, block: int = _BLOCK) -> None:
        assert len(source.tokens), "an empty source has no stream"
        self.source, self.seed, self.whole, self.block_size = source, seed, whole, block
        size = block if source.documents > whole else source.documents
        self._edges = np.append(np.arange(0, source.documents, size), source.documents)
        self._layouts: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # of the last two epochs read
        self._blocks: OrderedDict[tuple[int, int], Block] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        return (DocumentStream, (self.source, self.seed, self.whole, self.block_size))

    @property
    def epoch_tokens(self) -> int:
        """Tokens of one pass over the documents."""
        return len(self.source.tokens)

    def layout(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Blocks of ``epoch`` in order, (blocks,), and where each begins in it, (blocks + 1,)."""
        if epoch not in self._layouts:
            sizes = np.diff(self.source.offsets[self._edges])
            order = shuffled(len(sizes), self.seed, "block order", self.source.name, epoch)
            self._layouts = {epoch - 1: self._layouts[epoch - 1]} if epoch - 1 in self._layouts else {}
            self._layouts[epoch] = order, np.concatenate([[0], np.cumsum(sizes[order])])
        return self._layouts[epoch]

    def block(self, epoch: int, number: int) -> Block:
        """Block ``number`` of the source as ``epoch`` orders it."""
        key = (epoch, number)
        if key not in self._blocks:
            self._blocks[key] = self._shuffle(epoch, number)
            kept = max(2, _KEPT // self.block_size) if len(self._edges) > 2 else 2
            if len(self._blocks) > kept:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(key)
        return self._blocks[key]

    def read(self, firsts: np.ndarray, count: int) -> Spans:
        """For each of ``firsts`` (n,) the tokens from there to ``count`` further on in the stream."""
        shape = (len(firsts), count)
        spans = Spans(np.empty(shape, self.source.tokens.dtype), np.empty(shape, dtype=bool), np.empty(shape, dtype=np.int64))
        for block, row, done, place, take in self._pieces(firsts, count):
            self._fill(spans, block, row * count + done, place, take)
        self.source.check_tokens(spans.tokens)
        return spans

    def starts(self, firsts: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The True entries of ``starts`` of what :meth:`read` gives, as (their rows, their places), without reading a token."""
        found = [(np.empty(0, np.int64), np.empty(0, np.int64))]
        for block, row, done, place, take in self._pieces(firsts, count):
            begins = block.begins[:-1]
            low, high = np.searchsorted(begins, place), np.searchsorted(begins, place + take)
            number = high - low
            which = np.repeat(low, number) + np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number)
            found.append((np.repeat(row, number), begins[which] + np.repeat(done - place, number)))
        rows, places = (np.concatenate(parts) for parts in zip(*found, strict=True))
        new = np.append(True, (np.diff(rows) != 0) | (np.diff(places) != 0))[: len(rows)]
        return rows[new], places[new]  # documents without tokens begin where the next one does

    def _pieces(self, firsts: np.ndarray, count: int) -> Iterator[tuple[Block, np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """The stretches cut where blocks end: a block, and of its pieces (n,) the row, the tokens of that row before the piece,
        the piece's place in the block's stretch of the stream, and its tokens.
        """
        rows, done = np.arange(len(firsts)), np.zeros(len(firsts), dtype=np.int64)
        while len(rows):
            # One piece of each row, up to the end of the block that it stands in.
            epochs, within = np.divmod(firsts[rows] + done[rows], self.epoch_tokens)
            for epoch in np.unique(epochs).tolist():
                order, begins = self.layout(epoch)
                mine = np.flatnonzero(epochs == epoch)
                at = np.searchsorted(begins, within[mine], "right") - 1
                for k in np.unique(at).tolist():
                    chosen = mine[at == k]
                    row, place = rows[chosen], within[chosen]
                    take = np.minimum(count - done[row], begins[k + 1] - place)
                    yield self.block(epoch, int(order[k])), row, done[row], place - begins[k], take
                    done[row] += take
            rows = rows[done[rows] < count]

    def _fill(self, spans: Spans, block: Block, target: np.ndarray, first: np.ndarray, take: np.ndarray) -> None:
        """Copy ``take`` tokens from place ``first`` of a block to place ``target`` of the flattened spans, piece by piece."""
        step = np.arange(take.sum()) - np.repeat(np.cumsum(take) - take, take)
        place, to = np.repeat(first, take) + step, np.repeat(target, take) + step
        owner = np.searchsorted(block.begins, place, "right") - 1
        spans.tokens.reshape(-1)[to] = self.source.tokens[block.shift[owner] + place]
        spans.starts.reshape(-1)[to] = block.begins[owner] == place
        spans.documents.reshape(-1)[to] = block.documents[owner]

    def _shuffle(self, epoch: int, number: int) -> Block:
        low, high = self._edges[number : number + 2].tolist()
        offsets = self.source.offsets_of(low, high)
        # A source of one block keeps the order that it had before there were blocks.
        names = (epoch,) if len(self._edges) == 2 else (epoch, number)
        order = shuffled(high - low, self.seed, "document order", self.source.name, *names)
        begins = np.concatenate([[0], np.cumsum(np.diff(offsets)[order])])
        return Block(order + low, begins, offsets[order] - begins[:-1])
