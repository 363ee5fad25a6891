"""Win rate of one model over another by a reward model, on held-out prompts, and beside it by the grader's known rule.

Both answer each prompt greedily; the answer with the higher score wins. Equal scores (mostly equal answers) count
half to each side and are reported. The reward model that judges is the one that shaped the data of the judged models,
so its rate says how well they follow it, not how good they are: the usual caution with this number. The grader compares
the same answers with the references of these held-out prompts, by the rule that also made the preferences.
"""

from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from herd.config.errors import UserError, nearest
from herd.dialog.grader import GraderConfig
from herd.dialog.messages import Message, Role
from herd.dialog.rows import Prompt, read_prompts
from herd.evaluation.bench import TASKS, BaseTask, Bench, score
from herd.evaluation.rewards import pair_rewards
from herd.evaluation.scoring import LanguageModel
from herd.generation.chat import Answer, fits, sample_answers
from herd.generation.sampler import SamplingConfig
from herd.model.heads import RewardModel
from herd.runs.seeds import stream
from herd.runs.statistics import bootstrap_mean, wilson

NAME = "win_rate"


@dataclass(frozen=True)
class WinRateConfig:
    """Which models meet, and on what."""

    pairs: list[list[str]] = field(default_factory=list)  # [model, opponent, judging reward model] by their labels
    prompts: int = 200  # held-out prompts at most
    max_new_tokens: int = 48  # longest answer, tokens
    batch_size: int = 64  # prompts answered together

    def __post_init__(self) -> None:
        for pair in self.pairs:
            if len(pair) != 3:
                raise UserError(f"evaluate.{NAME}.pairs: {pair} must be three labels: model, opponent, judging reward model.")
        if min(self.prompts, self.max_new_tokens, self.batch_size) < 1:
            raise UserError(f"evaluate.{NAME}: prompts, max_new_tokens and batch_size must be at least 1.")


@TASKS.register(NAME)
class WinRate(BaseTask):
    """``win_rate`` of the first model of each pair by the judge, ``grader_win_rate`` by the known rule, ties half in both."""

    def __init__(self, config: WinRateConfig, bench: Bench) -> None:
        super().__init__()
        self.config, self.bench, self.grader = config, bench, GraderConfig()
        for model, opponent, _ in config.pairs:
            for label in (model, opponent):
                if label not in bench.labels:
                    raise UserError(f"evaluate.{NAME}.pairs: no model '{label}' among the inputs.{nearest(label, bench.labels)}")
        self.prompts: list[Prompt] = []
        self.answers: dict[str, dict[str, Answer]] = {}
        if not config.pairs:
            self.result.skipped = f"no pairs are given (evaluate.{NAME}.pairs)"
        elif bench.dialogs is None:
            self.result.skipped = "no held-out prompts among the inputs (`dialogs`)"
        else:
            self.prompts = read_prompts(bench.dialogs / "heldout_prompts.jsonl")[: config.prompts]

    def language_model(self, lm: LanguageModel) -> None:
        if not self.prompts or not any(lm.label in pair[:2] for pair in self.config.pairs):
            return
        most = self.config.max_new_tokens
        asked = [p for p in self.prompts if fits(p.messages, self.bench.tokenizer, lm.max_seq_len, most)]
        if not asked:
            self.result.notes[lm.label] = f"no prompt leaves room for an answer in {lm.max_seq_len} positions"
            return
        sampling = SamplingConfig(max_new_tokens=most, temperature=0.0, top_p=1.0, seed=self.bench.seed)
        given = sample_answers(lm.model, self.bench.tokenizer, [p.messages for p in asked], sampling, 1, self.config.batch_size)
        self.answers[lm.label] = {p.id: group[0] for p, group in zip(asked, given, strict=True)}
        lm.tokens_read += sum(len(group[0].tokens) for group in given)

    def reward_model(self, label: str, model: RewardModel) -> None:
        for first, second, judge in self.config.pairs:
            if judge == label and first in self.answers and second in self.answers:
                self._judge(first, second, judge, model)

    def _judge(self, first: str, second: str, judge: str, model: RewardModel) -> None:
        both = [p for p in self.prompts if p.id in self.answers[first] and p.id in self.answers[second]]
        answers = [[(Message(Role.ASSISTANT, self.answers[side][p.id].text),) for p in both] for side in (first, second)]
        kept, scores = pair_rewards(model, self.bench.tokenizer, [p.messages for p in both], *answers)
        both = [both[i] for i in kept]
        if not both:
            self.result.notes[f"{first} over {second}"] = "no prompt and answer fit the models' lengths"
            return
        margin = scores[:, 0] - scores[:, 1]
        points = _points(margin)
        grades = np.array([[self._grade(p, self.answers[side][p.id]) for side in (first, second)] for p in both])
        graded = _points(grades[:, 0] - grades[:, 1])
        wins, losses, n = int((margin > 0).sum()), int((margin < 0).sum()), len(margin)
        task = f"{NAME}_over_{second}"
        finished = {side: float(np.mean([self.answers[side][p.id].finished for p in both])) for side in (first, second)}
        rng = stream(self.bench.seed, NAME, first, second, judge)
        # Wilson takes a tie for half a win and half a loss, more spread than it has: the interval is on the wide side.
        metrics = score("win_rate", points.mean(), wilson(float(points.mean()), n))
        metrics |= score("reward_margin", margin.mean(), bootstrap_mean(margin, rng, self.bench.resamples))
        metrics |= score("grader_win_rate", graded.mean(), wilson(float(graded.mean()), n))
        for i, name in enumerate(("grade", "opponent_grade")):
            metrics |= score(name, grades[:, i].mean(), bootstrap_mean(grades[:, i], rng, self.bench.resamples))
        metrics |= {"grader_ties": int((graded == 0.5).sum())}
        metrics |= {"wins": wins, "losses": losses, "ties": n - wins - losses, "n": n, "judge": judge}
        metrics |= {"finished": finished}
        metrics |= {"sign_test_p": float(stats.binomtest(wins, wins + losses, 0.5).pvalue) if wins + losses else 1.0}
        self.result.add(first, task, metrics)
        self.result.n_samples[task] = n
        self.result.comparisons.append(
            {
                "task": NAME,
                "metric": "win_rate",
                "models": [first, second],
                "judge": judge,
                "win_rate": metrics["win_rate,none"],
                "interval": metrics["win_rate_interval,none"],
                "ties": metrics["ties"],
                "grader_win_rate": metrics["grader_win_rate,none"],
                "grader_interval": metrics["grader_win_rate_interval,none"],
                "grader_ties": metrics["grader_ties"],
                "grades": [metrics["grade,none"], metrics["opponent_grade,none"]],
            }
        )
        for i, prompt in enumerate(both):
            row = {
                "doc_id": prompt.id,
                "task": prompt.task,
                "prompt": prompt.messages[-1].content,
                "reference": prompt.reference,
                "judge": judge,
                "models": [first, second],
                "answers": {side: self.answers[side][prompt.id].text for side in (first, second)},
                "rewards": [float(x) for x in scores[i]],
                "points": float(points[i]),
                "grades": [float(x) for x in grades[i]],
            }
            self.result.samples.setdefault(NAME, []).append(row)

    def _grade(self, prompt: Prompt, answer: Answer) -> float:
        """Score in [0, 1] of an answer by the known rule."""
        return self.grader.score(prompt.task, prompt.reference, answer.text, answer.finished)


def _points(margin: np.ndarray) -> np.ndarray:
    """1 for a win of the first, 0 for a loss, 0.5 for a tie; any shape."""
    return np.where(margin > 0, 1.0, np.where(margin < 0, 0.0, 0.5))
