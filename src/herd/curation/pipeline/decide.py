"""Phase `decide`: which documents stay, from the stored scores alone. No text is read."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from herd.curation.documents import DOMAINS
from herd.curation.ledger import LedgerRow, LedgerWriter
from herd.curation.mix import keeps, place
from herd.curation.pipeline.measure import measured_file
from herd.curation.pipeline.tasks import Result, Work
from herd.curation.rules import first_broken
from herd.curation.split import group_hash, order_hash
from herd.runs.tables import Replacing, TableWriter, open_table

if TYPE_CHECKING:
    import pyarrow as pa

_BINS = 65_536  # of a classifier's score, which lies in [0, 1]
_ROWS = 1_024  # documents in memory
_GROUP = 8_192  # documents of a row group


def kept_schema() -> "pa.Schema":
    """Columns of the documents that the rules keep."""
    import pyarrow as pa

    texts = [(name, pa.string()) for name in ("id", "url", "domain", "category")]
    return pa.schema([*texts, ("characters", pa.int64()), ("quality", pa.float64())])


def apply_rules(work: Work, partition: int) -> Result:
    """The rules' table of limits, by domain; and how the classifier's scores of what stays are distributed."""
    histogram = np.zeros(_BINS, np.int64)
    counts: Counter[str] = Counter(documents=0, characters=0)
    with (
        LedgerWriter(work.part("rules", partition, ".ledger.parquet")) as ledger,
        TableWriter(work.part("rules", partition, ".parquet"), kept_schema(), _GROUP) as table,
    ):
        for batch in open_table(measured_file(work, "scores", partition)).iter_batches(_ROWS):
            kept = []
            for row in batch.to_pylist():
                domain = _routed(row, work, ledger)
                broken = first_broken(row, row["language"], getattr(work.config.rules, domain))
                if broken is not None:
                    rule, score, threshold = broken
                    ledger.add(LedgerRow(row["id"], "quality", "dropped", rule, score, threshold, url=row["url"]))
                    continue
                size = int(row["characters"])
                counts.update(documents=1, characters=size)
                kept.append({**row, "domain": domain, "characters": size, "category": row.get("knowledge_class")})
                if row["quality"] is not None:
                    histogram[_bin(row["quality"])] += 1
            table.write_rows([{name: row[name] for name in table.schema.names} for row in kept])
        with Replacing(work.part("rules", partition, ".histogram")) as out:
            out.write(histogram.tobytes())
        return {**counts, "dropped": ledger.counts()}


def _routed(row: dict[str, Any], work: Work, ledger: LedgerWriter) -> str:
    """The domain of a document: its own, or for a general page the routed one whose classifier is surest."""
    domain = str(row["domain"])
    if domain != "general":
        return domain
    reached = [(row[name], name) for name, limit in work.config.route.items() if row[name] is not None and row[name] >= limit]
    if not reached:
        return domain
    score, name = max(reached)
    facts = {"score": score, "threshold": work.config.route[name], "detail": f"general page, now of domain {name}"}
    ledger.add(LedgerRow(row["id"], "quality", "edited", f"routed_{name}", url=row["url"], **facts))
    return name


def _bin(score: float) -> int:
    return min(max(int(score * _BINS), 0), _BINS - 1)


def threshold(work: Work) -> dict[str, float]:
    """The score below which at most ``drop_share`` of the scored documents lie, to 1/65,536; over all partitions."""
    total = np.zeros(_BINS, np.int64)
    for partition in range(work.config.partitions):
        total += np.fromfile(work.part("rules", partition, ".histogram"), np.int64)
    scored = int(total.sum())
    if not scored or not work.config.classifier.enabled:
        return {}
    below = np.cumsum(total) - total  # documents under each bin
    edge = int(np.flatnonzero(below <= work.config.classifier.drop_share * scored)[-1])
    return {"scored": scored, "threshold": edge / _BINS}


def choose(work: Work, partition: int, limit: float | None) -> Result:
    """Apply the quality classifier's threshold; write what the split needs to know of the documents that stay."""
    counts: Counter[str] = Counter(documents=0, characters=0)
    classes: dict[str, Counter[str]] = {"documents": Counter(), "characters": Counter()}
    languages: Counter[str] = Counter()
    with (
        LedgerWriter(work.part("choose", partition, ".ledger.parquet")) as ledger,
        TableWriter(work.part("choose", partition, ".parquet"), chosen_schema(), _GROUP) as table,
    ):
        for rows in _facts(work, partition):
            kept = []
            for row in rows:
                if limit is not None and row["quality"] is not None and row["quality"] < limit:
                    facts = {"score": row["quality"], "threshold": limit, "detail": "little like the reference prose"}
                    ledger.add(LedgerRow(row["id"], "classifier", "dropped", "low_quality", url=row["url"], **facts))
                    continue
                size = row["characters"]
                counts.update(documents=1, characters=size)
                languages[f"{row['domain']}/{row['language']}"] += size
                if row["category"]:
                    classes["documents"][row["category"]] += 1
                    classes["characters"][row["category"]] += size
                row |= {"group": group_hash(row["group"]), "domain": DOMAINS.index(row["domain"])}
                row["order"] = order_hash(work.config.seed, row["name"])
                kept.append({name: row[name] for name in table.schema.names})
            table.write_rows(kept)
        return {**counts, "dropped": ledger.counts(), "classes": classes, "languages": dict(sorted(languages.items()))}


def downsample(work: Work, partition: int, rates: dict[str, float]) -> Result:
    """Keep each document of a knowledge class at the class's rate, by a hash of its id."""
    counts: Counter[str] = Counter(documents=0, characters=0)
    with (
        LedgerWriter(work.part("mix", partition, ".ledger.parquet")) as ledger,
        TableWriter(work.part("mix", partition, ".parquet"), chosen_schema(), _GROUP) as table,
    ):
        for batch in open_table(work.part("choose", partition, ".parquet")).iter_batches(_ROWS):
            kept = []
            for row in batch.to_pylist():
                rate = rates.get(row["category"] or "", 1.0)
                if keeps(row["id"], rate, work.config.seed):
                    counts.update(documents=1, characters=row["characters"])
                    kept.append(row)
                    continue
                where, detail = place(row["id"], work.config.seed), f"{row['category']} is over-represented"
                ledger.add(LedgerRow(row["id"], "mix", "dropped", "downsampled", where, rate, detail=detail, url=row["url"]))
            table.write_rows(kept)
        return {**counts, "dropped": ledger.counts()}


def final_choice(work: Work, partition: int) -> Path:
    """The table of the documents that stay, after the last of these decisions."""
    return work.part("mix" if work.config.downsampled else "choose", partition, ".parquet")


def chosen_schema() -> "pa.Schema":
    """Columns of the documents that stay; ``group`` and ``order`` are hashes."""
    import pyarrow as pa

    numbers = [("characters", pa.int64()), ("quality", pa.float64()), ("group", pa.uint64()), ("order", pa.uint64())]
    texts = [(name, pa.string()) for name in ("id", "url", "language", "category")]
    return pa.schema([*texts, ("domain", pa.int8()), *numbers])


def _facts(work: Work, partition: int) -> Iterator[list[dict[str, Any]]]:
    """Documents that the rules keep, with the facts that measuring stored; both files are sorted by id."""
    columns = ["id", "group", "language"]
    facts = (
        row
        for batch in open_table(measured_file(work, "documents", partition)).iter_batches(_ROWS, columns=columns)
        for row in batch.to_pylist()
    )
    for batch in open_table(work.part("rules", partition, ".parquet")).iter_batches(_ROWS):
        rows = batch.to_pylist()
        for row in rows:
            own = next(fact for fact in facts if fact["id"] == row["id"])
            row |= own | {"name": own["group"] or row["url"] or row["id"]}
        yield rows
