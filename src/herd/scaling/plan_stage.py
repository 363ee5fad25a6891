"""`herd scaling-plan`: budgets and sizes to the cells of a sweep."""

from dataclasses import dataclass
from typing import Any

from herd.runs.stage import Inputs, Stage, StageRun
from herd.scaling.plan import PlanConfig, plan_cells, vocabulary_of, write_plan


@dataclass(frozen=True)
class ScalingPlanConfig:
    """Which sweep to plan."""

    plan: PlanConfig  # group conf/plan
    jobs: int = 2  # cells that train at the same time, for the estimate of hours


def run(config: ScalingPlanConfig, inputs: Inputs, stage_run: StageRun) -> dict[str, Any]:
    """Write ``cells.json``."""
    tokens = inputs.get("tokens")
    plan = plan_cells(config.plan, vocabulary_of(tokens.path) if tokens and not config.plan.vocab_size else 0)
    write_plan(stage_run.folder / "cells.json", plan)
    return {
        "cells": len(plan.cells),
        "flops": plan.flops,
        "hours": plan.seconds / 3600 / config.jobs,
        "dropped": list(plan.dropped),
    }


STAGE = Stage(
    name="scaling-plan",
    version=1,
    config=ScalingPlanConfig,
    run=run,
    summary="budgets and sizes to the cells of an IsoFLOP sweep",
    optional=("tokens",),
)
