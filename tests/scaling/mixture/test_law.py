"""Mixture laws: recovery, sizes, held-out error, what is refused."""

from typing import Any

import numpy as np
import pytest
from scipy import optimize

from herd.config.errors import UserError
from herd.scaling.mixture.kinds import KINDS
from herd.scaling.mixture.law import fit_mixture

T = np.array([-1.0, 0.3, 0.2, 0.1])
SOURCES = ("web", "code", "maths", "books")


def mixtures(count: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(4, 1.2), count)


def losses(x: np.ndarray, noise: float = 0.0, seed: int = 1) -> np.ndarray:
    return np.asarray(2 + np.exp(x @ T) + noise * np.random.default_rng(seed).normal(size=len(x)))


def test_the_exponential_law_gives_its_parameters_back() -> None:
    x = mixtures()
    law = fit_mixture(x, losses(x), sources=SOURCES)
    assert law.status == "ok" and law.sources == SOURCES
    assert law.parameters["c"] == pytest.approx(2.0, abs=1e-5)
    np.testing.assert_allclose(law.parameters["t"], T, atol=1e-5)
    new = mixtures(10, seed=9)
    np.testing.assert_allclose(law.predict(new), losses(new), atol=1e-7)
    assert law.held_out.spearman == pytest.approx(1.0) and law.held_out.rmse < 1e-5 and law.held_out.folds == 5


def test_least_squares_in_the_huber_core_agrees_with_scipy() -> None:
    x = mixtures()
    y = losses(x, noise=0.002)  # all residuals below the threshold, where Huber's loss is the square
    law = fit_mixture(x, y)
    found = optimize.least_squares(lambda p: p[0] + np.exp(x @ p[1:]) - y, np.r_[1.5, np.zeros(4)], xtol=1e-14, ftol=1e-14)
    np.testing.assert_allclose([law.parameters["c"], *law.parameters["t"]], found.x, rtol=1e-4)


def test_one_bad_run_bends_the_exponential_law_little() -> None:
    x = mixtures()
    y = losses(x, noise=0.005)
    y[7] += 1.0
    new = mixtures(50, seed=9)
    assert np.abs(fit_mixture(x, y).predict(new) - losses(new)).max() < 0.05


@pytest.mark.parametrize(("kind", "skill"), [("exponential", 0.98), ("gbdt", 0.7), ("linear", 0.9), ("log_linear", 0.75)])
def test_held_out_error_is_that_of_new_mixtures(kind: str, skill: float) -> None:
    x = mixtures(120)
    law = fit_mixture(x, losses(x, 0.01), kind)
    new = mixtures(400, seed=5)
    truth = losses(new, 0.01, seed=6)
    rmse = float(np.sqrt(((law.predict(new) - truth) ** 2).mean()))
    assert law.status == "ok" and law.held_out.r2 > skill
    assert law.held_out.rmse == pytest.approx(rmse, rel=0.4)
    # Not of its own rows: trees remember those.
    if kind == "gbdt":
        assert law.held_out.rmse > 2 * np.sqrt(((law.predict(x) - law.losses) ** 2).mean())


def test_few_rows_are_left_out_one_by_one() -> None:
    x = mixtures(12)
    y = losses(x, 0.01)
    law = fit_mixture(x, y, "linear")
    assert law.held_out.folds == 12
    for i in (0, 7):
        rest = np.arange(12) != i
        coefficients, *_ = np.linalg.lstsq(x[rest], y[rest], rcond=None)
        assert law.held_out.predicted[i] == pytest.approx(float(x[i] @ coefficients))


def test_noise_alone_has_no_skill() -> None:
    x = mixtures()
    law = fit_mixture(x, 3 + 0.1 * np.random.default_rng(3).normal(size=len(x)))
    assert law.status == "no_skill" and "no better than the mean" in law.reason


def test_sources_that_rise_and_fall_together_are_told() -> None:
    x = mixtures()
    x[:, 3] = x[:, 2]
    x /= x.sum(axis=1, keepdims=True)
    assert fit_mixture(x, losses(x, 0.01), "linear").status == "ill_determined"


def test_a_joint_law_predicts_the_larger_size() -> None:
    x = mixtures(60)
    sizes = np.repeat([1e6, 4e6, 1.6e7], 20)

    def truth(at: np.ndarray, size: np.ndarray | float) -> np.ndarray:
        return np.asarray(1.5 + (0.5 + np.exp(at @ T)) * (np.asarray(size) / 4e6) ** -0.1)

    law = fit_mixture(x, truth(x, sizes), sizes=sizes)
    new = mixtures(20, seed=3)
    np.testing.assert_allclose(law.predict(new), truth(new, 1.6e7), atol=1e-4)  # the largest size unless told
    np.testing.assert_allclose(law.predict(new, size=6.4e7), truth(new, 6.4e7), atol=2e-3)
    with pytest.raises(UserError, match="without sizes"):
        fit_mixture(x, losses(x)).predict(new, size=1e6)


@pytest.mark.parametrize("kind", KINDS.names())
def test_replicates_scatter_about_the_law(kind: str) -> None:
    x = mixtures(24)
    law = fit_mixture(x, losses(x, 0.02), kind, folds=2)
    drawn = law.replicates(4 if kind == "gbdt" else 60, seed=1)
    predicted = drawn.predict(x[:5])
    assert predicted.shape == (4 if kind == "gbdt" else 60, 5)
    assert 0 < predicted.std(axis=0).max() < 0.3
    np.testing.assert_allclose(drawn.only(3).predict(x[:5])[0], predicted[3])
    np.testing.assert_array_equal(law.replicates(2, seed=1).predict(x[:5]), law.replicates(2, seed=1).predict(x[:5]))


def test_rounded_shares_are_scaled_to_one() -> None:
    x = mixtures()
    law = fit_mixture(x * 1.003, losses(x), "linear")
    np.testing.assert_allclose(law.mixtures.sum(axis=1), 1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixtures": mixtures() * 100}, "Mixture 1: shares must be 0 or more and sum to 1, not 100"),
        ({"losses": np.full(40, np.nan)}, "Mixture 1: the loss nan must be finite"),
        ({"losses": -losses(mixtures())}, "above 0"),
        ({"losses": np.ones(3)}, "one loss for each mixture"),
        ({"mixtures": np.column_stack([mixtures(), np.zeros(40)])}, "Source '4' is in no mixture"),
        ({"sources": ("a", "b")}, "4 different names"),
        ({"kind": "exponentail"}, "Did you mean 'exponential'"),
        ({"sizes": np.full(40, 1e6)}, "at least two different"),
        ({"mixtures": mixtures(6), "losses": losses(mixtures(6))}, "needs at least 7 mixtures"),
        ({"folds": 1}, "at least 2"),
    ],
)
def test_bad_tables_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit_mixture(**{"mixtures": mixtures(), "losses": losses(mixtures()), **changes})
