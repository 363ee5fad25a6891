"""The over-training law: recovery, invariance, agreement with the surface, coverage, refusals."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from herd.config.errors import UserError
from herd.scaling.curves.overtraining import fit_overtraining, overtraining_of
from herd.scaling.surface.fit import fit_surface

from ..conftest import make_sweep

TRUTH = (1.6, 150.0, 210.0, 0.12)  # E, a, b, eta
C, M = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e17, 1e20, 6), [5.0, 20.0, 80.0, 320.0, 640.0]))


def loss_of(c, m, truth=TRUTH):  # type: ignore[no-untyped-def]
    E, a, b, eta = truth
    return E + (a * m**eta + b * m**-eta) * c**-eta


@given(st.floats(0.5, 2.5), st.floats(0.06, 0.3), st.floats(0.2, 5), st.floats(0.1, 3))
@settings(max_examples=20)
def test_all_four_numbers_are_recovered(E: float, eta: float, a: float, b: float) -> None:
    truth = (E, a * 1e18**eta, b * 1e18**eta, eta)
    law = fit_overtraining(C, M, loss_of(C, M, truth), replicates=100)
    assert law.status == "ok"
    assert (law.E, law.a, law.b, law.eta) == pytest.approx(truth, rel=1e-6)
    assert law.optimal_ratio() == pytest.approx((b / a) ** (0.5 / eta), rel=1e-4)
    assert float(law.loss(1e22, 100.0)) == pytest.approx(loss_of(1e22, 100.0, truth), rel=1e-8)


@given(st.integers(0, 1000), st.floats(1e-12, 1e6), st.floats(0.01, 100))
@settings(max_examples=10)
def test_units_and_row_order_do_not_matter(seed: int, flops_unit: float, loss_unit: float) -> None:
    rng = np.random.default_rng(seed)
    y = loss_of(C, M) * (1 + 0.003 * rng.normal(size=len(C)))
    law = fit_overtraining(C, M, y, replicates=100)
    order = rng.permutation(len(y))
    assert fit_overtraining(C[order], M[order], y[order], replicates=100) == law
    other = fit_overtraining(C / flops_unit, M, y / loss_unit, replicates=100)
    assert other.eta == pytest.approx(law.eta, rel=1e-5)
    assert other.E * loss_unit == pytest.approx(law.E, rel=1e-5)
    at = [np.array(f.interval(c, 100.0, "prediction")) for f, c in ((law, 1e22), (other, 1e22 / flops_unit))]
    assert at[1] * loss_unit == pytest.approx(at[0], rel=1e-3)


def test_it_is_the_surface_with_one_exponent() -> None:
    """Gadre et al., eq. 3: N = (C / 6M)^1/2 and D = (CM / 6)^1/2, so eta is half of the surface's exponent."""
    n, d = np.sqrt(C / 6 / M), np.sqrt(C * M / 6)
    law = fit_overtraining(C, M, 1.8 + 400 * n**-0.3 + 900 * d**-0.3, replicates=100)
    surface = fit_surface(n, d, 1.8 + 400 * n**-0.3 + 900 * d**-0.3, "squared")
    assert (law.eta, law.E) == pytest.approx((0.15, 1.8), rel=1e-6)
    assert (law.a, law.b) == pytest.approx((400 * 6**0.15, 900 * 6**0.15), rel=1e-5)
    assert float(law.loss(1e23, 400.0)) == pytest.approx(
        float(surface.loss(math.sqrt(1e23 / 6 / 400), math.sqrt(1e23 * 400 / 6))), rel=1e-6
    )


def test_the_optimum_is_that_of_a_plain_search() -> None:
    """Noise that pushes a term to 0: non-negative least squares for each of many exponents finds nothing better."""
    for seed in range(6):
        rng = np.random.default_rng(seed)
        y = loss_of(C, M) * (1 + 0.1 * rng.normal(size=len(C)))
        law = fit_overtraining(C, M, y, replicates=100)
        ours = ((law.loss(C, M) - y) ** 2).sum()
        best = min(
            nnls(np.stack([np.ones(len(C)), (M / C * 1e18) ** eta, (M * C / 1e20) ** -eta], axis=1), y)[1] ** 2
            for eta in np.geomspace(0.005, 1, 600)
        )
        assert min(law.E, law.a, law.b) >= 0
        assert ours == pytest.approx(best, rel=1e-4) and ours <= best * (1 + 1e-9)


def test_intervals_cover_what_a_larger_run_measures() -> None:
    hits, truth = np.zeros(3), loss_of(1e22, 100.0)
    for seed in range(100):
        rng = np.random.default_rng(seed)
        law = fit_overtraining(C, M, loss_of(C, M) + 0.01 * rng.normal(size=len(C)), replicates=100, seed=seed)
        mean, one = law.interval(1e22, 100.0), law.interval(1e22, 100.0, "prediction")
        measured = truth + 0.01 * rng.normal()
        hits += law.eta_interval[0] < TRUTH[3] < law.eta_interval[1], mean[0] < truth < mean[1], one[0] < measured < one[1]
    assert (hits >= 89).all(), hits
    assert law.extrapolation_ratio(1e22) == pytest.approx(100)


def test_a_run_table_is_read_as_its_flops_see_it(sweep) -> None:  # type: ignore[no-untyped-def]
    rows = make_sweep(truth=(1.9, 60.0, 180.0, 0.33, 0.33))
    law = overtraining_of(rows, replicates=100)
    assert (law.eta, law.E) == pytest.approx((0.165, 1.9), rel=1e-6)
    json.dumps(law.as_dict(), allow_nan=False)
    assert "replicates" not in law.as_dict()


def test_a_law_that_the_runs_do_not_determine_says_so() -> None:
    law = fit_overtraining(C, M, 2 - 0.01 * np.log(C), replicates=100)  # a straight line in log C has no E
    assert law.status == "at_bound" and law.reason


@pytest.mark.parametrize(
    ("c", "m", "y", "says"),
    [
        (C[:5], M[:5], loss_of(C, M)[:5], "too few"),
        (C, np.full(len(C), 20.0), loss_of(C, 20.0), "1 ratios"),
        (C, M, -loss_of(C, M), "above 0"),
        (C, M[:-1], loss_of(C, M), "equally many"),
    ],
)
def test_bad_runs_are_refused(c, m, y, says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=says):
        fit_overtraining(c, m, y)
