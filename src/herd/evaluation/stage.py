"""`herd evaluate`: every checkpoint through every task, each score with its 95% interval.

Models are loaded one at a time and shown to all tasks, language models first (they answer), then reward models (they
judge).
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from herd.config.errors import UserError, nearest
from herd.config.loader import to_plain
from herd.corpus.shards import TokenShards
from herd.corpus.tokenizer import Tokenizer
from herd.dialog.trained_in import of_group, require_tokenizer, trained_in
from herd.evaluation.bench import TASKS, Bench, Task, TaskResult
from herd.evaluation.config import EvaluateConfig
from herd.evaluation.scoring import LanguageModel
from herd.evaluation.show import show_scores
from herd.generation.engines.config import execution
from herd.model.counts import flops_per_token, parameter_count
from herd.model.device import find_device
from herd.model.io import load_language_model, load_reward_model
from herd.runs.atomic import write_json, write_text
from herd.runs.manifest import commit, now, versions
from herd.runs.progress import progress
from herd.runs.stage import Artifact, Inputs, Stage, StageRun


def run(config: EvaluateConfig, inputs: Inputs, stage_run: StageRun) -> dict[str, Any]:
    started = time.monotonic()
    device = find_device(config.device)
    rewards = inputs.group("rewards")
    if (reward := inputs.get("reward")) is not None:
        rewards = {"reward": reward, **rewards}
    models = inputs.group("models", least=0 if rewards else 1)
    _check_judges(config, models, rewards)
    require_tokenizer("evaluate", inputs["tokens"], of_group("models", models) | of_group("rewards", rewards))
    shards = TokenShards(inputs["tokens"] / "tokens")
    with _threads(config.threads):
        bench = Bench(
            seed=config.seed,
            resamples=config.resamples,
            mix=config.mix.over(config.mix.weights, shards.domains("heldout")),
            heldout_config=config.heldout,
            tokenizer=Tokenizer.load(inputs["tokens"] / "tokenizer"),
            shards=shards,
            documents=inputs["documents"],
            dialogs=inputs.get("dialogs"),
            preferences=inputs.group("preferences"),
            scratch=stage_run.scratch,
            labels=tuple(models),
            models=models,
            # Each model is asked, and each reward model reads, in the dialect that it was trained in.
            dialects={label: trained_in(artifact) or config.dialect for label, artifact in (models | rewards).items()},
        )
        seconds: dict[str, float] = {}
        tasks: dict[str, Task] = {}
        parameters: dict[str, int] = {}
        with progress("evaluating", total=len(config.tasks) * (1 + len(models) + len(rewards)), unit="steps") as bar:
            for name in config.tasks:
                with _timed(seconds, name):
                    tasks[name] = TASKS.get(name)(getattr(config, name), bench)
                bar.advance(1, task=name)
            for label, artifact in models.items():
                model = load_language_model(artifact / "model", f"evaluate: inputs.models.{label}")
                lm = LanguageModel(label, model.to(device).eval(), device, batch_tokens=config.batch_tokens)
                parameters[label] = parameter_count(lm.model.config, "6N")
                for name, task in tasks.items():
                    with _timed(seconds, name):
                        task.language_model(lm)
                    bar.advance(1, model=label, task=name)
                # A forward pass is a third of the 6 FLOPs a parameter that training counts.
                flops = flops_per_token(lm.model.config, config.heldout.context_tokens, "6N") / 3
                stage_run.cost(tokens=lm.tokens_read, flops_6n=lm.tokens_read * flops)
            for label, artifact in rewards.items():
                reward_model = load_reward_model(artifact / "model").to(device).eval()
                for name, task in tasks.items():
                    with _timed(seconds, name), torch.inference_mode():
                        task.reward_model(label, reward_model)
                    bar.advance(1, model=label, task=name)
        finished: dict[str, TaskResult] = {}
        for name, task in tasks.items():
            with _timed(seconds, name):
                finished[name] = task.finish()
    report = _report(config, finished, models, rewards, parameters)
    report |= {
        "date": now(),
        "total_evaluation_time_seconds": str(round(time.monotonic() - started, 3)),
        "seconds_by_task": {name: round(value, 3) for name, value in seconds.items()},
    }
    write_json(stage_run.folder / "results.json", report)
    for result in finished.values():
        for task_name, rows in result.samples.items():
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            write_text(stage_run.folder / f"samples_{task_name}.jsonl", lines)
    return {
        "models": len(models),
        "reward_models": len(rewards),
        "results": report["results"],
        "comparisons": report["comparisons"],
        "notes": report["notes"],
        "skipped": report["skipped"],
        "seconds_by_task": report["seconds_by_task"],
    }


def _report(
    config: EvaluateConfig,
    finished: dict[str, TaskResult],
    models: dict[str, Artifact],
    rewards: dict[str, Artifact],
    parameters: dict[str, int],
) -> dict[str, Any]:
    """results.json: lm-eval's keys, with one more level, the model's label, above the task."""
    results: dict[str, dict[str, Any]] = {}
    for result in finished.values():
        for label, by_task in result.results.items():
            results.setdefault(label, {}).update(by_task)
    n_samples = {task: n for result in finished.values() for task, n in result.n_samples.items()}
    return {
        "results": results,
        "comparisons": [comparison for result in finished.values() for comparison in result.comparisons],
        "n-samples": {task: {"original": n, "effective": n} for task, n in n_samples.items()},
        "n-shot": dict.fromkeys(n_samples, 0),
        "notes": {name: result.notes for name, result in finished.items() if result.notes},
        "skipped": {name: result.skipped for name, result in finished.items() if result.skipped},
        "configs": {name: to_plain(getattr(config, name)) for name in config.tasks},
        "config": {
            "model": "herd",
            "models": {label: str(artifact.address) for label, artifact in (models | rewards).items()},
            "models_in_order": [*models, *rewards],  # JSON objects here are sorted by key
            "model_num_parameters": parameters,
            "model_dtype": "float32",
            "device": config.device,
            "bootstrap_iters": config.resamples,
            "random_seed": config.seed,
        },
        "git_hash": commit(),
        "versions": versions(),
    }


def _check_judges(config: EvaluateConfig, models: dict[str, Artifact], rewards: dict[str, Artifact]) -> None:
    for judge in config.win_rate.over(tuple(models)).judges() if "win_rate" in config.tasks else []:
        if judge not in rewards:
            raise UserError(f"evaluate.win_rate: no reward model '{judge}' among the inputs.{nearest(judge, rewards)}")


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    clock = time.monotonic()
    try:
        yield
    finally:
        seconds[name] = seconds.get(name, 0.0) + time.monotonic() - clock


STAGE = Stage(
    name="evaluate",
    version=6,
    config=EvaluateConfig,
    run=run,
    summary="score checkpoints, each with its interval",
    inputs=("tokens", "documents"),
    optional=("reward", "dialogs"),
    groups=("models", "rewards", "preferences"),
    execution=execution("win_rate.engine"),
    show=show_scores,
)
