"""The finished stages of a run, found by what they are; whatever is missing is simply absent."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from herd.config.errors import UserError
from herd.runs.metrics import read_metrics
from herd.runs.stage import Artifact


@dataclass(frozen=True)
class Round:
    """One round of post-training: the name of a stage within it -> its artifact."""

    name: str  # round-1
    stages: dict[str, Artifact]

    def metrics(self, stage: str) -> dict[str, Any]:
        """What a stage measured; empty when the round has no such stage."""
        return self.stages[stage].metrics if stage in self.stages else {}


class RunData:
    """Artifacts by label, in the order of the recipe.

    Args:
        stages: label -> finished stage. Labels ``round-<n>/<stage>`` belong to a round.
        caveats: what its author knows of the run and no stage can tell, sentences.
    """

    def __init__(self, stages: Mapping[str, Artifact], caveats: Sequence[str] = ()) -> None:
        self.stages, self.caveats = dict(stages), list(caveats)

    def find(self, command: str) -> Artifact | None:
        """The last stage that ``herd <command>`` made, rounds left out."""
        found = [a for label, a in self.stages.items() if a.manifest["stage"] == command and "/" not in label]
        return found[-1] if found else None

    def metrics(self, command: str) -> dict[str, Any]:
        """What the stage measured; empty when there is none."""
        artifact = self.find(command)
        return artifact.metrics if artifact else {}

    def rows(self, artifact: Artifact | None) -> list[dict[str, Any]]:
        """metrics.jsonl of a stage; empty when there is none."""
        path = artifact.path / "metrics.jsonl" if artifact else None
        return read_metrics(path) if path is not None and path.exists() else []

    def read(self, command: str, name: str) -> Any:
        """A JSON file of a stage; None when the stage or the file is missing."""
        artifact = self.find(command)
        return read_json(artifact.path / name) if artifact and (artifact.path / name).exists() else None

    @cached_property
    def rounds(self) -> list[Round]:
        """Rounds of post-training in order."""
        groups: dict[str, dict[str, Artifact]] = {}
        for label, artifact in self.stages.items():
            head, _, stage = label.partition("/")
            if stage and head.startswith("round-"):
                groups.setdefault(head, {})[stage] = artifact
        return [Round(name, groups[name]) for name in sorted(groups, key=_round_number)]

    @cached_property
    def evaluation(self) -> dict[str, Any]:
        """results.json of the evaluation; empty when there is none."""
        return self.read("evaluate", "results.json") or {}

    def results(self, label: str, task: str) -> dict[str, Any]:
        """Metrics of one model on one task; empty when it was not measured."""
        return dict(self.evaluation.get("results", {}).get(label, {}).get(task, {}))

    def labels(self, task: str) -> list[str]:
        """Labels that have a result on ``task``, models in the order in which they were given."""
        results = self.evaluation.get("results", {})
        order = list(self.evaluation.get("config", {}).get("models_in_order", []))
        found = [label for label in results if task in results[label]]
        return sorted(found, key=lambda label: order.index(label) if label in order else len(order))


def read_json(path: Path) -> Any:
    """A JSON file; UserError when it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' is damaged ({error}): delete its folder and run the stage again.") from error


def _round_number(name: str) -> tuple[int, str]:
    digits = name.removeprefix("round-")
    return (int(digits) if digits.isdigit() else 10**9, name)
