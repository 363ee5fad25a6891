"""A finished `herd evaluate` for the person who gave the command: each model's scores with their intervals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from herd.runs.stage import Artifact

# The metric that stands for a task, the first that it has.
_METRICS = ("win_rate", "margin_over_bigram", "bits_per_byte", "acc")


def show_scores(artifact: Artifact) -> None:
    """Prints a line for each model and task, what was not measured and why, and where the rest is."""
    path = artifact / "results.json"
    for line in score_lines(json.loads(path.read_text(encoding="utf-8"))):
        print(line)
    print(f"all scores: {path}")


def score_lines(report: dict[str, Any]) -> Iterator[str]:
    """The lines of :func:`show_scores` for the content of a results.json; parts of a task (its domains) are left to the file."""
    preferred = report["configs"].get("documentation_choice", {}).get("headline")
    rows = []
    for label in report["config"]["models_in_order"]:
        by_task = report["results"].get(label, {})
        for task, metrics in by_task.items():
            if any(task.startswith(f"{whole}_") for whole in by_task):
                continue
            named = [preferred] if task == "documentation_choice" else []
            metric = next((m for m in (*named, *_METRICS) if f"{m}_interval,none" in metrics), None)
            if metric is not None:
                low, high = metrics[f"{metric}_interval,none"]
                rows.append((label, task, metric, f"{metrics[f'{metric},none']:.3f} [{low:.3f}, {high:.3f}]"))
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
    for row in rows:
        yield "  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[3]])
    for name, reason in report["skipped"].items():
        yield f"not measured: {name} ({reason})"
