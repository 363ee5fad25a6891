"""``herd contamination``: the share of each benchmark's examples that the training documents hold, and what it gained."""

import csv
import io
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from herd.config.errors import UserError
from herd.curation.benchmarks import BenchmarkConfig, in_order, read_examples, read_scores
from herd.curation.contamination import Gain, choose_threshold, is_contaminated, sweep
from herd.curation.ngram_index import NgramIndex
from herd.curation.sources import content_hashes
from herd.curation.text import run_length
from herd.runs.atomic import write_json, write_text
from herd.runs.stage import Inputs, Stage, StageRun
from herd.runs.tables import write_table


@dataclass(frozen=True)
class ContaminationConfig:
    """What `herd contamination` measures."""

    tasks: list[BenchmarkConfig] = field(default_factory=list)  # benchmarks
    thresholds: list[float] = field(default_factory=lambda: [0.1 * i for i in range(1, 11)])  # values of T_D that are tried
    scores: str = ""  # file with `task`, `model`, `id`, `score` in [0, 1]: gains are estimated and T_D is chosen
    confidence: float = 0.95  # of the gain's interval
    min_examples: int = 10  # contaminated and clean ones that a gain is estimated from

    def __post_init__(self) -> None:
        names = [benchmark.name for benchmark in self.tasks]
        if len(set(names)) < len(names):
            raise UserError(f"tasks: a name occurs twice among {', '.join(names)}.")
        if not self.thresholds or not all(0 < threshold <= 1 for threshold in self.thresholds):
            raise UserError(f"thresholds = {self.thresholds}: values in (0, 1] are needed.")
        if not 0 < self.confidence < 1:
            raise UserError(f"confidence = {self.confidence}: must lie in (0, 1).")
        if self.min_examples < 2:
            raise UserError(f"min_examples = {self.min_examples}: must be at least 2.")


def run(config: ContaminationConfig, inputs: Inputs, run: StageRun) -> dict[str, Any]:
    """Write ``examples.parquet`` (a row an example), ``sweep.csv`` (task, threshold, model) and ``summary.json``."""
    if not config.tasks:
        raise UserError("tasks: name at least one benchmark, e.g. 'tasks=[{name: gsm8k, path: gsm8k/test.jsonl}]'.")
    index = NgramIndex(inputs["index"] / "index")
    all_scores = read_scores(config.scores) if config.scores else {}
    unknown = sorted(set(all_scores) - {benchmark.name for benchmark in config.tasks})
    if unknown:
        raise UserError(f"scores: '{unknown[0]}' is none of the tasks.")
    columns: dict[str, list[Any]] = {name: [] for name in ("task", "id", "words", "covered", "share")}
    table: list[tuple[str, Gain]] = []
    summary: dict[str, Any] = {}
    for benchmark in config.tasks:
        ids, texts = read_examples(benchmark)
        words, covered = np.array(list(index.coverage(texts, benchmark.language))).T
        shares = covered / np.maximum(words, 1)
        for name, values in zip(columns, ([benchmark.name] * len(ids), ids, words, covered, shares), strict=True):
            columns[name].extend(values)
        models = all_scores.get(benchmark.name, {})
        scores = {model: in_order(found, ids, model, benchmark.name) for model, found in models.items()}
        gains = sweep(shares, scores, config.thresholds, config.confidence, config.min_examples)
        table += [(benchmark.name, gain) for gain in gains]
        summary[benchmark.name] = _summary(words, shares, gains, config.thresholds, run_length(index.n, benchmark.language))
    _write_examples(run.folder / "examples.parquet", columns)
    _write_sweep(run.folder / "sweep.csv", table)
    write_json(run.folder / "summary.json", summary)
    return {"n": index.n, "tasks": summary}


def _summary(words: np.ndarray, shares: np.ndarray, gains: list[Gain], thresholds: list[float], n: int) -> dict[str, Any]:
    chosen = choose_threshold(gains)
    return {
        "examples": len(shares),
        "too_short": int((words < n).sum()),  # fewer words than an n-gram: never contaminated
        "mean_share": float(shares.mean()),
        "contaminated": {f"{t:.6g}": float(is_contaminated(shares, t).mean()) for t in sorted(thresholds)},
        "threshold": chosen,  # T_D; null: no gain is significant, or no scores were given
        "contaminated_at_threshold": None if chosen is None else float(is_contaminated(shares, chosen).mean()),
        "gains": {g.model: {"gain": g.gain, "low": g.low, "high": g.high} for g in gains if g.threshold == chosen},
    }


def _write_examples(path: Path, columns: dict[str, list[Any]]) -> None:
    import pyarrow as pa

    types = {"words": pa.int64(), "covered": pa.int64(), "share": pa.float64()}
    write_table(path, pa.table({name: pa.array(values, types.get(name, pa.string())) for name, values in columns.items()}))


def _write_sweep(path: Path, table: list[tuple[str, Gain]]) -> None:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["task", *(f.name for f in fields(Gain))])
    writer.writerows([name, *asdict(gain).values()] for name, gain in table)
    write_text(path, out.getvalue())


def fingerprint(config: ContaminationConfig) -> dict[str, Any]:
    """Content of the benchmarks' files and of the scores."""
    paths = [benchmark.path for benchmark in config.tasks] + ([config.scores] if config.scores else [])
    return {path: content_hashes(Path(path)) for path in paths if path}


STAGE = Stage(
    name="contamination",
    version=2,
    config=ContaminationConfig,
    run=run,
    summary="share of benchmark examples seen in training, and its gain",
    inputs=("index",),
    fingerprint=fingerprint,
)
