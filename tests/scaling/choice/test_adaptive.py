"""Adaptive sweeps: what each wave does and why, ends, purity, failures, the pool of a plan, a stopped sweep that goes on."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from herd.config.errors import UserError
from herd.scaling.choice import adaptive
from herd.scaling.choice.adaptive import Wave, WavesConfig, decide, waves
from herd.scaling.choice.posterior import Goal, fit_posterior
from herd.scaling.records.record import Record
from herd.scaling.sweep.plan import Cell, Plan, PlanConfig
from herd.scaling.sweep.plan_rules import SizeRule, TrainingRule
from herd.scaling.sweep.waves import Pool, make_pool, train_waves

from ..conftest import LAPTOP, Truth, optimum

BUDGETS = (1e11, 2e11, 4e11, 8e11)
SETTINGS = WavesConfig(goal_flops=8e12, target_interval=0.15, cells=3, noise_cells=1)


def make_cells(shift: float = 1.0, sizes: int = 7, seeds: int = 3, truth: Truth = LAPTOP) -> list[Cell]:
    """Seven sizes of each budget over a span of 16 about ``shift`` times the optimum, three seeds of each."""
    cells = []
    for c in BUDGETS:
        for i in range(sizes):
            n = shift * optimum(truth, c)[0] * 16 ** (i / (sizes - 1) - 0.5)
            cells += [Cell(f"{c:g}-{i}-{s}", c, n, c / 6 / n, c, "6N", 1e-3, 1, 1, 1.0, [], s) for s in range(seeds)]  # type: ignore[arg-type]
    return cells


def result(cell: Cell, noise: float = 0.004, truth: Truth = LAPTOP) -> Record:
    """What training the cell gives: the same each time."""
    E, A, B, a, b = truth
    rng = np.random.default_rng([*cell.id.encode()])
    loss = (E + A / cell.parameters**a + B / cell.tokens**b) * math.exp(noise * rng.normal())
    return Record(cell.id, cell.budget, cell.parameters, cell.tokens, cell.flops, loss, seed=cell.seed)


def coarse_of(cells: Sequence[Cell], sizes: Sequence[int] = (0, 3, 6)) -> list[str]:
    return [cell.id for cell in cells if cell.seed == 0 and int(cell.id.split("-")[1]) in sizes]


def sweep(
    cells: Sequence[Cell], settings: WavesConfig, total: float, failing: Sequence[str] = ()
) -> tuple[list[Wave], list[Record]]:
    """An adaptive sweep from its first wave to its end."""
    by_id, records = {cell.id: cell for cell in cells}, []
    coarse = coarse_of(cells)
    for _ in range(100):
        made = list(waves(cells, coarse, records, settings, total))
        if made[-1].status != "train":
            return made, records
        for name in made[-1].cells:
            record = result(by_id[name])
            records.append(replace(record, status="failed", loss=math.nan, error="boom") if name in failing else record)
    raise AssertionError("the sweep does not end")


def test_a_narrow_interval_of_a_fit_at_its_bound_does_not_end_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = adaptive._estimate

    def at_bound(*args: Any) -> Any:
        posterior, estimate, missing = plain(*args)
        return posterior, replace(estimate, status="at_bound", reason="E at the edge"), missing

    monkeypatch.setattr(adaptive, "_estimate", at_bound)
    cells = make_cells()
    coarse, settings = coarse_of(cells), replace(SETTINGS, target_interval=50.0, noise_cells=0)
    last = list(waves(cells, coarse, [result(cell) for cell in cells if cell.id in coarse], settings, 1e15))[-1]
    assert (last.status, last.kind) == ("train", "goal")
    assert last.reason == "the interval is narrow enough, but E at the edge (at_bound)"
    assert list(last.reasons.values()) == ["the cheapest cell left"]


def test_a_sweep_ends_at_its_target_for_less_than_the_grid() -> None:
    cells = make_cells()
    grid = [result(cell) for cell in cells if cell.seed == 0]
    goal = Goal("log_tokens", 8e12)
    floor = 0.008  # above what either side will estimate: neither is lucky
    fixed = fit_posterior(grid, noise_floor=floor).estimate(goal, 0.9)
    settings = replace(SETTINGS, target_interval=2 * fixed.half_width, noise_floor=floor)
    made, records = sweep(cells, settings, 1e15)
    last = made[-1]
    assert [wave.kind for wave in made[:2]] == ["coarse", "seeds"] and last.status == "reached"
    assert last.estimate is not None and 2 * last.estimate.half_width <= settings.target_interval
    assert last.spent == pytest.approx(sum(r.flops for r in records))
    assert last.spent < 0.7 * sum(r.flops for r in grid)
    assert last.seed_noise == pytest.approx(0.004, rel=1) and all(wave.reason for wave in made)
    assert sorted(r.cell for r in records) == sorted({r.cell for r in records})  # nothing twice
    assert all(set(wave.reasons) == set(wave.cells) for wave in made[1:])


def test_decisions_are_a_function_of_the_results_alone() -> None:
    cells = make_cells()
    made, records = sweep(cells, SETTINGS, 1e13)
    assert list(waves(cells, coarse_of(cells), records[::-1], SETTINGS, 1e13)) == made
    # Stopped anywhere, the same waves come again; a wave that is half done is asked for whole.
    for cut in (5, 12, 14, len(records) - 1):
        again = list(waves(cells, coarse_of(cells), records[:cut], SETTINGS, 1e13))
        assert again == made[: len(again)] and again[-1].status == "train"


def test_a_wrong_centre_is_moved_until_the_minimum_is_inside() -> None:
    cells = make_cells(shift=6.0)  # all guessed sizes too large by six: the coarse wave is the upper half
    upper = coarse_of(cells, (4, 5, 6))
    records = [result(cell) for cell in cells if cell.id in upper]
    wave = decide(cells, records, SETTINGS, 1e15)
    assert wave.kind == "centre" and len(wave.cells) == 4
    assert set(wave.cells) == set(coarse_of(cells, (3,)))  # the next smaller size of every budget
    assert all("at its smallest size" in reason for reason in wave.reasons.values())
    steps = 0
    while wave.kind == "centre":
        records += [result(cell) for cell in cells if cell.id in wave.cells]
        wave, steps = decide(cells, records, SETTINGS, 1e15), steps + 1
    assert steps > 1
    for budget in BUDGETS:
        rows = sorted((r for r in records if r.budget == budget), key=lambda r: r.parameters)
        best = min(rows, key=lambda r: r.loss)
        assert best not in (rows[0], rows[-1]) or rows[0].parameters == min(c.parameters for c in cells if c.budget == budget)


def test_failed_cells_are_kept_and_not_tried_again() -> None:
    cells = make_cells()
    failing = [cell.id for cell in cells if cell.id.startswith("2e+11-6") or cell.id.startswith("1e+11-2")]
    made, records = sweep(cells, SETTINGS, 1e13, failing)
    assert made[-1].status in ("reached", "spent")
    names = [record.cell for record in records]
    assert len(names) == len(set(names)) and any(name in failing for name in names)
    assert made[-1].spent == pytest.approx(sum(cell.flops for cell in cells if cell.id in names))  # failures cost too


def test_a_spent_budget_and_an_empty_pool_end_a_sweep() -> None:
    cells = make_cells()
    grid = sum(cell.flops for cell in cells if cell.id in coarse_of(cells))
    made, records = sweep(cells, replace(SETTINGS, target_interval=1e-6), grid + 1.05e12)
    assert made[-1].status == "spent" and "FLOPs are spent" in made[-1].reason
    assert sum(record.flops for record in records) <= grid + 1.05e12
    made, records = sweep(make_cells(seeds=1), replace(SETTINGS, target_interval=1e-6), 1e20)
    assert made[-1].status == "exhausted" and len(records) == 28


def test_too_few_runs_for_a_law_are_filled_up() -> None:
    cells = [cell for cell in make_cells() if cell.budget <= 2e11]
    records = [result(cell) for cell in cells if cell.id in coarse_of(cells)]
    wave = decide(cells, records, replace(SETTINGS, noise_cells=0), 1e15)
    assert wave.kind == "fill" and "too few" in wave.reason and wave.estimate is None
    assert {name.split("-")[-1] for name in wave.cells} == {"0"} and len(wave.cells) == 3


@pytest.mark.parametrize("law", ["surface", "parabola"])
def test_no_run_lies_beyond_the_sizes_that_bracket_the_minimum(law: str) -> None:
    """The law would gladly spend on extremes that no run has checked."""
    cells = make_cells(sizes=13)
    inner = [c.id for c in cells if c.seed == 0 and int(c.id.split("-")[1]) in (3, 6, 9)]
    records = [result(cell) for cell in cells if cell.id in inner]
    wave = decide(cells, records, replace(SETTINGS, law=law, cells=20, noise_cells=0), 1e15)
    assert wave.kind == "goal"
    assert {int(name.split("-")[1]) for name in wave.cells} <= set(range(3, 10))


def test_the_pool_of_a_plan_holds_seeds_and_sizes_beyond_the_span() -> None:
    plan = PlanConfig(
        budgets=[1e11, 2e11, 4e11], sizes=SizeRule(4, 3, 6e4, 2e11), training=TrainingRule(), seq_len=256, vocab_size=1024
    )
    pool = make_pool(plan, replace(SETTINGS, coarse=3), 1024, seed=7)
    ids = {cell.id for cell in pool.cells}
    assert len(ids) == len(pool.cells) and set(pool.coarse) <= ids and len(pool.coarse) == 9
    assert {cell.seed for cell in pool.cells} == {7, 8, 9}
    assert all(cell.overrides[-1] == f"seed={cell.seed}" for cell in pool.cells)
    for budget in plan.budgets:
        sizes = {cell.parameters for cell in pool.cells if cell.budget == budget}
        coarse = {cell.parameters for cell in pool.cells if cell.id in pool.coarse and cell.budget == budget}
        assert min(sizes) < min(coarse) and max(sizes) > max(coarse) and coarse < sizes
    assert pool.total_flops == pytest.approx(4 * sum(plan.budgets), rel=0.05)  # what the grid would cost
    with pytest.raises(UserError, match=r"raise plan\.total_flops"):
        make_pool(replace(plan, total_flops=1e12), SETTINGS, 1024, 0)


def test_a_stopped_sweep_goes_on_with_the_same_waves(tmp_path: Path) -> None:
    cells = make_cells()
    pool, by_id = Pool(tuple(cells), tuple(coarse_of(cells)), 1e13), {cell.id: cell for cell in cells}
    launched: list[list[str]] = []

    def train(plan: Plan) -> list[Record]:
        launched.append([cell.id for cell in plan.cells])
        if stop_at is not None and len(launched) == stop_at:
            raise KeyboardInterrupt
        return [result(by_id[cell.id]) for cell in plan.cells]

    stop_at: int | None = None
    whole = train_waves(pool, SETTINGS, "loss", tmp_path / "a.json", tmp_path / "a.csv", train)
    first, launched, stop_at = launched, [], 3
    with pytest.raises(KeyboardInterrupt):
        train_waves(pool, SETTINGS, "loss", tmp_path / "b.json", tmp_path / "b.csv", train)
    before, launched, stop_at = launched, [], None
    resumed = train_waves(pool, SETTINGS, "loss", tmp_path / "b.json", tmp_path / "b.csv", train)
    assert before[:2] + launched == first  # finished waves are not launched again
    assert [wave.cells for wave in resumed[2]] == [wave.cells for wave in whole[2]]
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    written = json.loads((tmp_path / "a.json").read_text())
    assert [wave["status"] for wave in written] == ["train"] * (len(written) - 1) + [whole[2][-1].status]
    assert written[-1]["estimate"]["interval"][0] < written[-1]["estimate"]["interval"][1]


def test_a_wave_without_a_loss_ends_with_its_reason(tmp_path: Path) -> None:
    cells = make_cells()
    pool = Pool(tuple(cells), tuple(coarse_of(cells)), 1e13)

    def train(plan: Plan) -> list[Record]:
        return [replace(result(cell), status="failed", loss=math.nan, error="out of memory") for cell in plan.cells]

    with pytest.raises(UserError, match="No cell of wave 0 has a usable loss; the first says: out of memory"):
        train_waves(pool, SETTINGS, "loss", tmp_path / "w.json", tmp_path / "w.csv", train)


def test_settings_are_checked() -> None:
    for change, says in (
        ({"goal": "beta"}, "Unknown goal"),
        ({"law": "line"}, "Unknown law"),
        ({"target_interval": 0.0}, "target_interval"),
        ({"coarse": 1}, "coarse must be at least 2"),
    ):
        with pytest.raises(UserError, match=says):
            replace(SETTINGS, **change)
