"""One source as an endless stream: its documents end to end, in a new order each epoch, read from any place.

The order of an epoch is a function of (seed, domain, epoch). Nothing is written, and nothing is remembered but the
orders of the last two epochs read, which a row may straddle.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np

from herd.corpus.shards import TokenSource
from herd.runs.seeds import stream


def shuffled(count: int, seed: int, *names: str | int) -> np.ndarray:
    """(count,) int64: 0 to ``count`` in an order that depends only on ``seed`` and ``names``.

    Sorts raw Philox words: numpy promises those for ever, but not what ``Generator.permutation`` makes of them.
    """
    return np.argsort(stream(seed, *names).bit_generator.random_raw(count), kind="stable")


@dataclass(frozen=True)
class Span:
    """A stretch of the stream."""

    tokens: np.ndarray  # (count,) int64
    starts: np.ndarray  # (count,) bool, True where a document begins, and at the first token of the span
    documents: np.ndarray  # (count,) int64, index of the document that each token belongs to


class DocumentStream:
    """The stream of a source that has tokens.

    Args:
        source: what is read.
        seed: decides the order of documents.
    """

    def __init__(self, source: TokenSource, seed: int) -> None:
        assert len(source.tokens), "an empty source has no stream"
        self.source, self.seed = source, seed
        self._orders: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        return (DocumentStream, (self.source, self.seed))

    @property
    def epoch_tokens(self) -> int:
        """Tokens of one pass over the documents."""
        return len(self.source.tokens)

    def order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Documents of ``epoch`` in order, (documents,), and where each begins in it, (documents + 1,)."""
        if epoch not in self._orders:
            documents = shuffled(self.source.documents, self.seed, "document order", self.source.name, epoch)
            sizes = np.diff(self.source.offsets)[documents]
            self._orders[epoch] = documents, np.concatenate([[0], np.cumsum(sizes)])
            if len(self._orders) > 2:
                self._orders.popitem(last=False)
        self._orders.move_to_end(epoch)
        return self._orders[epoch]

    def read(self, first: int, count: int) -> Span:
        """Tokens ``first`` to ``first + count`` of the stream."""
        source, parts, owners = self.source, [], []
        starts = np.zeros(count, dtype=bool)
        done = 0
        while done < count:
            epoch, within = divmod(first + done, self.epoch_tokens)
            documents, begins = self.order(epoch)
            stop = min(within + count - done, self.epoch_tokens)
            i, j = int(np.searchsorted(begins, within, "right")) - 1, int(np.searchsorted(begins, stop, "left"))
            # Document k of the order covers [begins[k], begins[k + 1]); the first and the last may be cut.
            low = np.maximum(begins[i:j], within)
            high = np.minimum(begins[i + 1 : j + 1], stop)
            base = source.offsets[documents[i:j]] - begins[i:j]
            parts += [source.tokens[a:b] for a, b in zip((base + low).tolist(), (base + high).tolist(), strict=True)]
            owners.append(np.repeat(documents[i:j], high - low))
            starts[done + low - within] = True
            done += stop - within
        tokens = source.check_tokens(np.concatenate(parts)).astype(np.int64)
        return Span(tokens, starts, np.concatenate(owners))
