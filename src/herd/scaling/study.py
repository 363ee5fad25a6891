"""A finished scaling study, opened for analysis: the sweep's table, its laws, the forecast, and what was then measured."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from herd.config.errors import UserError
from herd.config.loader import from_dict
from herd.runs.metrics import read_metrics
from herd.runs.stage import Artifact
from herd.scaling.fit_stage import ScalingFitConfig
from herd.scaling.forecast import Forecast, forecast
from herd.scaling.laws import Laws, fit_laws
from herd.scaling.record_readers import read_table
from herd.scaling.records import Record


@dataclass(frozen=True)
class Study:
    """What `herd scaling-sweep`, `herd scaling-fit` and the flagship's `herd pretrain` left in one run."""

    laws: Laws
    forecast: Forecast  # of the flagship as it was chosen
    flagship: dict[str, Any]  # flagship.json
    measured: float | None  # the flagship's own loss at the end of its initial stage, None while it is not trained
    curves: dict[str, list[dict[str, Any]]]  # cell -> rows of its metrics.jsonl, empty without a sweep of ours

    @property
    def records(self) -> tuple[Record, ...]:
        """The run table."""
        return self.laws.records


def load_study(folder: Path) -> Study:
    """Open the scaling study of a run folder (``runs/<name>``); stages are found by what made them, whatever their names.

    The laws are fitted again from the table, which gives the same numbers as fit.json and everything that it leaves out.

    Raises:
        UserError: no finished fit in the folder.
    """
    stages: dict[str, Artifact] = {}
    for artifact in _artifacts(Path(folder)):
        stages.setdefault(str(artifact.manifest["stage"]), artifact)
    fit = stages.get("scaling-fit")
    if fit is None:
        raise UserError(f"'{folder}' holds no finished scaling-fit: run `herd scaling-fit`, or `herd recipe`, first.")
    config = from_dict(ScalingFitConfig, fit.manifest["config"])
    sweep = stages.get("scaling-sweep") if config.table is None else None
    if sweep is None and config.table is None:
        raise UserError(f"'{folder}' holds a scaling-fit without the sweep that it fitted.")
    source = sweep / "table.csv" if sweep else Path(str(config.table))
    laws = fit_laws(read_table(source, config.columns, config.where), config.laws())
    flagship = json.loads((fit / "flagship.json").read_text(encoding="utf-8"))
    size = flagship["flops"] / (6 * flagship["tokens"])
    trained = stages.get("pretrain")
    curves = {path.stem: read_metrics(path) for path in sorted((sweep.path / "curves").glob("*.jsonl"))} if sweep else {}
    return Study(
        laws=laws,
        forecast=forecast(laws, flagship["flops"], config.fallback, size),
        flagship=flagship,
        measured=trained.metrics.get("initial_loss") if trained else None,
        curves=curves,
    )


def _artifacts(folder: Path) -> Iterator[Artifact]:
    """Finished stages at the top of a run folder, by name."""
    if not folder.is_dir():
        raise UserError(f"No run folder '{folder}': give runs/<name> of a finished run.")
    for path in sorted(folder.iterdir()):
        if (path / "manifest.json").exists():
            yield Artifact.open(path)
