"""Resampling: units stay together, the jackknife leaves one out, intervals against scipy's."""

import numpy as np
import pytest
from scipy import stats

from herd.config.errors import UserError
from herd.scaling.curves.resampling import bootstrap_counts, interval, jackknife_groups, labels_of

BUDGETS = np.array([1e9, 3e9, 1e9, 1e10, 3e10, 3e9, 1e10])


def test_rows_are_drawn_alone() -> None:
    counts = bootstrap_counts(labels_of("row", 7, None), 4000, np.random.default_rng(0))
    assert counts.shape == (4000, 7) and (counts.sum(axis=1) == 7).all()
    assert counts.mean(axis=0) == pytest.approx(np.ones(7), abs=0.05)
    assert counts.var(axis=0) == pytest.approx(np.full(7, 6 / 7), abs=0.07)  # multinomial


def test_a_budget_is_drawn_as_a_whole() -> None:
    labels = labels_of("budget", 7, BUDGETS)
    counts = bootstrap_counts(labels, 500, np.random.default_rng(0))
    for budget in set(BUDGETS.tolist()):
        own = counts[:, budget == BUDGETS]
        assert (own == own[:, :1]).all()
    assert (counts[:, [0, 1, 3, 4]].sum(axis=1) == 4).all()  # one row of each budget


def test_labels_may_be_names() -> None:
    assert labels_of("run", 5, ["b", "a", "c", "d", "a"]).tolist() == [1, 0, 2, 3, 0]


@pytest.mark.parametrize(
    ("unit", "groups", "says"),
    [
        ("rows", None, "Did you mean 'row'"),
        ("budget", None, "needs the budget of each of the 7 rows; none given"),
        ("run", ["a"] * 3, "needs the run of each of the 7 rows; 3 given"),
        ("budget", [1, 1, 1, 2, 2, 3, 3], "at least 4 budgets; there are 3. Use unit=row"),
    ],
)
def test_refusals(unit: str, groups, says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=says):
        labels_of(unit, 7, groups)


def test_the_jackknife_leaves_each_group_out_once() -> None:
    masks = jackknife_groups(BUDGETS)
    assert [BUDGETS[~mask].tolist() for mask in masks] == [[1e9, 1e9], [3e9, 3e9], [1e10, 1e10], [3e10]]


def test_intervals_are_those_of_scipy() -> None:
    """The mean of skewed numbers, for which scipy draws its own replicates."""
    x = np.random.default_rng(0).exponential(size=30)
    theirs = {
        kind: stats.bootstrap((x,), np.mean, n_resamples=20_000, method=kind, rng=np.random.default_rng(1)).confidence_interval
        for kind in ("percentile", "BCa")
    }
    counts = bootstrap_counts(labels_of("row", 30, None), 20_000, np.random.default_rng(2))
    means = counts @ x / 30
    left_out = np.array([x[mask].mean() for mask in jackknife_groups(np.arange(30))])
    assert interval(means) == pytest.approx(tuple(theirs["percentile"]), abs=0.015)
    ours = interval(means, kind="bca", estimate=float(x.mean()), left_out=left_out)
    assert ours == pytest.approx(tuple(theirs["BCa"]), abs=0.015)
    assert ours[1] > interval(means)[1] + 0.03  # skewness is seen


def test_an_estimate_outside_its_replicates_has_a_finite_interval() -> None:
    replicates = np.linspace(0, 1, 101)
    assert np.isfinite(interval(replicates, kind="bca", estimate=-5.0, left_out=np.array([0.1, 0.2, 0.2]))).all()
    with pytest.raises(UserError, match=r"Unknown interval 'bcaa'. Did you mean 'bca'"):
        interval(replicates, kind="bcaa")
