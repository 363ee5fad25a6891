"""Greedy answers of two models to held-out prompts: how often the first one's are better, and by how much.

Both answer each prompt greedily; a reward model scores the answers. `pairs` gives the share of prompts that the first model wins
(equal scores, mostly equal answers, count half to each side and are reported) and the difference of mean rewards, paired by
prompt. `averages` compares an averaged model with the best of its members. The reward model that judges is the one that
shaped the data of the judged models, so its numbers say how well they follow it, not how good they are: the usual caution.
Beside it stands the grader's known rule, which compares the same answers with the references of these held-out prompts and
also made the preferences.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import stats

from herd.config.errors import UserError, nearest
from herd.dialog.grader import GraderConfig
from herd.dialog.messages import Message, Role
from herd.dialog.rows import Prompt, read_prompts
from herd.evaluation.bench import TASKS, BaseTask, Bench, Metrics, score
from herd.evaluation.prompts_apart import choices_behind, require_apart
from herd.evaluation.rewards import pair_rewards
from herd.evaluation.scoring import LanguageModel
from herd.generation.chat import Answer, fits, sample_answers
from herd.generation.engines.config import HERD, EngineConfig
from herd.generation.engines.opened import Writer, sampler_of
from herd.generation.kept import KEPT, KeptSampler
from herd.generation.sampler import OwnSampler, Sampler, SamplingConfig
from herd.model.heads import RewardModel
from herd.runs.seeds import stream
from herd.runs.statistics import bootstrap_mean, wilson

NAME = "win_rate"


@dataclass(frozen=True)
class WinRateConfig:
    """Which models meet, and on what. A * in labels stands for the same text in all of a row: round-*/dpo."""

    pairs: list[list[str]] = field(default_factory=list)  # [model, opponent, judging reward model] by their labels
    averages: list[list[str]] = field(default_factory=list)  # [averaged model, its members ..., judging reward model]
    first_prompt: int = 300  # index of the first held-out prompt used: those before it choose checkpoints (herd best)
    prompts: int = 200  # held-out prompts at most
    max_new_tokens: int = 48  # longest answer, tokens
    batch_size: int = 64  # prompts answered together
    engine: EngineConfig = field(default_factory=EngineConfig)  # who draws the answers

    def __post_init__(self) -> None:
        for pair in self.pairs:
            if len(pair) != 3:
                raise UserError(f"evaluate.{NAME}.pairs: {pair} must be three labels: model, opponent, judging reward model.")
        for row in self.averages:
            if len(row) < 4:
                raise UserError(
                    f"evaluate.{NAME}.averages: {row} must be the averaged model, two members or more, "
                    "and the judging reward model."
                )
        if self.first_prompt < 0 or min(self.prompts, self.max_new_tokens, self.batch_size) < 1:
            raise UserError(
                f"evaluate.{NAME}: first_prompt must be at least 0; prompts, max_new_tokens and batch_size at least 1."
            )

    def over(self, labels: Sequence[str]) -> "WinRateConfig":
        """These settings with every * spelled out.

        Raises:
            UserError: a model is none of ``labels``.
        """
        spelled = replace(self, pairs=_spelled(self.pairs, labels), averages=_spelled(self.averages, labels))
        for name in ("pairs", "averages"):
            for label in (label for row in getattr(spelled, name) for label in row[:-1]):
                if label not in labels:
                    raise UserError(f"evaluate.{NAME}.{name}: no model '{label}' among the inputs.{nearest(label, labels)}")
        return spelled

    def asked(self) -> list[str]:
        """Labels of the models that answer, each once."""
        return list(dict.fromkeys(label for row in [*self.pairs, *self.averages] for label in row[:-1]))

    def judges(self) -> list[str]:
        """Labels of the judging reward models."""
        return [row[-1] for row in [*self.pairs, *self.averages]]


@dataclass(frozen=True)
class Scored:
    """Two models' answers to the prompts that both answered and the judge could read."""

    models: tuple[str, str]
    judge: str
    prompts: list[Prompt]
    rewards: np.ndarray  # (prompts, 2) by the judge
    grades: np.ndarray  # (prompts, 2) in [0, 1], by the known rule


@TASKS.register(NAME)
class WinRate(BaseTask):
    """``win_rate`` of the first model of each pair by the judge, ``grader_win_rate`` by the known rule, ties half in both."""

    def __init__(self, config: WinRateConfig, bench: Bench) -> None:
        super().__init__()
        self.config, self.bench, self.grader = config.over(bench.labels), bench, GraderConfig()
        self.prompts: list[Prompt] = []
        self.answers: dict[str, dict[str, Answer]] = {}
        self.asked = set(self.config.asked())
        self.config.engine.require_one_model(f"evaluate.{NAME}", sorted(self.asked))
        if not self.asked:
            self.result.skipped = f"no pairs are given (evaluate.{NAME}.pairs)"
        elif bench.dialogs is None:
            self.result.skipped = "no held-out prompts among the inputs (`dialogs`)"
        else:
            file = bench.dialogs / "heldout_prompts.jsonl"
            self.prompts = read_prompts(file)[config.first_prompt : config.first_prompt + config.prompts]
            if not self.prompts:
                raise UserError(
                    f"{file}: no prompts from index {config.first_prompt} on; lower evaluate.{NAME}.first_prompt (and with it "
                    "best's `prompts`, where one chose), or make more held-out prompts."
                )
            asked = {label: model for label, model in bench.models.items() if label in self.asked}
            for label, best in choices_behind(asked, bench.dialogs):
                by, chose = f"`herd best` ({best['node']}, which {label} comes from)", best["config"]
                require_apart(config.first_prompt, len(self.prompts), by, chose["first_prompt"], chose["prompts"])

    def language_model(self, lm: LanguageModel) -> None:
        if not self.prompts or lm.label not in self.asked:
            return
        most, dialect = self.config.max_new_tokens, self.bench.dialect(lm.label)
        asked = [p for p in self.prompts if fits(p.messages, self.bench.tokenizer, lm.max_seq_len, most, dialect)]
        if not asked:
            self.result.notes[lm.label] = f"no prompt leaves room for an answer in {lm.max_seq_len} positions"
            return
        sampling = SamplingConfig(max_new_tokens=most, temperature=0.0, top_p=1.0, seed=self.bench.seed)
        with self._sampler(lm, dialect) as sampler:
            given = sample_answers(sampler, self.bench.tokenizer, [p.messages for p in asked], sampling, 1, dialect)
        self.answers[lm.label] = {p.id: group[0] for p, group in zip(asked, given, strict=True)}
        lm.tokens_read += sum(len(group[0].tokens) for group in given)

    @contextmanager
    def _sampler(self, lm: LanguageModel, dialect: str) -> Iterator[Sampler]:
        if self.config.engine.kind == HERD:  # of the model as it is loaded here
            own = OwnSampler(lm.model, self.config.batch_size)
            yield KeptSampler(lambda: own, self.bench.scratch / KEPT, lm.label)
            return
        writer = Writer(lm.label, self.bench.models[lm.label] / "model", lm.model.config)
        with sampler_of(self.config.engine, writer, self.bench.tokenizer, dialect, self.bench.scratch) as sampler:
            yield sampler
            self.result.notes[f"{lm.label}: engine"] = sampler.about

    def reward_model(self, label: str, model: RewardModel) -> None:
        for first, second, judge in self.config.pairs:
            scored = self._scored(first, second, judge, model) if judge == label else None
            if scored is not None:
                self._wins(scored)
                self._difference(scored, f"{NAME}_over_{second}")
                self._samples(scored)
        for first, *members, judge in self.config.averages:
            found = [self._scored(first, member, judge, model) for member in members] if judge == label else []
            against = [scored for scored in found if scored is not None]
            if against:
                # The best on these very prompts: its reward is flattered by the choice, the average's is not.
                best = max(against, key=lambda scored: float(scored.rewards[:, 1].mean()))
                self._difference(best, "reward_over_best_member", best_of=members)

    def _scored(self, first: str, second: str, judge: str, model: RewardModel) -> Scored | None:
        if first not in self.answers or second not in self.answers:
            return None
        both = [p for p in self.prompts if p.id in self.answers[first] and p.id in self.answers[second]]
        answers = [[(Message(Role.ASSISTANT, self.answers[side][p.id].text),) for p in both] for side in (first, second)]
        prompts, dialect = [p.messages for p in both], self.bench.dialect(judge)
        kept, rewards = pair_rewards(model, self.bench.tokenizer, prompts, *answers, dialect=dialect)
        both = [both[i] for i in kept]
        if not both:
            self.result.notes[f"{first} over {second}"] = "no prompt and answer fit the models' lengths"
            return None
        grades = np.array([[self._grade(p, self.answers[side][p.id]) for side in (first, second)] for p in both])
        return Scored((first, second), judge, both, rewards, grades)

    def _wins(self, scored: Scored) -> None:
        (first, second), judge = scored.models, scored.judge
        margin = scored.rewards[:, 0] - scored.rewards[:, 1]
        points, graded = _points(margin), _points(scored.grades[:, 0] - scored.grades[:, 1])
        wins, losses, n = int((margin > 0).sum()), int((margin < 0).sum()), len(margin)
        finished = {side: float(np.mean([self.answers[side][p.id].finished for p in scored.prompts])) for side in scored.models}
        # Wilson takes a tie for half a win and half a loss, more spread than it has: the interval is on the wide side.
        metrics = score("win_rate", points.mean(), wilson(float(points.mean()), n))
        metrics |= score("grader_win_rate", graded.mean(), wilson(float(graded.mean()), n))
        metrics |= {"grader_ties": int((graded == 0.5).sum())}
        metrics |= {"wins": wins, "losses": losses, "ties": n - wins - losses}
        metrics |= {"finished": finished}
        metrics |= {"sign_test_p": float(stats.binomtest(wins, wins + losses, 0.5).pvalue) if wins + losses else 1.0}
        self.result.add(first, f"{NAME}_over_{second}", metrics)
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
                "grades": scored.grades.mean(axis=0).tolist(),
            }
        )

    def _difference(self, scored: Scored, task: str, best_of: Sequence[str] = ()) -> None:
        """Mean reward and mean grade of both models, and the differences, paired by prompt, with their bootstrap intervals."""
        (first, second), n = scored.models, len(scored.prompts)
        rng = stream(self.bench.seed, task, first, second, scored.judge)
        metrics: Metrics = {"judge": scored.judge, "opponent": second, "n": n}
        for name, values in (("reward", scored.rewards), ("grade", scored.grades)):
            columns = {name: values[:, 0], f"opponent_{name}": values[:, 1], f"{name}_margin": values[:, 0] - values[:, 1]}
            for metric, column in columns.items():
                metrics |= score(metric, column.mean(), bootstrap_mean(column, rng, self.bench.resamples))
        self.result.add(first, task, metrics)
        self.result.n_samples[task] = n
        self.result.comparisons.append(
            {
                "task": "reward_of_answers",
                "metric": "reward",
                "models": [first, second],
                "best_of": list(best_of),
                "judge": scored.judge,
                "n": n,
                "rewards": [metrics["reward,none"], metrics["opponent_reward,none"]],
                "reward_intervals": [metrics["reward_interval,none"], metrics["opponent_reward_interval,none"]],
                "difference": metrics["reward_margin,none"],
                "interval": metrics["reward_margin_interval,none"],
                "grades": [metrics["grade,none"], metrics["opponent_grade,none"]],
                "grade_difference": metrics["grade_margin,none"],
                "grade_interval": metrics["grade_margin_interval,none"],
            }
        )

    def _samples(self, scored: Scored) -> None:
        points = _points(scored.rewards[:, 0] - scored.rewards[:, 1])
        for i, prompt in enumerate(scored.prompts):
            row = {
                "doc_id": prompt.id,
                "task": prompt.task,
                "prompt": prompt.messages[-1].content,
                "reference": prompt.reference,
                "judge": scored.judge,
                "models": list(scored.models),
                "answers": {side: self.answers[side][prompt.id].text for side in scored.models},
                "rewards": [float(x) for x in scored.rewards[i]],
                "points": float(points[i]),
                "grades": [float(x) for x in scored.grades[i]],
            }
            self.result.samples.setdefault(NAME, []).append(row)

    def _grade(self, prompt: Prompt, answer: Answer) -> float:
        """Score in [0, 1] of an answer by the known rule."""
        return self.grader.score(prompt.task, prompt.reference, answer.text, answer.finished)


def _points(margin: np.ndarray) -> np.ndarray:
    """1 for a win of the first, 0 for a loss, 0.5 for a tie; any shape."""
    return np.where(margin > 0, 1.0, np.where(margin < 0, 0.0, 0.5))


def _spelled(rows: list[list[str]], labels: Sequence[str]) -> list[list[str]]:
    """Rows with a * once for every label that their first one matches; one that matches none is left, to be refused."""
    spelled: list[list[str]] = []
    for row in rows:
        pattern = re.compile(re.escape(row[0]).replace(r"\*", "(.*)"))
        found = [match[1] for label in labels if "*" in row[0] and (match := pattern.fullmatch(label))]
        spelled += [[label.replace("*", text) for label in row] for text in found] or [row]
    return spelled
