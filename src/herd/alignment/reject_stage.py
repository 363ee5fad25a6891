"""`herd reject`: rejection sampling (section 4.2.2): of K answers to a prompt, the reward model's choice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from herd.alignment.best_stage import BestModels
from herd.alignment.fine_tuning import load_tokenizer, mean_interval, open_writer, require_rows
from herd.config.errors import UserError
from herd.dialog.grader import GraderConfig
from herd.dialog.messages import Message, Role
from herd.dialog.render import DIALECTS
from herd.dialog.rows import Counted, read_prompts, write_jsonl
from herd.dialog.trained_in import of_group, require_dialect, require_tokenizer
from herd.generation.chat import Answer, fits, sample_answers
from herd.generation.engines.config import EngineConfig, execution
from herd.generation.engines.opened import sampler_of
from herd.generation.sampler import SamplingConfig
from herd.generation.steering import steer
from herd.model.io import load_reward_model
from herd.runs.seeds import torch_seed
from herd.runs.stage import Artifact, Inputs, Stage, StageRun
from herd.training.reward import score_if_read

REMEDIES = {
    "no_finished_answer": "raise max_new_tokens or samples, or train the generator to end its turns",
    "no_readable_answer": "lower max_new_tokens: answers are longer than the reward model reads",
    "prompt_too_long": "lower max_new_tokens, or give models with more positions",
}


@dataclass(frozen=True)
class RejectConfig:
    """Schema of conf/reject.yaml."""

    seed: int
    dialect: str  # how messages become tokens: meta, meta_tag, hf, torchtune
    first_prompt: int  # index of the first training prompt used
    prompts: int  # training prompts used
    samples: int  # K, answers to each prompt; the paper: 10-30
    max_new_tokens: int  # longest answer, tokens
    temperature: float
    top_p: float
    batch_size: int  # sequences generated or scored together
    system_prompts: list[str]  # steering: one of these precedes a prompt while its answers are drawn, and is not kept
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        DIALECTS.get(self.dialect)
        if self.first_prompt < 0 or min(self.prompts, self.samples, self.max_new_tokens, self.batch_size) < 1:
            raise UserError("first_prompt must be >= 0; prompts, samples, max_new_tokens and batch_size >= 1")
        if self.samples > 1 and self.temperature <= 0:
            raise UserError("temperature 0 gives the same answer every time; raise it or set samples to 1")


def run(config: RejectConfig, inputs: Inputs, stage_run: StageRun) -> dict[str, Any]:
    writers, writer_of = generators(inputs)
    named = of_group("models", inputs.group("models"))
    read = {"reward": inputs["reward"], "generator": None if named else inputs.get("generator")} | named
    require_dialect("reject", config.dialect, read)
    require_tokenizer("reject", inputs["tokens"], read)
    tokenizer = load_tokenizer(inputs)
    reward_model = load_reward_model(inputs["reward"] / "model")
    models = {
        label: open_writer("reject", f"models.{label}" if named else label, label, artifact)
        for label, artifact in writers.items()
    }
    config.engine.require_one_model("reject", list(models))
    path = inputs["prompts"] / "train_prompts.jsonl"
    prompts = read_prompts(path)[config.first_prompt : config.first_prompt + config.prompts]
    if not prompts:
        raise UserError(f"{path}: no prompts from index {config.first_prompt} on; make more or lower first_prompt")
    counted = Counted()
    window = min(shape.max_seq_len for shape in [*(m.config for m in models.values()), reward_model.backbone.config])
    asked = []
    steered = {p.id: steer(p.messages, config.system_prompts, config.seed, p.id) for p in prompts}
    for prompt in prompts:
        # One token more: the reward model also reads the end of the turn.
        if fits(steered[prompt.id][0], tokenizer, window, config.max_new_tokens + 1, config.dialect):
            asked.append(prompt)
        else:
            counted.drop("prompt_too_long")
    if not asked:
        raise UserError(f"{path}: no prompt leaves {config.max_new_tokens + 1} of {window} positions free; lower max_new_tokens")
    sampling = SamplingConfig(
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        seed=torch_seed(config.seed, "reject"),
    )
    grader = GraderConfig()
    engines: dict[str, Any] = {}
    given_to: dict[str, list[Answer]] = {}
    for label, model in models.items():
        own = [p for p in asked if writer_of(p.task) == label]
        own_prompts = [steered[p.id][0] for p in own]
        with sampler_of(config.engine, model, tokenizer, config.dialect, stage_run.scratch, config.batch_size) as sampler:
            groups = sample_answers(sampler, tokenizer, own_prompts, sampling, config.samples, config.dialect)
            engines[label] = sampler.about
        given_to |= {p.id: group for p, group in zip(own, groups, strict=True)}
    answers = [given_to[p.id] for p in asked]
    stage_run.cost(tokens=sum(len(a.tokens) for given in answers for a in given))
    # An answer cut at the length limit would teach abrupt ends, an empty one nothing: they are no candidates.
    candidates = [[(i, a.text) for i, a in enumerate(given) if a.finished and a.text.strip()] for given in answers]
    dialogs = [
        (*prompt.messages, Message(Role.ASSISTANT, text))
        for prompt, texts in zip(asked, candidates, strict=True)
        for _, text in texts
    ]
    scores = iter(score_if_read(reward_model, tokenizer, dialogs, config.batch_size, config.dialect))
    rows: list[dict[str, Any]] = []
    rewards: list[float] = []
    grades: list[float] = []
    gains: list[float] = []  # of each prompt, the grade of the best answer less the mean of all
    unread = 0  # finished answers whose text is longer than the reward model reads
    for prompt, texts in zip(asked, candidates, strict=True):
        scored = [(*candidate, reward) for candidate in texts if (reward := next(scores)) is not None]
        unread += len(texts) - len(scored)
        if not scored:
            counted.drop("no_readable_answer" if texts else "no_finished_answer")
            continue
        given_scores = [reward for _, _, reward in scored]
        best = max(range(len(scored)), key=lambda i: (given_scores[i], -i))
        sample, text, _ = scored[best]
        writer = writer_of(prompt.task)
        counted.kept += 1
        rewards += given_scores
        own_grades = [grader.score(prompt.task, prompt.reference, other) for _, other, _ in scored]
        grades += own_grades
        gains.append(own_grades[best] - sum(own_grades) / len(own_grades))
        messages = (*prompt.messages, Message(Role.ASSISTANT, text))
        rows.append(
            {
                "id": f"reject-{prompt.id}",
                "prompt_id": prompt.id,
                "entry_id": prompt.entry_id,
                "task": prompt.task,
                "messages": [m.to_dict() for m in messages],
                "reward": given_scores[best],
                "mean_reward": sum(given_scores) / len(scored),
                "sample": sample,
                "candidates": len(scored),
                "seed": config.seed,
                "steering": steered[prompt.id][1],
                "model": writers[writer].address[:16],
                "model_label": writer,
                "score": own_grades[best],
            }
        )
    require_rows("reject", {"prompts": counted.to_dict()}, "prompt has an answer to keep", REMEDIES)
    write_jsonl(stage_run.folder / "dialogs.jsonl", rows)
    return {
        "reward_best": mean([row["reward"] for row in rows]),
        "reward_all": mean(rewards),
        "score_best": mean([row["score"] for row in rows]),  # by the grader's known rule, which no model has seen
        "score_all": mean(grades),
        "score_gain": mean(gains),
        "score_gain_interval": mean_interval(np.array(gains))["interval"] if gains else None,
        "dialogs": len(rows),
        "samples": sum(map(len, answers)),
        "finished": mean([float(a.finished) for given in answers for a in given]),
        "unread": unread,
        "rows": counted.to_dict(),
        "engine": engines,
    }


def generators(inputs: Inputs) -> tuple[dict[str, Artifact], Callable[[str], str]]:
    """Models that answer by their labels, and which of them answers a kind of task.

    The inputs `best` and `models`, when given, say it; else `generator` answers everything.
    """
    models, best, generator = inputs.group("models"), inputs.get("best"), inputs.get("generator")
    if (best is None) != (not models):
        raise UserError("reject: the inputs best (herd best) and models go together: its names are their labels")
    if best is not None:
        chosen = BestModels.read(best, list(models))
        used = {chosen.otherwise, *chosen.by_task.values()}
        return {label: artifact for label, artifact in models.items() if label in used}, chosen.label
    if generator is None:
        raise UserError("reject: who answers? give inputs.generator=FOLDER, or inputs.best and inputs.models.LABEL")
    return {"generator": generator}, lambda task: "generator"


def mean(values: list[float]) -> float | None:
    """Mean, or None of nothing."""
    return sum(values) / len(values) if values else None


STAGE = Stage(
    name="reject",
    version=2,
    config=RejectConfig,
    run=run,
    summary="rejection sampling: K answers, the best by reward",
    headline=("dialogs", "finished", "reward_best", "reward_all", "score_best", "score_all", "score_gain"),
    inputs=("tokens", "reward", "prompts"),
    optional=("generator", "best"),
    groups=("models",),
    execution=execution("engine"),
)
