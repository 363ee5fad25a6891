"""Links: recovery, weights, errors, what is refused."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize

from herd.config.errors import UserError
from herd.scaling.tasks.link import fit_link, refit_links
from herd.scaling.tasks.link_shapes import LINKS, predict_links

X = np.linspace(0.4, 1.6, 25)
TRUTH = (0.25, 0.92, 0.9, 6.0, 1.0)  # chance, ceiling, midpoint, slope, asymmetry


def sigmoid(x: np.ndarray, chance: float, ceiling: float, midpoint: float, slope: float) -> np.ndarray:
    """Written out, apart from the code under test."""
    return chance + (ceiling - chance) / (1 + np.exp(slope * (x - midpoint)))


@pytest.mark.parametrize("kind", LINKS.names())
def test_noise_free_points_give_the_parameters_back(kind: str) -> None:
    truth = np.array([*TRUTH[:4], 0.4 if kind == "logistic5" else 1.0])
    link = fit_link(X, predict_links(kind, truth, X), kind)
    assert link.status == "ok", link.reason
    np.testing.assert_allclose(link.parameters, truth, rtol=1e-6)


def test_the_shapes_are_those_of_the_books() -> None:
    u = np.array([-3.0, 0.0, 2.0])
    np.testing.assert_allclose(LINKS.get("sigmoid")(u, 1.0)[0], [1 / (1 + math.exp(v)) for v in u])
    np.testing.assert_allclose(LINKS.get("probit")(u, 1.0)[0], [0.5 * math.erfc(v / math.sqrt(2)) for v in u])
    np.testing.assert_allclose(LINKS.get("gompertz")(u, 1.0)[0], [0.5 ** math.exp(v) for v in u])
    np.testing.assert_allclose(LINKS.get("logistic5")(u, 1.0)[0], LINKS.get("sigmoid")(u, 1.0)[0])
    np.testing.assert_allclose(LINKS.get("logistic5")(u, 1e6)[0], LINKS.get("gompertz")(u, 1.0)[0], atol=1e-5)


@pytest.mark.parametrize("kind", LINKS.names())
def test_derivatives_agree_with_differences(kind: str) -> None:
    u, s, step = np.linspace(-5, 5, 41), 0.7, 1e-6
    shape = LINKS.get(kind)
    _, along_u, along_log_s = shape(u, s)
    np.testing.assert_allclose(along_u, (shape(u + step, s)[0] - shape(u - step, s)[0]) / (2 * step), atol=1e-8)
    more, less = s * math.exp(step), s * math.exp(-step)
    np.testing.assert_allclose(along_log_s, (shape(u, more)[0] - shape(u, less)[0]) / (2 * step), atol=1e-8)


def test_least_squares_agrees_with_scipys_curve_fit() -> None:
    y = sigmoid(X, *TRUTH[:4]) + 0.02 * np.random.default_rng(3).normal(size=len(X))
    link = fit_link(X, y)
    theirs, covariance = optimize.curve_fit(sigmoid, X, y, p0=[0.3, 0.9, 1.0, 5.0])
    np.testing.assert_allclose(link.parameters[:4], theirs, rtol=1e-5)
    np.testing.assert_allclose(list(link.standard_errors.values()), np.sqrt(np.diag(covariance)), rtol=1e-3)
    assert link.free == ("chance", "ceiling", "midpoint", "slope") and link.freedom == len(X) - 4


def test_binomial_weights_maximise_the_likelihood() -> None:
    rng = np.random.default_rng(5)
    n = rng.integers(50, 2000, size=len(X))
    y = rng.binomial(n, sigmoid(X, *TRUTH[:4])) / n
    link = fit_link(X, y, chance=0.25, questions=n)

    def negative_log_likelihood(theta: np.ndarray) -> float:
        p = np.clip(sigmoid(X, 0.25, *theta), 1e-12, 1 - 1e-12)
        return float(-(n * (y * np.log(p) + (1 - y) * np.log(1 - p))).sum())

    found = optimize.minimize(
        negative_log_likelihood, [0.9, 0.9, 6.0], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-10}
    )
    np.testing.assert_allclose(link.parameters[1:4], found.x, rtol=1e-4)
    assert link.objective == "binomial" and 0.5 < link.dispersion < 2


def test_binomial_intervals_cover_the_curve() -> None:
    rng = np.random.default_rng(11)
    truth, covered = sigmoid(X, *TRUTH[:4]), 0
    for _ in range(150):
        link = fit_link(X, rng.binomial(800, truth) / 800, chance=0.25, questions=800)
        low, high = link.interval(0.3)
        covered += low <= sigmoid(np.array([0.3]), *TRUTH[:4])[0] <= high
    assert 0.90 * 150 <= covered <= 0.99 * 150


def test_accuracies_of_all_and_nothing_have_a_likelihood() -> None:
    x = np.array([0.2, 0.5, 0.9, 1.0, 1.1, 1.5, 2.0])
    link = fit_link(x, [1.0, 1.0, 0.8, 0.5, 0.2, 0.0, 0.0], chance=0.0, ceiling=1.0, questions=20)
    assert link.status == "ok" and link.midpoint == pytest.approx(1.0, abs=0.02)


@given(
    unit=st.sampled_from([1e-3, 0.69314718, 1000.0]),
    order=st.permutations(range(len(X))),
)
def test_units_and_order_do_not_matter(unit: float, order: list[int]) -> None:
    y = sigmoid(X, *TRUTH[:4]) + 0.01 * np.sin(37 * X)
    first, second = fit_link(X, y), fit_link(X[order] * unit, y[order])
    np.testing.assert_allclose(second.predict(X * unit), first.predict(X), atol=1e-7)
    assert second.slope == pytest.approx(first.slope / unit, rel=1e-5)


def test_a_level_is_pinned_bounded_or_free() -> None:
    y = sigmoid(X, *TRUTH[:4])
    assert fit_link(X, y, chance=0.25, ceiling=0.92).free == ("midpoint", "slope")
    squeezed = fit_link(X, y, ceiling=(0.5, 0.8))
    assert squeezed.status == "at_bound" and "ceiling" in squeezed.reason and squeezed.ceiling == pytest.approx(0.8, abs=1e-4)
    assert "ceiling" not in squeezed.free


def test_points_on_the_lower_branch_alone_do_not_pretend_to_know_the_ceiling() -> None:
    x = np.linspace(1.2, 1.8, 15)
    y = sigmoid(x, *TRUTH[:4]) + 0.002 * np.random.default_rng(0).normal(size=15)
    link = fit_link(x, y, chance=0.25)
    assert link.status != "ok" or link.standard_errors["ceiling"] > 0.1


@pytest.mark.parametrize("questions", [None, 500])
def test_a_plateau_is_refused(questions: int | None) -> None:
    rng = np.random.default_rng(2)
    flat = np.clip(0.25 + 0.01 * rng.normal(size=len(X)), 0, 1)
    rising = sigmoid(-X, 0.25, 0.9, -0.9, 6.0)
    for accuracies in (np.full(len(X), 0.25), flat, rising):
        with pytest.raises(UserError, match="plateau"):
            fit_link(X, accuracies, questions=questions)


def test_a_prediction_is_wider_than_the_curve() -> None:
    y = sigmoid(X, *TRUTH[:4]) + 0.02 * np.random.default_rng(3).normal(size=len(X))
    link = fit_link(X, y)
    mean, one = link.interval(0.9), link.interval(0.9, "prediction")
    assert one[0] < mean[0] < float(link.predict(0.9)) < mean[1] < one[1]
    binomial = fit_link(X, y, questions=300)
    with pytest.raises(UserError, match="questions"):
        binomial.interval(0.9, "prediction")
    few, many = (binomial.interval(0.9, "prediction", questions=n) for n in (100, 10_000))
    assert few[1] - few[0] > many[1] - many[0]


def test_replicates_scatter_as_the_covariance_says() -> None:
    rng = np.random.default_rng(7)
    truth = sigmoid(X, *TRUTH[:4])
    link = fit_link(X, truth + 0.02 * rng.normal(size=len(X)))
    drawn = refit_links(link, X, np.clip(link.predict(X) + 0.02 * rng.normal(size=(300, len(X))), 0, 1))
    errors = np.array(list(link.standard_errors.values())) * 0.02 / math.sqrt(link.dispersion)
    np.testing.assert_allclose(drawn[:, :4].std(axis=0), errors, rtol=0.25)
    weighted = refit_links(link, X, truth, weights=np.ones((2, len(X))))
    np.testing.assert_allclose(weighted[:, :4], [TRUTH[:4]] * 2, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accuracy": np.full(25, 62.0)}, "not percent"),
        ({"accuracy": np.full(25, np.nan)}, "shares from 0 to 1"),
        ({"accuracy": np.zeros(24)}, "as many"),
        ({"x": np.full(25, 0.7)}, "1 different losses are too few"),
        ({"kind": "sigmoyd"}, "Did you mean 'sigmoid'"),
        ({"chance": 1.2}, "a share from 0 to 1"),
        ({"chance": (0.5, 0.2)}, "in order"),
        ({"chance": 0.9, "ceiling": 0.5}, "no room"),
        ({"questions": 0}, "1 or more"),
        ({"weights": -np.ones(25)}, "0 or more"),
    ],
)
def test_bad_input_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit_link(**{"x": X, "accuracy": sigmoid(X, *TRUTH[:4]), **changes})
