"""Power laws: recovery, invariance, intervals that cover, refusals."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from herd.config.errors import UserError
from herd.scaling.curves.power_law import METHODS, fit_power_law


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


METHODS_WITH_ERRORS = [(method, errors) for method in METHODS.names() for errors in (False, True) if errors or method != "wls"]


def noisy_points(seed: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, y with a scatter that differs from point to point, and the standard errors of ln y."""
    rng = np.random.default_rng(seed)
    errors = rng.uniform(0.02, 0.3, n)
    x = np.geomspace(1e18, 1e21, n) * np.exp(0.1 * rng.normal(size=n))
    return x, 0.3 * x**0.5 * np.exp(errors * rng.normal(size=n)), errors


@given(
    st.integers(0, 10_000), st.integers(5, 9), st.floats(1e-9, 1e9), st.floats(1e-9, 1e9), st.sampled_from(METHODS_WITH_ERRORS)
)
def test_units_and_row_order_do_not_matter(seed: int, n: int, x_unit: float, y_unit: float, how: tuple[str, bool]) -> None:
    x, y, errors = noisy_points(seed, n)
    options = {"method": how[0], "replicates": 100}
    law = fit_power_law(x, y, errors=errors if how[1] else None, **options)
    order = np.random.default_rng(seed + 1).permutation(n)
    assert fit_power_law(x[order], y[order], errors=errors[order] if how[1] else None, **options) == law
    scaled = fit_power_law(x / x_unit, y / y_unit, errors=errors if how[1] else None, **options)
    assert scaled.exponent == pytest.approx(law.exponent, abs=1e-9)
    assert scaled.exponent_interval == pytest.approx(law.exponent_interval, abs=1e-8)
    for kind in ("mean", "prediction"):
        low, high = scaled.interval(1e24 / x_unit, kind)
        assert (low * y_unit, high * y_unit) == pytest.approx(law.interval(1e24, kind), rel=1e-6)
    assert scaled.coefficient * y_unit / x_unit**scaled.exponent == pytest.approx(law.coefficient, rel=1e-6)


def test_weighted_least_squares_matches_the_normal_equations() -> None:
    x, y, errors = noisy_points(0, 8)
    law = fit_power_law(x, y, errors=errors, method="wls")
    design = np.stack([np.ones(8), np.log(x)], axis=1)
    covariance = np.linalg.inv(design.T @ np.diag(errors**-2) @ design)
    intercept, slope = covariance @ design.T @ (np.log(y) / errors**2)
    assert (law.exponent, math.log(law.coefficient)) == pytest.approx((slope, intercept), rel=1e-9)
    assert law.own.slope == pytest.approx(covariance[1, 1], rel=1e-9)
    at = np.array([1, math.log(1e24)])
    assert law.own.at(at[1] - law.mean_log_x, "mean") ** 2 == pytest.approx(at @ covariance @ at, rel=1e-6)
    # One scale for all errors leaves the law alone: only their ratios weigh.
    assert fit_power_law(x, y, errors=7 * errors, method="wls").exponent == pytest.approx(law.exponent, rel=1e-12)


def test_theil_sen_matches_scipy_and_its_interval_covers_exactly() -> None:
    rng = np.random.default_rng(2)
    x = np.geomspace(1e18, 1e21, 6)
    hits = np.zeros(3)
    for _ in range(400):
        y = 2 * x**0.5 * np.exp(0.1 * rng.standard_t(3, size=6))
        law = fit_power_law(x, y, method="theil_sen", replicates=200)
        slope, intercept, _, _ = stats.theilslopes(np.log(y), np.log(x), method="joint")
        assert (law.exponent, math.log(law.coefficient)) == pytest.approx((slope, intercept), rel=1e-9)
        low, high = law.exponent_interval
        truth = 2 * 1e23**0.5
        mean, prediction = law.interval(1e23), law.interval(1e23, "prediction")
        hits += (
            low < 0.5 < high,
            mean[0] < truth < mean[1],
            prediction[0] < truth * math.exp(0.1 * rng.standard_t(3)) < prediction[1],
        )
    # Six points: 2 of 720 orders have every pair discordant or concordant and 10 all but one; 12 / 720 stay outside.
    assert hits[0] / 400 == pytest.approx(1 - 12 / 720, abs=0.012)
    assert (hits[1:] / 400 >= 0.9).all() and (hits[1:] / 400 <= 0.98).all(), hits / 400


def test_one_wild_point_turns_least_squares_and_not_theil_sen() -> None:
    x = np.geomspace(1e18, 1e21, 9)
    y = 2 * x**0.5 * np.exp(0.01 * np.random.default_rng(0).normal(size=9))
    y[-1] *= 5
    assert abs(fit_power_law(x, y).exponent - 0.5) > 0.05
    assert fit_power_law(x, y, method="theil_sen").exponent == pytest.approx(0.5, abs=0.01)


def test_theil_sen_without_an_interval_says_why() -> None:
    law = fit_power_law(np.geomspace(1, 100, 4), [1, 3, 5, 9], method="theil_sen")
    assert law.exponent_interval is None and "needs more than 4 points" in law.reason
    assert law.interval(1000) is not None  # the bootstrap's


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("n", [4, 6, 10])
def test_the_rule_of_two_errors_covers(n: int, factor: float) -> None:
    """Own errors that are right, half of what they should be, or absent: 90 to 98% hold the truth."""
    rng = np.random.default_rng(n)
    x = np.geomspace(1e18, 1e21, n)
    hits = 0
    for _ in range(600):
        law = fit_power_law(x, 2 * x**0.5 * np.exp(0.1 * rng.normal(size=n)), errors=np.full(n, 0.1 * factor))
        hits += law.exponent_interval[0] < 0.5 < law.exponent_interval[1]
    assert 0.9 <= hits / 600 <= 0.98, hits / 600
    if factor == 1:
        assert hits / 600 == pytest.approx(0.95, abs=0.02)


def test_errors_that_cannot_weigh_are_refused() -> None:
    x, y, errors = noisy_points(0, 5)
    with pytest.raises(UserError, match="give the standard errors"):
        fit_power_law(x, y, method="wls")
    with pytest.raises(UserError, match="outweigh all others"):
        fit_power_law(x, y, method="wls", errors=errors * 0)
    with pytest.raises(UserError, match="finite and not negative"):
        fit_power_law(x, y, errors=-errors)
    with pytest.raises(UserError, match="Did you mean 'theil_sen'"):
        fit_power_law(x, y, method="theil-sen")


@pytest.mark.parametrize("method", ["ols", "wls"])
def test_intervals_far_from_the_points_are_the_textbooks(method: str) -> None:
    """Mean and prediction at 1e24 by the normal equations, weighted or not (Seber and Lee 2003, section 5.3)."""
    x, errors = np.array([1e18, 1e19, 1e20, 3e20, 1e21]), np.array([0.05, 0.1, 0.03, 0.2, 0.08])
    y = 0.3 * x**0.5 * np.exp(np.array([2.0, -3.0, 4.0, -1.0, 5.0]) * errors)
    weights = 1 / errors**2 if method == "wls" else np.ones(5)
    weights = weights / weights.mean()
    design, at = np.stack([np.ones(5), np.log(x)], axis=1), np.array([1.0, np.log(1e24)])
    inverse = np.linalg.inv(design.T @ (weights[:, None] * design))
    fitted = inverse @ design.T @ (weights * np.log(y))
    variance = float(weights @ (np.log(y) - design @ fitted) ** 2) / 3
    law = fit_power_law(x, y, errors=errors if method == "wls" else None, method=method)
    for kind, extra in (("mean", 0.0), ("prediction", 1.0)):
        half = stats.t.ppf(0.975, 3) * math.sqrt(variance * (extra + at @ inverse @ at))
        assert np.log(law.interval(1e24, kind)) == pytest.approx([at @ fitted - half, at @ fitted + half], abs=1e-9)
