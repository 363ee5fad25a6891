"""`herd scaling-plan`: budgets and sizes to the cells of a sweep, with their cost."""

import json
import sys
from dataclasses import dataclass, replace
from typing import Any

from herd.config.errors import UserError
from herd.runs.stage import Artifact, Inputs, Stage, StageRun
from herd.scaling.records.readers import read_table
from herd.scaling.sweep.plan import Plan, PlanConfig, plan_cells, vocabulary_of, write_plan
from herd.scaling.sweep.plan_rules import TokensLaw


@dataclass(frozen=True)
class ScalingPlanConfig:
    """Which sweep to plan."""

    plan: PlanConfig  # group conf/plan
    jobs: int = 2  # cells that train at the same time, for the estimate of hours

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise UserError(f"jobs {self.jobs}: at least 1.")


def run(config: ScalingPlanConfig, inputs: Inputs, stage_run: StageRun) -> dict[str, Any]:
    """Write ``cells.json``; with a fit its law is the centre of the sizes, with a sweep its cells give the speed."""
    settings = config.plan
    fit, sweep, tokens = inputs.get("fit"), inputs.get("sweep"), inputs.get("tokens")
    if fit is not None:
        settings = replace(settings, sizes=replace(settings.sizes, law=law_of(fit)))
    if sweep is not None:
        name = "the sweep given as inputs.sweep"
        settings = replace(settings, speed=settings.speed.measured(read_table(sweep / "table.csv"), name))
    plan = plan_cells(settings, vocabulary_of(tokens.path) if tokens and not settings.vocab_size else 0)
    write_plan(stage_run.folder / "cells.json", plan)
    for line in plan_lines(plan, config.jobs):
        print(f"  {line}", file=sys.stderr)
    return {
        "cells": len(plan.cells),
        "flops": plan.flops,
        "hours": plan.seconds / 3600 / config.jobs,
        "speed": plan.speed,
        "dropped": list(plan.dropped),
    }


def law_of(fit: Artifact) -> TokensLaw:
    """The law of the optimal tokens that a finished `scaling-fit` holds; UserError when it found none."""
    content = json.loads((fit / "fit.json").read_text(encoding="utf-8"))
    if content.get("alpha") is None:
        raise UserError(f"'{fit.path}' holds no law of the optimal tokens: plan.sizes.centre_parameters stays a guess of yours.")
    return TokensLaw(content["A"], content["alpha"])


def plan_lines(plan: Plan, jobs: int) -> list[str]:
    """What a person wants to know of a plan before paying for it."""
    lines = []
    for budget in sorted({cell.budget for cell in plan.cells}):
        cells = [cell for cell in plan.cells if cell.budget == budget]
        sizes = [cell.parameters for cell in cells]
        lines.append(
            f"{budget:.3g} FLOPs: {len(cells)} cells of {min(sizes):,.0f} to {max(sizes):,.0f} parameters, "
            f"{max(c.tokens for c in cells):,} to {min(c.tokens for c in cells):,} tokens, "
            f"{sum(cell.seconds for cell in cells) / 3600:.3g} hours"
        )
    lines.append(
        f"{len(plan.cells)} cells, {plan.flops:.3g} FLOPs, {plan.seconds / 3600:.3g} hours of one job "
        f"({plan.seconds / 3600 / jobs:.3g} with {jobs} at a time), at {plan.speed}"
    )
    return [*lines, *(f"dropped: {line}" for line in plan.dropped)]


STAGE = Stage(
    name="scaling-plan",
    version=2,
    config=ScalingPlanConfig,
    run=run,
    summary="budgets and sizes to the cells of an IsoFLOP sweep",
    optional=("tokens", "fit", "sweep"),
)
