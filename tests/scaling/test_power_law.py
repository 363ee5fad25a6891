"""Power laws: recovery, invariance, intervals that cover, refusals."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from herd.config.errors import UserError
from herd.scaling.power_law import fit_power_law


@given(st.floats(-2, 2), st.floats(-20, 20), st.floats(0.1, 1e6))
def test_an_exact_power_law_is_recovered_in_any_units(exponent: float, log_a: float, unit: float) -> None:
    x = np.geomspace(1e10, 1e15, 6)
    y = np.exp(log_a) * x**exponent
    law = fit_power_law(x / unit, y)
    assert law.exponent == pytest.approx(exponent, abs=1e-9)
    assert law.predict(1e18 / unit) == pytest.approx(math.exp(log_a) * 1e18**exponent, rel=1e-7)


def test_power_law_intervals_match_scipy_and_cover() -> None:
    rng = np.random.default_rng(3)
    x = np.geomspace(1e11, 1e12, 5)
    hits = {"alpha": 0, "mean": 0, "prediction": 0}
    for _ in range(400):
        y = 2 * x**0.5 * np.exp(0.1 * rng.normal(size=5))
        law = fit_power_law(x, y)
        reference = stats.linregress(np.log(x), np.log(y))
        half = stats.t.ppf(0.975, 3) * reference.stderr
        assert law.exponent_interval == pytest.approx((reference.slope - half, reference.slope + half))
        log_a = stats.t.ppf(0.975, 3) * reference.intercept_stderr
        assert law.coefficient_interval == pytest.approx(
            (math.exp(reference.intercept - log_a), math.exp(reference.intercept + log_a))
        )
        hits["alpha"] += law.exponent_interval[0] < 0.5 < law.exponent_interval[1]
        at, truth = 8e12, 2 * 8e12**0.5
        low, high = law.interval(at)
        hits["mean"] += low < truth < high
        low, high = law.interval(at, "prediction")
        hits["prediction"] += low < truth * math.exp(0.1 * rng.normal()) < high
    assert all(0.92 <= count / 400 <= 0.98 for count in hits.values()), hits


def test_power_law_refusals() -> None:
    with pytest.raises(UserError, match="two different budgets"):
        fit_power_law([1e12, 1e12], [1.0, 2.0])
    with pytest.raises(UserError, match="finite numbers above 0"):
        fit_power_law([1e11, 1e12], [1.0, -2.0])
    exact = fit_power_law([1e11, 1e12], [1.0, 2.0])
    assert (exact.status, exact.exponent_interval, exact.interval(1e13)) == ("exact", None, None)
