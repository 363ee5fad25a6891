"""`herd preferences`: two answers to each prompt, compared by the simulated grader or by people.

Without models the answers are the reference and flawed versions of it (the first round, when there is nothing to
sample from but must be something to learn). With models each prompt is answered by two different ones (section 4.2.1).
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from herd.alignment.annotation import AnnotationConfig, Exchange, Pairs, fingerprint, pair_id
from herd.alignment.best_stage import BestModels
from herd.alignment.fine_tuning import open_writer, require_rows
from herd.alignment.members import require_different
from herd.alignment.pairs import Candidate, flawed_candidates, make_preference, not_comparable, preference_of_people
from herd.alignment.verdicts import Verdict, agreement
from herd.config.errors import UserError
from herd.config.loader import to_plain
from herd.corpus.tokenizer import Tokenizer
from herd.dialog.grader import GraderConfig
from herd.dialog.preferences import Grade, Preference
from herd.dialog.render import DIALECTS
from herd.dialog.rows import Counted, Prompt, read_prompts, write_jsonl
from herd.dialog.trained_in import of_group, require_dialect, require_tokenizer
from herd.generation.chat import Answer, fits, sample_answers
from herd.generation.engines.config import EngineConfig, execution
from herd.generation.engines.opened import sampler_of
from herd.generation.kept import KEPT
from herd.generation.sampler import SamplingConfig
from herd.runs.atomic import sha256_json
from herd.runs.seeds import stream, torch_seed
from herd.runs.stage import Inputs, Stage, StageRun

REMEDIES = {
    "prompt_too_long": "lower max_new_tokens, or give models with more positions",
    "empty_response": "the models answer nothing: train them longer or give others",
    "chosen_equals_rejected": "the two answers are the same: raise temperature, or give models that differ more",
    "tie": "no two answers are told apart: give more prompts, or models that differ more",
    "no_verdict": "add files of verdicts to annotation.folder",
    "annotators_disagree": "add files of verdicts to annotation.folder, or give more prompts",
}


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
    annotation: AnnotationConfig = field(default_factory=AnnotationConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)  # with models

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
    require_dialect("preferences", config.dialect, of_group("models", models))
    require_tokenizer("preferences", inputs.get("tokens"), of_group("models", models))
    require_different("preferences", models)
    if len(models) == 1:
        raise UserError("preferences: give two or more `models`, each prompt is answered by two different ones (or give none)")
    prompts = {
        split: read_split(inputs["dialogs"] / f"{split}_prompts.jsonl", first, count)
        for split, first, count in (
            ("train", config.first_prompt, config.prompts),
            ("heldout", config.first_heldout_prompt, config.heldout_prompts),
        )
    }
    counted = {split: Counted() for split in prompts}
    config.engine.require_one_model("preferences", list(models))
    engines: dict[str, Any] = {}  # model -> what drew its answers

    def answered() -> Pairs:
        if models:
            return sampled(config, prompts, inputs, stage_run, counted, engines)
        return {split: flawed(config, asked) for split, asked in prompts.items()}

    if config.annotation.folder is not None:
        rows, agreed = judged_by_people(config, inputs, prompts, answered, counted, stage_run)
    else:
        candidates, agreed = answered(), {}
        rows = {split: judged_by_rule(config, prompts[split], candidates[split], counted[split]) for split in prompts}
    for split, file in (("train", "preferences.jsonl"), ("heldout", "heldout.jsonl")):
        write_jsonl(stage_run.folder / file, (row for _, row in rows[split]))
    require_rows("preferences", {"train": counted["train"].to_dict()}, "pair is left", REMEDIES)
    metrics = {split: summary([preference for preference, _ in rows[split]], counted[split]) for split in rows}
    return {"pairs": metrics["train"]["kept"], "heldout_pairs": metrics["heldout"]["kept"], "engine": engines} | agreed | metrics


def read_split(path: Path, first: int, count: int) -> list[Prompt]:
    """`count` prompts from index `first` on; UserError for fewer than two."""
    prompts = read_prompts(path)[first : first + count]
    if len(prompts) < 2:
        raise UserError(f"{path}: {len(prompts)} prompts from index {first} on, need 2 or more; make more or lower first_prompt")
    return prompts


Rows = list[tuple[Preference, dict[str, Any]]]  # a preference and how it is written


def judged_by_rule(
    config: PreferencesConfig, prompts: list[Prompt], candidates: dict[str, list[Candidate]], counted: Counted
) -> Rows:
    """The simulated grader's preferences."""
    rows = []
    for prompt in prompts:
        if prompt.id in candidates:
            rng = stream(config.seed, "grade", prompt.id)
            row = make_preference(prompt, candidates[prompt.id], config.grader, config.edit_share, rng, counted)
            rows += [(row, row.to_dict())] if row is not None else []
    return rows


def judged_by_people(
    config: PreferencesConfig,
    inputs: Inputs,
    prompts: dict[str, list[Prompt]],
    answered: Callable[[], Pairs],
    counted: dict[str, Counted],
    stage_run: StageRun,
) -> tuple[dict[str, Rows], dict[str, Any]]:
    """People's preferences, each row with the annotators' single verdicts, and how far they agree.

    The pairs go out once; UserError says what is awaited until enough verdicts are back.
    """
    by_rule = {"annotation", "grader", "edit_share"}  # keys that do not decide the pairs
    decisive = {name: value for name, value in to_plain(config).items() if name not in by_rule}
    decisive["engine"] = config.engine.kind
    exchange = Exchange(config.annotation, sha256_json([decisive, inputs.addresses(), inputs.order()]))
    sent = exchange.sent()
    if sent is None:
        comparable: Pairs = {}
        for split, candidates in answered().items():
            reasons = {prompt: not_comparable(two) for prompt, two in candidates.items()}
            for reason in filter(None, reasons.values()):
                counted[split].drop(reason)
            comparable[split] = {prompt: two for prompt, two in candidates.items() if reasons[prompt] is None}
        left = {"kept": len(comparable["train"]), "dropped": counted["train"].dropped}
        require_rows("preferences", {"train": left}, "pair is left to be judged", REMEDIES)
        by_id = {prompt.id: prompt for asked in prompts.values() for prompt in asked}
        dropped = {split: dict(counts.dropped) for split, counts in counted.items()}
        sent = exchange.send(comparable, dropped, by_id, config.seed)
        shutil.rmtree(stage_run.scratch / KEPT, ignore_errors=True)  # with verdicts this stage has another address
    verdicts = exchange.verdicts(sent.pairs)
    rows: dict[str, Rows] = {}
    for split, asked in prompts.items():
        counted[split].dropped = dict(sent.dropped[split])
        rows[split] = []
        for prompt in (prompt for prompt in asked if prompt.id in sent.pairs[split]):
            two = sent.pairs[split][prompt.id]
            given = verdicts.get(pair_id(prompt.id, two), [])
            row = preference_of_people(prompt, two, given, counted[split])
            if row is not None:
                rows[split].append((row, row.to_dict() | {"annotators": annotators_of(row, given)}))
    by_name = Counter(verdict.annotator for given in verdicts.values() for verdict in given)
    return rows, {"annotators": dict(sorted(by_name.items())), "agreement": agreement(verdicts.values())}


def annotators_of(row: Preference, given: list[Verdict]) -> dict[str, dict[str, Any]]:
    """Annotator -> the grade given, and whether the edited text is theirs."""
    editor = row.models.get("edited")
    return {
        verdict.annotator: {"grade": verdict.grade.value if verdict.grade else None, "edited": verdict.annotator == editor}
        for verdict in given
    }


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
    config: PreferencesConfig,
    prompts: dict[str, list[Prompt]],
    inputs: Inputs,
    stage_run: StageRun,
    counted: dict[str, Counted],
    engines: dict[str, Any],
) -> Pairs:
    """Answers by two different models to each prompt that fits their windows; what drew them is entered in ``engines``."""
    tokens = inputs.get("tokens")
    if tokens is None:
        raise UserError("preferences: sampling from `models` needs the input `tokens` (the tokenizer)")
    tokenizer = Tokenizer.load(tokens / "tokenizer")
    labels = list(inputs.group("models"))
    measured = inputs.get("best")
    best = BestModels.read(measured, labels) if measured is not None else None
    writers = inputs.group("models")
    models = {label: open_writer("preferences", f"models.{label}", label, artifact) for label, artifact in writers.items()}
    window = min(model.config.max_seq_len for model in models.values())
    chosen: dict[str, dict[str, list[str]]] = {split: {} for split in prompts}  # split -> prompt -> its two models
    for split, prompt in ((split, prompt) for split, own in prompts.items() for prompt in own):
        if fits(prompt.messages, tokenizer, window, config.max_new_tokens, config.dialect):
            drawn = [labels[i] for i in stream(config.seed, "models", prompt.id).permutation(len(labels))]
            # The best for its kind of task, where that is known, and any other; else any two.
            first = [best.label(prompt.task)] if best is not None else []
            chosen[split][prompt.id] = [*first, *(label for label in drawn if label not in first)][:2]
        else:
            counted[split].drop("prompt_too_long")
    answers: dict[tuple[str, str, str], Answer] = {}
    for label, model in models.items():
        asked = {split: [p for p in own if label in chosen[split].get(p.id, [])] for split, own in prompts.items()}
        # One opening for both splits: a server is long in starting.
        with sampler_of(config.engine, model, tokenizer, config.dialect, stage_run.scratch, config.batch_size) as sampler:
            for split, own in asked.items():
                sampling = SamplingConfig(
                    max_new_tokens=config.max_new_tokens,
                    temperature=config.temperature,
                    top_p=config.top_p,
                    seed=torch_seed(config.seed, "preferences", split, label),
                )
                given = sample_answers(sampler, tokenizer, [p.messages for p in own], sampling, 1, config.dialect)
                answers |= {(split, p.id, label): group[0] for p, group in zip(own, given, strict=True)}
                stage_run.cost(tokens=sum(len(group[0].tokens) for group in given))
            engines[label] = sampler.about

    def candidate(split: str, prompt_id: str, label: str) -> Candidate:
        answer = answers[split, prompt_id, label]
        return Candidate(answer.text, label, answer.finished)

    return {
        split: {prompt_id: [candidate(split, prompt_id, label) for label in pair] for prompt_id, pair in pairs.items()}
        for split, pairs in chosen.items()
    }


def summary(rows: list[Preference], counted: Counted) -> dict[str, Any]:
    """Counts for the manifest, and the grader's mean score of the answers compared."""
    grades = Counter(row.grade.value for row in rows)
    compared = [row.scores[name] for row in rows for name in ("chosen", "rejected") if name in row.scores]
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
    fingerprint=lambda config: fingerprint(config.annotation),
    execution=("annotation", *execution("engine")),  # where the folder lies; what is in it is in the fingerprint
)
