"""Learning-rate and batch laws: recovery of a known law, grids of both, repeats, coverage, refusals."""

import dataclasses
import math

import numpy as np
import pytest

from herd.config.errors import UserError
from herd.scaling.curves.hyperparameters import HyperparameterConfig, fit_hyperparameter_law, mark_untuned
from herd.scaling.laws import LawsConfig, fit_laws
from herd.scaling.records.record import Record

from ..conftest import make_sweep

BUDGETS = (1e17, 1e18, 1e19, 1e20)


def best_lr(c: float) -> float:
    return 0.3118 * c**-0.1250  # Bi et al. 2024


def best_batch(c: float) -> float:
    return 0.2920 * c**0.3271


def grid(noise: float = 0.0, seed: int = 0, batches=(-0.6, -0.2, 0.1, 0.5), rates=(-0.7, -0.3, 0.1, 0.4, 0.8)) -> list[Record]:  # type: ignore[no-untyped-def]
    """Learning rates and batches at offsets, in log10, from the best of each budget."""
    rng = np.random.default_rng(seed)
    rows = []
    for c in BUDGETS:
        n = math.sqrt(c / 120)
        for i, u in enumerate(rates):
            for j, v in enumerate(batches):
                batch = round(best_batch(c) * 10**v)
                exact = math.log10(batch / best_batch(c))
                loss = 2 + (c / 1e17) ** -0.1 + 0.2 * u**2 + 0.1 * exact**2 + noise * rng.normal()
                lr = best_lr(c) * 10**u
                rows.append(Record(f"{c:g}-{i}-{j}", c, n, c / 6 / n, c, loss, lr=lr, batch_tokens=batch))
    return rows


def test_the_law_of_the_learning_rate_is_recovered() -> None:
    found = fit_hyperparameter_law(grid(batches=(0.0,)))
    assert found.status == "ok" and found.law is not None
    assert found.law.exponent == pytest.approx(-0.1250, abs=1e-9)
    value, interval, ratio = found.best(1e22)
    assert value == pytest.approx(best_lr(1e22), rel=1e-6)
    assert interval is not None and ratio == pytest.approx(100)
    assert [optimum.best for optimum in found.optima] == pytest.approx([best_lr(c) for c in BUDGETS], rel=1e-6)


def test_both_laws_come_from_one_grid() -> None:
    """The best over the other setting shifts every value's loss alike where the two do not interact."""
    rows = grid()
    rates, batches = (fit_hyperparameter_law(rows, name) for name in ("lr", "batch_tokens"))
    assert rates.law.exponent == pytest.approx(-0.1250, abs=1e-6)
    assert batches.law.exponent == pytest.approx(0.3271, abs=1e-4)
    assert batches.best(1e22)[0] == pytest.approx(best_batch(1e22), rel=1e-3)
    # The best of the other setting is a tenth of a decade from its optimum: 0.1 x 0.1^2 and 0.2 x 0.1^2.
    assert (rates.optima[0].loss, batches.optima[0].loss) == pytest.approx((3.001, 3.002), abs=1e-4)


def test_the_near_optimal_band_holds_the_settings_that_cost_little() -> None:
    optimum = fit_hyperparameter_law(grid(batches=(0.0,))).optima[0]
    assert optimum.loss == pytest.approx(3.0, abs=1e-6)
    for end in optimum.near:
        assert 0.2 * math.log10(end / best_lr(BUDGETS[0])) ** 2 == pytest.approx(0.0025 * 3, rel=1e-3)


def test_repeats_are_averaged_and_intervals_cover() -> None:
    hits = np.zeros(2)
    for seed in range(100):
        rows = grid(0.01, seed, (0.0,))
        more = [dataclasses.replace(r, cell=f"{r.cell}-again") for r in grid(0.01, seed + 1000, (0.0,))]
        found = fit_hyperparameter_law(rows + more)
        assert all(optimum.values == 5 for optimum in found.optima)
        low, high = found.law.exponent_interval
        value = found.best(1e22)
        hits += low < -0.125 < high, value[1][0] < best_lr(1e22) < value[1][1]
    assert (hits >= 88).all() and (hits <= 99).all(), hits


def test_row_order_and_units_do_not_matter() -> None:
    rows = grid(0.01)
    one, other = fit_hyperparameter_law(rows), fit_hyperparameter_law(rows[::-1])
    assert one == other
    scaled = fit_hyperparameter_law([dataclasses.replace(r, lr=r.lr * 1e3) for r in rows])
    assert scaled.law.exponent == pytest.approx(one.law.exponent, abs=1e-9)
    assert scaled.best(1e22)[0] == pytest.approx(1e3 * one.best(1e22)[0], rel=1e-9)


def test_against_parameters_the_exponent_doubles() -> None:
    """Here N goes as C^1/2."""
    found = fit_hyperparameter_law(grid(batches=(0.0,)), config=HyperparameterConfig(against="parameters"))
    assert found.law.exponent == pytest.approx(-0.25, abs=1e-9)


def test_groups_without_an_optimum_are_refused_by_name() -> None:
    low = fit_hyperparameter_law(grid(batches=(0.0,), rates=(-2.0, -1.5, -1.0, -0.5)))
    assert (low.status, low.law) == ("too_few_optima", None)
    assert {o.status for o in low.optima} == {"no_interior_minimum"} and "try a larger one" in low.reason
    with pytest.raises(UserError, match="No law of the best learning rate: 0 of 4 groups"):
        low.best(1e22)
    few = fit_hyperparameter_law(grid(batches=(0.0,), rates=(-0.5, 0.0, 0.5)))
    assert {o.status for o in few.optima} == {"too_few_points"} and "3 different lr, 4 needed" in few.reason
    upside_down = [dataclasses.replace(r, loss=6 - r.loss) for r in grid(batches=(0.0,))]
    assert {o.status for o in fit_hyperparameter_law(upside_down).optima} == {"concave"}
    two = fit_hyperparameter_law([r for r in grid(batches=(0.0,)) if r.budget < 1e19])
    assert two.status == "exact" and two.best(1e20)[1] is None and "add a budget" in two.reason


def test_tables_without_the_setting_say_so() -> None:
    rows = [dataclasses.replace(r, lr=None) for r in grid()]
    found = fit_hyperparameter_law(rows)
    assert (found.status, found.reason, found.law) == ("not_fitted", "no row has lr", None)
    alike = fit_hyperparameter_law([row for row in grid(batches=(0.0,)) if row.cell.endswith("-2-0")])
    assert (alike.status, alike.optima) == ("not_fitted", ()) and "one learning rate per budget and size" in alike.reason
    with pytest.raises(UserError, match=r"1 of 80 usable rows have no lr .*columns\.lr=COLUMN"):
        fit_hyperparameter_law([*grid()[1:], rows[0]])
    with pytest.raises(UserError, match="Did you mean 'batch_tokens'"):
        fit_hyperparameter_law(rows, "batch_token")
    with pytest.raises(UserError, match="above 0 in every usable row"):
        fit_hyperparameter_law([dataclasses.replace(r, lr=0.0) for r in grid()])


def test_of_several_settings_the_laws_of_size_see_the_best() -> None:
    """A table in which each cell was also trained with learning rates that are too low and too high."""
    tuned = make_sweep(noise=0.002)
    plain = [dataclasses.replace(row, lr=1e-3, batch_tokens=1024) for row in tuned]
    worse = [
        dataclasses.replace(row, cell=f"{row.cell}-{lr:g}", lr=lr, loss=row.loss + 0.1 + 0.5 * (lr > 1e-3))
        for row in plain
        for lr in (1e-4, 1e-2)
    ]
    config = LawsConfig(replicates=100)
    alone, together = fit_laws(plain, config), fit_laws([*plain, *worse], config)
    assert together.tokens == alone.tokens and together.surface == alone.surface and together.frontier == alone.frontier
    marked = [row for row in together.records if row.status == "untuned"]
    assert {row.cell for row in marked} == {row.cell for row in worse}
    reason = "not the best setting of its budget and size (lr 0.001, batch 1024)"
    assert {one.reason for curve in together.curves for one in curve.dropped} == {reason}
    every = fit_laws([*plain, *worse], dataclasses.replace(config, settings="all"))
    assert every.tokens != alone.tokens and not any(curve.dropped for curve in every.curves)
    assert mark_untuned(tuned) == tuned  # nothing to choose from
    with pytest.raises(UserError, match="Did you mean 'best'"):
        LawsConfig(settings="bst")


def test_repeats_of_a_setting_are_judged_by_their_mean() -> None:
    row = make_sweep()[0]
    rows = [
        dataclasses.replace(row, cell=f"{lr:g}-{seed}", lr=lr, seed=seed, loss=loss)
        for lr, losses in ((1e-3, (3.0, 3.2)), (2e-3, (2.9, 3.5)))
        for seed, loss in enumerate(losses)
    ]
    assert [one.status for one in mark_untuned(rows)] == ["ok", "ok", "untuned", "untuned"]
