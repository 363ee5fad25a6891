"""Profile intervals: the fit pinned at an end has just the objective allowed; closed forms; agreement with other intervals."""

import numpy as np
import pytest
from scipy import stats

from herd.config.errors import UserError
from herd.scaling.surface.fit import OBJECTIVES, fit_surface
from herd.scaling.surface.profile import log_optimum, profile_surface

from .test_fit import CHINCHILLA, points


def noisy(noise: float = 0.005, count: int = 60, seed: int = 1):  # type: ignore[no-untyped-def]
    n, d, y = points(count=count)
    return n, d, y * np.exp(noise * np.random.default_rng(seed).normal(size=count))


@pytest.mark.parametrize("objective", OBJECTIVES.names())
@pytest.mark.parametrize("quantity", ["E", "A", "B", "a", "b"])
def test_the_fit_pinned_at_an_end_is_just_within_reach(objective: str, quantity: str) -> None:
    """The definition of a profile, by another way: pin the parameter, fit the other four, compare the objectives."""
    data = noisy()
    surface = fit_surface(*data, objective)
    profile = profile_surface(surface, *data, quantity)
    low, high = profile.interval
    assert profile.status == "ok" and low < profile.estimate < high
    rises = [fit_surface(*data, objective, pins={quantity: end}).value - surface.value for end in profile.interval]
    assert rises[0] == pytest.approx(rises[1], rel=2e-3)
    if objective != "huber_log":
        allowed = surface.value / surface.freedom * stats.f.ppf(0.95, 1, surface.freedom)
        assert rises == pytest.approx([allowed, allowed], rel=2e-3)


def test_the_interval_of_the_optimum_is_where_no_reachable_surface_has_another() -> None:
    """Random surfaces of the region stay inside the interval, and some come close to its ends."""
    n, d, y = noisy(0.002)
    surface = fit_surface(n, d, y, "squared_log")
    low, high = np.log(profile_surface(surface, n, d, y, "tokens", flops=1e24).interval)
    rng = np.random.default_rng(0)
    theta0 = np.array([*np.log([surface.E, surface.A, surface.B]), surface.a, surface.b])
    factor = np.linalg.cholesky(np.array(surface.covariance))
    allowed = surface.value * (1 + stats.f.ppf(0.95, 1, surface.freedom) / surface.freedom)
    reach = []
    for direction in rng.normal(size=(4000, 5)):
        t = theta0 + factor @ (direction / np.linalg.norm(direction) * rng.uniform(1.7, 2.2))
        cost = 0.5 * np.sum((np.log(np.exp(t[0]) + np.exp(t[1]) / n ** t[3] + np.exp(t[2]) / d ** t[4]) - np.log(y)) ** 2)
        if cost <= allowed:
            reach.append(log_optimum(t, 1e24, "tokens")[0])
    assert len(reach) > 1000 and low - 1e-9 <= min(reach) and max(reach) <= high + 1e-9
    assert (max(reach) - min(reach)) / (high - low) > 0.9


@pytest.mark.parametrize("which", ["tokens", "parameters"])
def test_the_optimum_in_logarithms(which: str) -> None:
    theta = np.array([np.log(CHINCHILLA[0]), np.log(CHINCHILLA[1]), np.log(CHINCHILLA[2]), *CHINCHILLA[3:]])
    surface = fit_surface(*points())
    value, gradient = log_optimum(theta, 1e22, which)
    assert value == pytest.approx(np.log(surface.optimum(1e22)[which == "tokens"]), rel=1e-8)
    up, down = ([log_optimum(theta + s * h, 1e22, which)[0] for h in 1e-6 * np.eye(5)] for s in (1, -1))
    assert gradient == pytest.approx((np.array(up) - np.array(down)) / 2e-6, rel=1e-6, abs=1e-8)


def test_tokens_and_parameters_are_two_sides_of_one_budget() -> None:
    data = noisy()
    surface = fit_surface(*data)
    tokens, parameters = (profile_surface(surface, *data, q, flops=1e24) for q in ("tokens", "parameters"))
    assert tokens.kind == "pseudo-likelihood" and tokens.extrapolation_ratio == pytest.approx(1e24 / surface.largest_flops)
    assert 6 * tokens.estimate * parameters.estimate == pytest.approx(1e24)
    assert 6 * tokens.interval[0] * parameters.interval[1] == pytest.approx(1e24, rel=1e-3)


def test_less_noise_or_confidence_or_freedom_is_a_shorter_interval() -> None:
    def width(noise: float, confidence: float = 0.95, **options) -> float:  # type: ignore[no-untyped-def]
        data = noisy(noise)
        low, high = profile_surface(fit_surface(*data, "squared_log", **options), *data, "b", confidence=confidence).interval
        return high - low

    assert width(0.001) == pytest.approx(width(0.004) / 4, rel=0.05)
    assert width(0.004, 0.68) < 0.6 * width(0.004)
    assert width(0.004, pins={"E": CHINCHILLA[0]}) < width(0.004)
    assert width(0.004, tie_exponents=True) < width(0.004)


def test_few_noisy_runs_leave_an_end_open() -> None:
    data = noisy(0.05, count=14, seed=2)
    surface = fit_surface(*data, "squared_log")
    profile = profile_surface(surface, *data, "E")
    assert surface.status == "ok" and profile.status == "open" and "do not bound it" in profile.reason
    assert profile.interval[0] < 1e-4 < surface.E  # E may vanish


@pytest.mark.parametrize(
    ("quantity", "options", "says"),
    [
        ("token", {}, "No profile of 'token'. Did you mean 'tokens'"),
        ("tokens", {}, "The profile of tokens needs flops"),
        ("a", {"flops": 1e20}, "The profile of a takes no flops"),
        ("tokens", {"flops": -1.0}, "above 0"),
        ("E", {}, "E is pinned"),
        ("a", {"confidence": 95}, "fraction between 0 and 1"),
    ],
)
def test_refusals(quantity: str, options, says: str) -> None:  # type: ignore[no-untyped-def]
    data = noisy()
    with pytest.raises(UserError, match=says):
        profile_surface(fit_surface(*data, pins={"E": 1.8}, check=False), *data, quantity, **options)
