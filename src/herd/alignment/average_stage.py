"""`herd average`: the mean of the weights of models trained with different data or settings (section 4.1.5)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from herd.alignment.fine_tuning import load_tokenizer, with_reference
from herd.config.errors import UserError
from herd.corpus.tokenizer import Tokenizer
from herd.dialog.preferences import PreferenceFilter, read_preferences
from herd.dialog.render import DIALECTS
from herd.dialog.rows import Counted, read_prompts
from herd.model.io import average_models, load_model, load_reward_model, save_model
from herd.model.transformer import Transformer
from herd.runs.stage import Inputs, Stage, StageRun
from herd.training.dpo import DPOObjective, dpo_pairs, evaluate_dpo
from herd.training.sft import sft_loss, sft_sequences


@dataclass(frozen=True)
class AverageConfig:
    """Schema of conf/average.yaml."""

    seed: int  # nothing here is random; every stage has one
    dialect: str  # how messages become tokens: meta, meta_tag, hf, torchtune
    window: int  # tokens in a packed row of the evaluation; longer dialogs are left out
    objective: DPOObjective  # of the evaluation on preferences
    filter: PreferenceFilter  # of the evaluation on preferences

    def __post_init__(self) -> None:
        DIALECTS.get(self.dialect)


def run(config: AverageConfig, inputs: Inputs, stage_run: StageRun) -> dict[str, Any]:
    models = inputs.group("models", least=2)
    folders = {label: artifact / "model" for label, artifact in models.items()}
    state = average_models(list(folders.values()))
    first = next(iter(folders.values()))
    metrics: dict[str, Any] = {"members": len(models)}
    if any(name.startswith("head.") for name in state):  # reward models; `herd evaluate` measures them
        reward_model = load_reward_model(first)
        reward_model.load_state_dict(state)
        save_model(reward_model, stage_run.folder / "model")
        return metrics
    mean = load_model(first)
    mean.load_state_dict(state)
    save_model(mean, stage_run.folder / "model")
    evaluate = evaluation(config, inputs)
    if evaluate is not None:
        metrics["by_member"] = {label: evaluate(load_model(folder)) for label, folder in folders.items()}
        metrics |= evaluate(mean)
    return metrics


def evaluation(config: AverageConfig, inputs: Inputs) -> Callable[[Transformer], dict[str, float]] | None:
    """What each member and the mean are measured by, as far as the inputs allow; None when nothing was given.

    `loss`: nats a token of the held-out references (input `heldout`). `rewards/*`: implicit rewards on held-out pairs
    (inputs `preferences` and `reference`, the model that DPO started from).
    """
    heldout, preferences, reference = (inputs.get(name) for name in ("heldout", "preferences", "reference"))
    if heldout is None and preferences is None:
        return None
    if (preferences is None) != (reference is None):
        raise UserError("average: the inputs preferences and reference go together")
    if inputs.get("tokens") is None:
        raise UserError("average: to evaluate, give the input tokens (the tokenizer)")
    tokenizer = load_tokenizer(inputs)
    measures = []
    if heldout is not None:
        references = with_reference(read_prompts(heldout / "heldout_prompts.jsonl"))
        measures.append(_reference_loss(config, tokenizer, references))
    if preferences is not None and reference is not None:
        kept = config.filter.select(read_preferences(preferences / "heldout.jsonl"), Counted())
        pairs = dpo_pairs(kept, tokenizer, config.window, config.objective, Counted(), config.dialect)
        start = load_model(reference / "model")
        measures.append(_implicit_rewards(config, tokenizer, start, pairs))
    return lambda model: {name: value for measure in measures for name, value in measure(model).items()}


def _reference_loss(config: AverageConfig, tokenizer: Tokenizer, references: list) -> Callable[[Transformer], dict[str, float]]:
    scored = sft_sequences(references, tokenizer, config.window, Counted(), config.dialect)
    return lambda model: {"loss": sft_loss(model, scored, config.window, tokenizer.pad_id)} if scored else {}


def _implicit_rewards(
    config: AverageConfig, tokenizer: Tokenizer, start: Transformer, pairs: list
) -> Callable[[Transformer], dict[str, float]]:
    def measure(model: Transformer) -> dict[str, float]:
        if not pairs:
            return {}
        scores = evaluate_dpo(model, start, pairs, config.objective)
        return {name: scores[name] for name in ("rewards/accuracies", "rewards/margins", "nll_loss")}

    return measure


STAGE = Stage(
    name="average",
    version=1,
    config=AverageConfig,
    run=run,
    summary="average the weights of models",
    optional=("tokens", "heldout", "preferences", "reference"),
    groups=("models",),
)
