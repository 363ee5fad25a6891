"""Adaptive planning beside the fixed grid: FLOPs until the interval of log D*(C) is as narrow as the grid's.

Two trials, both sides in one run, each sweep with its own noise:

simulated  losses of the Chinchilla surface (Hoffmann et al. 2022, as refitted by Besiroglu et al. 2024) at the nine budgets of
           Hoffmann's IsoFLOP curves, seven sizes each, with 0.5% noise on ln L; the goal is ln D* at Gopher's 5.76e23 FLOPs.
real       adaptive_cells.csv: cells of the laptop family that were really trained, two to four seeds each, by
           `herd scaling-sweep plan=isoflop_laptop plan.seeds=[0,1]` and the same with other sizes; the goal is ln D* at 2.4e12.
           A sweep draws which of a cell's seeds come first; the grid is every size of every budget, with one seed or two.

    python -m benchmarks.scaling.adaptive
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import save
from herd.scaling.choice.adaptive import WavesConfig, decide
from herd.scaling.choice.posterior import Goal, fit_posterior, pure_error
from herd.scaling.records.readers import read_table
from herd.scaling.records.record import Record
from herd.scaling.sweep.plan import Cell

COMMAND = "python -m benchmarks.scaling.adaptive"
SWEEPS = 60
E, A, B, a, b = 1.8172, 477.8, 2143.0, 0.3473, 0.3672
BUDGETS = (6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21)
SIZES, SPAN, SEEDS, NOISE = 7, 16.0, 3, 0.005
CONFIDENCE = 0.9


def optimal_tokens(flops: float) -> float:
    """D*(C) of the true surface."""
    n = (a * A / (b * B)) ** (1 / (a + b)) * (flops / 6) ** (b / (a + b))
    return flops / 6 / n


def simulated(sweep: int) -> tuple[list[Cell], dict[str, Record]]:
    """Cells of the pool and what each gives, noise drawn for this sweep."""
    rng, cells, records = np.random.default_rng(sweep), [], {}
    for c in BUDGETS:
        for i in range(SIZES):
            n = c / 6 / optimal_tokens(c) * SPAN ** (i / (SIZES - 1) - 0.5)
            d = c / 6 / n
            for seed in range(SEEDS):
                name = f"{c:g}-{i}-{seed}"
                loss = (E + A / n**a + B / d**b) * math.exp(NOISE * rng.normal())
                cells.append(Cell(name, c, n, round(d), c, "6N", 1e-3, 1, 1, 1.0, [], seed))
                records[name] = Record(name, c, n, d, c, loss, seed=seed)
    return cells, records


def real(sweep: int, rows: Sequence[Record]) -> tuple[list[Cell], dict[str, Record]]:
    """The trained cells, with their seeds in the order of this sweep."""
    rng, cells, records = np.random.default_rng(sweep), [], {}
    groups: dict[tuple[float, float], list[Record]] = {}
    for row in rows:
        groups.setdefault((row.budget, row.parameters), []).append(row)
    for (budget, n), same in sorted(groups.items()):
        place = sorted(size for c, size in groups if c == budget).index(n)
        for seed, index in enumerate(rng.permutation(len(same))):
            row, name = same[index], f"{budget:g}-{place}-{seed}"
            cells.append(Cell(name, budget, n, int(row.tokens), row.flops, "6N", 1e-3, 1, 1, 1.0, [], seed))
            records[name] = replace(row, cell=name, seed=seed)
    return cells, records


def trial(cells: Sequence[Cell], records: dict[str, Record], goal: Goal, law: str, seeds: int, floor: float) -> dict[str, Any]:
    """One sweep both ways: the grid's interval, then the adaptive sweep until its own is as narrow."""
    grid = [records[cell.id] for cell in cells if (cell.seed or 0) < seeds]
    fixed = fit_posterior(grid, law, floor).estimate(goal, CONFIDENCE)
    cost = sum(record.flops for record in grid)
    settings = WavesConfig(
        goal_flops=goal.flops,
        law=law,
        target_interval=2 * fixed.half_width,
        cells=6 if len(BUDGETS) * SIZES <= len(grid) else 2,
        seeds=max((cell.seed or 0) for cell in cells) + 1,
        noise_cells=2 if floor == 0 and law == "surface" else 0,
        noise_floor=floor,
    )
    done = []
    for c in sorted({cell.budget for cell in cells}):
        own = [cell for cell in cells if cell.budget == c and cell.seed == 0]
        done += [records[own[i].id] for i in (0, len(own) // 2, -1)]
    while (wave := decide(cells, done, settings, 2 * cost)).status == "train":
        done += [records[name] for name in wave.cells]
    assert wave.estimate is not None
    return {"fixed": fixed, "adaptive": wave.estimate, "status": wave.status, "ratio": wave.spent / cost, "cells": len(done)}


def summary(trials: Sequence[dict[str, Any]], truth: float | None) -> dict[str, Any]:
    """Medians over the sweeps; a sweep that did not reach the interval counts as infinitely dear."""
    ratios = [t["ratio"] if t["status"] == "reached" else math.inf for t in trials]
    low, middle, high = np.quantile(ratios, [0.1, 0.5, 0.9], method="lower")
    result: dict[str, Any] = {
        "sweeps": len(trials),
        "reached": sum(t["status"] == "reached" for t in trials),
        "flops_ratio": {"median": middle, "p10": low, "p90": high if math.isfinite(high) else None},
        "cells_median": float(np.median([t["cells"] for t in trials])),
    }
    for side in ("fixed", "adaptive"):
        estimates = [t[side] for t in trials]
        result[side] = {
            "half_width_median": float(np.median([e.half_width for e in estimates])),
            "value_median": float(np.median([e.value for e in estimates])),
            "value_std": float(np.std([e.value for e in estimates])),
        }
        if truth is not None:
            covered = [e.interval[0] < truth < e.interval[1] for e in estimates]
            result[side] |= {"coverage": float(np.mean(covered)), "bias": float(np.mean([e.value for e in estimates]) - truth)}
    return result


def main() -> None:
    """Run both trials and write the dated file."""
    far, near = Goal("log_tokens", 5.76e23), Goal("log_tokens", 2.4e12)
    rows = read_table(Path(__file__).with_name("adaptive_cells.csv"))
    noise, freedom = pure_error(rows)
    repeated = sorted({(r.budget, r.parameters) for r in rows})
    losses = {where: [r.loss for r in rows if (r.budget, r.parameters) == where] for where in repeated}
    results: dict[str, Any] = {
        "confidence": CONFIDENCE,
        "seed_noise": {
            "log_loss_std": noise,
            "degrees_of_freedom": freedom,
            "nats_std": math.sqrt(
                sum(float(np.var(v)) * len(v) for v in losses.values()) / sum(len(v) - 1 for v in losses.values())
            ),
            "cells": [
                {"budget": c, "parameters": n, "seeds": len(v), "mean": float(np.mean(v)), "nats_std": float(np.std(v, ddof=1))}
                for (c, n), v in losses.items()
                if len(v) >= 3
            ],
        },
        "simulated": summary(
            [trial(*simulated(i), far, "surface", 1, 0.0) for i in range(SWEEPS)], math.log(optimal_tokens(5.76e23))
        ),
    }
    variants: dict[str, Callable[[], list[dict[str, Any]]]] = {
        f"{law}, grid of {seeds} seed{'s' * (seeds > 1)}, noise {'estimated' if floor == 0 else 'at least that of seeds'}": (
            lambda law=law, seeds=seeds, floor=floor: [trial(*real(i, rows), near, law, seeds, floor) for i in range(SWEEPS // 2)]
        )
        for law in ("parabola",)
        for seeds in (2, 1)
        for floor in (0.0, noise)
    }
    results["real"] = {name: summary(run(), None) for name, run in variants.items()}
    print(save(__file__, COMMAND, results))


if __name__ == "__main__":
    main()
