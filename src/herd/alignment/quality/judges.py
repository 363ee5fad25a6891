"""Who judges dialogs: any model behind one interface. It is asked to choose one of several answers about a dialog.

Grades, topics and tags are all such choices, so a judge that can choose can do everything here. Kinds: a model of ours (the
probability of each answer), a chat endpoint, a file of what somebody said before, and the grader with a known rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from herd.alignment.quality.dialogs import Dialog
from herd.config.errors import UserError, nearest
from herd.config.registry import Registry
from herd.runs.stage import Inputs, StageRun

GRADES = ("quality", "difficulty")  # purposes with a grade
PURPOSES = (*GRADES, "topic", "tags")


@dataclass(frozen=True)
class Question:
    """What is asked about one dialog. A grade's answers are "1", "2", ... in ascending order."""

    dialog: Dialog
    purpose: str  # one of PURPOSES
    text: str  # as the judge reads it, the dialog in it
    answers: tuple[str, ...]  # of which one is chosen
    tag: str = ""  # purpose tags: which tag is asked about, yes or no


@dataclass(frozen=True)
class Verdict:
    """What a judge says to one question."""

    shares: tuple[float, ...]  # of each answer, they sum to 1; empty: it says nothing
    reason: str = ""  # why it says nothing

    @property
    def choice(self) -> int | None:
        """Index of the answer chosen, the first of equals; None when the judge says nothing."""
        return int(np.argmax(self.shares)) if self.shares else None

    @property
    def grade(self) -> int | None:
        """The grade chosen, from 1."""
        return None if self.choice is None else self.choice + 1

    @property
    def expected_grade(self) -> float | None:
        """Mean grade, from 1: finer than the grade where the judge gives probabilities."""
        return float(sum((i + 1) * share for i, share in enumerate(self.shares))) if self.shares else None


def certain(choice: int, answers: int) -> Verdict:
    """A verdict without doubt."""
    return Verdict(tuple(float(i == choice) for i in range(answers)))


class Judge(Protocol):
    """One verdict to each question, in order."""

    def ask(self, questions: Sequence[Question]) -> list[Verdict]: ...


@dataclass(frozen=True)
class JudgeConfig:
    """Who judges, and what about."""

    kind: str  # none, model (input judge), endpoint, file or grader (input prompts)
    asked: list[str]  # grades that it gives: quality, difficulty
    path: str = ""  # file: JSONL, id -> quality, difficulty, topic, tags
    url: str = ""  # endpoint: address of an OpenAI-compatible server, e.g. http://127.0.0.1:8000/v1
    model: str = ""  # endpoint: its name for the model
    key_variable: str = ""  # endpoint: environment variable that holds a key; "" = none is sent
    timeout: float = 60.0  # endpoint: seconds for an answer
    retries: int = 3  # endpoint: further attempts after one that failed
    parallel: int = 4  # endpoint: questions asked at a time
    batch_size: int = 32  # model: sequences read together
    limits: list[float] = field(default_factory=lambda: [0.5, 0.9])  # grader: lowest scores of grade 2, 3, ...; the last = top

    def __post_init__(self) -> None:
        if self.kind != "none":
            JUDGES.get(self.kind)
        for name in self.asked:
            if name not in GRADES:
                raise UserError(f"judge.asked: '{name}' is no grade.{nearest(name, GRADES)} Choices: {', '.join(GRADES)}.")
        if self.kind == "file" and not self.path:
            raise UserError("judge.kind=file needs judge.path (JSONL: id and quality, difficulty, topic or tags).")
        if self.kind == "endpoint" and not self.url.startswith(("http://", "https://")):
            raise UserError("judge.kind=endpoint needs judge.url, e.g. judge.url=http://127.0.0.1:8000/v1.")
        if self.timeout <= 0 or self.retries < 0 or min(self.parallel, self.batch_size) < 1:
            raise UserError("judge: timeout > 0, retries >= 0, parallel >= 1 and batch_size >= 1 are needed.")
        if not self.limits or list(self.limits) != sorted(set(self.limits)):
            raise UserError("judge.limits: scores in ascending order are needed, e.g. [0.5, 0.9].")

    def asks(self, purpose: str) -> bool:
        """Whether there is a judge, and it gives this grade."""
        return self.kind != "none" and purpose in self.asked


JUDGES: Registry[Callable[[JudgeConfig, Inputs, StageRun, str], Judge]] = Registry("kind of judge")


@JUDGES.register("model")
def _model(config: JudgeConfig, inputs: Inputs, stage_run: StageRun, dialect: str) -> Judge:
    from herd.alignment.quality.judge_model import ModelJudge

    return ModelJudge.open(config, inputs, dialect)


@JUDGES.register("endpoint")
def _endpoint(config: JudgeConfig, inputs: Inputs, stage_run: StageRun, dialect: str) -> Judge:
    from herd.alignment.quality.judge_endpoint import EndpointJudge

    return EndpointJudge(config, stage_run.scratch)


@JUDGES.register("file")
def _file(config: JudgeConfig, inputs: Inputs, stage_run: StageRun, dialect: str) -> Judge:
    from herd.alignment.quality.judge_file import FileJudge

    return FileJudge.open(config)


@JUDGES.register("grader")
def _grader(config: JudgeConfig, inputs: Inputs, stage_run: StageRun, dialect: str) -> Judge:
    from herd.alignment.quality.judge_grader import GraderJudge

    return GraderJudge.open(config, inputs)


def open_judge(config: JudgeConfig, inputs: Inputs, stage_run: StageRun, dialect: str) -> Judge:
    """The judge; UserError when there is none, or something that it needs is missing."""
    if config.kind == "none":
        raise UserError(f"prune: a judge is asked for and there is none: set judge.kind ({', '.join(JUDGES.names())}).")
    return JUDGES.get(config.kind)(config, inputs, stage_run, dialect)
