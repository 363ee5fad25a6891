"""`herd mix-anneal`: annealing runs on candidate sources to a ranking with intervals (Llama 3, section 3.1.3)."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from herd.config.errors import UserError, nearest
from herd.runs.atomic import write_json
from herd.runs.stage import Artifact, Inputs, Stage, StageRun
from herd.scaling.figures import save_panels
from herd.scaling.fit_report import console, grid, plain
from herd.scaling.mixture.annealing import (
    Appraisal,
    annealing_runs,
    gather_documents,
    gather_seeds,
    rank_by_documents,
    rank_by_seeds,
)
from herd.scaling.mixture.figures import appraisal_gains
from herd.scaling.mixture.records import finished_runs
from herd.scaling.numbers import span

_PAIRINGS = ("auto", "seed", "document")


@dataclass(frozen=True)
class MixAnnealConfig:
    """Which runs, and how they are paired."""

    runs: str  # folder of the sweep's finished runs, e.g. runs/default/anneal
    stage: str = "anneal"  # of their curriculum, the one on a candidate's mix
    pairing: str = "auto"  # seed | document (runs with eval_documents=true) | auto: by seed where there are two or more
    weights: dict[str, float] = field(default_factory=dict)  # domain -> weight of its held-out loss; empty = the default mix
    confidence: float = 0.95  # of every interval
    seed: int = 0  # of the draws

    def __post_init__(self) -> None:
        if self.pairing not in _PAIRINGS:
            raise UserError(
                f"Unknown pairing '{self.pairing}'.{nearest(self.pairing, _PAIRINGS)} Choices: {', '.join(_PAIRINGS)}."
            )
        if not 0 < self.confidence < 1:
            raise UserError(f"confidence {self.confidence}: give a fraction between 0 and 1, such as 0.95.")


def run(config: MixAnnealConfig, inputs: Inputs, stage_run: StageRun) -> dict[str, Any]:
    """Write ``anneal.json`` and ``figures/annealing.png``."""
    appraisal = appraise(config)
    starts = [artifact.metrics.get("start") for _, _, artifact in annealing_runs(Path(config.runs), config.stage)]
    write_json(stage_run.folder / "anneal.json", asdict(appraisal) | {"start": starts[0], "weights": config.weights or None})
    save_panels({"annealing": lambda axes: appraisal_gains(appraisal, axes)}, stage_run.folder / "figures")
    return {
        "status": appraisal.status,
        "reason": appraisal.reason,
        "pairing": appraisal.pairing,
        "gains": {one.name: one.gain for one in appraisal.candidates},
    }


def appraise(config: MixAnnealConfig) -> Appraisal:
    """Rank the candidates of the configured runs."""
    folder, weights = Path(config.runs), config.weights or None
    pairing = config.pairing
    if pairing == "auto":
        seeds = {seed for _, seed, _ in annealing_runs(folder, config.stage)}
        pairing = "seed" if len(seeds) > 1 else "document"
    if pairing == "seed":
        return rank_by_seeds(gather_seeds(folder, weights, config.stage), confidence=config.confidence, seed=config.seed)
    nll, tokens = gather_documents(folder, weights, config.stage)
    return rank_by_documents(nll, tokens, confidence=config.confidence, seed=config.seed)


def show(artifact: Artifact) -> None:
    """Print ``anneal.json`` of a finished appraisal."""
    told = json.loads((artifact / "anneal.json").read_text(encoding="utf-8"))
    out, start = console(), told["start"]
    if start:
        moments = "with its optimizer's moments" if start["moments"] else "with fresh moments"
        out.print(f"annealed from the end of stage '{start['stage']}', {start['tokens']:,} tokens in, {moments}")
    noise = "noise of one run" if told["pairing"] == "seed" else "standard error of the default mix's loss"
    units = f"{told['units']} {told['pairing']}s, {noise} {told['noise']:.4f}"
    out.print(f"default mix: loss {told['default_loss']:.4f} nats/token; {units}")
    out.print(_table(told))
    if told["reason"]:
        out.print(told["reason"], markup=False, soft_wrap=True)


def _table(told: dict[str, Any]) -> Table:
    level = f"{100 * told['confidence']:g}%"
    table = grid("", "candidate", "loss", "gain over default", level, "best of all", "status")
    for one in told["candidates"]:
        table.add_row(
            one["name"], f"{one['loss']:.4f}", f"{one['gain']:+.4f}", plain(span(one["gain_interval"], "+.4f")),
            f"{one['best_probability']:.0%}", one["status"],
        )  # fmt: skip
    return table


def fingerprint(config: MixAnnealConfig) -> Any:
    """The addresses of the runs."""
    return {name: artifact.address for name, artifact in finished_runs(Path(config.runs))}


STAGE = Stage(
    name="mix-anneal",
    version=1,
    config=MixAnnealConfig,
    run=run,
    summary="annealing runs to a ranking of candidate sources, with intervals",
    fingerprint=fingerprint,
    show=show,
)
