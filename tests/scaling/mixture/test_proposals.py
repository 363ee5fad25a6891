"""Proposals: the optimum of a known law, its limits kept, its doubts told."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from herd.config.errors import UserError
from herd.scaling.mixture.law import MixtureLaw, fit_mixture
from herd.scaling.mixture.proposals import Limits, _under_caps, propose_mixture

SOURCES = ("web", "code", "maths", "books")
PRIOR = dict(zip(SOURCES, (0.5, 0.2, 0.1, 0.2), strict=True))
TRUTH = {"code": np.array([0.2, -1.2, 0.1, 0.4]), "maths": np.array([0.3, 0.0, -1.5, 0.2])}


def laws(noise: float = 0.002, rows: int = 40, kind: str = "exponential") -> dict[str, MixtureLaw]:
    rng = np.random.default_rng(0)
    x = rng.dirichlet(np.full(4, 1.5), rows)
    return {d: fit_mixture(x, 2 + np.exp(x @ t) + noise * rng.normal(size=rows), kind, SOURCES) for d, t in TRUTH.items()}


def mean_loss(r: np.ndarray) -> float:
    return float(np.mean([2 + np.exp(r @ t) for t in TRUTH.values()]))


def softmax_optimum(max_kl: float) -> np.ndarray:
    """The best mixture by another road: exponential tilting of the prior, with a penalty in place of the limit."""
    prior = np.array(list(PRIOR.values()))

    def mixture(z: np.ndarray) -> np.ndarray:
        e = prior * np.exp(z - z.max())
        return e / e.sum()

    def penalised(z: np.ndarray) -> float:
        r = mixture(z)
        return mean_loss(r) + 1e4 * max(0.0, float((r * np.log(r / prior)).sum()) - max_kl) ** 2

    return mixture(optimize.minimize(penalised, np.zeros(4), method="Nelder-Mead", options={"maxiter": 4000, "xatol": 1e-8}).x)


@pytest.mark.parametrize("max_kl", [0.05, 0.3])
def test_it_is_the_optimum_under_a_divergence(max_kl: float) -> None:
    proposal = propose_mixture(laws(noise=0.0), PRIOR, Limits(max_kl=max_kl), replicates=20)
    np.testing.assert_allclose(proposal.shares, softmax_optimum(max_kl), atol=3e-3)
    assert proposal.kl <= max_kl * (1 + 1e-6) and proposal.kl == pytest.approx(max_kl, rel=1e-2)
    assert proposal.loss == pytest.approx(mean_loss(np.array(proposal.shares)), abs=1e-4)
    assert proposal.prior_loss == pytest.approx(mean_loss(np.array(list(PRIOR.values()))), abs=1e-4)
    assert proposal.status == "ok" and proposal.sources == SOURCES


def test_the_gain_has_an_interval_that_holds_the_truth() -> None:
    proposal = propose_mixture(laws(noise=0.01), PRIOR, Limits(max_kl=0.3), replicates=100)
    truth = mean_loss(np.array(list(PRIOR.values()))) - mean_loss(np.array(proposal.shares))
    assert proposal.gain_interval[0] < truth < proposal.gain_interval[1]
    assert proposal.gain_interval[0] < proposal.gain < proposal.gain_interval[1]
    for share, (low, high) in zip(proposal.shares, proposal.shares_interval, strict=True):
        assert low - 0.02 <= share <= high + 0.02 and high - low < 0.2


def test_no_source_is_read_more_often_than_allowed() -> None:
    available = {"web": 1e10, "code": 4e8, "maths": 1e8, "books": 1e9}
    limits = Limits(max_epochs=2, available_tokens=available, budget_tokens=2e9)
    proposal = propose_mixture(laws(), PRIOR, limits, replicates=20)
    assert proposal.epochs is not None and max(proposal.epochs) <= 2 + 1e-9
    assert proposal.shares[1] == pytest.approx(0.4, abs=1e-4) and proposal.shares[2] == pytest.approx(0.1, abs=1e-4)
    own = Limits(max_epochs={"code": 1}, available_tokens=available, budget_tokens=2e9)
    assert propose_mixture(laws(), PRIOR, own, replicates=20).shares[1] <= 0.2 + 1e-9
    with pytest.raises(UserError, match=r"last for 11\.5% of the budget"):
        propose_mixture(laws(), PRIOR, Limits(max_epochs=0.1, available_tokens=available, budget_tokens=1e10), replicates=20)
    both = Limits(max_kl=1e-4, max_epochs=1, available_tokens={**available, "web": 4e8}, budget_tokens=1.9e9)
    with pytest.raises(UserError, match="No mixture meets both limits"):
        propose_mixture(laws(), PRIOR, both, replicates=20)


@settings(max_examples=8)
@given(seed=st.integers(0, 1000), max_kl=st.floats(0.01, 2.0))
def test_a_proposal_is_always_a_mixture_within_its_limits(seed: int, max_kl: float) -> None:
    share = np.random.default_rng(seed).dirichlet(np.full(4, 0.7))
    prior = dict(zip(SOURCES, (share / share.sum()).tolist(), strict=True))
    proposal = propose_mixture(laws(rows=12), prior, Limits(max_kl=max_kl), replicates=2, candidates=50)
    assert sum(proposal.shares) == pytest.approx(1) and min(proposal.shares) >= 0
    assert proposal.kl <= max_kl * (1 + 1e-6) and proposal.gain >= 0


@given(seed=st.integers(0, 10_000))
def test_what_caps_cut_off_goes_to_the_others(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shares, caps = rng.dirichlet(np.full(5, 0.5)), rng.uniform(0, 1, 5)
    caps = np.minimum(1.0, caps * max(1.0, 1.05 / caps.sum()))
    if caps.sum() < 1:
        return
    cut = _under_caps(shares, caps)
    assert cut.sum() == pytest.approx(1) and (cut <= caps + 1e-9).all() and (cut >= 0).all()


def test_trees_are_searched_too() -> None:
    proposal = propose_mixture(laws(kind="gbdt", rows=40), PRIOR, Limits(max_kl=0.3), replicates=2, candidates=300)
    assert mean_loss(np.array(proposal.shares)) < mean_loss(np.array(list(PRIOR.values()))) - 0.02
    assert proposal.kl <= 0.3


def test_doubts_are_told() -> None:
    rng = np.random.default_rng(1)
    x = rng.dirichlet(60 * np.array(list(PRIOR.values())), 30)  # all trained near the prior
    near = {d: fit_mixture(x, 2 + np.exp(x @ t), sources=SOURCES) for d, t in TRUTH.items()}
    far = propose_mixture(near, PRIOR, Limits(max_kl=1.0), replicates=20)
    assert far.status == "extrapolated" and far.distance > far.usual_distance
    noisy = propose_mixture(laws(noise=1.0), PRIOR, Limits(max_kl=0.1), replicates=20)
    assert noisy.status == "poor_law" and "no_skill" in noisy.reason
    best = propose_mixture({"a": laws()["code"]}, {"code": 1.0}, Limits(max_kl=0.5), replicates=20)
    assert best.status == "prior_is_best" and best.gain == 0 and best.shares == (0, 1, 0, 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Limits(), "would extrapolate"),
        (lambda: Limits(max_kl=0), "nats above 0"),
        (lambda: Limits(max_epochs=2), "needs available_tokens"),
        (lambda: propose_mixture({}, PRIOR, Limits(max_kl=1)), "at least one"),
        (lambda: propose_mixture(laws(), {"wub": 1.0}, Limits(max_kl=1)), "Did you mean 'web'"),
        (lambda: propose_mixture(laws(), {"web": 0.5}, Limits(max_kl=1)), "sum to 0.5"),
        (lambda: propose_mixture(laws(), PRIOR, Limits(max_kl=1), weights={"cod": 1.0}), "Did you mean 'code'"),
        (
            lambda: propose_mixture(laws(), PRIOR, Limits(max_epochs=1, available_tokens={"web": 1}, budget_tokens=1)),
            "available_tokens has no 'code'",
        ),
    ],
)
def test_bad_requests_are_refused(call: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()
