"""Phase `extract`: one shard of the input -> texts, shingles and band hashes, ordered so that each partition can read its own.

A shard is read as a stream. Whenever about 16 million characters are waiting they are sorted by id and written, a row group for
each partition: the memory of a task does not grow with its shard.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from herd.curation.blocklists import BlockLists, load_blocklists
from herd.curation.config import CurateConfig, ExtractionConfig
from herd.curation.dates import canonical
from herd.curation.documents import RawEntry, Record
from herd.curation.entries import documented
from herd.curation.extraction import Refusal, decode, extract_html
from herd.curation.ledger import LedgerRow, LedgerWriter
from herd.curation.near_duplicates import band_hashes
from herd.curation.neardup import minhash
from herd.curation.pii import redact
from herd.curation.pipeline.tasks import Result, Work
from herd.curation.sources import Context, Shard, load_sources, read_shard
from herd.curation.text import shingles, tidy, tidy_code
from herd.curation.urls import url_hash
from herd.runs.tables import Replacing, TableWriter

if TYPE_CHECKING:
    import pyarrow as pa

_CHUNK_CHARACTERS, _CHUNK_DOCUMENTS = 16_000_000, 20_000


@dataclass(slots=True)
class Prepared:
    """What became of one record."""

    text: str = ""
    language: str = ""
    domain: str = ""
    date: str = ""  # in UTC and in one form; "" = unknown
    refused: bool = False
    decisions: list[dict[str, Any]] = field(default_factory=list)  # ledger rows without id, url and lines

    def decide(self, action: str, rule: str, stage: str = "extract", **facts: Any) -> None:
        """Note a decision (score, threshold, detail); ``dropped`` ends the document."""
        known: dict[str, Any] = {"score": None, "threshold": None, "detail": ""}
        self.decisions.append({"stage": stage, "action": action, "rule": rule} | known | facts)
        if action == "dropped":
            self.refused, self.text = True, ""


def prepare(record: Record, config: CurateConfig, blocked: BlockLists) -> Prepared:
    """Raw record -> its text in its language without personal data, or the reason why there is none."""
    found = Prepared(language=record.language, domain=record.domain, date=canonical(record.date))
    if record.date.strip() and not found.date:
        written = record.date[:40].encode("utf-8", "replace").decode()
        found.decide("edited", "unknown_date", detail=f"'{written}' is no date: it is older than every other")
    if (listed := blocked.find(record.url)) is not None:
        found.decide("dropped", f"blocked_{listed.kind}", "url", detail=f"listed as {listed.entry}")
        return found
    text = _text(record, config.extraction)
    if isinstance(text, Refusal):
        found.decide("dropped", text.rule, score=text.score, threshold=text.threshold, detail=text.detail)
        return found
    if not text.strip():
        found.decide("dropped", "no_text", detail="the text is empty")
        return found
    if len(text) > config.extraction.max_characters:
        limit = float(config.extraction.max_characters)
        found.decide(
            "dropped", "text_too_long", score=float(len(text)), threshold=limit, detail="longer than extraction.max_characters"
        )
        return found
    found.text = text
    _identify(found, record, config)
    found.text, replaced = redact(text, config.pii)
    if replaced:
        detail = ", ".join(f"{kind} {count}" for kind, count in replaced.items()) + " replaced"
        found.decide("edited", "pii", score=float(sum(replaced.values())), detail=detail)
    return found


def _identify(found: Prepared, record: Record, config: CurateConfig) -> None:
    """The language of prose, where it is surely not the declared one; general pages of other languages are multilingual."""
    if config.source.kind == "python" or record.media == "code" or record.domain == "code":
        return  # that source knows its languages, and code is none
    language, probability = config.language.choose(found.text, record.language)
    if language == record.language:
        return
    limit, detail = config.language.min_probability, f"declared {record.language}, found {language}"
    found.decide("edited", "language", score=probability, threshold=limit, detail=detail)
    found.language = language
    if record.domain in ("general", "multilingual"):
        found.domain = "general" if language == "en" else "multilingual"


def _text(record: Record, config: ExtractionConfig) -> str | Refusal:
    if record.media == "html":
        return extract_html(record.content, config, record.charset)
    if len(record.content) > 4 * config.max_characters:  # at most four bytes a character: refused before it is decoded
        limit = 4.0 * config.max_characters
        return Refusal("text_too_long", "longer than extraction.max_characters allows", float(len(record.content)), limit)
    content = record.content
    text = decode(content, config.max_replaced, declared=False, charset=record.charset) if isinstance(content, bytes) else content
    if isinstance(text, Refusal):
        return text
    text = text.encode("utf-8", "replace").decode("utf-8")  # lone surrogates, as JSON escapes can hold, become "?"
    return tidy_code(text) if record.media == "code" else tidy(text)


def extract(work: Work, number: int, shard: Shard) -> Result:
    """Read shard ``number``; write its documents, band hashes, shingles, problems and documented functions."""
    config = work.config
    context = Context(config.seed, config.workers, work.scratch / "source")
    counts: Counter[str] = Counter()
    blocked = load_blocklists(config.blocklists)
    with LedgerWriter(work.part("extract", number, ".problems.parquet")) as problems, _Chunks(work, number) as chunks:
        for item in read_shard(shard, config.source, context):
            if isinstance(item, LedgerRow):
                problems.add(item)
                continue
            prepared = prepare(item, config, blocked)
            chunks.add(item, prepared)
            counts["documents"] += 1
            counts["raw_characters"] += len(item.content)
            counts["characters"] += len(prepared.text)
        first = problems.first
    entries = load_sources().get(config.source.kind).entries
    found = 0
    with TableWriter(work.part("extract", number, ".entries.parquet"), entries_schema()) as writer:
        for rows in _batched(entries(shard, config.source, context) if entries else iter(())):
            writer.write_rows(rows)
            found += len(rows)
    return {
        **{name: counts[name] for name in ("documents", "raw_characters", "characters")},
        "problems": problems.counts(),
        "first_problem": first,
        "entries": found,
        "dropped": dict(sorted(chunks.dropped.items())),
        "edited": dict(sorted(chunks.edited.items())),
        "groups": chunks.groups,
        "blocks": chunks.blocks,
    }


def entries_schema() -> "pa.Schema":
    """Columns of the documented functions that a source finds."""
    import pyarrow as pa

    names = ("url", "package", "name", "signature", "summary", "description")
    return pa.schema([*((name, pa.string()) for name in names), ("parameters", pa.list_(pa.string()))])


def _batched(items: Iterator[RawEntry], size: int = 2_000) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    names = entries_schema().names
    for item in items:
        found = documented(item)
        batch.append({name: getattr(found, name) for name in names})
        if len(batch) >= size:
            yield batch
            batch = []
    if batch:
        yield batch


def documents_schema() -> "pa.Schema":
    """Columns of extracted documents."""
    import pyarrow as pa

    text = pa.string()
    decision = pa.struct(
        [
            ("stage", text),
            ("action", text),
            ("rule", text),
            ("score", pa.float64()),
            ("threshold", pa.float64()),
            ("detail", text),
        ]
    )
    numbers = [("digest", pa.uint64()), ("ordinal", pa.int64()), ("refused", pa.bool_()), ("characters", pa.int64())]
    numbers += [("raw_characters", pa.int64()), ("url_hash", pa.uint64()), ("position", pa.int64())]
    texts = ("url", "date", "language", "domain", "source", "group", "media", "file", "text")
    return pa.schema([*numbers, *((name, text) for name in texts), ("decisions", pa.list_(decision))])


class _Chunks:
    """Context manager: the files of one shard, written a chunk at a time."""

    def __init__(self, work: Work, number: int) -> None:
        self.config, self.partitions = work.config, work.config.partitions
        self._table = TableWriter(work.part("extract", number, ".parquet"), documents_schema())
        self._files = [Replacing(work.part("extract", number, suffix)) for suffix in (".bands", ".shingles", ".lengths")]
        self.groups: list[tuple[int, int, int]] = []  # (partition, first digest, last digest) of each row group
        self.blocks: list[int] = []  # documents in each block of band hashes
        self.dropped: Counter[str] = Counter()
        self.edited: Counter[str] = Counter()
        self._ordinal = 0
        self._clear()

    def __enter__(self) -> "_Chunks":
        self._table.__enter__()
        self._open: list[BinaryIO] = [file.__enter__() for file in self._files]
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if kind is None:
                self._flush()
        except BaseException as failed:
            kind, error, trace = type(failed), failed, failed.__traceback__
            raise
        finally:
            for file in self._files:
                file.__exit__(kind, error, trace)
            self._table.__exit__(kind, error, trace)

    def _clear(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._shingles: dict[int, np.ndarray] = {}
        self._characters = 0

    def add(self, record: Record, prepared: Prepared) -> None:
        row = {name: getattr(record, name) for name in ("url", "source", "group", "media", "file", "position")}
        # Lone surrogates cannot be stored.
        row = {name: v.encode("utf-8", "replace").decode() if isinstance(v, str) else v for name, v in row.items()}
        row |= {"digest": int(record.digest(), 16), "ordinal": self._ordinal, "refused": prepared.refused, "text": prepared.text}
        row |= {
            "language": prepared.language,
            "domain": prepared.domain,
            "date": prepared.date,
            "url_hash": url_hash(record.url),
            "characters": len(prepared.text),
        }
        row |= {"raw_characters": len(record.content), "decisions": prepared.decisions}
        for decision in prepared.decisions:
            (self.dropped if decision["action"] == "dropped" else self.edited)[decision["rule"]] += 1
        if not prepared.refused:
            dedup = self.config.dedup
            wanted = dedup.documents
            found = shingles(prepared.text, prepared.language, dedup.shingle_words) if wanted else np.empty(0, np.uint32)
            self._shingles[self._ordinal] = found
        self._rows.append(row)
        self._ordinal += 1
        self._characters += len(prepared.text) + 500
        if self._characters >= _CHUNK_CHARACTERS or len(self._rows) >= _CHUNK_DOCUMENTS:
            self._flush()

    def _flush(self) -> None:
        """Sort what waits by id and write it."""
        rows = sorted(self._rows, key=lambda row: (row["digest"], row["ordinal"]))
        parts: dict[int, list[dict[str, Any]]] = {}
        for row in rows:
            parts.setdefault(partition_of(row["digest"], self.partitions), []).append(row)
        for partition, members in sorted(parts.items()):
            self._table.write_rows(members)
            self.groups.append((partition, members[0]["digest"], members[-1]["digest"]))
        accepted = [row for row in rows if not row["refused"]]
        if accepted:
            bands, held = self._open[0], [self._shingles[row["ordinal"]] for row in accepted]
            bands.write(self._band_block(accepted, held).tobytes())
            self._open[1].write(np.concatenate(held).astype(np.uint32).tobytes())
            self._open[2].write(np.array([len(h) for h in held], np.int64).tobytes())
            self.blocks.append(len(accepted))
        self._clear()

    def _band_block(self, rows: list[dict[str, Any]], held: list[np.ndarray]) -> np.ndarray:
        """(1 + bands, documents) uint64: a hash of all shingles, then one for each band."""
        dedup = self.config.dedup
        exact = np.array([_exact(row, own) for row, own in zip(rows, held, strict=True)], np.uint64)
        if not dedup.documents:
            return exact[None]
        salt = np.array([_hash64(row["language"].encode()) for row in rows], np.uint64)
        signatures = np.zeros((len(rows), dedup.permutations), np.uint64)
        for i, own in enumerate(held):
            if len(own):
                signatures[i] = minhash(own, dedup.permutations)
            else:  # nothing to compare by band: a signature of its own
                signatures[i] = np.uint64(rows[i]["digest"]) ^ np.uint64(rows[i]["ordinal"])
        return np.concatenate([exact[None], band_hashes(signatures, dedup.bands, dedup.rows, salt)])


def partition_of(digest: int, partitions: int) -> int:
    """Partition of an id by its leading bits, for any number of partitions; ranges of ids, so that partitions are in order."""
    return (digest >> 32) * partitions >> 32


def _exact(row: dict[str, Any], own: np.ndarray) -> int:
    body = own.tobytes() or row["text"].encode("utf-8", "surrogatepass")
    return _hash64(row["language"].encode() + b"\x1f" + body)


def _hash64(raw: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")
