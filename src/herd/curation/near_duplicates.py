"""Near-duplicate index: candidates by band hashes, decided by exact Jaccard similarity (paper, section 3.1.1: global MinHash).

Works on columns: numbers stand for documents, band hashes are read one band at a time, and shingles, the large part, stay on
disk. Memory: at most 51 bytes a document (order, rank, leader: 4 each; exact hash: 8; the rest while a band is sorted), and 8
bytes for each (document, band) whose band hash another document shares; `tests/curation/test_near_duplicates.py` measures it.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from herd.curation.text import jaccard


@dataclass(frozen=True)
class Duplicates:
    """What was found; arrays have one element a document."""

    duplicate_of: np.ndarray  # number of the kept document that stays in its place, -1 = it is kept itself
    similarity: np.ndarray  # float64, with that document; 0 where it is kept
    links: list[tuple[int, int]]  # kept documents that are alike, but not enough to be the same
    compared: int  # pairs whose Jaccard similarity was computed


def band_hashes(signatures: np.ndarray, bands: int, rows: int, salt: np.ndarray) -> np.ndarray:
    """A hash of each band of each signature: two documents agree in one when they agree in all rows of the band.

    Args:
        signatures: MinHash values, (documents, at least bands x rows).
        bands: bands.
        rows: values a band.
        salt: (documents,) uint64; documents with different salts agree in none (a hash of the language).

    Returns:
        (bands, documents) uint64.
    """
    values = signatures[:, : bands * rows].astype(np.uint64).reshape(len(signatures), bands, rows)
    out = np.broadcast_to(salt[:, None], (len(signatures), bands)).copy()
    for i in range(rows):
        out = (out ^ values[:, :, i]) * np.uint64(0x9E3779B97F4A7C15)
        out ^= out >> np.uint64(29)
        out *= np.uint64(0xBF58476D1CE4E5B9)
        out ^= out >> np.uint64(32)
    return np.ascontiguousarray(out.T)


def find_duplicates(
    order: np.ndarray,
    exact: np.ndarray,
    band: Callable[[int], np.ndarray],
    bands: int,
    shingles: Callable[[int], np.ndarray],
    threshold: float,
    link_threshold: float,
) -> Duplicates:
    """Drop each document that is a copy of one that stays.

    Documents are taken in ``order`` and compared with those kept so far that share a band hash with them. So each dropped
    document has a kept one at least ``threshold`` similar, and no two kept candidates are. Only kept documents are compared
    with, and documents with equal shingles share one fate: a thousand copies of a page cost a thousand comparisons, not a
    million. A document that shares no band hash is never compared.

    Args:
        order: numbers of all documents, the first preferred (a total order).
        exact: (documents,) uint64, hash of the whole shingle set (of the text where there are no shingles).
        band: gives the hashes of one band, (documents,) uint64.
        bands: how many bands there are.
        shingles: gives one document's shingles, sorted and unique.
        threshold: Jaccard similarity from which two documents are the same.
        link_threshold: similarity from which two kept documents are reported as a link.
    """
    n = len(order)
    number = np.int32 if n < 2**31 else np.int64
    order = order.astype(number)
    rank = np.empty(n, number)
    rank[order] = np.arange(n, dtype=number)
    leader, copies = _leaders(exact, rank, shingles)
    documents, buckets = _shared_buckets(np.flatnonzero(leader == np.arange(n, dtype=number)).astype(number), band, bands)
    duplicate_of, similarity = np.full(n, -1, number), np.zeros(n)
    links: list[tuple[int, int]] = []
    compared = copies
    at = np.argsort(rank[documents], kind="stable")
    documents, buckets = documents[at], buckets[at]
    starts = np.flatnonzero(np.concatenate([[True], documents[1:] != documents[:-1]])) if len(documents) else np.empty(0, int)
    kept: dict[int, list[int]] = {}
    least = min(threshold, link_threshold)
    for start, stop in itertools.pairwise([*starts.tolist(), len(documents)]):
        document, shared = int(documents[start]), buckets[start:stop].tolist()
        candidates = sorted({other for bucket in shared for other in kept.get(bucket, ())})
        best, alike = (0.0, -1), []
        if candidates:
            own = shingles(document)
            for other in candidates:  # in the order of numbers, so that the first of equals wins
                theirs = shingles(other)
                if min(len(own), len(theirs)) < least * max(len(own), len(theirs)):
                    continue  # sizes alone bound the similarity
                compared += 1
                value = jaccard(own, theirs)
                if value > best[0]:
                    best = (value, other)
                if value >= link_threshold:
                    alike.append((document, other))
        if best[0] >= threshold:
            similarity[document], duplicate_of[document] = best
            continue
        links += alike
        for bucket in shared:
            kept.setdefault(bucket, []).append(document)
    # Copies share their leader's fate: they go for it, or for what it went for.
    follower = leader != np.arange(n, dtype=number)
    stays = duplicate_of[leader] < 0
    duplicate_of = np.where(follower & stays, leader, duplicate_of[leader])
    similarity = np.where(follower & stays, 1.0, similarity[leader])
    return Duplicates(duplicate_of, similarity, links, compared)


def _leaders(exact: np.ndarray, rank: np.ndarray, shingles: Callable[[int], np.ndarray]) -> tuple[np.ndarray, int]:
    """The first document of those with equal shingles, for each document; and how many were compared with their leader."""
    by = np.lexsort((rank, exact)).astype(rank.dtype)
    same = np.concatenate([[False], exact[by[1:]] == exact[by[:-1]]]) if len(by) else np.empty(0, bool)
    leader = np.empty_like(rank)
    leader[by] = by[np.maximum.accumulate(np.where(same, 0, np.arange(len(by))))] if len(by) else by
    copies = by[same]
    for document in copies.tolist():  # hashes of 64 bits may collide
        if not np.array_equal(shingles(document), shingles(int(leader[document]))):
            leader[document] = document
    return leader, len(copies)


def _shared_buckets(leaders: np.ndarray, band: Callable[[int], np.ndarray], bands: int) -> tuple[np.ndarray, np.ndarray]:
    """(document, bucket) for each band hash that at least two of ``leaders`` share; buckets of all bands are numbered through."""
    documents, buckets = [leaders[:0]], [np.empty(0, leaders.dtype)]
    count = 0
    for number in range(bands):
        values = band(number)[leaders]
        by = np.argsort(values, kind="stable")
        values = values[by]
        same = values[1:] == values[:-1]
        shared = np.concatenate([[False], same]) | np.concatenate([same, [False]]) if len(by) else np.empty(0, bool)
        first = shared & ~np.concatenate([[False], same]) if len(by) else shared
        ids = np.cumsum(first[shared]) - 1 + count
        count += int(first.sum())
        documents.append(leaders[by[shared]])
        buckets.append(ids.astype(leaders.dtype))
    return np.concatenate(documents), np.concatenate(buckets)
