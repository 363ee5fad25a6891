"""A finished scaling study, opened for analysis: the sweep's table, its laws, the forecast, and what was then measured."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from herd.config.errors import UserError
from herd.config.loader import from_dict
from herd.runs.stage import Artifact
from herd.scaling.fit_stage import ScalingFitConfig, curves_of
from herd.scaling.forecast import Forecast, forecast
from herd.scaling.laws import Laws, fit_laws
from herd.scaling.records.readers import read_runs
from herd.scaling.records.record import Record


@dataclass(frozen=True)
class Study:
    """What `herd scaling-sweep`, `herd scaling-fit` and the flagship's `herd pretrain` left in one run."""

    laws: Laws
    forecast: Forecast | None  # of the flagship as it was chosen, None where the fit chose none
    flagship: dict[str, Any] | None  # flagship.json
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
    laws = laws_of(fit)
    flagship = target = None
    if (fit.path / "flagship.json").exists():
        flagship = json.loads((fit / "flagship.json").read_text(encoding="utf-8"))
        size = flagship["flops"] / (6 * flagship["tokens"])
        target = forecast(laws, flagship["flops"], fit.manifest["config"]["fallback"], size)
    trained, sweep = stages.get("pretrain"), stages.get("scaling-sweep")
    return Study(
        laws=laws,
        forecast=target,
        flagship=flagship,
        measured=trained.metrics.get("initial_loss") if trained else None,
        curves=curves_of(sweep),
    )


def laws_of(fit: Artifact) -> Laws:
    """The laws of a finished `herd scaling-fit`, fitted again from the table that it kept: the same numbers to the bit."""
    config = from_dict(ScalingFitConfig, fit.manifest["config"])
    return fit_laws(read_runs(str(fit / "table.csv")).records, config.laws())


def _artifacts(folder: Path) -> Iterator[Artifact]:
    """Finished stages at the top of a run folder, by name."""
    if not folder.is_dir():
        raise UserError(f"No run folder '{folder}': give runs/<name> of a finished run.")
    for path in sorted(folder.iterdir()):
        if (path / "manifest.json").exists():
            yield Artifact.open(path)
