"""What a pre-training run refuses before its first step, rather than hours into it."""

from collections.abc import Iterable

from herd.config.errors import UserError
from herd.corpus.shards import TokenShards
from herd.runs.atomic import sha256_file
from herd.runs.stage import Artifact
from herd.training.curriculum import Curriculum
from herd.training.trainer_config import TrainerConfig

_HASHED_BYTES = 2 << 30  # of shards: about 2 s. Beyond that a run starts without; sizes and ids are checked in any case.


def check_ranks(curriculum: Curriculum, trainer: TrainerConfig) -> None:
    """UserError when the micro-batches of a phase cannot be shared equally by the processes of the run."""
    ranks = trainer.devices * trainer.nodes
    for phase in curriculum.phases:
        rows = max(1, trainer.micro_batch_tokens // phase.seq_len)
        micro_batches = -(-phase.rows // rows)
        if micro_batches % ranks:
            raise UserError(
                f"Curriculum stage '{phase.stage}': a batch of {phase.rows} rows of {phase.seq_len} tokens makes {micro_batches} "
                f"micro-batch{'es' if micro_batches > 1 else ''}, which {ranks} processes cannot share equally: change "
                "trainer.micro_batch_tokens, curriculum.batch_tokens or the number of devices."
            )


def check_shards(tokens: Artifact, shards: TokenShards, domains: Iterable[str]) -> None:
    """UserError when a file of these training domains is not what `herd tokenize` wrote, by the digests of its manifest."""
    known = tokens.manifest.get("outputs", {})
    files = [path for domain in domains for path in sorted(shards.source("train", domain).folder.iterdir())]
    if sum(path.stat().st_size for path in files) > _HASHED_BYTES:
        return
    for path in files:
        entry = known.get(path.relative_to(tokens.path).as_posix())
        if entry is not None and sha256_file(path) != entry["sha256"]:
            raise UserError(f"'{path}' has changed since `herd tokenize` wrote it: delete the stage's folder and run it again.")
