"""Phases `fit` and `measure`: repeated and bad lines out, then every score of every document, measured once and stored."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from herd.curation.classifiers.examples import load_examples
from herd.curation.classifiers.linear import LinearModel, train
from herd.curation.classifiers.quality import QualityClassifier, reference_documents
from herd.curation.config import CurateConfig
from herd.curation.dirty_words import load_dirty_words
from herd.curation.kl import Reference
from herd.curation.ledger import LedgerRow, LedgerWriter, merge
from herd.curation.lines import LineHashes, ranges
from herd.curation.measures import STATISTICS, measure
from herd.curation.pipeline.gather import FACTS
from herd.curation.pipeline.lines import REPORTED, FrequentLines
from herd.curation.pipeline.tasks import Result, Work
from herd.curation.pipeline.words import reference_counts
from herd.curation.rules import count_rules, edit_lines
from herd.curation.text import tidy
from herd.runs.tables import TableWriter, open_table, shard_path

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH = 256  # documents in memory
_GROUP = 8_192  # documents of a row group
_SAMPLE = 4_000  # raw documents that the classifier's negatives are taken from


def fit(work: Work, name: str) -> Result:
    """Train a classifier: ``quality`` on a sample of the corpus by id, which is a uniform one; the others on their examples."""
    model = _model(work, name)
    if name != "quality":
        task = work.config.classifiers[name]
        examples = load_examples(task.examples)
        trained, report = train(examples, task.model, work.config.seed, task.classes(examples))
        trained.save(model)
        return {"report": report}
    settings = work.config.classifier
    raw = _sample(work, settings.score_domains)
    if not raw:
        return {}
    classifier = QualityClassifier(settings)
    facts = classifier.fit(reference_documents(settings.reference), raw, work.config.seed)
    classifier.save(model)
    return {"report": facts}


def to_fit(config: CurateConfig) -> list[str]:
    """Names of the classifiers that are trained."""
    return [*(["quality"] if config.classifier.enabled else []), *config.active_classifiers]


def _model(work: Work, name: str) -> Path:
    return work.file("fit", f"{name}.npz")


def _sample(work: Work, domains: list[str]) -> list[str]:
    """Texts of English documents of ``domains``, before any line is removed: the first ones of each partition."""
    texts: list[str] = []
    most = -(-_SAMPLE // work.config.partitions)
    for partition in range(work.config.partitions):
        found: list[str] = []
        file = open_table(work.part("gather", partition, ".parquet"))
        for batch in file.iter_batches(_BATCH, columns=["language", "domain", "text"]):
            found += [r["text"] for r in batch.to_pylist() if r["language"] == "en" and r["domain"] in domains]
            if len(found) >= most:
                break
        texts += found[:most]
    return texts


def measured_schema() -> "pa.Schema":
    """Columns of measured documents: facts, place in the file, text without the lines that went."""
    import pyarrow as pa

    return pa.schema([*((name, pa.string()) for name in FACTS), ("position", pa.int64()), ("text", pa.string())])


def scores_schema(config: CurateConfig) -> "pa.Schema":
    """Columns of scores: which document, then one number for each statistic; null where a score does not apply.

    A classifier of two classes gives the probability of the positive one, one of more classes that of the likeliest, which
    ``<name>_class`` names.
    """
    import pyarrow as pa

    texts = ["id", "url", "language", "domain", *(f"{name}_class" for name in config.active_classifiers)]
    numbers = (*STATISTICS, "quality", *config.active_classifiers)
    return pa.schema([*((name, pa.string()) for name in texts), *((name, pa.float64()) for name in numbers)])


def measured_file(work: Work, name: str, partition: int) -> Path:
    """Path of one shard of what was measured: ``documents``, ``ledger`` or ``scores``."""
    folder = "scores" if name == "scores" else "measured"
    return shard_path(work.measured / folder, name, partition, work.config.partitions)


def measure_partition(work: Work, partition: int) -> Result:
    """Write the partition's texts, scores and ledger so far."""
    judge = _Judge(work)
    own = work.part("measure", partition, ".ledger.parquet")
    with (
        LedgerWriter(own) as ledger,
        TableWriter(measured_file(work, "documents", partition), measured_schema(), _GROUP) as texts,
        TableWriter(measured_file(work, "scores", partition), scores_schema(work.config), _GROUP) as scores,
    ):
        for rows in _groups(work, partition):
            kept = [row for row in rows if judge.remove_lines(row, ledger)]
            texts.write_rows([{name: row[name] for name in texts.schema.names} for row in kept])
            scores.write_rows(judge.scores(kept))
    with TableWriter(work.part("measure", partition, ".lines.parquet"), _spellings_schema()) as spellings:
        spellings.write_rows([{"line": line, "text": text} for line, text in sorted(judge.spellings.items())])
    with LedgerWriter(measured_file(work, "ledger", partition)) as ledger:
        for row in merge([work.part("gather", partition, ".ledger.parquet"), own]):
            ledger.add(row)
    return {**judge.counts, "dropped": {stage: dict(sorted(rules.items())) for stage, rules in sorted(judge.dropped.items())}}


def _spellings_schema() -> "pa.Schema":
    import pyarrow as pa

    return pa.schema([("line", pa.uint64()), ("text", pa.string())])


def _groups(work: Work, partition: int) -> Iterator[list[dict[str, Any]]]:
    """Documents of a partition, some hundred at a time."""
    for batch in open_table(work.part("gather", partition, ".parquet")).iter_batches(_BATCH):
        yield batch.to_pylist()


@dataclass
class _Judge:
    """What measuring needs, loaded once a task."""

    work: Work

    def __post_init__(self) -> None:
        self.config = self.work.config
        self.hashes = LineHashes()
        self.frequent = FrequentLines(self.work)
        self.reported = set(self.frequent.most_copies(REPORTED))
        self.spellings: dict[int, str] = {}  # of a reported line the smallest spelling, which no order can change
        self.counts: Counter[str] = Counter(line_documents=0, line_characters=0)
        self.dropped: dict[str, Counter[str]] = {"line": Counter(), "quality": Counter()}
        self.dirty = load_dirty_words(self.config.dirty_words.files)
        self.words = reference_counts(self.work)
        self.references: dict[str, Reference | None] = {}
        model = _model(self.work, "quality")
        self.classifier = QualityClassifier.load(self.config.classifier, model) if model.exists() else None
        self.others = {name: LinearModel.load(_model(self.work, name)) for name in self.config.active_classifiers}

    def remove_lines(self, row: dict[str, Any], ledger: LedgerWriter) -> bool:
        """Take repeated and bad lines out of ``row["text"]``; False when nothing is left of it."""
        if not self._repeated(row, ledger):
            return False
        self.counts["line_documents"] += 1
        self.counts["line_characters"] += len(row["text"])
        row["line_scores"] = {}
        rules = self.config.rules
        if row["media"] == "code" or row["domain"] == "code":
            return True
        edit = edit_lines(row["text"], row["language"], rules.line_rules, rules.coverage, row["domain"])
        row["text"], row["line_scores"] = edit.text, edit.scores  # citations may go without a line
        if not edit.removed:
            return True
        gone = sorted({i for i, _ in edit.removed})
        counts = ", ".join(f"{rule} {n}" for rule, n in count_rules(edit.removed).items())
        if row["text"]:
            detail = f"lines {ranges(gone)} removed: {counts}"
            ledger.add(LedgerRow(row["id"], "quality", "edited", "line_rules", float(len(gone)), detail=detail, url=row["url"]))
            return True
        self.dropped["quality"]["only_bad_lines"] += 1
        ledger.add(
            LedgerRow(row["id"], "quality", "dropped", "only_bad_lines", float(len(gone)), 0.0, detail=counts, url=row["url"])
        )
        return False

    def _repeated(self, row: dict[str, Any], ledger: LedgerWriter) -> bool:
        """The line rule of section 3.1.1."""
        if row["bucket"] < 0:
            return True
        lines = row["text"].split("\n")
        hashes = self.hashes.of(lines, row["language"], row["bucket"])
        copies = self.frequent.copies(hashes)
        if not copies:
            return True
        gone = {i for i, h in enumerate(hashes) if h in copies}
        for i in gone:
            if hashes[i] in self.reported:
                self.spellings[hashes[i]] = min(self.spellings.get(hashes[i], lines[i].strip()), lines[i].strip())
        row["text"] = _without(row["text"], gone)
        facts: dict[str, Any] = {"score": float(len(gone)), "threshold": float(self.config.dedup.line_copies), "url": row["url"]}
        facts["lines"] = tuple(sorted({hashes[i] for i in gone}))
        if row["text"]:
            detail = f"lines {ranges(sorted(gone))} removed"
            ledger.add(LedgerRow(row["id"], "line", "edited", "repeated_line", detail=detail, **facts))
            return True
        self.dropped["line"]["only_repeated_lines"] += 1
        detail = f"every line occurs more than {self.config.dedup.line_copies} times in the documents of its language and bucket"
        ledger.add(LedgerRow(row["id"], "line", "dropped", "only_repeated_lines", detail=detail, **facts))
        return False

    def scores(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Every statistic and score of some documents."""
        found = []
        for row in rows:
            language = row["language"]
            facts = {name: row[name] for name in ("id", "url", "language", "domain")}
            values = measure(row["text"], language, self.dirty.get(language), self._reference(language))
            found.append(facts | values | row["line_scores"])
        domains = self.config.classifier.score_domains
        rated = [i for i, row in enumerate(rows) if row["language"] == "en" and row["domain"] in domains]
        if self.classifier is not None and rated:
            quality = self.classifier.score([rows[i]["text"] for i in rated])
            for i, value in zip(rated, np.asarray(quality).tolist(), strict=True):
                found[i]["quality"] = value
        english = [i for i, row in enumerate(rows) if row["language"] == "en"]
        for name, model in self.others.items() if english else ():
            chances = model.probabilities([rows[i]["text"] for i in english])
            chosen = chances.argmax(axis=1) if len(model.classes) > 2 else np.ones(len(english), np.int64)
            for i, which, chance in zip(english, chosen.tolist(), chances, strict=True):
                found[i][name] = float(chance[which])
                found[i][f"{name}_class"] = model.classes[which] if len(model.classes) > 2 else None
        return found

    def _reference(self, language: str) -> Reference | None:
        """Word distribution of a language with enough words, made when its first document comes."""
        if language not in self.references:
            counts = self.words.get(language)
            self.references[language] = None if counts is None else Reference(counts, self.config.kl.pseudo_count)
        return self.references[language]


def _without(text: str, gone: set[int]) -> str:
    return tidy("\n".join(line for i, line in enumerate(text.split("\n")) if i not in gone))
