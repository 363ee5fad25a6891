"""Which of many short texts occur anywhere in a large body of text: an exact check at memory speed.

A test item whose text stands in the training documents measures memory, not knowledge. Looking for thousands of
strings in tens of megabytes one after the other takes minutes; here every 8-byte window of the body is hashed once
with numpy and looked up in a table of the needles' own windows; the few hits are then compared in full.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

_WINDOW = 8  # bytes
_BITS = 22  # 2**22 entries of one byte: the table stays in cache, and a few thousand needles leave it nearly empty
_PIECE = 1 << 22  # bytes of text looked through at once
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def occurring(needles: Sequence[str], haystacks: Iterable[str]) -> np.ndarray:
    """For each needle, whether it is a substring of any haystack, (len(needles),) bool; bytes are compared exactly.

    Needles shorter than 8 bytes are looked up one by one. No needle may hold a zero byte.
    """
    encoded = [needle.encode("utf-8") for needle in needles]
    found = np.zeros(len(encoded), dtype=bool)
    short = [i for i, needle in enumerate(encoded) if len(needle) < _WINDOW]
    # The last window of a needle is rarer than its first: "Return the ..." begins a great many.
    by_hash: defaultdict[int, list[int]] = defaultdict(list)
    table = np.zeros(2**_BITS, dtype=bool)
    for i, needle in enumerate(encoded):
        if len(needle) >= _WINDOW:
            key = int(_hash(np.frombuffer(needle[-_WINDOW:], dtype="<u8"))[0])
            by_hash[key].append(i)
            table[key] = True
    for body in _joined(haystacks):
        for i in short:
            found[i] |= encoded[i] in body
        for shift in range(min(_WINDOW, max(len(body) - _WINDOW + 1, 0))):
            windows = np.frombuffer(body, dtype="<u8", count=(len(body) - shift) // _WINDOW, offset=shift)
            keys = _hash(windows)
            for hit in np.flatnonzero(table[keys]):
                end = shift + int(hit) * _WINDOW + _WINDOW
                for i in by_hash[int(keys[hit])]:
                    start = end - len(encoded[i])
                    if not found[i] and start >= 0 and body[start:end] == encoded[i]:
                        found[i] = True
    return found


def _joined(haystacks: Iterable[str]) -> Iterator[bytes]:
    """Haystacks in pieces of some megabytes, a zero byte between two, which no text has."""
    pieces: list[bytes] = []
    size = 0
    for haystack in haystacks:
        pieces.append(haystack.encode("utf-8"))
        size += len(pieces[-1])
        if size >= _PIECE:
            yield b"\0".join(pieces)
            pieces, size = [], 0
    yield b"\0".join(pieces)


def _hash(windows: np.ndarray) -> np.ndarray:
    """Multiplicative hash of (n,) uint64 windows to `_BITS` bits."""
    return (windows * _MULTIPLIER) >> np.uint64(64 - _BITS)
