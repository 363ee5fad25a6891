"""Phase `gather`: the kept documents of one partition, from all shards, sorted by id; a ledger row for each that goes.

A partition is read in slices of the id's range, each of about 16 million characters: the memory of a task does not grow with the
partition.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from herd.curation.ledger import LedgerRow, LedgerWriter
from herd.curation.pipeline.index import DUPLICATE_URL, KEPT, NEAR_DUPLICATE, groups_of
from herd.curation.pipeline.tasks import Result, Work
from herd.curation.urls import normalise_url
from herd.runs.tables import TableWriter

if TYPE_CHECKING:
    import pyarrow as pa

_SLICE_CHARACTERS, _SLICE_DOCUMENTS = 16_000_000, 20_000
FACTS = ("id", "url", "date", "language", "domain", "source", "group", "media", "file")  # columns of text that go with a document


def texts_schema() -> "pa.Schema":
    """Columns of a document on its way: facts, place in its file, bucket of the line rule, text."""
    import pyarrow as pa

    facts = [(name, pa.string()) for name in FACTS]
    return pa.schema([*facts, ("position", pa.int64()), ("bucket", pa.int32()), ("text", pa.string())])


def gather(work: Work, partition: int, shards: int) -> Result:
    """Write the partition's kept documents and the ledger rows of extraction and of de-duplication."""
    with (
        LedgerWriter(work.part("gather", partition, ".ledger.parquet")) as ledger,
        TableWriter(work.part("gather", partition, ".parquet"), texts_schema()) as texts,
    ):
        for said in _slices(work, partition):
            rows = _read(work, partition, shards, said["digest"][0], said["digest"][-1])
            assert [row["digest"] for row in rows] == said["digest"], "the index and the shards disagree"
            kept = []
            for i, row in enumerate(rows):
                facts = {name: values[i] for name, values in said.items()}
                for made in row["decisions"]:
                    ledger.add({"id": facts["id"], "url": row["url"], "duplicate_of": "", "lines": [], **made})
                if facts["decision"] == KEPT:
                    kept.append({**row, "id": facts["id"], "bucket": facts["bucket"]})
                elif facts["decision"] in (DUPLICATE_URL, NEAR_DUPLICATE):
                    ledger.add(_duplicate(row["url"], facts, work))
            texts.write_rows([{name: row[name] for name in texts.schema.names} for row in kept])
    return {}


def _duplicate(url: str, facts: dict[str, Any], work: Work) -> LedgerRow:
    common = {"duplicate_of": facts["duplicate_of"], "url": url}
    if facts["decision"] == DUPLICATE_URL:
        detail = f"a newer, or equally new and longer, copy of {normalise_url(url)} stays"
        return LedgerRow(facts["id"], "url", "dropped", "duplicate_url", detail=detail, **common)
    score, limit = facts["similarity"], work.config.dedup.threshold
    detail = "Jaccard similarity of shingles"
    return LedgerRow(facts["id"], "document", "dropped", "near_duplicate", score, limit, detail=detail, **common)


def _slices(work: Work, partition: int) -> Iterator[dict[str, list[Any]]]:
    """What the index says, for runs of documents that fit into memory; equal digests stay in one run."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(work.part("index", partition, ".parquet"))
    sizes: list[np.ndarray] = []
    digests: list[np.ndarray] = []
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns=["characters", "decision", "digest"])
        sizes.append(table["characters"].to_numpy() + 500)
        digests.append(table["digest"].to_numpy())
    if not sizes:
        return
    size, digest = np.concatenate(sizes), np.concatenate(digests)
    piece = np.maximum(np.cumsum(size, dtype=np.int64) // _SLICE_CHARACTERS, np.arange(len(size)) // _SLICE_DOCUMENTS)
    first = np.flatnonzero(np.concatenate([[True], (piece[1:] != piece[:-1]) & (digest[1:] != digest[:-1])]))
    for start, stop in zip(first.tolist(), [*first[1:].tolist(), len(size)], strict=True):
        yield _rows_between(file, start, stop)


def _rows_between(file: Any, start: int, stop: int) -> dict[str, list[Any]]:
    """Rows ``start`` to ``stop`` of a file, as columns."""
    import pyarrow as pa

    parts, at = [], 0
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        if at < stop and at + count > start:
            low = max(start - at, 0)
            parts.append(file.read_row_group(group).slice(low, min(stop - at, count) - low))
        at += count
    found: dict[str, list[Any]] = pa.concat_tables(parts).to_pydict()
    return found


def _read(work: Work, partition: int, shards: int, low: int, high: int) -> list[dict[str, Any]]:
    """Documents of all shards with digests from ``low`` to ``high``, in the order of the index."""
    import pyarrow.parquet as pq

    found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    for shard in range(shards):
        groups = [i for i, first, last in groups_of(work, shard, partition) if first <= high and last >= low]
        if not groups:
            continue
        file = pq.ParquetFile(work.part("extract", shard, ".parquet"))
        for group in groups:
            digests = file.read_row_group(group, columns=["digest"])["digest"].to_numpy()
            start, stop = np.searchsorted(digests, low, "left"), np.searchsorted(digests, high, "right")
            for row in file.read_row_group(group).slice(start, stop - start).to_pylist():
                found.append(((row["digest"], row["file"], row["position"], shard, row["ordinal"]), row))
    found.sort(key=lambda pair: pair[0])
    return [row for _, row in found]
