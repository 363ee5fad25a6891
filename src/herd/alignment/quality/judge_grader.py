"""The grader with a known rule as a judge: it stands in for a model judge where none is at hand, as on a laptop."""

from __future__ import annotations

from collections.abc import Sequence

from herd.alignment.quality.judges import JudgeConfig, Question, Verdict, certain
from herd.config.errors import UserError
from herd.dialog.grader import GraderConfig
from herd.dialog.rows import Prompt, read_prompts
from herd.runs.stage import Inputs


class GraderJudge:
    """Grades quality by comparison with the reference answer of the prompt (`prompt_id`, of `herd dialogs`).

    A score that reaches all `limits` has the top grade; each limit that it misses costs a point, down to grade 1.
    """

    def __init__(self, prompts: dict[str, Prompt], limits: Sequence[float]) -> None:
        self._prompts, self._limits, self._grader = prompts, list(limits), GraderConfig()

    @classmethod
    def open(cls, config: JudgeConfig, inputs: Inputs) -> GraderJudge:
        """UserError without the prompts, or when it is asked for more than quality."""
        given = inputs.get("prompts")
        if given is None:
            raise UserError("judge.kind=grader needs inputs.prompts=FOLDER (of `herd dialogs`): it knows the right answers.")
        prompts = [p for name in ("train", "heldout") for p in read_prompts(given / f"{name}_prompts.jsonl")]
        return cls({prompt.id: prompt for prompt in prompts}, config.limits)

    def ask(self, questions: Sequence[Question]) -> list[Verdict]:
        return [self._verdict(question) for question in questions]

    def _verdict(self, question: Question) -> Verdict:
        if question.purpose != "quality":
            raise UserError(f"judge.kind=grader grades quality alone, not {question.purpose}: set judge.asked=[quality].")
        prompt = self._prompts.get(str(question.dialog.row.get("prompt_id", "")))
        if prompt is None or question.dialog.messages[:-1] != prompt.messages:
            return Verdict((), "no reference answer is known")
        score = self._grader.score(prompt.task, prompt.reference, question.dialog.messages[-1].content)
        points = len(question.answers)
        return certain(max(0, points - 1 - sum(score < limit for limit in self._limits)), points)
