"""The steps of pruning by name: each takes the dialogs that are left, with the context of the run, and gives back what stays."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from herd.alignment.fine_tuning import load_tokenizer
from herd.alignment.quality.cleaning import clean
from herd.alignment.quality.config import PruneConfig
from herd.alignment.quality.decontamination import benchmark_prompts, decontaminate
from herd.alignment.quality.dialogs import Dialog, Ledger
from herd.alignment.quality.difficulty import ask_difficulty, ask_tags, found_tags, measure
from herd.alignment.quality.embeddings import embed
from herd.alignment.quality.judges import Judge, open_judge
from herd.alignment.quality.rating import ask_quality, rate
from herd.alignment.quality.semantic import clusters, keep_greedily
from herd.alignment.quality.topics import BY_JUDGE, label_topics
from herd.config.errors import UserError
from herd.config.registry import Registry
from herd.dialog.messages import Role
from herd.dialog.rows import read_prompts
from herd.model.io import load_reward_model
from herd.runs.seeds import torch_seed
from herd.runs.stage import Inputs, StageRun
from herd.training.reward import score_if_read


@dataclass
class Context:
    """What the steps share."""

    config: PruneConfig
    inputs: Inputs
    stage_run: StageRun
    ledger: Ledger = field(default_factory=Ledger)
    report: dict[str, Any] = field(default_factory=dict)  # step -> what it measured

    @functools.cached_property
    def judge(self) -> Judge:
        """Opened by the first step that needs it."""
        return open_judge(self.config.judge, self.inputs, self.stage_run, self.config.dialect)


Step = Callable[[list[Dialog], Context], list[Dialog]]
STEPS: Registry[Step] = Registry("step")


@STEPS.register("cleaning")
def cleaning(dialogs: list[Dialog], context: Context) -> list[Dialog]:
    return clean(dialogs, context.config.cleaning, context.config.seed, context.ledger)


@STEPS.register("topics")
def topics(dialogs: list[Dialog], context: Context) -> list[Dialog]:
    config = context.config.topics
    judge = context.judge if config.labels == BY_JUDGE else None
    labelled, context.report["topics"] = label_topics(dialogs, config, judge, context.config.seed)
    return labelled


@STEPS.register("rating")
def rating(dialogs: list[Dialog], context: Context) -> list[Dialog]:
    config = context.config.rating
    verdicts = ask_quality(dialogs, config, context.judge) if context.config.judge.asks("quality") else None
    kept, context.report["rating"] = rate(dialogs, _rewards(dialogs, context), verdicts, config, context.ledger)
    return kept


def _rewards(dialogs: list[Dialog], context: Context) -> list[float | None] | None:
    """Reward of each dialog's last message; None where it is no answer, too long for the model, or the row has none."""
    config, inputs = context.config.rating, context.inputs
    if config.reward == "none":
        return None
    if config.reward == "row":
        found = [d.row.get("reward") for d in dialogs]
        return [float(r) if isinstance(r, int | float) and np.isfinite(r) else None for r in found]
    given = inputs.get("reward")
    if given is None or inputs.get("tokens") is None:
        raise UserError(
            "rating.reward=model needs inputs.reward=FOLDER (what `herd reward` made) and inputs.tokens=FOLDER; "
            "rating.reward=row takes the rows' own, none goes without."
        )
    model, tokenizer, dialect = load_reward_model(given / "model"), load_tokenizer(inputs), context.config.dialect
    answered = [i for i, d in enumerate(dialogs) if d.messages[-1].role is Role.ASSISTANT]
    scores = score_if_read(model, tokenizer, [dialogs[i].messages for i in answered], config.batch_size, dialect)
    rewards: list[float | None] = [None] * len(dialogs)
    for i, score in zip(answered, scores, strict=True):
        rewards[i] = score
    return rewards


@STEPS.register("difficulty")
def difficulty(dialogs: list[Dialog], context: Context) -> list[Dialog]:
    config, judged = context.config.difficulty, context.config.judge
    tags: list[list[str] | None] | None = None
    if config.tagger != "none":
        tags = ask_tags(dialogs, config, context.judge) if config.tagger == "judge" else [*found_tags(dialogs, config)]
    verdicts = ask_difficulty(dialogs, config, context.judge) if judged.asks("difficulty") else None
    measured, context.report["difficulty"] = measure(dialogs, tags, verdicts)
    return measured


@STEPS.register("dedup")
def dedup(dialogs: list[Dialog], context: Context) -> list[Dialog]:
    config, seed = context.config.dedup, context.config.seed
    if not dialogs:
        return []
    vectors = embed(
        dialogs, context.config.embedding, context.inputs, torch_seed(seed, "prune", "embedding"), context.config.dialect
    )
    cluster = clusters(vectors.reduced, config, torch_seed(seed, "prune", "clusters"))
    worth = [d.notes.get("rating", 1.0) * d.notes.get("difficulty", 1.0) for d in dialogs]
    chance = [d.place(seed, "dedup") for d in dialogs]  # who comes first of dialogs that are worth the same
    order = sorted(range(len(dialogs)), key=lambda i: (-worth[i], chance[i], dialogs[i].name))
    found = keep_greedily(vectors.of_words, cluster, order, config.threshold)
    kept = []
    for i, dialog in enumerate(dialogs):
        if found.twin[i] < 0:
            kept.append(replace(dialog, notes=dialog.notes | {"cluster": int(cluster[i])}))
            continue
        twin, cosine = dialogs[int(found.twin[i])], float(found.cosine[i])
        why = f"says what {twin.name} says (cosine {cosine:.4f})"
        context.ledger.drop(dialog, "semantic_duplicate", why, value=cosine, limit=config.threshold, duplicate_of=twin.name)
    cosines = found.cosine[found.cosine > -1]
    context.report["dedup"] = {
        "clusters": int(cluster.max()) + 1,
        "dimensions": vectors.reduced.shape[1],
        "cosine_quantiles": _quantiles(cosines),
    }
    return kept


def _quantiles(values: np.ndarray) -> dict[str, float]:
    """Of the largest cosine of each dialog to one kept before it: where the threshold lies among them."""
    return {f"{q:g}": float(np.quantile(values, q)) for q in (0.5, 0.75, 0.9, 0.95, 0.99)} if len(values) else {}


@STEPS.register("decontamination")
def decontamination(dialogs: list[Dialog], context: Context) -> list[Dialog]:
    given = context.inputs.get("prompts")
    heldout = read_prompts(given / "heldout_prompts.jsonl") if given is not None else []
    # What the user says of it: a dialog is told by that, whatever system message or answers stand between.
    texts = {prompt.id: "\n".join(m.content for m in prompt.messages if m.role is Role.USER) for prompt in heldout}
    prompts = benchmark_prompts(context.config.decontamination, texts)
    context.report["decontamination"] = {"prompts": len(prompts)}
    return decontaminate(dialogs, prompts, context.ledger)
