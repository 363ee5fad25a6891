"""The surface's bootstrap: replicates are certified optima, units matter, refusals; coverage is in test_coverage.py."""

import itertools

import numpy as np
import pytest

from herd.config.errors import UserError
from herd.runs.seeds import stream
from herd.scaling.curves.resampling import bootstrap_counts
from herd.scaling.surface.bootstrap import bootstrap_surface
from herd.scaling.surface.fit import fit_surface
from herd.scaling.surface.solvers import Solution, minimise

from .test_fit import points


@pytest.fixture(scope="module")
def sweep():  # type: ignore[no-untyped-def]
    n, d, y = points(count=60)
    return n, d, y * np.exp(0.005 * np.random.default_rng(1).normal(size=60))


def test_each_replicate_is_the_fit_of_its_own_rows(sweep) -> None:  # type: ignore[no-untyped-def]
    surface = fit_surface(*sweep)
    found = bootstrap_surface(surface, *sweep, replicates=300, seed=7)
    assert found.status == "ok" and (found.undetermined, found.not_converged, found.moved) == (0, 0, 0)
    counts = bootstrap_counts(np.arange(60), 300, stream(7, "surface bootstrap", "row")).astype(int)
    for i in np.random.default_rng(0).choice(300, 8, replace=False):
        rows = np.repeat(np.arange(60), counts[i])
        alone = fit_surface(*(column[rows] for column in sweep), solver="lbfgs", check=False)
        assert found.batch.value[i] <= alone.value * (1 + 1e-9)
        assert (found.values("a")[i], found.values("b")[i]) == pytest.approx((alone.a, alone.b), rel=1e-3)
        assert found.values("B")[i] == pytest.approx(alone.B, rel=1e-2)


def test_standard_errors_are_those_of_the_covariance(sweep) -> None:  # type: ignore[no-untyped-def]
    surface = fit_surface(*sweep, "squared_log")
    found = bootstrap_surface(surface, *sweep, replicates=500)
    said = np.sqrt(np.diag(np.array(surface.covariance)))
    assert [found.standard_error("a"), found.standard_error("b")] == pytest.approx(said[3:], rel=0.25)
    low, high = found.interval("a")
    assert low < surface.a < high and high - low == pytest.approx(4 * said[3], rel=0.25)
    tokens = found.interval(lambda batch: batch.optimal_tokens(1e24), confidence=0.8)
    assert tokens[0] < surface.optimum(1e24)[1] < tokens[1]


def test_rows_that_share_noise_need_to_be_drawn_together() -> None:
    """Ten copies of every run say no more than one: by row the interval is too narrow, by run it is not."""
    n, d, y = points(count=40)
    y = y * np.exp(0.005 * np.random.default_rng(1).normal(size=40))
    n, d, y, run = (np.repeat(column, 10) for column in (n, d, y, np.arange(40)))
    surface = fit_surface(n, d, y, "squared_log")
    by_run = bootstrap_surface(surface, n, d, y, unit="run", groups=run, replicates=300)
    by_row = bootstrap_surface(surface, n, d, y, unit="row", replicates=300)
    assert by_run.units == 40 and by_row.units == 400
    assert by_run.standard_error("a") / by_row.standard_error("a") == pytest.approx(10**0.5, rel=0.2)


def test_replicates_are_a_function_of_the_seed(sweep) -> None:  # type: ignore[no-untyped-def]
    surface = fit_surface(*sweep, tie_exponents=True, pins={"E": 1.8})
    one, same, other = (bootstrap_surface(surface, *sweep, replicates=50, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one.values("a"), same.values("a")) and not np.array_equal(one.values("a"), other.values("a"))
    assert (one.values("a") == one.values("b")).all() and one.values("E") == pytest.approx(np.full(50, 1.8))


def test_few_rows_are_told_apart_from_an_interval() -> None:
    n, d, y = points(count=8)
    surface = fit_surface(n, d, y * np.exp(0.001 * np.random.default_rng(1).normal(size=8)), "squared_log")
    found = bootstrap_surface(surface, n, d, y, replicates=200)
    assert found.status == "undetermined" and "too few different runs" in found.reason
    assert len(found.batch.a) == 200 - found.undetermined - found.not_converged


def test_refits_that_stop_early_are_left_out_and_counted(sweep, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    surface = fit_surface(*sweep)
    monkeypatch.setattr("herd.scaling.surface.batch.minimise", lambda *a: minimise(*a, iterations=8))
    found = bootstrap_surface(surface, *sweep, replicates=100)
    assert found.status == "not_converged" and 0 < found.not_converged == 100 - len(found.batch.a)
    assert f"{found.not_converged} of 100" in found.reason and found.batch.converged.all()


def test_a_lower_end_of_a_fresh_start_counts(sweep, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    surface = fit_surface(*sweep)
    honest = bootstrap_surface(surface, *sweep, replicates=20)
    turns = itertools.cycle([True, False])

    def first_stays(problem, start, target, weight):  # type: ignore[no-untyped-def]
        if next(turns):
            at = problem.evaluate(start, target, weight)
            return Solution(start, at.cost, np.ones(len(start), dtype=bool), 1)
        return minimise(problem, start, target, weight)

    monkeypatch.setattr("herd.scaling.surface.batch.minimise", first_stays)
    found = bootstrap_surface(surface, *sweep, replicates=20)
    assert found.moved == 20 and found.batch.a == pytest.approx(honest.batch.a, rel=1e-5)


def test_refusals(sweep) -> None:  # type: ignore[no-untyped-def]
    n, d, y = sweep
    surface = fit_surface(n, d, y)
    with pytest.raises(UserError, match="fitted to 60 runs; 59 were given"):
        bootstrap_surface(surface, n[1:], d[1:], y[1:])
    with pytest.raises(UserError, match="needs the budget of each of the 60 rows; none given"):
        bootstrap_surface(surface, n, d, y, unit="budget")
    with pytest.raises(UserError, match="replicates 1"):
        bootstrap_surface(surface, n, d, y, replicates=1)
    with pytest.raises(UserError, match=r"Unknown quantity 'alpha'. Choices: E, A, B, a, b, or a function"):
        bootstrap_surface(surface, n, d, y, replicates=10).interval("alpha")
    flat = fit_surface(n, d, 2 + 500 / n**0.4)
    with pytest.raises(UserError, match="status ok can be bootstrapped; this one is at_bound: B"):
        bootstrap_surface(flat, n, d, y)
