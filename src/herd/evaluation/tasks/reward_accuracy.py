"""Reward models on held-out preference pairs: how often the chosen answer scores above the rejected one.

A reward model learns first to prefer what is longer, so the accuracy of length alone stands beside each.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from herd.config.errors import UserError
from herd.dialog.preferences import Grade, read_preferences, response_text
from herd.evaluation.bench import TASKS, BaseTask, Bench, score
from herd.evaluation.rewards import pair_rewards
from herd.model.heads import RewardModel
from herd.runs.statistics import Interval, clustered_wilson, mean_stderr
from herd.training.ranking import ranking_accuracy

NAME = "reward_accuracy"


@dataclass(frozen=True)
class RewardAccuracyConfig:
    """Which pairs count."""

    pairs: int = 400  # at most, of each set of preferences
    file: str = "heldout.jsonl"  # within a preferences artifact: pairs from held-out prompts, never trained on

    def __post_init__(self) -> None:
        if self.pairs < 1:
            raise UserError(f"evaluate.{NAME}.pairs={self.pairs} must be at least 1.")


@TASKS.register(NAME)
class RewardAccuracy(BaseTask):
    """``acc`` of each reward model on each set of held-out pairs, all grades and each; a tie is wrong.

    Beside it ``length_acc``, what always choosing the longer (or the shorter) answer reaches on the same pairs,
    ``over_length``, by how much the model is better than that, and ``like_length``, its accuracy where the two answers have
    about the same length. Intervals are over prompts.
    """

    def __init__(self, config: RewardAccuracyConfig, bench: Bench) -> None:
        super().__init__()
        self.bench = bench
        self.sets = {}
        for label, artifact in bench.preferences.items():
            self.sets[label] = read_preferences(artifact / config.file)[: config.pairs]
            self.result.n_samples[f"{NAME}_{label}"] = len(self.sets[label])
        if not any(self.sets.values()):
            self.result.skipped = "no held-out preference pairs among the inputs (`preferences`)"

    def reward_model(self, label: str, model: RewardModel) -> None:
        for name, pairs in self.sets.items():
            if not pairs:
                continue
            columns = zip(*((pair.prompt, pair.chosen, pair.rejected) for pair in pairs), strict=True)
            kept, scores = pair_rewards(model, self.bench.tokenizer, *columns, dialect=self.bench.dialect(label))
            n = len(kept)
            if not n:
                self.result.notes[f"{label} on {name}"] = "no pair fits the reward model's length"
                continue
            read = [pairs[i] for i in kept]
            prompts = [pair.prompt_key for pair in read]
            lengths = [[len(response_text(pair.chosen)), len(response_text(pair.rejected))] for pair in read]
            found = ranking_accuracy(scores, lengths, prompts)
            right = scores[:, 0] > scores[:, 1]
            metrics: dict[str, Any] = score("acc", found.accuracy, Interval(*found.accuracy_interval), mean_stderr(right))
            metrics |= score("over_length", found.over_length, Interval(*found.over_length_interval))
            metrics |= {
                "margin,none": found.margin,
                "length_acc,none": found.length_accuracy,
                "length_prefers": found.length_prefers,
                "like_length": asdict(found.like_length) if found.like_length else None,
                "n": n,
                "prompts": found.prompts,
                "too_long": len(pairs) - n,
                "grades": {},
            }
            for grade in Grade:
                of_grade = np.array([pairs[i].grade == grade for i in kept])
                if of_grade.any():
                    of = [prompt for prompt, member in zip(prompts, of_grade, strict=True) if member]
                    interval = clustered_wilson(right[of_grade], of)
                    metrics["grades"][grade.value] = score("acc", right[of_grade].mean(), interval) | {"n": len(of)}
            self.result.add(label, f"{NAME}_{name}", metrics)
