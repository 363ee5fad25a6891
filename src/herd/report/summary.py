"""summary.json: the numbers of a run for scripts and for comparing runs. What was not measured is null, never made up."""

import json
from typing import Any

from herd.report.run_data import Round, RunData


def summarise(run: RunData) -> dict[str, Any]:
    """All sections; see the functions for their keys."""
    return {
        "corpus": corpus(run),
        "tokenizer": _pick(run.metrics("tokenize"), "vocab_size", "characters_per_token", "characters_per_token_by_domain"),
        "scaling": scaling(run),
        "pretrain": pretrain(run),
        "rounds": [round_summary(round_) for round_ in run.rounds],
        "evaluation": evaluation(run),
        "seconds_by_stage": {label: a.manifest["cost"]["seconds"] for label, a in run.stages.items()},
        "flops_6N_by_stage": {label: a.manifest["cost"].get("flops_6N") for label, a in run.stages.items()},
        "peak_memory_bytes": max((a.manifest["peak_memory_bytes"] or 0 for a in run.stages.values()), default=0) or None,
    }


def corpus(run: RunData) -> dict[str, Any] | None:
    """Documents in and out, tokens by domain."""
    curated, tokens = run.metrics("curate"), run.metrics("tokenize")
    if not curated and not tokens:
        return None
    return {
        **_pick(curated, "documents_in", "documents_out", "characters_out", "documents_by_domain"),
        **_pick(tokens, "tokens_by_domain", "heldout_tokens_by_domain"),
    }


def scaling(run: RunData) -> dict[str, Any] | None:
    """The fit, the forecast, and the loss that was then measured."""
    fit = run.metrics("scaling-fit")
    if not fit:
        return None
    names = (
        "status",
        "budgets",
        "optima",
        "noise_floor",
        "best_cell_loss",
        "alpha",
        "alpha_interval",
        "A",
        "flagship",
        "predicted_loss",
        "predicted_loss_interval",
    )
    forecast = _pick(fit, *names, "extrapolation_ratio")
    measured = run.metrics("pretrain").get("initial_loss")
    bounds = forecast["predicted_loss_interval"]
    inside = None if measured is None or not bounds else bool(bounds[0] <= measured <= bounds[1])
    return forecast | {"measured_loss": measured, "measured_in_interval": inside}


def pretrain(run: RunData) -> dict[str, Any] | None:
    """The flagship."""
    metrics = run.metrics("pretrain")
    if not metrics:
        return None
    names = (
        "loss",
        "initial_loss",
        "tokens",
        "flops",
        "flops_convention",
        "parameters",
        "seconds",
        "tokens_per_second",
    )
    return _pick(metrics, *names, "loss_by_domain", "loss_by_stage", "bits_per_byte_by_domain")


def round_summary(round_: Round) -> dict[str, Any]:
    """One round of post-training."""
    reward, dpo, average = round_.metrics("reward"), round_.metrics("dpo"), round_.metrics("average")
    return {
        "name": round_.name,
        "preferences": _pick(round_.metrics("preferences"), "pairs", "heldout_pairs"),
        "reward": {
            "accuracy": reward.get("accuracy"),
            "interval": reward.get("accuracy_interval"),
            "heldout_pairs": reward.get("heldout_pairs"),
            "length_accuracy": reward.get("length_accuracy"),
            "by_round": reward.get("by_round"),
        },
        "reject": _pick(
            round_.metrics("reject"),
            "reward_best",
            "reward_all",
            "score_best",
            "score_all",
            "score_gain",
            "score_gain_interval",
            "dialogs",
        ),
        "sft": _pick(round_.metrics("sft"), "loss", "base_loss", "train_loss"),
        "dpo": _dpo(dpo),
        "average": _dpo(average),
    }


def evaluation(run: RunData) -> dict[str, Any] | None:
    """label -> task -> score -> {value, interval, n}; and the paired comparisons."""
    report = run.evaluation
    if not report:
        return None
    counts = {task: entry["effective"] for task, entry in report.get("n-samples", {}).items()}
    scores: dict[str, Any] = {}
    for label, by_task in report["results"].items():
        for task, metrics in by_task.items():
            for key, bounds in metrics.items():
                name, _, kind = key.partition(",")
                if not name.endswith("_interval") or kind != "none":
                    continue
                score = name.removesuffix("_interval")
                entry = {"value": metrics[f"{score},none"], "interval": bounds, "n": metrics.get("n", counts.get(task))}
                scores.setdefault(label, {}).setdefault(task, {})[score] = entry
    return {
        "scores": scores,
        "comparisons": report.get("comparisons", []),
        "chance": {
            task: notes["chance"]
            for task, notes in report.get("notes", {}).items()
            if isinstance(notes, dict) and "chance" in notes
        },
        "lexical_overlap": report.get("notes", {}).get("documentation_choice", {}).get("lexical_overlap"),
        "skipped": report.get("skipped", {}),
    }


def check_plain(summary: dict[str, Any]) -> None:
    """Refuse what JSON cannot hold before anything is written."""
    json.dumps(summary, allow_nan=False)


def _dpo(metrics: dict[str, Any]) -> dict[str, Any]:
    return {
        "rewards_accuracies": metrics.get("rewards/accuracies"),
        "rewards_accuracies_interval": metrics.get("rewards/accuracies_interval"),
        "rewards_margins": metrics.get("rewards/margins"),
    }


def _pick(metrics: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: metrics.get(name) for name in names}
