"""Finished stages written through the real stage machinery, with the files and metrics that the real stages leave."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from herd.runs.atomic import write_json
from herd.runs.stage import Artifact, Inputs, Stage, StageRun, execute

NASTY = "<script>alert('x')</script> & \"quotes\""


@dataclass(frozen=True)
class NoConfig:
    label: str = ""
    seed: int = 0


Make = Callable[..., Artifact]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """make(command, label, metrics, files, rows, flops) -> a finished stage."""
    root = tmp_path_factory.mktemp("runs")

    def build(
        command: str,
        label: str,
        metrics: dict[str, Any] | None = None,
        files: dict[str, Any] | None = None,
        rows: list[dict[str, Any]] | None = None,
        flops: float | None = None,
    ) -> Artifact:
        def run(config: NoConfig, inputs: Inputs, stage_run: StageRun) -> dict[str, Any]:
            for row in rows or []:
                stage_run.metrics.write(row)
            for name, content in (files or {}).items():
                if isinstance(content, str):
                    (stage_run.folder / name).write_text(content, encoding="utf-8")
                else:
                    write_json(stage_run.folder / name, content)
            stage_run.cost(tokens=100, flops_6n=flops)
            return metrics or {}

        stage = Stage(command, 1, NoConfig, run, command)
        return execute(stage, NoConfig(label), {}, root, "test", label)

    return build


def training_rows(steps: int = 60) -> list[dict[str, Any]]:
    stages = ["initial"] * (steps - 12) + ["long_512"] * 6 + ["annealing"] * 6
    rows: list[dict[str, Any]] = []
    for i, stage in enumerate(stages):
        row = {"step": i + 1, "num_tokens": 1024 * (i + 1), "stage": stage, "batch_tokens": 1024, "seq_len": 128}
        row |= {"loss": 7 - 3 * (i / steps) ** 0.5, "learning_rate": 1e-3 * (1 - i / steps), "grad_norm": 1.0}
        if i + 1 == steps or stages[i + 1] != stage:
            row["eval_loss"] = row["loss"] + 0.1
        rows.append(row)
    return rows


def dpo_rows() -> list[dict[str, Any]]:
    return [
        {
            "step": i,
            "rewards/chosen": 0.01 * i,
            "rewards/rejected": -0.02 * i,
            "rewards/margins": 0.03 * i,
            "rewards/accuracies": 0.6,
        }
        for i in range(1, 20)
    ]


def scores(name: str, value: float, half: float) -> dict[str, Any]:
    return {f"{name},none": value, f"{name}_interval,none": [value - half, value + half]}


def results() -> dict[str, Any]:
    """results.json of two language models, a judge and the baselines."""
    choice: dict[str, Any] = {}
    for i, metric in enumerate(("acc", "acc_norm", "acc_bytes", "acc_token", "acc_mutual_info")):
        choice |= scores(metric, 0.30 + 0.02 * i, 0.03)
    choice["choice_nll_per_character,none"] = 1.6
    grid = [
        {"length": n, "depth": d, "n": 4, **scores("acc", 0.5, 0.2), **scores("exact_match", 0.1, 0.1)}
        for n in (64, 128)
        for d in (0.0, 1.0)
    ]
    model = {
        "bits_per_byte": scores("bits_per_byte", 2.0, 0.1) | scores("loss", 4.0, 0.1),
        "bits_per_byte_general": scores("bits_per_byte", 2.1, 0.1),
        "bits_per_byte_code": scores("bits_per_byte", 1.7, 0.1),
        "documentation_choice": choice,
        "needle": scores("acc", 0.5, 0.1) | scores("exact_match", 0.1, 0.05) | {"grid": grid, "n": 16},
    }
    base = model | {
        "ngram_baselines": scores("loss", 4.0, 0.1)
        | scores("margin_over_unigram", 2.5, 0.1)
        | scores("margin_over_bigram", 0.4, 0.1),
        "ngram_baselines_general": scores("loss", 4.1, 0.1) | scores("margin_over_bigram", 0.5, 0.1),
        "ngram_baselines_code": scores("loss", 4.1, 0.1) | scores("margin_over_bigram", 0.1, 0.3),
    }
    gram = {"ngram_baselines": scores("loss", 4.4, 0.1), "ngram_baselines_general": scores("loss", 4.5, 0.1),
            "ngram_baselines_code": scores("loss", 4.2, 0.1)}  # fmt: skip
    reward = {"reward_accuracy_round-1": scores("acc", 0.8, 0.05) | {"n": 100}}
    win = {"win_rate_over_round-1/sft": scores("win_rate", 0.6, 0.07)}
    comparisons = [
        {"task": "win_rate", "metric": "win_rate", "models": ["round-1/dpo", "round-1/sft"], "judge": "round-1/reward",
         "win_rate": 0.6, "interval": [0.53, 0.67], "ties": 7,
         "grader_win_rate": 0.45, "grader_interval": [0.38, 0.52], "grader_ties": 9, "grades": [0.41, 0.43]},
        {"task": "documentation_choice", "metric": "acc_norm", "models": ["round-1/sft", "pretrain"], "difference": -0.02,
         "interval": [-0.05, 0.01], "only_first": 3, "only_second": 15, "mcnemar_p": 0.01},
    ]  # fmt: skip
    return {
        "results": {
            "round-1/sft": model,
            "pretrain": base,
            "round-1/dpo": model | win,
            "unigram": {task: scores("loss", 6.5, 0.1) for task in gram},
            "bigram": gram,
            "round-1/reward": reward,
            "tokenizer": {"compression": scores("characters_per_token", 2.7, 0.05)},
        },
        "n-samples": {
            "documentation_choice": {"original": 600, "effective": 600},
            "ngram_baselines_general": {"original": 31, "effective": 31},
        },
        "comparisons": comparisons,
        "notes": {
            "documentation_choice": {
                "chance": 0.25,
                "headline": "acc_norm",
                "items": 600,
                "items_by_kind": {"summary": 600},
                "lexical_overlap": {"acc": 0.345, "interval": [0.31, 0.38]},
            },
            "needle": {"chance": 0.125, "trials_per_cell": 4},
        },
        "skipped": {"compression": NASTY},
        "config": {"models_in_order": ["pretrain", "round-1/sft", "round-1/dpo", "round-1/reward"]},
    }


@pytest.fixture(scope="module")
def whole(make: Make) -> dict[str, Artifact]:
    """A run with every kind of stage but the scaling sweep."""
    funnel = [
        {"step": "collected", "documents": 1000, "characters": 9_000_000, "dropped": {}},
        {"step": "quality", "documents": 700, "characters": 7_000_000, "dropped": {"too_short": 300}},
    ]
    answers = {"round-1/dpo": NASTY, "round-1/sft": ""}
    sample = {"task": "what", "prompt": f"What does {NASTY} do?", "reference": "It is.", "models": ["round-1/dpo", "round-1/sft"]}
    sample |= {"answers": answers, "rewards": [1.0, -0.5], "judge": "round-1/reward", "points": 1.0}
    tokens = {"vocab_size": 2048, "characters_per_token": 2.7, "tokens_by_domain": {"general": 1000, "code": 500}}
    pretrain = {"loss": 4.2, "initial_loss": 4.3, "tokens": 61440, "flops": 1e12, "parameters": 500_000, "seconds": 60.0}
    pretrain |= {"flops_convention": "6N", "tokens_per_second": 1024.0, "loss_by_stage": {"initial": 4.3, "annealing": 4.2}}
    fit = {"budgets": [1e11, 1e12], "alpha": 0.51, "alpha_interval": [0.44, 0.58], "A": 0.3, "status": "ok"}
    fit |= {"predicted_loss": 4.25, "predicted_loss_interval": [4.1, 4.4], "extrapolation_ratio": 5.0}
    fit |= {"optima": 1, "best_cell_loss": 4.5, "noise_floor": 0.04}
    fit |= {"flagship": {"parameters": 500_000, "tokens": 61440, "flops": 1e12, "parameters_interval": [2.5e5, 1e6],
                         "tokens_interval": [30720, 122880]}}  # fmt: skip
    pretrain |= {"epochs": {"general": 0.6, "code": 9.25}}
    reward = {"accuracy": 0.8, "accuracy_interval": [0.72, 0.86], "heldout_pairs": 100, "length_accuracy": 0.75}
    pairs = {"train": {"edited": 12}, "heldout": {"models": {"reference": 50}}}
    reject = {
        "reward_best": 3.0,
        "reward_all": 0.5,
        "score_best": 0.227,
        "score_all": 0.24,
        "score_gain_interval": [-0.02, -0.005],
    }
    dpo = {"rewards/accuracies": 0.7, "rewards/accuracies_interval": [0.6, 0.8], "rewards/margins": 0.5}
    curated = {"documents_in": 1000, "documents_out": 700, "characters_out": 7_000_000}
    return {
        "curate": make("curate", "curate", curated, {"funnel.json": funnel}),
        "tokenize": make("tokenize", "tokenize", tokens),
        "fit": make("scaling-fit", "fit", fit),
        "pretrain": make("pretrain", "pretrain", pretrain, rows=training_rows(), flops=1e12),
        "round-1/preferences": make("preferences", "round-1/preferences", pairs),
        "round-1/reward": make("reward", "round-1/reward", reward, flops=1e10),
        "round-1/reject": make("reject", "round-1/reject", reject),
        "round-1/sft": make("sft", "round-1/sft", {"loss": 2.0}),
        "round-1/dpo": make("dpo", "round-1/dpo", dpo, rows=dpo_rows()),
        "round-1/dpo-b": make("dpo", "round-1/dpo-b", dpo, rows=dpo_rows()),
        "evaluate": make(
            "evaluate", "evaluate", {}, {"results.json": results(), "samples_win_rate.jsonl": json.dumps(sample) + "\n"}
        ),
    }
