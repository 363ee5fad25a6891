"""The whole stage on small artifacts that real code wrote."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from herd.alignment.dialogs_stage import STAGE as DIALOGS
from herd.alignment.preferences_stage import STAGE as PREFERENCES
from herd.config.errors import UserError
from herd.config.loader import compose
from herd.evaluation.stage import STAGE
from herd.evaluation.tasks.win_rate import WinRateConfig
from herd.model.config import ModelConfig
from herd.model.heads import RewardModel
from herd.model.io import save_model
from herd.model.transformer import Transformer
from herd.recipe.job import make_job
from herd.runs.stage import Artifact, Inputs, Stage, StageRun, execute

from .conftest import DOMAINS, NoConfig, Small


def configure(command: str, *overrides: str) -> Any:
    """The command's configuration as the command line would compose and check it."""
    return make_job(command, compose(command, overrides)).config


@pytest.fixture(scope="module")
def evaluated(small: Small) -> tuple[Artifact, dict]:
    """Two random language models, a random judge, real dialogs and preferences, all tasks."""

    def write(config: NoConfig, inputs: Inputs, run: StageRun) -> dict:
        shape = ModelConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=64, vocab_size=640, max_seq_len=192)
        model = Transformer(shape)
        model.init_weights(config.seed)
        save_model(RewardModel(model) if config.seed == 9 else model, run.folder / "model")
        return {}

    model = Stage("pretrain", 1, NoConfig, write, "random weights")
    models = [execute(model, NoConfig(seed), {}, small.root, "test", f"m{seed}").path for seed in (1, 2, 9)]
    config = configure("dialogs", "heldout_prompts=30", "train_prompts=40", "seed_dialogs=20")
    dialogs = execute(DIALOGS, config, {"documents": small.documents.path}, small.root, "test")
    config = configure("preferences", "prompts=20", "heldout_prompts=20")
    preferences = execute(PREFERENCES, config, {"dialogs": dialogs.path}, small.root, "test")
    overrides = [
        "heldout.tokens_per_domain=1500",
        "documentation_choice.items=40",
        "needle.trials=2",
        "needle.distractors=3",
        "resamples=200",
    ]
    overrides += ["needle.lengths=[96,192,512]", "win_rate.first_prompt=10", "win_rate.prompts=6", "win_rate.max_new_tokens=8"]
    config = configure("evaluate", *overrides, "win_rate.pairs=[[round-1/dpo,base,round-1/reward]]")
    inputs = {
        "tokens": small.tokens.path,
        "documents": small.documents.path,
        "dialogs": dialogs.path,
        "models": {"base": models[0], "round-1/dpo": models[1]},
        "rewards": {"round-1/reward": models[2]},
        "preferences": {"round-1/preferences": preferences.path},
    }
    return execute(STAGE, config, inputs, small.root, "test"), {"config": config, "inputs": inputs, "root": small.root}


def test_results_follow_lm_evals_form(evaluated: tuple[Artifact, dict]) -> None:
    artifact, _ = evaluated
    report = json.loads((artifact / "results.json").read_text())
    assert {"results", "configs", "n-samples", "n-shot", "config", "git_hash", "date"} <= report.keys()
    assert isinstance(report["total_evaluation_time_seconds"], str)
    assert report["skipped"] == {}
    for label in ("base", "round-1/dpo"):
        by_task = report["results"][label]
        expected = {"bits_per_byte", "ngram_baselines", "documentation_choice", "needle"}
        assert expected | {f"bits_per_byte_{d}" for d in DOMAINS} <= by_task.keys()
        assert {c["length"] for c in by_task["needle"]["grid"]} == {96, 192}  # 512 is beyond the models
    assert {"unigram", "bigram", "tokenizer", "round-1/reward"} <= report["results"].keys()
    assert "win_rate_over_base" in report["results"]["round-1/dpo"]
    assert {c["task"] for c in report["comparisons"]} == {"documentation_choice", "win_rate", "reward_of_answers"}


def test_every_score_stands_within_its_interval(evaluated: tuple[Artifact, dict]) -> None:
    report = json.loads((evaluated[0] / "results.json").read_text())
    seen = 0
    for by_task in report["results"].values():
        for task, metrics in by_task.items():
            assert task in report["n-samples"]
            for key, interval in metrics.items():
                if "_interval," in key:
                    low, high = interval
                    assert low <= metrics[key.replace("_interval,", ",")] <= high
                    seen += 1
    assert seen > 40


def test_samples_repeat_the_score(evaluated: tuple[Artifact, dict]) -> None:
    artifact, _ = evaluated
    report = json.loads((artifact / "results.json").read_text())
    rows = [json.loads(line) for line in (artifact / "samples_documentation_choice.jsonl").read_text().splitlines()]
    for label in ("base", "round-1/dpo"):
        hits = [row["acc_norm"] for row in rows if row["model"] == label]
        assert sum(hits) / len(hits) == pytest.approx(report["results"][label]["documentation_choice"]["acc_norm,none"])


def test_the_same_inputs_give_the_same_numbers(evaluated: tuple[Artifact, dict], tmp_path: Path) -> None:
    artifact, made = evaluated
    again = execute(STAGE, made["config"], made["inputs"], tmp_path, "again")
    first, second = (json.loads((a / "results.json").read_text()) for a in (artifact, again))
    assert first["results"] == second["results"]
    assert first["comparisons"] == second["comparisons"]


def test_costs_are_counted(evaluated: tuple[Artifact, dict]) -> None:
    cost = evaluated[0].manifest["cost"]
    assert cost["tokens"] > 10_000
    assert cost["flops_6N"] / cost["tokens"] == pytest.approx(
        2 * (2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64) + 640 * 32), rel=1e-6
    )


def test_an_unknown_judge_or_task_is_refused(evaluated: tuple[Artifact, dict], tmp_path: Path) -> None:
    _, made = evaluated
    wrong = replace(made["config"], win_rate=WinRateConfig(pairs=[["round-1/dpo", "base", "round-1/rewad"]]))
    with pytest.raises(UserError, match=r"no reward model 'round-1/rewad'.*Did you mean 'round-1/reward'"):
        execute(STAGE, wrong, made["inputs"], tmp_path, "bad")
    with pytest.raises(UserError, match="Unknown evaluation task 'needel'"):
        configure("evaluate", "tasks=[needel]")
    with pytest.raises(UserError, match=r"evaluate.tasks is empty, nothing would be measured: name some of bits_per_byte, "):
        configure("evaluate", "tasks=[]")
    with pytest.raises(UserError, match="device='cuda:99'"):
        execute(STAGE, replace(made["config"], device="cuda:99"), made["inputs"], tmp_path, "bad")
