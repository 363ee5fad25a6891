"""``herd ngram-index``: which runs of words the training documents hold; `herd contamination` asks it about benchmarks."""

from dataclasses import dataclass, field
from typing import Any

from herd.config.errors import UserError
from herd.curation.executors import ExecutorConfig, make_executor
from herd.curation.ngram_index import build_index
from herd.runs.stage import Inputs, Stage, StageRun
from herd.runs.tables import shard_files


@dataclass(frozen=True)
class NgramIndexConfig:
    """What `herd ngram-index` builds."""

    n: int = 8  # words (3 n characters in unspaced scripts); the paper: 8-grams
    buckets: int = 16  # files, a power of two; a task holds one in memory
    split: str = "train"  # of the documents
    workers: int = 2  # processes; the result does not depend on it
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)

    def __post_init__(self) -> None:
        if self.n < 1 or self.workers < 1:
            raise UserError("ngram-index: n and workers must be at least 1.")
        if self.buckets < 1 or self.buckets & (self.buckets - 1):
            raise UserError(f"buckets = {self.buckets}: must be a power of two.")


def run(config: NgramIndexConfig, inputs: Inputs, run: StageRun) -> dict[str, Any]:
    """Write ``index/``."""
    files = shard_files(inputs["documents"] / "documents", config.split)
    with make_executor(config.executor, config.workers, run.scratch / "slurm") as executor:
        index = build_index(files, run.folder / "index", run.scratch / "grams", config.n, config.buckets, executor)
    return index | {"bytes_per_word": 8 * index["grams"] / max(index["words"], 1)}


STAGE = Stage(
    name="ngram-index",
    version=2,
    config=NgramIndexConfig,
    run=run,
    summary="runs of words of the training documents, to find benchmarks in",
    inputs=("documents",),
    execution=("workers", "executor"),
)
