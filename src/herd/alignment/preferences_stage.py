"""`herd preferences`: two answers to each prompt, compared by the grader.

Without models the answers are the reference and flawed versions of it (the first round, when there is nothing to
sample from but must be something to learn). With models each prompt is answered by two different ones (section 4.2.1).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from herd.alignment.best_stage import BestModels
from herd.alignment.pairs import Candidate, flawed_candidates, make_preference
from herd.config.errors import UserError
from herd.corpus.tokenizer import Tokenizer
from herd.dialog.grader import GraderConfig
from herd.dialog.preferences import Grade, Preference
from herd.dialog.render import DIALECTS
from herd.dialog.rows import Counted, Prompt, read_prompts, write_jsonl
from herd.generation.chat import Answer, fits, sample_answers
from herd.generation.sampler import SamplingConfig
from herd.model.io import load_model
from herd.runs.seeds import stream, torch_seed
from herd.runs.stage import Inputs, Stage, StageRun


@dataclass(frozen=True)
class PreferencesConfig:
    """Schema of conf/preferences.yaml."""

    seed: int
    dialect: str  # with models, how messages become tokens: meta, meta_tag, hf, torchtune
    first_prompt: int  # index of the first training prompt used; rounds use different ones
    prompts: int  # training prompts used
    first_heldout_prompt: int  # index of the first held-out prompt used
    heldout_prompts: int  # held-out prompts used for the pairs that measure reward accuracy; never trained on
    edit_share: float  # share of the flawed chosen answers that are corrected: edited > chosen > rejected
    clean_share: float  # without models: share of pairs in which one answer is the reference itself
    max_flaws: int  # without models: most flaws in the worse answer
    max_new_tokens: int  # with models: longest answer, tokens
    temperature: float  # with models
    top_p: float  # with models
    batch_size: int  # with models: sequences generated together
    grader: GraderConfig = field(default_factory=GraderConfig)

    def __post_init__(self) -> None:
        DIALECTS.get(self.dialect)
        if (
            min(self.first_prompt, self.first_heldout_prompt) < 0
            or min(self.prompts, self.heldout_prompts, self.max_flaws, self.max_new_tokens, self.batch_size) < 1
        ):
            raise UserError(
                "first_prompt and first_heldout_prompt must be >= 0; "
                "prompts, heldout_prompts, max_flaws, max_new_tokens, batch_size >= 1"
            )
        for name in ("edit_share", "clean_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"{name} is a share in [0, 1], not {getattr(self, name)}")


def run(config: PreferencesConfig, inputs: Inputs, stage_run: StageRun) -> dict[str, Any]:
    models = inputs.group("models")
    if len(models) == 1:
        raise UserError("preferences: give two or more `models`, each prompt is answered by two different ones (or give none)")
    metrics: dict[str, Any] = {}
    for name, file, first, count in (
        ("train", "train_prompts.jsonl", config.first_prompt, config.prompts),
        ("heldout", "heldout_prompts.jsonl", config.first_heldout_prompt, config.heldout_prompts),
    ):
        path = inputs["dialogs"] / file
        prompts = read_prompts(path)[first : first + count]
        if len(prompts) < 2:
            raise UserError(
                f"{path}: {len(prompts)} prompts from index {first} on, need 2 or more; make more or lower first_prompt"
            )
        counted = Counted()
        if models:
            candidates = sampled(config, name, prompts, inputs, stage_run, counted)
        else:
            candidates = flawed(config, prompts)
        rows = []
        for prompt in prompts:
            if prompt.id in candidates:
                rng = stream(config.seed, "grade", prompt.id)
                row = make_preference(prompt, candidates[prompt.id], config.grader, config.edit_share, rng, counted)
                rows += [row] if row is not None else []
        output = "preferences.jsonl" if name == "train" else "heldout.jsonl"
        write_jsonl(stage_run.folder / output, (row.to_dict() for row in rows))
        metrics[name] = summary(rows, counted)
    return {"pairs": metrics["train"]["kept"], "heldout_pairs": metrics["heldout"]["kept"]} | metrics


def flawed(config: PreferencesConfig, prompts: list[Prompt]) -> dict[str, list[Candidate]]:
    """Two rule-made answers to each prompt."""
    by_task: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        by_task.setdefault(prompt.task, []).append(prompt)
    candidates = {}
    for prompt in prompts:
        rng = stream(config.seed, "flaws", prompt.id)
        others = [p.reference for p in by_task[prompt.task] if p.entry_id != prompt.entry_id] or [prompt.reference]
        other = others[int(rng.integers(len(others)))]
        candidates[prompt.id] = flawed_candidates(prompt, other, config.clean_share, config.max_flaws, rng)
    return candidates


def sampled(
    config: PreferencesConfig, split: str, prompts: list[Prompt], inputs: Inputs, stage_run: StageRun, counted: Counted
) -> dict[str, list[Candidate]]:
    """Answers by two different models to each prompt that fits their windows."""
    tokens = inputs.get("tokens")
    if tokens is None:
        raise UserError("preferences: sampling from `models` needs the input `tokens` (the tokenizer)")
    tokenizer = Tokenizer.load(tokens / "tokenizer")
    labels = list(inputs.group("models"))
    measured = inputs.get("best")
    best = BestModels.read(measured, labels) if measured is not None else None
    models = {label: load_model(artifact / "model") for label, artifact in inputs.group("models").items()}
    window = min(model.config.max_seq_len for model in models.values())
    chosen: dict[str, list[str]] = {}  # prompt -> its two models
    for prompt in prompts:
        if fits(prompt.messages, tokenizer, window, config.max_new_tokens, config.dialect):
            drawn = [labels[i] for i in stream(config.seed, "models", prompt.id).permutation(len(labels))]
            # The best for its kind of task, where that is known, and any other; else any two.
            first = [best.label(prompt.task)] if best is not None else []
            chosen[prompt.id] = [*first, *(label for label in drawn if label not in first)][:2]
        else:
            counted.drop("prompt_too_long")
    answers: dict[tuple[str, str], Answer] = {}
    for label, model in models.items():
        asked = [p for p in prompts if label in chosen.get(p.id, [])]
        sampling = SamplingConfig(
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            seed=torch_seed(config.seed, "preferences", split, label),
        )
        messages = [p.messages for p in asked]
        given = sample_answers(model, tokenizer, messages, sampling, 1, config.batch_size, config.dialect)
        answers |= {(p.id, label): group[0] for p, group in zip(asked, given, strict=True)}
        stage_run.cost(tokens=sum(len(group[0].tokens) for group in given))
    return {
        prompt_id: [Candidate(answers[prompt_id, label].text, label, answers[prompt_id, label].finished) for label in pair]
        for prompt_id, pair in chosen.items()
    }


def summary(rows: list[Preference], counted: Counted) -> dict[str, Any]:
    """Counts for the manifest, and the grader's mean score of the answers compared."""
    grades = Counter(row.grade.value for row in rows)
    compared = [row.scores[name] for row in rows for name in ("chosen", "rejected")]
    return counted.to_dict() | {
        "grades": {grade.value: grades[grade.value] for grade in Grade},
        "edited": sum(row.edited is not None for row in rows),
        "mean_score": sum(compared) / len(compared) if compared else None,
        "models": dict(sorted(Counter(row.models["chosen"].split("+")[0] for row in rows).items())),
    }


STAGE = Stage(
    name="preferences",
    version=2,
    config=PreferencesConfig,
    run=run,
    summary="graded pairs of responses, some edited",
    inputs=("dialogs",),
    optional=("tokens", "best"),
    groups=("models",),
)
