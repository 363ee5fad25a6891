"""`herd scaling-forecast`: what larger runs should be and reach, law by law, each number with its interval."""

import json
import math
from dataclasses import asdict, dataclass, field
from textwrap import shorten
from typing import Any

from rich.table import Table

from herd.config.errors import UserError
from herd.runs.atomic import write_json
from herd.runs.stage import Artifact, Inputs, Stage, StageRun
from herd.scaling.fit_options import FitOptions, fingerprint
from herd.scaling.fit_report import console, dropped_lines, grid, plain
from herd.scaling.laws import Laws, fit_laws
from herd.scaling.numbers import compute, si, span, times
from herd.scaling.records.record import usable
from herd.scaling.run_forecasts import forecast_runs
from herd.scaling.study import laws_of
from herd.scaling.task_forecasts import TaskOptions, forecast_tasks

_LONGEST = 160  # letters of a law's status


@dataclass(frozen=True)
class ScalingForecastConfig(FitOptions):
    """Which runs to forecast. The settings of the fit count for table=FILE; a finished fit (the input) keeps its own."""

    target_flops: list[float] = field(default_factory=list)  # training compute, FLOPs; each run at its optimum
    parameters: float | None = None  # of a given run, as the table's FLOPs count them
    tokens: float | None = None  # of a given run
    tasks: dict[str, TaskOptions] = field(default_factory=dict)  # columns task/NAME of the table to forecast

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (
            *(("target_flops", v) for v in self.target_flops),
            ("parameters", self.parameters),
            ("tokens", self.tokens),
        ):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UserError(f"{name} {value}: give a number above 0.")
        given = sum(v is not None for v in (self.parameters, self.tokens))
        if given == 1 and not self.target_flops:
            raise UserError("A given run needs two of parameters, tokens and target_flops.")
        if given == 2 and self.target_flops:
            raise UserError("parameters and tokens already say the compute: leave target_flops out.")

    def runs(self) -> list[tuple[float, float | None]]:
        """(FLOPs, parameters or None for the optimum) of every run to forecast."""
        if self.parameters and self.tokens:
            return [(6 * self.parameters * self.tokens, self.parameters)]
        sizes = [self.parameters or (c / 6 / self.tokens if self.tokens else None) for c in self.target_flops]
        return list(zip(self.target_flops, sizes, strict=True))


def run(config: ScalingForecastConfig, inputs: Inputs, stage_run: StageRun) -> dict[str, Any]:
    """Write ``forecast.json``."""
    fit = inputs.get("fit")
    if (fit is None) == (config.table is None):
        raise UserError("`herd scaling-forecast` needs one source: inputs.fit=FOLDER (of `herd scaling-fit`) or table=FILE.")
    if not config.runs():
        raise UserError("Nothing to forecast: give target_flops=[3.8e25], or parameters=8e9 tokens=15e12.")
    dropped: list[dict[str, str]] = []
    if fit is not None:
        laws = laws_of(fit)
    else:
        table = config.read()
        laws = fit_laws(table.records, config.laws())
        dropped = [{"row": problem.row, "reason": problem.what} for problem in table.dropped]
    result = describe(laws, config) | {"dropped_rows": dropped}
    write_json(stage_run.folder / "forecast.json", result)
    return {
        "runs": len(result["runs"]),
        "tasks": len(result["tasks"]),
        "largest_extrapolation_ratio": max(one["extrapolation_ratio"] for one in result["runs"]),
        "not_forecast": result["tasks_not_forecast"],
    }


def describe(laws: Laws, config: ScalingForecastConfig) -> dict[str, Any]:
    """``forecast.json``: the runs law by law, the benchmarks, and what they were fitted on."""
    forecasts = forecast_runs(laws, config.runs())
    rows = usable(laws.records)
    settings = laws.config
    sizes = [(one.parameters, one.tokens) for one in forecasts]
    tasks = forecast_tasks(rows, config.tasks, sizes, settings.confidence, settings.replicates, settings.seed)
    names = {name for row in rows for name in row.tasks if not name.endswith("/loss")}
    return {
        "confidence": settings.confidence,
        "loss_unit": rows[0].loss_unit,
        "flops_convention": rows[0].flops_convention,
        "usable": len(rows),
        "largest_budget": laws.largest_budget,
        "runs": [asdict(one) for one in forecasts],
        "tasks": tasks,
        "tasks_not_forecast": sorted(names - set(config.tasks)),
        "dropped": [asdict(dropped) for curve in laws.curves for dropped in curve.dropped],
    }


def show(artifact: Artifact) -> None:
    """Print ``forecast.json`` of a finished forecast."""
    result = json.loads((artifact / "forecast.json").read_text(encoding="utf-8"))
    out, level = console(), f"{100 * result['confidence']:g}%"
    out.print(
        f"Fitted on {result['usable']} runs up to {compute(result['largest_budget'])} FLOPs "
        f"({result['flops_convention']}); intervals of {level}; loss in {result['loss_unit']}"
    )
    for line in dropped_lines(result):
        out.print(plain(line), soft_wrap=True)
    for one in result["runs"]:
        out.print(_heading(one), soft_wrap=True)
        out.print(_run_table(one, level))
        out.print()
    for task in result["tasks"]:
        out.print(_task_table(task, level))
        out.print()
    if result["tasks_not_forecast"]:
        name = result["tasks_not_forecast"][0]
        out.print(f"Not forecast: {', '.join(result['tasks_not_forecast'])} (give ++tasks.{name}.chance=SHARE, and so on)")


def _heading(one: dict[str, Any]) -> str:
    size = f"{si(one['parameters'], 4)} parameters on {si(one['tokens'], 4)} tokens"
    reach = f"{times(one['extrapolation_ratio'])} the largest budget ({one['status']})"
    head = f"[bold]{compute(one['flops'])} FLOPs[/], {reach}: {size}"
    if not one["given"]:
        return head
    over = f", {one['over_training']:.3g} x the optimal tokens" if one["over_training"] else ""
    if one["penalty"] is None:
        return f"{head}{over}"
    cost = f"costs {one['penalty']:.4f} {plain(span(one['penalty_interval'], '.4f'))} of loss by the surface"
    return f"{head}{over}, which {cost}"


def _run_table(one: dict[str, Any], level: str) -> Table:
    table = grid("", "law", "D* tokens", level, "N* = C/6D*", f"{level} ", "loss", f"{level}  ", "status")
    names = {"power_law": "IsoFLOP curves", "surface": "surface", "frontier": "loss at the optima"}
    for name in ("power_law", "frontier", "surface"):
        optimum, loss = one["optima"].get(name), one["losses"].get(name)
        cells = ["", "", "", ""]
        if optimum and optimum["tokens"]:
            cells = [
                si(optimum["tokens"], 4),
                span(optimum["tokens_interval"], "si"),
                si(optimum["parameters"], 4),
                span(optimum["parameters_interval"], "si"),
            ]
        cells += [f"{loss['loss']:.4f}", span(loss["interval"], ".4f")] if loss and loss["loss"] is not None else ["", ""]
        stated = [part for part in (optimum, loss) if part]
        wrong = [f"{part['status']}: {part['reason']}" for part in stated if part["status"] != "ok"]
        status = shorten(next(iter(wrong), "ok"), _LONGEST)
        label = names[name] + (" (best at this compute)" if name == "frontier" and one["given"] else "")
        table.add_row(*(plain(cell) for cell in (label, *cells, status)))
    if one["loss_interval"]:
        table.add_row("loss, all laws", *[""] * 5, plain(span(one["loss_interval"], ".4f")), "")
    return table


def _task_table(task: dict[str, Any], level: str) -> Table:
    title = f"{task['task']}: {task['runs']} runs, chance {task['chance']:g}, linked to the {task['loss']} loss"
    table = grid(title, "FLOPs", "x largest budget", "loss", level, "score", f"{level} ", "status")
    if task["forecasts"] is None:
        table.add_row("-", "-", "-", "-", "-", "no interval", plain(f"{task['status']}: {task['reason']}"))
    for one in task["forecasts"] or []:
        status = one["status"] + (f": {one['reason']}" if one["reason"] else "")
        cells = [
            compute(one["flops"]),
            times(one["extrapolation_ratio"]),
            f"{one['loss']:.4f}",
            span(one["loss_interval"], ".4f"),
        ]
        cells += [f"{one['accuracy']:.4f}", span(one["accuracy_interval"], ".4f"), status]
        table.add_row(*(plain(cell) for cell in cells))
    return table


STAGE = Stage(
    name="scaling-forecast",
    version=1,
    config=ScalingForecastConfig,
    run=run,
    summary="loss, size and benchmarks of larger runs, each with its interval",
    optional=("fit",),
    fingerprint=fingerprint,
    show=show,
)
