"""Phase `index`: which documents are copies, from columns alone, in one process.

Numbers every document in the order of its id, keeps the newest of each URL (over all languages: an address is one page) and
then the first of each group of near-duplicates within a language. The total order behind both: newest, longest, smallest id.

Memory, the one place where it grows with the number of documents: 205 bytes a document at the peak (217 measured with dates of
12 bytes more: columns now 57, what was decided 33, the search for near-duplicates up to 51 while it runs, the rest copies while
columns are joined and sorted), and 8 bytes for each (document, band) whose band hash another document shares. Shingles stay on
disk.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from herd.curation.dates import microseconds
from herd.curation.documents import DOMAINS, document_id
from herd.curation.near_duplicates import Duplicates, find_duplicates
from herd.curation.pipeline.extract import partition_of
from herd.curation.pipeline.tasks import Result, Work
from herd.curation.urls import newest_of_each
from herd.runs.tables import TableWriter, write_table

if TYPE_CHECKING:
    import pyarrow as pa

KEPT, REFUSED, DUPLICATE_URL, NEAR_DUPLICATE = range(4)


@dataclass
class _Columns:
    """One element a document, first in the order of shards, then of ids."""

    digest: np.ndarray  # uint64
    shard: np.ndarray  # int32
    ordinal: np.ndarray  # int32, place in its shard
    row: np.ndarray  # int32, place among the shard's accepted documents; -1 = refused
    characters: np.ndarray  # int32
    url: np.ndarray  # uint64
    position: np.ndarray  # int64, place in its file
    date: np.ndarray  # int64, microseconds since 1970; the smallest number = unknown
    language: np.ndarray  # int32, rank of its name
    domain: np.ndarray  # int8
    file: np.ndarray  # int32, rank of the file's name

    def take(self, order: np.ndarray) -> None:
        """Reorder, a column at a time."""
        for name in self.__dataclass_fields__:
            setattr(self, name, getattr(self, name)[order])


def index(work: Work, shards: int) -> Result:
    """Write, for each partition, what becomes of its documents; and the links between kept ones."""
    config = work.config
    columns = _load(work, shards)
    n = len(columns.digest)
    # Equal records have equal digests: the place where they were read tells them apart, whichever shard came first.
    columns.take(np.lexsort((columns.ordinal, columns.shard, columns.position, columns.file, columns.digest)))
    start = np.flatnonzero(np.concatenate([[True], columns.digest[1:] != columns.digest[:-1]])) if n else np.empty(0, int)
    copy = np.arange(n) - np.repeat(start, np.diff([*start, n])) + 1
    decision = np.where(columns.row >= 0, KEPT, REFUSED).astype(np.int8)
    duplicate_of, similarity = np.full(n, -1, np.int64), np.zeros(n)

    # Preferred first: newest, then longest, then smallest id (= number).
    order = np.lexsort((-np.arange(n), columns.characters, columns.date))[::-1]
    if config.dedup.urls:
        accepted = np.flatnonzero(decision == KEPT)
        rank = np.empty(n, np.int64)
        rank[order] = np.arange(n)
        stands = accepted[newest_of_each(columns.url[accepted], rank[accepted])]
        gone = stands != accepted
        decision[accepted[gone]] = DUPLICATE_URL
        duplicate_of[accepted[gone]] = stands[gone]
        del rank
    links: list[tuple[int, int]] = []
    compared = 0
    if config.dedup.documents:
        alive = np.flatnonzero(decision == KEPT)
        place = np.full(n, -1, np.int64)
        place[alive] = np.arange(len(alive))
        found = _near_duplicates(work, shards, columns, alive, place[order[decision[order] == KEPT]])
        gone = found.duplicate_of >= 0
        decision[alive[gone]] = NEAR_DUPLICATE
        duplicate_of[alive[gone]] = alive[found.duplicate_of[gone]]
        similarity[alive[gone]] = found.similarity[gone]
        links = [(int(alive[a]), int(alive[b])) for a, b in found.links]
        compared = found.compared
        del place
    _resolve(duplicate_of, decision)
    bucket = _buckets(columns, decision, config.dedup.line_bucket, config.dedup.line_domains if config.dedup.lines else [])

    def name(i: int) -> str:
        return document_id(int(columns.digest[i]), int(copy[i]))

    bounds = np.searchsorted(columns.digest, _bounds(config.partitions), side="left") if n else np.zeros(config.partitions, int)
    for partition, (low, high) in enumerate(zip(bounds, [*bounds[1:], n], strict=True)):
        _write(
            work.part("index", partition, ".parquet"), columns, copy, decision, duplicate_of, similarity, bucket, low, high, name
        )
    _write_links(work.file("index", "links.parquet"), [(name(a), name(b)) for a, b in sorted(links)])
    characters = columns.characters.astype(np.int64)

    def left(*gone: int) -> dict[str, int]:
        stays = ~np.isin(decision, gone)
        return {"documents": int(stays.sum()), "characters": int(characters[stays].sum())}

    return {
        "extract": left(REFUSED),
        "url": left(REFUSED, DUPLICATE_URL),
        "document": left(REFUSED, DUPLICATE_URL, NEAR_DUPLICATE),
        "duplicate_url": int((decision == DUPLICATE_URL).sum()),
        "near_duplicate": int((decision == NEAR_DUPLICATE).sum()),
        "pairs_compared": compared,
        "links": len(links),
    }


def _bounds(partitions: int) -> np.ndarray:
    """The smallest digest of each partition."""
    lows = [-(-(p << 32) // partitions) << 32 for p in range(partitions)]
    assert all(partition_of(low, partitions) == p for p, low in enumerate(lows))
    return np.array(lows, np.uint64)


def _load(work: Work, shards: int) -> _Columns:
    import pyarrow.parquet as pq

    codes: dict[str, dict[str, int]] = {"language": {}, "file": {}}
    numbers: dict[str, Any] = {"digest": np.uint64, "ordinal": np.int32, "characters": np.int32}
    numbers |= {"url_hash": np.uint64, "position": np.int64}
    kinds = numbers | {
        "shard": np.int32,
        "row": np.int32,
        "date": np.int64,
        "domain": np.int8,
        "language": np.int32,
        "file": np.int32,
    }
    pieces: dict[str, list[np.ndarray]] = {name: [] for name in kinds}
    for shard in range(shards):
        file = pq.ParquetFile(work.part("extract", shard, ".parquet"))
        accepted = 0
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=[name for name in kinds if name not in ("shard", "row")] + ["refused"])
            refused = table["refused"].to_numpy(zero_copy_only=False)
            row = np.cumsum(~refused) - 1 + accepted
            accepted += int((~refused).sum())
            pieces["row"].append(np.where(refused, -1, row).astype(np.int32))
            pieces["shard"].append(np.full(table.num_rows, shard, np.int32))
            for name in numbers:
                pieces[name].append(table[name].to_numpy().astype(numbers[name]))
            pieces["date"].append(np.array([microseconds(d) for d in table["date"].to_pylist()], np.int64))
            pieces["domain"].append(np.array([DOMAINS.index(d) for d in table["domain"].to_pylist()], np.int8))
            for name, known in codes.items():
                values = table[name].to_pylist()
                pieces[name].append(np.array([known.setdefault(v, len(known)) for v in values], np.int32))
    found = {name: np.concatenate(pieces.pop(name)) if pieces[name] else np.empty(0, kind) for name, kind in kinds.items()}
    for name, known in codes.items():  # codes in the order of names, not of first appearance
        rank = np.empty(len(known), np.int32)
        rank[[known[value] for value in sorted(known)]] = np.arange(len(known))
        found[name] = rank[found[name]]
    return _Columns(url=found.pop("url_hash"), **found)


def _near_duplicates(work: Work, shards: int, columns: _Columns, alive: np.ndarray, order: np.ndarray) -> Duplicates:
    """Near-duplicates among the documents ``alive``; ``order`` counts within them."""
    sketches = [_Sketch(work, shard) for shard in range(shards)]
    shard, row = columns.shard[alive], columns.row[alive]

    def band(number: int) -> np.ndarray:
        out = np.empty(len(alive), np.uint64)
        for i, sketch in enumerate(sketches):
            mine = shard == i
            out[mine] = sketch.column(number)[row[mine]]
        return out

    def shingles(document: int) -> np.ndarray:
        return sketches[shard[document]].shingles(int(row[document]))

    settings = work.config.dedup
    return find_duplicates(
        order,
        band(0),
        lambda number: band(number + 1),
        settings.bands,
        shingles,
        settings.threshold,
        work.config.split.link_threshold,
    )


class _Sketch:
    """Band hashes and shingles of one shard, on disk."""

    def __init__(self, work: Work, shard: int) -> None:
        self._blocks = work.result("extract", shard)["blocks"]
        self._bands = _map(work.part("extract", shard, ".bands"), np.uint64)
        self._shingles = _map(work.part("extract", shard, ".shingles"), np.uint32)
        self._ends = np.cumsum(_map(work.part("extract", shard, ".lengths"), np.int64))

    def column(self, number: int) -> np.ndarray:
        """Hashes of one band, in the order of the shard's accepted documents."""
        height = len(self._bands) // max(sum(self._blocks), 1)
        parts, start = [], 0
        for size in self._blocks:
            parts.append(self._bands[start + number * size : start + (number + 1) * size])
            start += height * size
        return np.concatenate(parts) if parts else np.empty(0, np.uint64)

    def shingles(self, row: int) -> np.ndarray:
        """Shingles of one document."""
        return self._shingles[self._ends[row - 1] if row else 0 : self._ends[row]]


def _map(path: Path, kind: Any) -> np.ndarray:
    return np.memmap(path, kind, "r") if path.stat().st_size else np.empty(0, kind)


def _resolve(duplicate_of: np.ndarray, decision: np.ndarray) -> None:
    """Name what is really kept: the newest of a URL may itself have gone as a near-duplicate."""
    for i in np.flatnonzero(decision == DUPLICATE_URL).tolist():
        kept = int(duplicate_of[i])
        if decision[kept] == NEAR_DUPLICATE:
            duplicate_of[i] = duplicate_of[kept]


def _buckets(columns: _Columns, decision: np.ndarray, size: int, domains: list[str]) -> np.ndarray:
    """(documents,) int32: which bucket of ``size`` documents of its language a document's lines are counted in; -1 = in none.

    Buckets are filled in the order of ids, which are hashes: each is a random sample of its language.
    """
    bucket = np.full(len(decision), -1, np.int32)
    counted = (decision == KEPT) & np.isin(columns.domain, [DOMAINS.index(d) for d in domains])
    for language in np.unique(columns.language[counted]):
        members = np.flatnonzero(counted & (columns.language == language))
        bucket[members] = np.arange(len(members)) // size
    return bucket


def decisions_schema() -> "pa.Schema":
    """Columns of what the index says about a partition's documents, in the order of their ids."""
    import pyarrow as pa

    kinds = (pa.string(), pa.uint64(), pa.int8(), pa.string(), pa.float64(), pa.int32(), pa.int32())
    return pa.schema(
        list(zip(("id", "digest", "decision", "duplicate_of", "similarity", "bucket", "characters"), kinds, strict=True))
    )


def _write(
    path: Path,
    columns: _Columns,
    copy: np.ndarray,
    decision: np.ndarray,
    duplicate_of: np.ndarray,
    similarity: np.ndarray,
    bucket: np.ndarray,
    low: int,
    high: int,
    name: Callable[[int], str],
) -> None:
    import pyarrow as pa

    schema, step = decisions_schema(), 100_000
    with TableWriter(path, schema) as writer:
        for start in range(low, high, step):
            part = slice(start, min(start + step, high))
            ids = [document_id(d, c) for d, c in zip(columns.digest[part].tolist(), copy[part].tolist(), strict=True)]
            other = [name(i) if i >= 0 else "" for i in duplicate_of[part].tolist()]
            numbers = (similarity[part], bucket[part], columns.characters[part])
            values = [ids, columns.digest[part], decision[part], other, *numbers]
            writer.write(pa.table([pa.array(v, f.type) for v, f in zip(values, schema, strict=True)], schema=schema))


def _write_links(path: Path, links: list[tuple[str, str]]) -> None:
    import pyarrow as pa

    columns = {"a": pa.array([a for a, _ in links], pa.string()), "b": pa.array([b for _, b in links], pa.string())}
    write_table(path, pa.table(columns))


def groups_of(work: Work, shard: int, partition: int) -> list[tuple[int, int, int]]:
    """(row group, first digest, last digest) of a shard's documents that belong to ``partition``."""
    groups = json.loads(work.part("extract", shard, ".json").read_text(encoding="utf-8"))["groups"]
    return [(i, low, high) for i, (p, low, high) in enumerate(groups) if p == partition]
