"""Document de-duplication: MinHash candidates, decided by exact Jaccard similarity, within a language (paper, section 3.1.1)."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from herd.curation.config import DedupConfig
from herd.curation.documents import Document
from herd.curation.ledger import LedgerRow, dropped
from herd.curation.text import jaccard

SCHEMES = ("affine32", "mersenne61")
_PRIME = np.uint64(2**61 - 1)
_LOW = np.uint64(2**32 - 1)
_TILE = 1 << 16  # values at a time: a tile of 112 permutations stays in the second-level cache


@functools.cache
def _permutations(count: int, scheme: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors and offsets (count, 1), drawn as datasketch draws them."""
    random = np.random.RandomState(seed)
    if scheme == "affine32":  # odd factors: each permutation is a bijection of the 32-bit integers
        factors = random.randint(0, 2**31, count, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
        offsets = random.randint(0, 2**32, count, dtype=np.uint32)
        return factors[:, None], offsets[:, None]
    drawn = [(random.randint(1, _PRIME, dtype=np.uint64), random.randint(0, _PRIME, dtype=np.uint64)) for _ in range(count)]
    pairs = np.array(drawn, np.uint64)
    return pairs[:, :1].copy(), pairs[:, 1:].copy()


def minhash(shingles: np.ndarray, permutations: int, scheme: str = "affine32", seed: int = 1) -> np.ndarray:
    """MinHash values of a set: for each permutation the smallest permuted element. Bit by bit those of datasketch 2.

    ``affine32`` (datasketch's default since 2.0): elements are mixed once with MurmurHash3's finaliser, then permuted by
    a x + b modulo 2^32 with odd a. ``mersenne61`` (datasketch before 2.0, where it is now called "legacy", and datatrove):
    ((a x + b) mod 2^64 mod (2^61 - 1)) mod 2^32; three times the work, for comparison with signatures made elsewhere.

    Args:
        shingles: (elements,) uint32.
        permutations: how many values.
        scheme: one of :data:`SCHEMES`.
        seed: of the permutations.

    Returns:
        (permutations,) uint32; 2^32 - 1 everywhere for the empty set.
    """
    assert scheme in SCHEMES
    factors, offsets = _permutations(permutations, scheme, seed)
    values = _mix(shingles.astype(np.uint32)) if scheme == "affine32" else shingles.astype(np.uint64)
    smallest = np.full(permutations, 2**32 - 1, np.uint32)
    step = max(_TILE // permutations, 1)
    for start in range(0, len(values), step):
        permuted = factors * values[start : start + step]
        permuted += offsets
        if scheme == "mersenne61":
            permuted %= _PRIME
            permuted &= _LOW
        np.minimum(smallest, permuted.min(axis=1).astype(np.uint32), out=smallest)
    return smallest


def _mix(values: np.ndarray) -> np.ndarray:
    """MurmurHash3's 32-bit finaliser, a bijection: structured input is safe to permute."""
    values = values ^ (values >> np.uint32(16))
    values *= np.uint32(0x85EBCA6B)
    values ^= values >> np.uint32(13)
    values *= np.uint32(0xC2B2AE35)
    return values ^ (values >> np.uint32(16))


def deduplicate_documents(
    documents: Sequence[Document], config: DedupConfig, link_threshold: float
) -> tuple[list[Document], list[LedgerRow], list[tuple[str, str]]]:
    """Drop each document that is a copy of one that stays.

    Documents are taken newest first (then longest, then by id) and compared with those kept so far that share a band of
    their signature and a language. So each dropped document has a kept one at least ``config.threshold`` similar, and no two
    kept candidates are. Only kept documents are indexed: a thousand copies of a page cost a thousand comparisons, not a
    million.

    Returns:
        Kept documents in input order; a row per dropped one, naming what it duplicates; pairs of ids of kept documents whose
        similarity is at least ``link_threshold`` (they must not be separated by the held-out split).
    """
    from datasketch import MinHash, MinHashLSH

    indexes: dict[str, Any] = {}
    exact: dict[tuple[str, bytes], Document] = {}
    by_id = {document.id: document for document in documents}
    gone: set[str] = set()
    rows: list[LedgerRow] = []
    links: list[tuple[str, str]] = []
    # Sorting is stable, so the keys go from the least to the most important.
    order = sorted(documents, key=lambda d: d.id)
    order.sort(key=lambda d: len(d.text), reverse=True)
    order.sort(key=lambda d: d.date, reverse=True)
    for document in order:
        key = (document.language, document.shingles.tobytes() or document.text.encode("utf-8", "surrogatepass"))
        if key in exact:
            rows.append(_row(document, exact[key].id, 1.0, config))
            gone.add(document.id)
            continue
        if document.signature is None or not len(document.shingles):
            exact[key] = document
            continue
        sketch = MinHash(hashvalues=document.signature, scheme="affine32")
        if document.language not in indexes:
            indexes[document.language] = MinHashLSH(num_perm=config.permutations, params=(config.bands, config.rows))
        index = indexes[document.language]
        similar = sorted(
            ((jaccard(document.shingles, by_id[other].shingles), other) for other in index.query(sketch)),
            key=lambda pair: (-pair[0], pair[1]),
        )
        if similar and similar[0][0] >= config.threshold:
            rows.append(_row(document, similar[0][1], similar[0][0], config))
            gone.add(document.id)
            continue
        exact[key] = document
        index.insert(document.id, sketch)
        links += [(document.id, other) for similarity, other in similar if similarity >= link_threshold]
    return [d for d in documents if d.id not in gone], rows, links


def _row(document: Document, kept: str, similarity: float, config: DedupConfig) -> LedgerRow:
    facts = {"score": similarity, "threshold": config.threshold, "duplicate_of": kept}
    return dropped(document, "document", "near_duplicate", detail="Jaccard similarity of shingles", **facts)
