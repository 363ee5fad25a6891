"""The cost of a wrong size: closed forms against searches, zero at the optimum, intervals that cover."""

import math

import numpy as np
import pytest
from scipy.optimize import brentq

from herd.config.errors import UserError
from herd.scaling.choice.misallocation import cost_of_size, misallocation
from herd.scaling.choice.posterior import fit_posterior
from herd.scaling.surface.batch import SurfaceBatch

from ..conftest import LAPTOP, make_sweep, optimum

C = 8e12


def surface() -> SurfaceBatch:
    E, A, B, a, b = LAPTOP
    return SurfaceBatch(*(np.array([value]) for value in (E, math.log(A), math.log(B), a, b)))


@pytest.mark.parametrize("factor", [0.1, 0.5, 1.0, 2.0, 10.0])
def test_cost_of_a_size_against_a_search_for_the_equal_budget(factor: float) -> None:
    n, _, best = optimum(LAPTOP, C)
    E, A, B, a, b = LAPTOP
    excess, wasted = cost_of_size(surface(), C, n * factor)
    reached = E + A / (n * factor) ** a + B / (C / 6 / n / factor) ** b
    assert excess[0] == pytest.approx(reached - best, abs=1e-12)
    enough = brentq(lambda c: optimum(LAPTOP, c)[2] - reached, C / 1e6, C * 1.01, xtol=1e-3, rtol=1e-13)
    assert wasted[0] == pytest.approx(C - enough, rel=1e-6, abs=1e-4 * C * (factor == 1))
    assert 0 <= wasted[0] < C


def test_the_fitted_optimum_costs_nothing_by_the_fit_and_something_by_its_posterior() -> None:
    posterior = fit_posterior(make_sweep(noise=0.02))
    chosen = posterior.batch(posterior.theta[:, None]).optimal_tokens(C)[0]
    result = misallocation(posterior, C, C / 6 / chosen)
    assert result.excess_loss == pytest.approx(0, abs=1e-12) and result.wasted_share == pytest.approx(0, abs=1e-9)
    assert 0 < result.excess_loss_mean < result.excess_loss_interval[1] and result.extrapolation_ratio == pytest.approx(10)
    double = misallocation(posterior, C, 2 * C / 6 / chosen)
    assert double.excess_loss_interval[0] > result.excess_loss_interval[1]


def test_intervals_cover_the_true_cost() -> None:
    """A size three times too large: what it costs on the true surface lies in the interval as often as it says."""
    n = 3 * optimum(LAPTOP, C)[0]
    truth = [float(value[0]) for value in cost_of_size(surface(), C, n)]
    results = [misallocation(fit_posterior(make_sweep(noise=0.02, seed=seed)), C, n, draws=400) for seed in range(60)]
    for name, value in zip(("excess_loss_interval", "wasted_flops_interval"), truth, strict=True):
        assert 48 <= sum(getattr(r, name)[0] < value < getattr(r, name)[1] for r in results) <= 60


def test_refusals() -> None:
    posterior = fit_posterior(make_sweep(noise=0.02))
    for arguments, says in (((0, 1e5), "flops is 0"), ((C, math.nan), "parameters is nan"), ((C, 1e5, 1.0), "confidence")):
        with pytest.raises(UserError, match=says):
            misallocation(posterior, *arguments)
    with pytest.raises(UserError, match="law 'surface'"):
        misallocation(fit_posterior(make_sweep(noise=0.02), "parabola"), C, 1e5)
