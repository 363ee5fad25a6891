"""The waves of an adaptive sweep, trained: decide, train, read the results, decide again.

``waves.json`` is written after each decision. Results of finished waves are kept in one table; a sweep that is started again
takes its decisions from that table once more, which gives the same waves, and goes on with the first cell that has no result.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from herd.config.errors import UserError
from herd.model.counts import parameter_count
from herd.model.family import family_members
from herd.runs.atomic import write_json
from herd.scaling.choice.adaptive import Wave, WavesConfig, waves
from herd.scaling.records.readers import read_table
from herd.scaling.records.record import Record, usable, write_table
from herd.scaling.sweep.plan import Cell, Plan, PlanConfig, make_cell, plan_cells, with_seed


@dataclass(frozen=True)
class Pool:
    """What an adaptive sweep may train."""

    cells: tuple[Cell, ...]  # every size within reach of every budget, with each seed
    coarse: tuple[str, ...]  # ids of the first wave
    total_flops: float  # what the sweep may cost


def make_pool(config: PlanConfig, settings: WavesConfig, vocab_size: int, seed: int) -> Pool:
    """The cells of a plan, opened up: all members of the family within ``reach`` of the planned sizes, ``seeds`` seeds of each.

    Raises:
        UserError: a coarse wave that costs more than the sweep may.
    """
    # The same sweep as a grid: what it would cost is the limit where the plan gives none.
    total = config.total_flops or plan_cells(replace(config, seeds=[], total_hours=None), vocab_size).flops
    seeds = range(seed, seed + settings.seeds)
    cells: list[Cell] = []
    for budget in sorted(config.budgets):
        sizes = config.sizes.sizes(budget)
        low, high = min(sizes) / settings.reach, max(sizes) * settings.reach
        for shape in family_members(vocab_size, config.seq_len):
            if low <= parameter_count(shape, "6N") <= high:
                cell = make_cell(config, shape, budget)
                if cell.steps >= config.training.min_steps:
                    cells += [with_seed(cell, one) for one in seeds]
    few = replace(config, sizes=replace(config.sizes, count=settings.coarse), seeds=[seed], total_flops=None, total_hours=None)
    coarse = plan_cells(few, vocab_size)
    if coarse.flops > total:
        raise UserError(
            f"The first wave of {len(coarse.cells)} cells costs {coarse.flops:.3g} FLOPs, the sweep may cost {total:.3g}: "
            "raise plan.total_flops, or lower waves.coarse or the largest of plan.budgets."
        )
    known = {cell.id for cell in cells}
    cells += [cell for cell in coarse.cells if cell.id not in known]
    return Pool(tuple(cells), tuple(cell.id for cell in coarse.cells), total)


def train_waves(
    pool: Pool,
    settings: WavesConfig,
    metric: str,
    path: Path,
    table: Path,
    train: Callable[[Plan], Sequence[Record]],
    told: Callable[[Wave, Sequence[Record]], None] = lambda wave, records: None,
) -> tuple[list[Cell], list[Record], list[Wave]]:
    """Run every wave to the end of the sweep.

    Args:
        pool: what may be trained.
        settings: how to decide.
        metric: the job's metric that is a cell's loss.
        path: where ``waves.json`` is written.
        table: where the results of finished waves are kept until the end.
        train: trains the cells of a plan and returns a row for each.
        told: hears of each decision, with the rows that it was made from.

    Returns:
        the cells in the order in which they were chosen, their rows, and the waves.
    """
    by_id = {cell.id: cell for cell in pool.cells}
    records = read_table(table) if table.exists() else []
    while True:
        made = list(waves(pool.cells, pool.coarse, records, settings, pool.total_flops))
        last = made[-1]
        write_json(path, [describe(wave) for wave in made])
        print(f"  {line_of(last)}", file=sys.stderr, flush=True)
        told(last, records)
        if last.status != "train":
            return [by_id[name] for wave in made for name in wave.cells], records, made
        new = train(Plan(tuple(by_id[name] for name in last.cells), (), metric))
        if not usable(new):
            raise UserError(f"No cell of wave {last.number} has a usable loss; the first says: {new[0].error}")
        records = [*records, *new]
        write_table(table, records)


def describe(wave: Wave) -> dict[str, Any]:
    """A wave as it stands in ``waves.json``."""
    return {**asdict(wave), "cells": list(wave.cells), "estimate": asdict(wave.estimate) if wave.estimate else None}


def line_of(wave: Wave) -> str:
    """A wave in one line."""
    head = f"wave {wave.number}, {wave.kind}" if wave.status == "train" else f"sweep ends: {wave.status}"
    goal = ""
    if wave.estimate is not None:
        low, high = wave.estimate.interval
        ratio = wave.estimate.extrapolation_ratio
        beyond = f", {ratio:.3g} times the largest fitted compute" if ratio else ""
        goal = f"; goal {wave.estimate.value:.4g} [{low:.4g}, {high:.4g}]{beyond} ({wave.estimate.status})"
    return f"{head}: {wave.reason}{goal}"
