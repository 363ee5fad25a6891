"""`herd best`: the best of several checkpoints for each kind of task (section 4.1.6), which answers the next round's prompts.

Each model answers the same held-out prompts greedily, the round's reward model scores the answers. A kind of task goes to the
model with the highest mean reward there; the grader's known rule stands beside it, and does not decide.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from herd.alignment.fine_tuning import load_tokenizer, mean_interval, open_writer
from herd.alignment.members import require_different
from herd.config.errors import UserError
from herd.dialog.grader import GraderConfig
from herd.dialog.messages import Message, Role
from herd.dialog.render import DIALECTS
from herd.dialog.rows import Counted, Prompt, read_prompts, write_jsonl
from herd.dialog.trained_in import of_group, require_dialect, require_tokenizer
from herd.generation.chat import Answer, fits, sample_answers
from herd.generation.engines.config import EngineConfig, execution
from herd.generation.engines.opened import sampler_of
from herd.generation.sampler import SamplingConfig
from herd.model.io import load_reward_model
from herd.runs.atomic import write_json
from herd.runs.stage import Artifact, Inputs, Stage, StageRun
from herd.training.reward import score_if_read

BEST = "best.json"


@dataclass(frozen=True)
class BestConfig:
    """Schema of conf/best.yaml."""

    seed: int  # nothing here is random; every stage has one
    dialect: str  # how messages become tokens: meta, meta_tag, hf, torchtune
    first_prompt: int  # index of the first held-out prompt used; an evaluation must use others
    prompts: int  # held-out prompts at most
    max_new_tokens: int  # longest answer, tokens
    batch_size: int  # sequences generated or scored together
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        DIALECTS.get(self.dialect)
        if self.first_prompt < 0 or min(self.prompts, self.max_new_tokens, self.batch_size) < 1:
            raise UserError("first_prompt must be >= 0; prompts, max_new_tokens and batch_size >= 1")


def run(config: BestConfig, inputs: Inputs, stage_run: StageRun) -> dict[str, Any]:
    candidates = inputs.group("models", least=2)
    require_different("best", candidates)
    named = {"reward": inputs["reward"], **of_group("models", candidates)}
    require_dialect("best", config.dialect, named)
    require_tokenizer("best", inputs["tokens"], named)
    tokenizer = load_tokenizer(inputs)
    models = {label: open_writer("best", f"models.{label}", label, artifact) for label, artifact in candidates.items()}
    config.engine.require_one_model("best", list(models))
    judge = load_reward_model(inputs["reward"] / "model")
    path = inputs["prompts"] / "heldout_prompts.jsonl"
    counted = Counted()
    window = min(shape.max_seq_len for shape in [*(m.config for m in models.values()), judge.backbone.config])
    asked = []
    for prompt in read_prompts(path)[config.first_prompt : config.first_prompt + config.prompts]:
        # One token more: the reward model also reads the end of the turn.
        if fits(prompt.messages, tokenizer, window, config.max_new_tokens + 1, config.dialect):
            asked.append(prompt)
        else:
            counted.drop("prompt_too_long")
    if not asked:
        raise UserError(f"{path}: no prompt from index {config.first_prompt} on fits {window} positions; lower first_prompt")
    sampling = SamplingConfig(max_new_tokens=config.max_new_tokens, temperature=0.0, top_p=1.0, seed=config.seed)
    engines: dict[str, Any] = {}
    answers: dict[str, list[Answer]] = {}
    scores: dict[str, list[float | None]] = {}
    for label, model in models.items():
        with sampler_of(config.engine, model, tokenizer, config.dialect, stage_run.scratch, config.batch_size) as sampler:
            given = sample_answers(sampler, tokenizer, [p.messages for p in asked], sampling, 1, config.dialect)
            engines[label] = sampler.about
        answers[label] = [group[0] for group in given]
        stage_run.cost(tokens=sum(len(answer.tokens) for answer in answers[label]))
        dialogs = [(*p.messages, Message(Role.ASSISTANT, a.text)) for p, a in zip(asked, answers[label], strict=True)]
        scores[label] = score_if_read(judge, tokenizer, dialogs, config.batch_size, config.dialect)
    # All models are compared on the same prompts: those to which every answer could be read.
    read = [i for i in range(len(asked)) if all(found[i] is not None for found in scores.values())]
    counted.kept = len(read)
    for _ in range(len(asked) - len(read)):
        counted.drop("answer_too_long")
    if not read:
        raise UserError("best: no prompt has answers by all models that the reward model can read whole; lower max_new_tokens")
    asked = [asked[i] for i in read]
    rewards, grades, rows = {}, {}, []
    for label in models:
        own_answers = [answers[label][i] for i in read]
        rewards[label] = np.array([scores[label][i] for i in read], np.float64)
        grades[label] = _grades(asked, own_answers)
        for i, (prompt, answer) in enumerate(zip(asked, own_answers, strict=True)):
            earned = {"reward": float(rewards[label][i]), "grade": float(grades[label][i])}
            rows.append({"id": prompt.id, "task": prompt.task, "model": label, "answer": answer.text} | earned)
    write_jsonl(stage_run.folder / "answers.jsonl", rows)
    by_task = {
        task: [i for i, prompt in enumerate(asked) if prompt.task == task] for task in dict.fromkeys(p.task for p in asked)
    }
    best = {task: max(models, key=lambda label: float(rewards[label][own].mean())) for task, own in by_task.items()}
    overall = max(models, key=lambda label: float(rewards[label].mean()))
    write_json(stage_run.folder / BEST, {"by_task": best, "otherwise": overall})
    return {
        "best": best,
        "best_overall": overall,
        "prompts": counted.to_dict(),
        "by_task": {task: _compared(rewards, grades, own, best[task]) for task, own in by_task.items()},
        "overall": _compared(rewards, grades, list(range(len(asked))), overall),
        "engine": engines,
    }


def _grades(prompts: list[Prompt], answers: list[Answer]) -> np.ndarray:
    """Scores in [0, 1] by the known rule, one an answer."""
    grader = GraderConfig()
    return np.array([grader.score(p.task, p.reference, a.text, a.finished) for p, a in zip(prompts, answers, strict=True)])


def _compared(rewards: dict[str, np.ndarray], grades: dict[str, np.ndarray], own: list[int], best: str) -> dict[str, Any]:
    """Label -> mean reward and grade on the prompts ``own``, and how far the best one is ahead, paired by prompt."""
    return {
        label: {
            "reward": float(rewards[label][own].mean()),
            "grade": float(grades[label][own].mean()),
            "behind_best": mean_interval(rewards[best][own] - rewards[label][own]),
            "prompts": len(own),
        }
        for label in rewards
    }


@dataclass(frozen=True)
class BestModels:
    """Which of several models answers a kind of task."""

    by_task: dict[str, str]  # task -> label
    otherwise: str  # for a task that was not measured

    @classmethod
    def read(cls, artifact: Artifact, labels: list[str]) -> BestModels:
        """What `herd best` left; UserError when it names a model that is none of ``labels``."""
        chosen = json.loads((artifact / BEST).read_text(encoding="utf-8"))
        best = cls(dict(chosen["by_task"]), chosen["otherwise"])
        for label in [*best.by_task.values(), best.otherwise]:
            if label not in labels:
                raise UserError(f"{artifact / BEST}: names the model '{label}', which is not among inputs.models: {labels}")
        return best

    def label(self, task: str) -> str:
        """The model for a task."""
        return self.by_task.get(task, self.otherwise)


STAGE = Stage(
    name="best",
    version=1,
    config=BestConfig,
    run=run,
    summary="the best checkpoint for each kind of task, by reward",
    headline=("best", "best_overall"),
    inputs=("tokens", "prompts", "reward"),
    groups=("models",),
    execution=execution("engine"),
)
