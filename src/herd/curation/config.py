"""Settings of `herd curate`. Values live in conf/curate.yaml and conf/source/; reasons and sources stand here."""

from dataclasses import dataclass, field

from herd.config.errors import UserError
from herd.curation.blocklists import BlockListsConfig
from herd.curation.classifiers.examples import ClassifierTask
from herd.curation.dirty_words import DirtyWordsConfig
from herd.curation.documents import DOMAINS
from herd.curation.executors import ExecutorConfig
from herd.curation.extraction.config import ExtractionConfig
from herd.curation.kl import KLConfig
from herd.curation.language_id import LanguageConfig
from herd.curation.mix import DownsamplingConfig, WeightsConfig
from herd.curation.pii import PIIConfig
from herd.curation.rules import RulesConfig
from herd.curation.sources.config import SourceConfig


def _check_domains(name: str, values: dict[str, float] | dict[str, int]) -> None:
    for domain in values:
        if domain not in DOMAINS:
            raise UserError(f"{name}: '{domain}' is no domain. Choices: {', '.join(DOMAINS)}.")


@dataclass(frozen=True)
class DedupConfig:
    """URL, document and line de-duplication, the last two within a language (paper, section 3.1.1)."""

    urls: bool = True  # keep the newest record of each normalised URL
    documents: bool = True
    shingle_words: int = 5  # words per shingle
    permutations: int = 112  # MinHash values per document
    bands: int = 28  # LSH bands; a candidate pair agrees in all rows of one band
    rows: int = 4  # 28 x 4 finds a pair of Jaccard 0.5 with probability 0.84, one of 0.7 with 0.9995
    threshold: float = 0.7  # exact Jaccard similarity of shingle sets from which two documents are the same
    lines: bool = True
    line_copies: int = 6  # k: a line that occurs more often than this in a bucket goes, every copy of it
    line_bucket: int = 30_000_000  # documents per bucket
    line_domains: list[str] = field(default_factory=lambda: ["general", "multilingual"])  # not code: lines are structure

    def __post_init__(self) -> None:
        if self.bands * self.rows > self.permutations:
            raise UserError(f"dedup: bands x rows = {self.bands * self.rows} exceeds permutations = {self.permutations}.")
        if min(self.bands, self.rows, self.shingle_words, self.line_copies, self.line_bucket) < 1:
            raise UserError("dedup: bands, rows, shingle_words, line_copies and line_bucket must be at least 1.")
        if not 0 < self.threshold <= 1:
            raise UserError(f"dedup.threshold = {self.threshold}: must lie in (0, 1].")
        _check_domains("dedup.line_domains", dict.fromkeys(self.line_domains, 0))


@dataclass(frozen=True)
class ClassifierConfig:
    """Linear model of "would this be reference prose?" (paper: "would Wikipedia cite it?"), English only."""

    enabled: bool = True
    reference: str = ""  # text file, .jsonl or folder of .txt with good prose; "" = the Python language reference
    features: int = 65_536  # hashed word 1- and 2-grams
    chunk_words: int = 80  # words per training example
    max_chunks: int = 4_000  # per class
    heldout_share: float = 0.2  # share of documents set aside to measure the AUC
    score_domains: list[str] = field(default_factory=lambda: ["general"])  # where the score is computed
    drop_share: float = 0.05  # share of the scored documents, those with the lowest scores, that is dropped

    def __post_init__(self) -> None:
        _check_domains("classifier.score_domains", dict.fromkeys(self.score_domains, 0))
        if not 0 < self.heldout_share < 1:
            raise UserError(f"classifier.heldout_share = {self.heldout_share}: must lie in (0, 1).")
        if not 0 <= self.drop_share < 1:
            raise UserError(f"classifier.drop_share = {self.drop_share}: must lie in [0, 1).")
        if self.chunk_words < 5 or self.max_chunks < 10 or self.features < 2:
            raise UserError("classifier: chunk_words >= 5, max_chunks >= 10 and features >= 2 are needed.")


@dataclass(frozen=True)
class SplitConfig:
    """Held-out documents: chosen by hash, whole groups at a time."""

    share: dict[str, float] = field(default_factory=lambda: dict.fromkeys(DOMAINS, 0.05))  # of a domain's characters
    min_documents: int = 1  # held-out documents per domain and language, where it has at least four times as many
    link_threshold: float = 0.5  # documents at least this similar (Jaccard) stay on one side
    overlap_words: int = (
        25  # no run of this many words is on both sides (3 x in unspaced scripts): its lines leave the held-out document
    )
    max_overlap: float = 0.3  # a held-out document that shares more of its words with train in such runs is dropped

    def __post_init__(self) -> None:
        _check_domains("split.share", self.share)
        for domain, share in self.share.items():
            if not 0 <= share <= 0.5:
                raise UserError(f"split.share.{domain} = {share}: must lie in [0, 0.5].")
        if self.overlap_words < 2:
            raise UserError(f"split.overlap_words = {self.overlap_words}: must be at least 2.")


@dataclass(frozen=True)
class CurateConfig:
    """`herd curate`: raw pages -> documents of four domains, split, with a reason for every decision."""

    seed: int = 0  # of the split and of the classifier's sample
    workers: int = 2  # processes, or tasks at a time; the result does not depend on it
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)  # where tasks run; the result does not depend on it
    partitions: int = 8  # ranges of ids that the work is divided into, and files of each table; a task holds one, in pieces
    rethreshold: bool = False  # decide again from the scores of inputs.documents, a finished `herd curate`; no text is measured
    source: SourceConfig = field(default_factory=SourceConfig)
    blocklists: BlockListsConfig = field(default_factory=BlockListsConfig)
    extraction: ExtractionConfig = field(default_factory=ExtractionConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    pii: PIIConfig = field(default_factory=PIIConfig)
    dedup: DedupConfig = field(default_factory=DedupConfig)
    rules: RulesConfig = field(default_factory=RulesConfig)
    kl: KLConfig = field(default_factory=KLConfig)
    dirty_words: DirtyWordsConfig = field(default_factory=DirtyWordsConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    classifiers: dict[str, ClassifierTask] = field(default_factory=dict)  # further ones by name; those without examples are off
    # Name of one of them, which is also a domain -> probability from which a general page belongs to that domain.
    route: dict[str, float] = field(default_factory=dict)
    downsampling: DownsamplingConfig = field(default_factory=DownsamplingConfig)  # of the classes of `classifiers.knowledge`
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    split: SplitConfig = field(default_factory=SplitConfig)

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UserError(f"workers = {self.workers}: must be at least 1.")
        if not 1 <= self.partitions <= 99_999:
            raise UserError(f"partitions = {self.partitions}: must be 1 to 99,999.")
        _check_domains("route", self.route)
        for name in self.route:
            if name not in self.active_classifiers:
                raise UserError(f"route.{name}: there is no such classifier; give classifiers.{name}.examples.")
        if (self.downsampling.targets or self.downsampling.caps or self.downsampling.reference) and not self.downsampled:
            raise UserError("downsampling needs knowledge classes: give classifiers.knowledge.examples, e.g. python:knowledge.")

    @property
    def active_classifiers(self) -> dict[str, ClassifierTask]:
        """Classifiers that have examples, by name in order."""
        return {name: task for name, task in sorted(self.classifiers.items()) if task.examples}

    @property
    def downsampled(self) -> bool:
        """Whether knowledge classes are sampled down."""
        wanted = self.downsampling.targets or self.downsampling.caps or self.downsampling.reference
        return bool(wanted) and "knowledge" in self.active_classifiers
