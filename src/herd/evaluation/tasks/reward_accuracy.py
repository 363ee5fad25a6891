"""Reward models on held-out preference pairs: how often the chosen answer scores above the rejected one."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from herd.config.errors import UserError
from herd.dialog.preferences import Grade, read_preferences
from herd.evaluation.bench import TASKS, BaseTask, Bench, score
from herd.evaluation.rewards import pair_rewards
from herd.model.heads import RewardModel
from herd.runs.statistics import mean_stderr, wilson

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
    """``acc`` of each reward model on each set of held-out pairs, all grades and each; a tie is wrong."""

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
            kept, scores = pair_rewards(model, self.bench.tokenizer, *columns)
            right = scores[:, 0] > scores[:, 1]
            n = len(right)
            if not n:
                self.result.notes[f"{label} on {name}"] = "no pair fits the reward model's length"
                continue
            metrics: dict[str, Any] = score("acc", right.mean(), wilson(float(right.mean()), n), mean_stderr(right))
            metrics |= {
                "margin,none": float((scores[:, 0] - scores[:, 1]).mean()),
                "n": n,
                "too_long": len(pairs) - n,
                "grades": {},
            }
            for grade in Grade:
                of_grade = np.array([pairs[i].grade == grade for i in kept])
                if of_grade.any():
                    share, count = float(right[of_grade].mean()), int(of_grade.sum())
                    metrics["grades"][grade.value] = score("acc", share, wilson(share, count)) | {"n": count}
            self.result.add(label, f"{NAME}_{name}", metrics)
