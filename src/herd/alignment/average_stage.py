"""`herd average`: the mean of the weights of models trained with different data or settings (section 4.1.5)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from herd.alignment.fine_tuning import load_tokenizer, load_writer, with_reference
from herd.alignment.heldout_pairs import HeldoutPairs
from herd.alignment.members import Measure, against_best, reason_of, require_different
from herd.config.errors import UserError, nearest
from herd.corpus.tokenizer import Tokenizer
from herd.dialog.preferences import Preference, PreferenceFilter, read_preferences
from herd.dialog.render import DIALECTS
from herd.dialog.rows import Counted, read_prompts
from herd.dialog.trained_in import of_group, require_dialect, require_tokenizer, tokenizer_of
from herd.model.heads import RewardModel
from herd.model.io import average_models, load_model, load_reward_model, save_model
from herd.model.transformer import Transformer
from herd.objectives.cross_entropy import token_logprobs
from herd.runs.stage import Artifact, Inputs, Stage, StageRun
from herd.training.dpo import DPOObjective, fitting_pairs, heldout_terms
from herd.training.sequences import Group, TrainingSequence, alone, one_row
from herd.training.sft import sft_sequences


@dataclass(frozen=True)
class AverageConfig:
    """Schema of conf/average.yaml."""

    seed: int  # nothing here is random; every stage has one
    dialect: str  # how messages become tokens: meta, meta_tag, hf, torchtune
    window: int  # tokens in a packed row of the evaluation; longer dialogs are left out
    objective: DPOObjective  # of the evaluation of language models on preferences
    filter: PreferenceFilter  # of the evaluation on preferences
    weights: dict[str, float] = field(default_factory=dict)  # label of a member -> its weight, of any sum; none: equal

    def __post_init__(self) -> None:
        DIALECTS.get(self.dialect)
        if any(not (math.isfinite(w) and w >= 0) for w in self.weights.values()) or (
            self.weights and not sum(self.weights.values())
        ):
            raise UserError(f"weights {self.weights}: give numbers of at least 0, one of them above 0")

    def weights_of(self, members: Sequence[str]) -> list[float]:
        """The weight of each member; UserError unless `weights` names exactly the members, or none."""
        if not self.weights:
            return [1.0] * len(members)
        for label in self.weights:
            if label not in members:
                near = nearest(label, list(members))
                raise UserError(f"weights.{label}: no such model among inputs.models, only {', '.join(members)}.{near}")
        for label in members:
            if label not in self.weights:
                raise UserError(f"weights.{label} is missing: give every member of inputs.models a weight, or none")
        return [self.weights[label] for label in members]


Measures = dict[str, Measure]


def run(config: AverageConfig, inputs: Inputs, stage_run: StageRun) -> dict[str, Any]:
    models = inputs.group("models", least=2)
    require_different("average", models)
    check_tokenizers(models)
    read = {"reference": inputs.get("reference"), **of_group("models", models)}
    require_tokenizer("average", inputs.get("tokens"), read)
    require_dialect("average", config.dialect, read)
    folders = {label: artifact / "model" for label, artifact in models.items()}
    weights = config.weights_of(list(folders))
    state = average_models(list(folders.values()), weights)
    scoring = "head.weight" in state
    load: Callable[[Path], Any] = load_reward_model if scoring else load_model
    mean = load(next(iter(folders.values())))
    mean.load_state_dict(state)
    save_model(mean, stage_run.folder / "model")
    metrics: dict[str, Any] = {"members": len(models), "weights": dict(zip(folders, weights, strict=True))}
    evaluate = (reward_evaluation if scoring else evaluation)(config, inputs)
    if evaluate is None:
        return metrics
    by_member = {label: evaluate(load(folder)) for label, folder in folders.items()}
    of_mean = evaluate(mean)
    compared = {
        name: against_best(name, measure, {label: measures[name] for label, measures in by_member.items()})
        for name, measure in of_mean.items()
    }
    return metrics | {
        "by_member": {label: {name: m.mean for name, m in measures.items()} for label, measures in by_member.items()},
        **{name: measure.mean for name, measure in of_mean.items()},
        "heldout": {name: len(measure.values) for name, measure in of_mean.items()},
        "less_best_member": {name: asdict(found) for name, found in compared.items()},
        "status": "worse" if any(found.status == "worse" for found in compared.values()) else "ok",
        "reason": reason_of(compared),
    }


def check_tokenizers(models: Mapping[str, Artifact]) -> None:
    """UserError when two members were trained with different tokenizers, as manifests say."""
    known = {label: tokenizer for label, artifact in models.items() if (tokenizer := tokenizer_of(artifact))}
    for label, tokenizer in known.items():
        first = next(iter(known))
        if tokenizer != known[first]:
            raise UserError(f"average: {first} and {label} were trained with different tokenizers: their tokens differ")


def evaluation(config: AverageConfig, inputs: Inputs) -> Callable[[Transformer], Measures] | None:
    """What each member and the mean are measured by, as far as the inputs allow; None when nothing was given.

    `loss`: nats a token of the held-out references (input `heldout`). `rewards/accuracies`, `rewards/margins`, `nll_loss`:
    implicit rewards on held-out pairs (inputs `preferences` and `reference`, the model that DPO started from).
    """
    heldout, preferences, reference = (inputs.get(name) for name in ("heldout", "preferences", "reference"))
    if heldout is None and preferences is None:
        return None
    if (preferences is None) != (reference is None):
        raise UserError("average: the inputs preferences and reference go together")
    tokenizer = _tokenizer(inputs)
    measures: list[Callable[[Transformer], Measures]] = []
    if heldout is not None:
        references = with_reference(read_prompts(heldout / "heldout_prompts.jsonl"))
        scored = sft_sequences(references, tokenizer, config.window, Counted(), config.dialect)
        if scored:
            measures.append(lambda model: {"loss": _reference_loss(model, scored)})
    if preferences is not None and reference is not None:
        kept = config.filter.select(read_preferences(preferences / "heldout.jsonl"), Counted())
        pairs = fitting_pairs(kept, tokenizer, config.window, config.objective, Counted(), config.dialect)
        start = load_writer("average", "reference", reference)
        if pairs:
            measures.append(lambda model: _implicit_rewards(model, start, pairs, config))
    return (lambda model: {name: m for measure in measures for name, m in measure(model).items()}) if measures else None


def reward_evaluation(config: AverageConfig, inputs: Inputs) -> Callable[[RewardModel], Measures] | None:
    """The same for reward models: `accuracy` on held-out pairs (input `preferences`); None without these."""
    preferences = inputs.get("preferences")
    if preferences is None:
        return None
    rows = read_preferences(preferences / "heldout.jsonl")
    heldout = HeldoutPairs.read(rows, config.filter, _tokenizer(inputs), config.window, config.dialect)
    if not heldout.rows:
        return None
    prompts = [row.prompt_key for row in heldout.rows]

    def measure(model: RewardModel) -> Measures:
        scores = heldout.scores(model)
        hits = (scores[:, 0] > scores[:, 1]).astype(np.float64)
        return {"accuracy": Measure(hits, np.ones_like(hits), prompts, higher_is_better=True)}

    return measure


def _tokenizer(inputs: Inputs) -> Tokenizer:
    if inputs.get("tokens") is None:
        raise UserError("average: to evaluate, give the input tokens (the tokenizer)")
    return load_tokenizer(inputs)


@torch.no_grad()
def _reference_loss(model: Transformer, sequences: Sequence[TrainingSequence]) -> Measure:
    losses, targets = [], []
    for first in range(0, len(sequences), 32):
        rows = one_row([alone(s) for s in sequences[first : first + 32]])
        hidden = rows.at_places(model(rows.tokens, rows.positions, rows.mask))
        nll = -token_logprobs(hidden, model.output_weight, rows.targets)
        losses.append(rows.sum_by_sequence(nll).double().numpy())
        targets.append(rows.sum_by_sequence(torch.ones_like(nll)).double().numpy())
    values = np.concatenate(losses)
    return Measure(values, np.concatenate(targets), range(len(values)), higher_is_better=False)


def _implicit_rewards(
    model: Transformer, start: Transformer, pairs: Sequence[tuple[Preference, Group]], config: AverageConfig
) -> Measures:
    terms = heldout_terms(model, start, [pair for _, pair in pairs], config.objective)
    prompts = [row.prompt_key for row, _ in pairs]
    better = {"rewards/accuracies": True, "rewards/margins": True, "nll_loss": False}
    return {name: Measure(terms[name].double().numpy(), np.ones(len(pairs)), prompts, higher) for name, higher in better.items()}


STAGE = Stage(
    name="average",
    version=4,
    config=AverageConfig,
    run=run,
    summary="average the weights of models",
    headline=("members", "accuracy", "loss", "rewards/accuracies", "rewards/margins", "nll_loss", "status", "reason"),
    optional=("tokens", "heldout", "preferences", "reference"),
    groups=("models",),
)
