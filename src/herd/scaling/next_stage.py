"""`herd scaling-next`: of the runs that a plan allows, those that pin the goal down most for their cost."""

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Optional

from herd.config.errors import UserError, nearest
from herd.runs.atomic import sha256_file, write_json
from herd.runs.stage import Artifact, Inputs, Stage, StageRun
from herd.scaling.choice.misallocation import misallocation
from herd.scaling.choice.next_runs import Batch, Candidate, Ranked, choose_batch, rank
from herd.scaling.choice.posterior import GOALS, LAWS, Goal, Posterior, fit_posterior
from herd.scaling.numbers import si, span
from herd.scaling.records.readers import read_table
from herd.scaling.records.record import Record
from herd.scaling.sweep.plan import (
    Cell,
    Plan,
    PlanConfig,
    plan_cells,
    read_plan,
    vocabulary_of,
    with_overrides,
    with_seed,
    write_plan,
)

UNITS = ("flops", "hours")


@dataclass(frozen=True)
class ScalingNextConfig:
    """What is known, what should be, and what may be spent."""

    plan: PlanConfig  # group conf/plan: the candidates are its cells
    budget: float  # what the next runs may cost, in `unit`
    goal: str  # log_tokens (ln D*(goal_flops)) | alpha | loss (ln L at the optimum) | decision (which of two settings is better)
    goal_flops: float  # compute of the run that the goal is about, FLOPs
    law: str = "surface"  # the law that the goal is read off: surface | parabola
    unit: str = "flops"  # of the budget: flops | hours (as plan.speed estimates them, one job after the other)
    most: Optional[int] = None  # noqa: UP045 (OmegaConf) runs at most; null = as many as the budget holds
    table: Optional[str] = None  # noqa: UP045 run table; null = that of the input sweep or fit
    columns: dict[str, str] = field(default_factory=dict)  # our column -> the table's, for foreign tables
    where: dict[str, str] = field(default_factory=dict)  # the table's column -> value that its rows must have
    compare: Optional[str] = None  # noqa: UP045 decision: the table's column whose values are the two settings
    settings: dict[str, list[str]] = field(
        default_factory=dict
    )  # decision: value of that column -> Hydra overrides that train it
    noise_floor: float = 0.0  # smallest standard deviation of ln L between seeds that is believed
    confidence: float = 0.9  # of every interval

    def __post_init__(self) -> None:
        for name, value, known in (
            ("goal", self.goal, (*GOALS, "decision")),
            ("law", self.law, LAWS),
            ("unit", self.unit, UNITS),
        ):
            if value not in known:
                raise UserError(f"Unknown {name} '{value}'.{nearest(value, known)} Choices: {', '.join(known)}.")
        if not (math.isfinite(self.budget) and self.budget > 0):
            raise UserError(f"budget {self.budget}: give what the next runs may cost, in {self.unit} above 0.")
        if not 0 < self.confidence < 1:
            raise UserError(f"confidence {self.confidence}: give a fraction between 0 and 1, such as 0.9.")
        given = (self.compare is not None, len(self.settings))
        if given != ((True, 2) if self.goal == "decision" else (False, 0)):
            raise UserError(
                "goal=decision is between two settings: give compare=COLUMN and settings={VALUE: [OVERRIDES], "
                "VALUE: [OVERRIDES]}. Other goals take neither."
            )

    def wanted(self) -> Goal:
        """The goal of each setting's law."""
        return Goal("loss" if self.goal == "decision" else self.goal, self.goal_flops)


def run(config: ScalingNextConfig, inputs: Inputs, stage_run: StageRun) -> dict[str, Any]:
    """Write ``next.json`` (every candidate, ranked) and ``cells.json`` (what to train), for `scaling-sweep inputs.next`."""
    sweep = _sweep(inputs, config)
    laws = {
        setting: fit_posterior(_records(config, sweep, setting), config.law, config.noise_floor)
        for setting in (config.settings or {"": []})
    }
    vocabulary = _vocabulary(config, inputs, sweep)
    plan = plan_cells(config.plan, vocabulary)
    earlier = read_plan(sweep / "cells.json").cells if sweep else ()
    cells = _candidates(config, plan, _trained(earlier, int(sweep.manifest["seed"]) if sweep else 0))
    ranked = rank(laws, config.wanted(), list(cells))
    batch = choose_batch(laws, config.wanted(), list(cells), config.budget, config.most)
    chosen = tuple(cells[one.candidate] for one in batch.chosen)
    # A sweep of the earlier cells and the new ones trains only these: the others lie finished in the store.
    write_plan(stage_run.folder / "cells.json", replace(plan, cells=(*earlier, *chosen), dropped=()))
    content = _describe(config, laws, cells, ranked, batch) | {"vocab_size": vocabulary}
    write_json(stage_run.folder / "next.json", content)
    for line in _lines(config, content, batch, cells):
        print(f"  {line}", file=sys.stderr)
    return {
        "status": batch.status,
        "chosen": len(batch.chosen),
        "cost": batch.cost,
        "unit": config.unit,
        "variance_before": batch.variance_before,
        "variance_after": batch.variance_after,
        "right_before": batch.right_before,
        "right_after": batch.right_after,
    }


def _sweep(inputs: Inputs, config: ScalingNextConfig) -> Artifact | None:
    """The finished sweep whose table is read: the input, or that of the input fit; None with a table of the user's."""
    fit, sweep = inputs.get("fit"), inputs.get("sweep")
    if fit is not None and sweep is None and "sweep" in fit.manifest["inputs"]:
        sweep = Artifact.open(fit.path.parent / fit.manifest["inputs"]["sweep"])
    if (sweep is None) == (config.table is None):
        raise UserError("`herd scaling-next` reads one table: give table=FILE, inputs.sweep=FOLDER or inputs.fit=FOLDER.")
    return sweep


def _records(config: ScalingNextConfig, sweep: Artifact | None, setting: str) -> list[Record]:
    where = dict(config.where) | ({config.compare: setting} if config.compare else {})
    return read_table(sweep / "table.csv" if sweep else Path(str(config.table)), config.columns, where)


def _vocabulary(config: ScalingNextConfig, inputs: Inputs, sweep: Artifact | None) -> int:
    if config.plan.vocab_size:
        return config.plan.vocab_size
    tokens = inputs.get("tokens")
    if tokens is not None:
        return vocabulary_of(tokens.path)
    return int(sweep.metrics["vocab_size"]) if sweep else 0


def _trained(cells: Sequence[Cell], seed: int) -> set[str]:
    """Ids of the sweep's cells, and those that they would have if the sweep's seed had been given with the cell."""
    return {cell.id for cell in cells} | {with_seed(cell, seed).id for cell in cells if cell.seed is None}


def _candidates(config: ScalingNextConfig, plan: Plan, trained: set[str]) -> dict[Candidate, Cell]:
    """Each untrained cell of the plan, once for each setting."""
    cells = {}
    for setting, overrides in (config.settings or {"": []}).items():
        for cell in plan.cells:
            own = with_overrides(cell, overrides) if overrides else cell
            if own.id in trained:
                continue
            cost = own.flops if config.unit == "flops" else own.seconds / 3600
            name = f"{own.id} {setting}".strip()
            # Parameters as the FLOPs see them, so that 6ND is the compute whatever convention counted it.
            cells[Candidate(name, own.flops / (6 * own.tokens), own.tokens, cost, setting)] = own
    if not cells:
        raise UserError("Every cell of the plan is trained: give plan.seeds=[1] for other seeds, or more sizes or budgets.")
    return cells


def _describe(
    config: ScalingNextConfig,
    laws: dict[str, Posterior],
    cells: dict[Candidate, Cell],
    ranked: Sequence[Ranked],
    batch: Batch,
) -> dict[str, Any]:
    """``next.json``."""

    def row(one: Ranked) -> dict[str, Any]:
        cell = cells[one.candidate]
        return {
            "cell": cell.id,
            "setting": one.candidate.setting or None,
            "budget": cell.budget,
            "parameters": cell.parameters,
            "tokens": cell.tokens,
            "seed": cell.seed,
            "cost": one.candidate.cost,
            "variance_before": one.variance_before,
            "variance_after": one.variance_after,
            "right_before": one.right_before,
            "right_after": one.right_after,
            "gain_per_cost": one.gain / one.candidate.cost,
        }

    goal = config.wanted()
    result: dict[str, Any] = {
        "status": batch.status,
        "reason": batch.reason,
        "goal": config.goal,
        "goal_flops": config.goal_flops,
        "law": config.law,
        "unit": config.unit,
        "budget": config.budget,
        "cost": batch.cost,
        "variance_before": batch.variance_before,
        "variance_after": batch.variance_after,
        "right_before": batch.right_before,
        "right_after": batch.right_after,
        "now": {name or "all": asdict(law.estimate(goal, config.confidence)) for name, law in laws.items()},
        "noise": {name or "all": law.noise for name, law in laws.items()},
        "chosen": [row(one) for one in batch.chosen],
        "ranked": [row(one) for one in ranked],  # each alone, best per cost first
        "misallocation": None,
    }
    law = laws.get("")
    if law is not None and config.law == "surface":
        size = config.goal_flops / 6 / math.exp(law.value(Goal("log_tokens", config.goal_flops)))
        result["misallocation"] = asdict(misallocation(law, config.goal_flops, size, config.confidence))
    return result


def _lines(config: ScalingNextConfig, content: dict[str, Any], batch: Batch, cells: dict[Candidate, Cell]) -> list[str]:
    """What a person reads: the goal now, what to train, what it should come to."""
    lines = []
    for name, now in content["now"].items():
        low, high = now["interval"]
        ratio = f", {now['extrapolation_ratio']:.3g} times the largest fitted compute" if now["extrapolation_ratio"] else ""
        status = "" if now["status"] == "ok" else f"; {now['status']}: {now['reason']}"
        what = config.wanted().kind + (f" of {name}" if config.settings else "")
        own = ""
        if config.wanted().kind != "alpha":  # a logarithm: the number itself is what people know
            value, form = math.exp(now["value"]), "si" if config.goal == "log_tokens" else ".4f"
            number = si(value) if form == "si" else f"{value:.4f}"
            unit = "tokens" if form == "si" else "of loss"
            own = f" = {number} {unit} {span((math.exp(low), math.exp(high)), form)}"
        lines.append(f"now: {what} {now['value']:.4g} [{low:.4g}, {high:.4g}]{own} at {config.confidence:.0%}{ratio}{status}")
    for one in batch.chosen:
        cell = cells[one.candidate]
        own = f", {one.candidate.setting}" if one.candidate.setting else ""
        seed = f", seed {cell.seed}" if cell.seed is not None else ""
        lines.append(
            f"train {cell.id}: {cell.budget:.3g} FLOPs, {cell.parameters:,.0f} parameters{own}{seed}; "
            f"{one.candidate.cost:.3g} {config.unit}; " + _step(one)
        )
    if batch.status != "ok":
        lines.append(f"{batch.status}: {batch.reason}")
    elif batch.right_before is not None:
        lines.append(f"{batch.cost:.3g} {config.unit}: right choice {batch.right_before:.1%} -> {batch.right_after:.1%} expected")
    else:
        width = math.sqrt(batch.variance_after / batch.variance_before)
        lines.append(f"{batch.cost:.3g} {config.unit}: the interval should shrink to {width:.0%} of its width")
    waste = content["misallocation"]
    if waste is not None:
        low, high = waste["wasted_flops_interval"]
        lines.append(
            f"the size that the law names now wastes {waste['wasted_flops_mean'] / waste['flops']:.2%} of {waste['flops']:.3g} "
            f"FLOPs [{low / waste['flops']:.2%}, {high / waste['flops']:.2%}]"
        )
    return lines


def _step(one: Ranked) -> str:
    if one.right_before is not None and one.right_after is not None:
        return f"right choice {one.right_before:.2%} -> {one.right_after:.2%}"
    return f"standard error {math.sqrt(one.variance_before):.3g} -> {math.sqrt(one.variance_after):.3g}"


def fingerprint(config: ScalingNextConfig) -> Any:
    """The content of a table given by name."""
    if config.table is None:
        return None
    if not Path(config.table).is_file():
        raise UserError(f"No run table '{config.table}': give table=FILE, or inputs.sweep=FOLDER of a finished sweep.")
    return sha256_file(Path(config.table))


STAGE = Stage(
    name="scaling-next",
    version=1,
    config=ScalingNextConfig,
    run=run,
    summary="the runs that pin the goal down most for their cost",
    optional=("sweep", "fit", "tokens"),
    fingerprint=fingerprint,
)
