"""Stage `curate`: raw records -> documents of four domains, split, with a reason for every decision.

The order is the paper's (section 3.1.1): URL, extraction, documents, lines, heuristics, model-based quality; then the
held-out split.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from herd.config.errors import UserError
from herd.curation.classifier import QualityClassifier, reference_documents
from herd.curation.config import CurateConfig
from herd.curation.documents import DOMAINS, Document, Record, assign_ids
from herd.curation.entries import Entry, build_entries
from herd.curation.extraction import Refusal
from herd.curation.ledger import Ledger, LedgerRow, dropped, edited
from herd.curation.lines import deduplicate_lines, ranges
from herd.curation.neardup import deduplicate_documents
from herd.curation.rules import count_rules
from herd.curation.sources import Context, collect, content_hashes, load_sources
from herd.curation.split import choose_heldout, cut_overlap
from herd.curation.text import tidy, word_stream
from herd.curation.urls import deduplicate_urls
from herd.curation.workers import Pool, hash_words, judge, prepare
from herd.runs.atomic import write_json
from herd.runs.progress import progress
from herd.runs.stage import Inputs, Stage, StageRun


def run(config: CurateConfig, inputs: Inputs, run: StageRun) -> dict[str, Any]:
    """Write documents, entries, ledger and funnel into ``run.folder``; return the stage's metrics."""
    scratch = run.scratch / "source"
    scratch.mkdir(parents=True, exist_ok=True)
    found = collect(config.source, Context(config.seed, config.workers, scratch))
    ledger = Ledger()
    ids = assign_ids(found.records)
    ledger.step("collected", len(ids), sum(len(r.content) for r in found.records))
    ledger.extend(found.problems)  # what never became a record: files, lines, modules

    if config.dedup.urls:
        kept, rows = deduplicate_urls(found.records, ids)
        ledger.extend(rows)
        records, ids = [found.records[i] for i in kept], [ids[i] for i in kept]
    else:
        records = found.records
    ledger.step("url", len(records), sum(len(r.content) for r in records))

    metrics: dict[str, Any] = {"documents_in": len(found.records), "source_problems": len(found.problems)}
    with Pool(config.workers) as pool:
        documents = _extract(records, ids, config, pool, ledger)
        raw_texts = [d.text for d in documents if d.language == "en" and d.domain in config.classifier.score_domains]
        links: list[tuple[str, str]] = []
        if config.dedup.documents:
            documents, rows, links = deduplicate_documents(documents, config.dedup, config.split.link_threshold)
            ledger.extend(rows)
        for document in documents:
            document.shingles, document.signature = document.shingles[:0], None  # free them
        _step(ledger, "document", documents)
        if config.dedup.lines:
            documents, rows = deduplicate_lines(documents, config.dedup)
            metrics["lines_removed"] = int(sum(r.score or 0 for r in rows if r.id.startswith("line:")))
            ledger.extend(rows)
        _step(ledger, "line", documents)
        documents = _apply_rules(documents, config, pool, ledger)
        documents, metrics["classifier"] = _score(documents, raw_texts, config, ledger)
        chosen = choose_heldout(documents, links, config.split, config.seed)
        train = sorted((d for d in documents if d.id not in chosen), key=lambda d: d.id)
        train_words = word_stream(pool.map(hash_words, [(d.text, d.language) for d in train]))
    heldout, rows = cut_overlap(train_words, sorted((d for d in documents if d.id in chosen), key=lambda d: d.id), config.split)
    ledger.extend(rows)
    _step(ledger, "split", [*train, *heldout])
    if not train:
        raise UserError("No document is left for training: loosen rules.* or give more data (see funnel and ledger).")
    entries, left_out = build_entries(found.entries, train, heldout, train_words)

    for name, part in (("train", train), ("heldout", heldout)):
        write_documents(run.folder / "documents" / f"{name}.parquet", part)
        rows = [LedgerRow(d.id, "split", "kept", name, d.quality) for d in sorted(part, key=lambda d: d.id)]
        ledger.extend(rows)
    write_entries(run.folder / "entries.parquet", entries)
    _write_table(run.folder / "ledger.parquet", ledger.table())
    write_json(run.folder / "funnel.json", ledger.funnel)
    everything = [*train, *heldout]
    return metrics | {
        "documents_out": len(everything),
        "characters_out": sum(len(d.text) for d in everything),
        "documents_by_domain": dict(Counter(d.domain for d in sorted(everything, key=lambda d: d.domain))),
        "characters_by_domain": _characters(everything),
        "heldout_documents_by_domain": dict(Counter(d.domain for d in sorted(heldout, key=lambda d: d.domain))),
        "heldout_characters_by_domain": _characters(heldout),
        "languages": dict(sorted(Counter(d.language for d in everything).items())),
        "entries": dict(sorted(Counter(e.split for e in entries).items())),
        "entries_left_out": left_out,
    }


def fingerprint(config: CurateConfig) -> dict[str, Any]:
    """What the result depends on outside the configuration: versions of what is read, or the content of the user's files."""
    found: dict[str, Any] = load_sources().get(config.source.kind).fingerprint(config.source)
    reference = Path(config.classifier.reference)
    if config.classifier.enabled and config.classifier.reference and reference.exists():
        found = found | {"reference": content_hashes(reference)}
    return found


STAGE = Stage(
    name="curate",
    version=1,
    config=CurateConfig,
    run=run,
    fingerprint=fingerprint,
    execution=("workers",),
    summary="raw pages -> deduplicated, filtered documents of four domains",
)


def _extract(records: Sequence[Record], ids: Sequence[str], config: CurateConfig, pool: Pool, ledger: Ledger) -> list[Document]:
    documents = []
    tasks = [(record, config.extraction, config.dedup) for record in records]
    with progress("extracting text", len(tasks), "documents") as bar:
        for record, name, result in zip(records, ids, pool.map(prepare, tasks), strict=True):
            bar.advance(1)
            if isinstance(result, Refusal):
                row = LedgerRow(
                    name,
                    "extract",
                    "dropped",
                    result.rule,
                    result.score,
                    result.threshold,
                    "",
                    f"{record.url}: {result.detail}",
                )
                ledger.add(row)
                continue
            text, shingles, signature = result
            facts = (record.url, record.date, record.language, record.domain, record.source, record.group, record.media)
            documents.append(Document(name, *facts, text, None, shingles, signature))
    _step(ledger, "extract", documents)
    return documents


def _apply_rules(documents: list[Document], config: CurateConfig, pool: Pool, ledger: Ledger) -> list[Document]:
    kept = []
    tasks = [(d.text, d.language, d.domain, d.media, config.rules) for d in documents]
    with progress("applying rules", len(tasks), "documents") as bar:
        for document, (lines, broken) in zip(documents, pool.map(judge, tasks), strict=True):
            bar.advance(1)
            if lines:
                gone = sorted({i for i, _ in lines})
                counts = ", ".join(f"{rule} {n}" for rule, n in count_rules(lines).items())
                detail = f"lines {ranges(gone)} removed: {counts}"
                ledger.add(edited(document, "quality", "line_rules", score=float(len(gone)), detail=detail))
                text = document.text.split("\n")
                document.text = tidy("\n".join(line for i, line in enumerate(text) if i not in set(gone)))
            if broken is None:
                kept.append(document)
            else:
                rule, score, threshold = broken
                ledger.add(dropped(document, "quality", rule, score=score, threshold=threshold, detail=document.url))
    _step(ledger, "quality", kept)
    return kept


def _score(
    documents: list[Document], raw_texts: list[str], config: CurateConfig, ledger: Ledger
) -> tuple[list[Document], dict[str, Any]]:
    """Add the classifier's score to English documents of its domains; drop the lowest."""
    settings = config.classifier
    scored = [d for d in documents if d.language == "en" and d.domain in settings.score_domains]
    if not settings.enabled or not scored:
        return documents, {}
    classifier = QualityClassifier(settings)
    facts: dict[str, Any] = classifier.fit(reference_documents(settings.reference), raw_texts, config.seed)
    scores = classifier.score([d.text for d in scored]).tolist()
    threshold = sorted(scores)[int(settings.drop_share * len(scores))]
    low: set[str] = set()
    for document, score in zip(scored, scores, strict=True):
        document.quality = score
        if score < threshold:
            low.add(document.id)
            detail = f"{document.url}: little like the reference prose"
            ledger.add(dropped(document, "classifier", "low_quality", score=score, threshold=threshold, detail=detail))
    kept = [d for d in documents if d.id not in low]
    _step(ledger, "classifier", kept)
    return kept, facts | {"scored": len(scored), "threshold": threshold, "dropped": len(low)}


def _step(ledger: Ledger, name: str, documents: Sequence[Document]) -> None:
    ledger.step(name, len(documents), sum(len(d.text) for d in documents))


def _characters(documents: Sequence[Document]) -> dict[str, int]:
    return {domain: sum(len(d.text) for d in documents if d.domain == domain) for domain in DOMAINS}


def write_documents(path: Path, documents: Sequence[Document]) -> None:
    """documents/<split>.parquet, sorted by id."""
    import pyarrow as pa

    rows = sorted(documents, key=lambda d: d.id)
    names = ("id", "url", "date", "language", "domain", "source", "text")
    columns: dict[str, Any] = {name: pa.array([getattr(d, name) for d in rows], pa.string()) for name in names}
    columns["quality"] = pa.array([d.quality for d in rows], pa.float32())
    _write_table(path, pa.table(columns))


def write_entries(path: Path, entries: Sequence[Entry]) -> None:
    """entries.parquet, sorted by id; `parameters` is a JSON list of names."""
    import pyarrow as pa

    names = ("id", "document_id", "split", "package", "name", "signature", "summary", "description")
    columns: dict[str, Any] = {name: pa.array([getattr(e, name) for e in entries], pa.string()) for name in names}
    columns["parameters"] = pa.array([json.dumps(list(e.parameters)) for e in entries], pa.string())
    _write_table(path, pa.table(columns))


def _write_table(path: Path, table: Any) -> None:
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd")
