"""Phase `write`: documents by split, the ledger of each partition, documented functions, removed lines."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from herd.curation.entries import Documented, build_entries
from herd.curation.ledger import LedgerRow, LedgerWriter, merge
from herd.curation.pipeline.extract import entries_schema
from herd.curation.pipeline.lines import REPORTED, FrequentLines
from herd.curation.pipeline.measure import measured_file
from herd.curation.pipeline.split import chosen_documents, cuts, train_words
from herd.curation.pipeline.tasks import Result, Work
from herd.curation.text import runs_present
from herd.runs.tables import TableWriter, iterate_rows, shard_path, write_table

if TYPE_CHECKING:
    import pyarrow as pa

SPLITS = ("train", "heldout")
_GROUP = 8_192  # documents of a row group


def documents_schema() -> "pa.Schema":
    """Columns of the documents that leave curation."""
    import pyarrow as pa

    names = ("id", "url", "date", "language", "domain", "source", "file")
    texts = [(name, pa.string()) for name in names]
    return pa.schema(
        [*texts, ("position", pa.int64()), ("text", pa.string()), ("quality", pa.float32()), ("category", pa.string())]
    )


def write_partition(work: Work, partition: int) -> Result:
    """Write the partition's documents of both splits and its ledger."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("documents", "characters", "languages")}
    folder, partitions = work.folder / "documents", work.config.partitions
    schema = documents_schema()
    own = work.part("write", partition, ".ledger.parquet")
    with (
        LedgerWriter(own) as ledger,
        TableWriter(shard_path(folder, "train", partition, partitions), schema, _GROUP) as train,
        TableWriter(shard_path(folder, "heldout", partition, partitions), schema, _GROUP) as heldout,
    ):
        tables = {"train": train, "heldout": heldout}
        for rows in _final(work, partition, ledger):
            for row in rows:
                split = "heldout" if row["heldout"] else "train"
                counts["documents"][f"{split}/{row['domain']}"] += 1
                counts["characters"][f"{split}/{row['domain']}"] += len(row["text"])
                counts["languages"][row["language"]] += 1
            for split, table in tables.items():
                own_rows = [row for row in rows if row["heldout"] == (split == "heldout")]
                table.write_rows([{name: row[name] for name in schema.names} for row in own_rows])
        dropped = ledger.counts()
    parts = [own, measured_file(work, "ledger", partition)]
    phases = ("rules", "choose", "mix") if work.config.downsampled else ("rules", "choose")
    parts += [work.part(phase, partition, ".ledger.parquet") for phase in phases]
    with LedgerWriter(shard_path(work.folder / "ledger", "ledger", partition, partitions)) as ledger:
        for plain in merge(parts):
            ledger.add(plain)
    return {**{name: dict(sorted(count.items())) for name, count in counts.items()}, "dropped": dropped}


def _final(work: Work, partition: int, ledger: LedgerWriter) -> Iterator[list[dict[str, Any]]]:
    """Chosen documents as they leave; held-out ones without what train holds too, those that lose too much not at all."""
    cut = cuts(work, partition)
    following = next(cut, None)
    n, most = work.config.split.overlap_words, work.config.split.max_overlap
    for rows in chosen_documents(work, partition):
        final = []
        for row in rows:
            if following is None or row["id"] != following["id"]:
                final.append(_kept(row, ledger))
                continue
            share, text, lines = following["share"], following["text"], following["lines"]
            following = next(cut, None)
            if share > most or not text:
                detail = f"runs of {n} words that train holds"
                ledger.add(LedgerRow(row["id"], "split", "dropped", "overlaps_train", share, most, detail=detail, url=row["url"]))
                continue
            detail = f"{lines} lines with runs of {n} words that train holds removed"
            ledger.add(LedgerRow(row["id"], "split", "edited", "overlap_cut", share, most, detail=detail, url=row["url"]))
            final.append(_kept(row | {"text": text}, ledger))
        yield final


def _kept(row: dict[str, Any], ledger: LedgerWriter) -> dict[str, Any]:
    """Note that a document stays; rows of the ledger are sorted by id, so this cannot wait for the end of a batch."""
    ledger.add(LedgerRow(row["id"], "split", "kept", "heldout" if row["heldout"] else "train", row["quality"], url=row["url"]))
    return row


def write_problems(work: Work, shards: int) -> Result:
    """What never became a document, in the order of the shards."""
    with LedgerWriter(work.measured / "measured" / "problems.parquet") as ledger:
        for shard in range(shards):
            for row in iterate_rows(work.part("extract", shard, ".problems.parquet")):
                ledger.add(row)
    return {"problems": ledger.counts()}


def write_removed_lines(work: Work) -> Result:
    """``removed_lines.parquet``: the lines with most copies, how often each occurred, and how it reads."""
    import pyarrow as pa

    copies = FrequentLines(work).most_copies(REPORTED)
    texts: dict[int, str] = {}
    for partition in range(work.config.partitions):
        for row in iterate_rows(work.part("measure", partition, ".lines.parquet")):
            texts[row["line"]] = min(texts.get(row["line"], row["text"]), row["text"])
    rows = [{"line": line, "copies": count, "text": texts.get(line, "")[:1000]} for line, count in copies.items()]
    schema = pa.schema([("line", pa.uint64()), ("copies", pa.int64()), ("text", pa.string())])
    write_table(work.measured / "measured" / "removed_lines.parquet", pa.Table.from_pylist(rows, schema=schema))
    return {}


def write_raw_entries(work: Work, shards: int) -> Result:
    """The documented functions of all shards in one file."""
    found = 0
    with TableWriter(work.measured / "measured" / "entries.parquet", entries_schema()) as table:
        for shard in range(shards):
            rows = list(iterate_rows(work.part("extract", shard, ".entries.parquet")))
            found += len(rows)
            table.write_rows(rows)
    return {"entries": found}


def write_entries(work: Work) -> Result:
    """``entries.parquet``: documented functions whose document survived, sorted by id; `parameters` is a JSON list of names."""
    import pyarrow as pa

    raw = [Documented(**row) for row in iterate_rows(work.measured / "measured" / "entries.parquet")]
    urls = {entry.url for entry in raw}
    home: dict[str, tuple[str, str]] = {}
    for split in SPLITS if raw else ():
        for partition in range(work.config.partitions):
            path = shard_path(work.folder / "documents", split, partition, work.config.partitions)
            for row in iterate_rows(path, ["id", "url"]):
                if row["url"] in urls:
                    home[row["url"]] = (row["id"], split)

    def present(n: int, wanted: np.ndarray) -> np.ndarray:
        found = np.zeros(len(wanted), bool)
        for partition in range(work.config.partitions):
            found |= runs_present(train_words(work, partition), n, wanted)
        return found

    entries, left_out = build_entries(raw, home, present)
    names = ("id", "document_id", "split", "package", "name", "signature", "summary", "description")
    columns: dict[str, Any] = {name: pa.array([getattr(e, name) for e in entries], pa.string()) for name in names}
    columns["parameters"] = pa.array([json.dumps(list(e.parameters)) for e in entries], pa.string())
    write_table(work.folder / "entries.parquet", pa.table(columns))
    return {"entries": dict(sorted(Counter(e.split for e in entries).items())), "left_out": left_out}
