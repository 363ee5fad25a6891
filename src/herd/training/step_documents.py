"""`herd batch`: which documents were in a step of a pre-training run, recomputed from its configuration and tokens alone."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from herd.config.errors import UserError
from herd.config.loader import from_dict
from herd.runs.stage import Artifact, Inputs
from herd.training.pretrain_stage import PretrainConfig, prepare


def batch_lines(folder: Path, step: int) -> Iterator[str]:
    """One line for the step, one for each row, one for each document in it.

    Args:
        folder: a finished `herd pretrain`.
        step: optimizer step, counted from 0.

    Raises:
        UserError: no finished pre-training, its tokens are gone or others than it was trained on, no such step.
    """
    artifact = Artifact.open(folder)
    if artifact.manifest["stage"] != "pretrain":
        raise UserError(f"'{folder}' was made by `herd {artifact.manifest['stage']}`: give the folder of a `herd pretrain`.")
    inputs = {name: Artifact.open(artifact.path.parent / path) for name, path in artifact.manifest["inputs"].items()}
    plan = json.loads((artifact / "curriculum.json").read_text(encoding="utf-8"))
    prepared = prepare(_configuration(artifact, plan), Inputs(inputs, {}), plan["extensions"])
    curriculum, mixture = prepared.curriculum, prepared.mixture
    if not 0 <= step < curriculum.steps:
        raise UserError(f"step {step}: '{folder}' has the steps 0 to {curriculum.steps - 1}.")
    index, first, count = curriculum.rows(step)
    phase = curriculum.phases[index]
    place = prepared.behind + index, first, count
    rows, documents = mixture.rows(*place), mixture.documents_of(*place)
    yield (
        f"step {step} of {curriculum.steps}, stage {phase.stage}: {count} rows of {phase.seq_len} tokens, "
        f"{sum(map(len, documents))} documents, learning rate {curriculum.learning_rate(step):.4g}, "
        f"{curriculum.tokens_at(step):,} tokens before it"
    )
    for number, (source, lengths, ids) in enumerate(zip(rows.sources, rows.lengths, documents, strict=True)):
        yield f"  row {number}: {source}"
        yield from (f"    {name}  {length:,} tokens" for name, length in zip(ids, lengths, strict=True))


def _configuration(artifact: Artifact, plan: dict[str, Any]) -> PretrainConfig:
    """The run's own, with its stages in order: a manifest's keys are sorted."""
    values = artifact.manifest["config"]
    stages = values["curriculum"]["stages"]
    ordered = {name: stages[name] for name in dict.fromkeys(phase["stage"] for phase in plan["phases"])}
    return from_dict(PretrainConfig, values | {"curriculum": values["curriculum"] | {"stages": ordered}})
