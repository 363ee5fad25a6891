"""What the stages that train (reward, sft, dpo) have in common."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from herd.config.errors import UserError
from herd.corpus.tokenizer import Tokenizer
from herd.dialog.messages import Message, Role, parse_messages
from herd.dialog.render import DIALECTS
from herd.dialog.rows import Prompt, read_jsonl
from herd.generation.engines.opened import Writer
from herd.model.config import ModelConfig
from herd.model.counts import flops_per_token
from herd.model.io import load_language_model
from herd.model.transformer import Transformer
from herd.runs.stage import Artifact, Inputs, StageRun
from herd.training.fit import FitResult, fit
from herd.training.module import HerdModule
from herd.training.optimizer import OptimizerConfig
from herd.training.schedule import ScheduleConfig
from herd.training.sequences import EpochSteps
from herd.training.trainer_config import TrainerConfig


@dataclass(frozen=True)
class FineTuning:
    """Keys that the schemas of reward, sft and dpo share."""

    seed: int  # of the data order, and of the reward head
    dialect: str  # how messages become tokens: meta, meta_tag, hf, torchtune
    window: int  # tokens in a packed row; no dialog may be longer
    batch_size: int  # in one optimizer step: comparisons (reward), packed rows (sft), pairs (dpo)
    epochs: float  # passes over the data; a fraction stops within a pass
    optimizer: OptimizerConfig
    schedule: ScheduleConfig  # learning rate over the run's steps, as shares of the peak
    trainer: TrainerConfig

    def __post_init__(self) -> None:
        DIALECTS.get(self.dialect)
        if self.window < 2 or self.batch_size < 1 or self.epochs <= 0:
            raise UserError("window must be at least 2, batch_size at least 1 and epochs above 0")

    def check_window(self, model: ModelConfig) -> None:
        """UserError when a row is longer than the model's positions."""
        if self.window > model.max_seq_len:
            raise UserError(f"window {self.window} exceeds the model's {model.max_seq_len} positions; lower window")


def train(module: HerdModule, source: EpochSteps, config: FineTuning, model: ModelConfig, stage_run: StageRun) -> FitResult:
    """Fits and books the cost: 6N FLOPs a token. UserError when the processes of the run cannot share the steps equally."""
    require_shares(source, config.trainer.processes)
    result = fit(module, source, config.trainer, stage_run, description=stage_run.node or "fine-tuning")
    stage_run.cost(tokens=result.tokens, flops_6n=flops_per_token(model, config.window, "6N") * result.tokens)
    return result


def require_shares(source: EpochSteps, processes: int) -> None:
    """UserError when processes cannot share a whole step equally.

    The last step of an epoch has what is left, and so has the last unit (:class:`herd.training.dpo.DPOSteps`), which may come in
    any step: a first step of an epoch without that unit is looked at.
    """
    if source.steps_per_epoch > 1:
        firsts = (epoch * source.steps_per_epoch for epoch in count())
        source[next(step for step in firsts if source.count - 1 not in source.units_of(step))].check_shares(processes)


def require_rows(
    command: str,
    rows: Mapping[str, Mapping[str, Any]],
    missing: str = "row is left to train on",
    remedies: Mapping[str, str] | None = None,
) -> None:
    """UserError, with the reasons counted, when no row of any source is left.

    Args:
        command: the command that needs them.
        rows: source -> {"kept": count, "dropped": {reason: count}}, as `Counted.to_dict` gives.
        missing: what there is none of, for the message.
        remedies: reason -> what to do where most are dropped for it.
    """
    if any(counts["kept"] for counts in rows.values()):
        return
    reasons = sum((Counter(counts["dropped"]) for counts in rows.values()), Counter[str]()).most_common()
    why = ", ".join(f"{reason} {count}" for reason, count in reasons) or "the input is empty"
    otherwise = "loosen filter.* or window, or give more data" if remedies is None else "give more prompts or another model"
    remedy = (remedies or {}).get(reasons[0][0], otherwise) if reasons else otherwise
    raise UserError(f"{command}: no {missing} ({why}); {remedy}.")


def load_writer(command: str, name: str, artifact: Artifact) -> Transformer:
    """The model of the input ``name``, which writes or is trained to; UserError for a reward model."""
    return load_language_model(artifact / "model", f"{command}: inputs.{name}")


def open_writer(command: str, name: str, label: str, artifact: Artifact) -> Writer:
    """As :func:`load_writer`, without reading the weights; messages and a server call it ``label``."""
    return Writer.open(label, artifact / "model", f"{command}: inputs.{name}")


def load_tokenizer(inputs: Inputs) -> Tokenizer:
    """The tokenizer of the input `tokens`."""
    return Tokenizer.load(inputs["tokens"] / "tokenizer")


def dialogs_file(artifact: Artifact) -> Path:
    """The SFT dialogs that a stage left: seed dialogs of `herd dialogs`, else `dialogs.jsonl`."""
    seeds = artifact.path / "seed_dialogs.jsonl"
    return seeds if seeds.exists() else artifact / "dialogs.jsonl"


def read_dialogs(artifact: Artifact) -> list[tuple[Message, ...]]:
    """The dialogs of :func:`dialogs_file`."""
    return [parse_messages(row.get("messages"), where) for where, row in read_jsonl(dialogs_file(artifact))]


def with_reference(prompts: list[Prompt]) -> list[tuple[Message, ...]]:
    """Prompts answered by their references."""
    return [(*p.messages, Message(Role.ASSISTANT, p.reference)) for p in prompts]


def wilson_interval(hits: int, count: int) -> list[float]:
    """Wilson's 95% interval of hits / count."""
    interval = stats.binomtest(hits, count).proportion_ci(0.95, method="wilson")
    return [float(interval.low), float(interval.high)]


def mean_interval(values: np.ndarray) -> dict[str, Any]:
    """Mean of (n,) values and its 95% interval by Student's t, None for a single value."""
    mean = float(values.mean())
    if len(values) < 2:
        return {"mean": mean, "interval": None}
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    return {"mean": mean, "interval": [mean - half, mean + half]}
