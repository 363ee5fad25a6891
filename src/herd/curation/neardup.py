"""Document de-duplication: MinHash candidates, decided by exact Jaccard similarity, within a language (paper, section 3.1.1)."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from herd.curation.config import DedupConfig
from herd.curation.documents import Document
from herd.curation.ledger import LedgerRow, dropped
from herd.curation.text import jaccard


def _identity(value: int) -> int:
    return value


@functools.cache
def _empty(permutations: int) -> Any:
    """A sketch of the empty set: copying it is cheaper than drawing its permutations again."""
    from datasketch import MinHash

    return MinHash(num_perm=permutations, seed=1, hashfunc=_identity)


def minhash(shingles: np.ndarray, permutations: int) -> np.ndarray:
    """MinHash values (permutations,) of a set of 32-bit shingle hashes, by datasketch."""
    sketch = _empty(permutations).copy()
    sketch.update_batch(shingles.tolist())
    return np.asarray(sketch.hashvalues)


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
    from datasketch import MinHashLSH

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
        sketch = _empty(config.permutations).copy()
        sketch.hashvalues = document.signature
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
