"""The worth of a run: against refits of simulated sweeps, closed forms, other batches; decisions; refusals."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from herd.config.errors import UserError
from herd.scaling.choice.next_runs import Candidate, Design, choose_batch, rank, right_choice
from herd.scaling.choice.posterior import GOALS, LAWS, Goal, Posterior, fit_posterior, pure_error
from herd.scaling.records.record import Record
from herd.scaling.surface.batch import refit_surface
from herd.scaling.surface.fit import fit_surface

from ..conftest import LAPTOP, Truth, make_sweep, optimum

CHINCHILLA: Truth = (1.8172, 477.8, 2143.0, 0.3473, 0.3672)  # Besiroglu et al. 2024, as our oracle refits it
BUDGETS = (1e18, 4e18, 1.6e19, 6.4e19)
TARGET = 1e21


def chinchilla(noise: float = 0.005, seed: int = 0) -> list[Record]:
    return make_sweep(noise * 3, seed, BUDGETS, (0.25, 0.5, 1.0, 2.0, 4.0), CHINCHILLA)


def candidates(budgets: tuple[float, ...] = BUDGETS, factors: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)) -> list[Candidate]:
    cells = []
    for c in budgets:
        best = optimum(CHINCHILLA, c)[1]
        cells += [Candidate(f"{c:g} x{f:g}", c / 6 / (best * f), best * f, c) for f in factors]
    return cells


@pytest.fixture(scope="module")
def posterior() -> Posterior:
    return fit_posterior(chinchilla())


@pytest.mark.parametrize("kind", ["log_tokens", "alpha"])
def test_predicted_reductions_agree_with_refits_of_simulated_sweeps(kind: str) -> None:
    """Brute force: each candidate is added to 400 redrawn sweeps and everything is fitted again."""
    records, cells = chinchilla(), candidates((*BUDGETS, 2.56e20))
    n, d = (np.array([getattr(r, name) for r in records]) for name in ("parameters", "tokens"))
    E, A, B, a, b = CHINCHILLA
    exact = fit_surface(n, d, E + A / n**a + B / d**b, "squared_log")
    rng, noise, count = np.random.default_rng(0), 0.005, 400
    base = rng.normal(size=(count, len(records)))
    law = fit_posterior([replace(r, loss=float(exact.loss(r.parameters, r.tokens))) for r in records], noise=noise)

    def spread(more: list[Candidate]) -> float:
        sizes, tokens = np.append(n, [c.parameters for c in more]), np.append(d, [c.tokens for c in more])
        draws = np.column_stack([base, np.random.default_rng(1).normal(size=(count, len(more)))])
        fits = refit_surface(exact, sizes, tokens, exact.loss(sizes, tokens) * np.exp(noise * draws))
        return float(np.var(np.log(fits.optimal_tokens(TARGET)) if kind == "log_tokens" else fits.a / (fits.a + fits.b)))

    goal = Goal(kind, TARGET)
    before = spread([])
    assert law.estimate(goal).std ** 2 == pytest.approx(before, rel=0.2)
    simulated = np.array([before - spread([cell]) for cell in cells])
    predicted = Design({"": law}, goal, cells).reductions()
    assert stats.spearmanr(predicted, simulated).statistic > 0.95
    best = int(np.argmax(predicted))
    assert predicted[best] == pytest.approx(simulated[best], rel=0.25)


@pytest.mark.parametrize("law", LAWS)
def test_training_a_candidate_is_the_same_as_having_its_row(law: str) -> None:
    """One after the other by rank-one updates = the inverse of the summed precision."""
    fitted, cells = fit_posterior(chinchilla(), law), candidates()
    for kind in GOALS:
        design = Design({"": fitted}, Goal(kind, TARGET), cells)
        rows = fitted.rows(np.array([c.parameters for c in cells]), np.array([c.tokens for c in cells]))
        reductions = design.reductions()
        for index in (3, 17, 3):
            design.train(index)
        precision = fitted.precision + rows[[3, 17, 3]].T @ rows[[3, 17, 3]] / fitted.noise**2
        gradient = fitted.gradient(Goal(kind, TARGET))
        assert design.variance == pytest.approx(float(gradient @ np.linalg.solve(precision, gradient)), rel=1e-8)
        one = np.linalg.solve(fitted.precision + np.outer(rows[5], rows[5]) / fitted.noise**2, gradient)
        start = Design({"": fitted}, Goal(kind, TARGET), cells).variance
        assert reductions[5] == pytest.approx(start - float(gradient @ one), rel=1e-6)


@pytest.mark.parametrize("law", LAWS)
def test_rows_and_gradients_are_the_derivatives(law: str) -> None:
    fitted = fit_posterior(chinchilla(), law)
    n, d = np.array([1e8, 3e9]), np.array([2e10, 1e9])
    for i in range(len(fitted.theta)):
        step = np.zeros(len(fitted.theta))
        step[i] = 1e-6
        up, down = (replace(fitted, theta=fitted.theta + sign * step) for sign in (1, -1))
        difference = (up.log_loss(n, d) - down.log_loss(n, d)) / 2e-6
        assert fitted.rows(n, d)[:, i] == pytest.approx(difference, rel=1e-5, abs=1e-8)
        for kind in GOALS:
            goal = Goal(kind, TARGET)
            assert fitted.gradient(goal)[i] == pytest.approx((up.value(goal) - down.value(goal)) / 2e-6, rel=1e-4, abs=1e-7)


def test_rows_agree_with_those_of_the_surface(posterior: Posterior) -> None:
    """ln A about the mean size = ln A - a mean ln N: the surface's own derivatives, moved to other coordinates."""
    records = chinchilla()
    n, d, y = (np.array([getattr(r, name) for r in records]) for name in ("parameters", "tokens", "loss"))
    own = fit_surface(n, d, y, "squared_log").jacobian(n, d)
    centred = own.copy()
    centred[:, 3] += own[:, 1] * posterior.log_n0
    centred[:, 4] += own[:, 2] * posterior.log_d0
    assert posterior.rows(n, d) == pytest.approx(centred, rel=1e-6, abs=1e-9)


def test_goals_are_the_optimum_of_the_truth() -> None:
    _, d, loss = optimum(CHINCHILLA, TARGET)
    fitted = fit_posterior(chinchilla(noise=0.0), noise=0.01)
    assert fitted.value(Goal("log_tokens", TARGET)) == pytest.approx(math.log(d), abs=1e-6)
    assert fitted.value(Goal("loss", TARGET)) == pytest.approx(math.log(loss), abs=1e-8)
    assert fitted.value(Goal("alpha")) == pytest.approx(CHINCHILLA[3] / (CHINCHILLA[3] + CHINCHILLA[4]), abs=1e-7)
    # A log-log quadratic has its vertices on a line exactly.
    cells = [(c, d) for c in (1e9, 1e10, 1e11) for d in (1e4, 1e5, 1e6)]

    def loss_of(c: float, d: float) -> float:
        return math.exp(1 - 0.05 * math.log(c) + 0.02 * (math.log(d) - 0.5 - 0.47 * math.log(c)) ** 2)

    rows = [Record(f"{c}-{d}", c, c / 6 / d, d, c, loss_of(c, d)) for c, d in cells]
    quadratic = fit_posterior(rows, "parabola", noise=0.01)
    assert quadratic.value(Goal("alpha")) == pytest.approx(0.47)
    assert quadratic.value(Goal("log_tokens", 1e13)) == pytest.approx(0.5 + 0.47 * math.log(1e13))
    assert quadratic.value(Goal("loss", 1e13)) == pytest.approx(1 - 0.05 * math.log(1e13))


@pytest.mark.parametrize("law", LAWS)
def test_intervals_cover_the_truth(law: str) -> None:
    goal, truth = Goal("log_tokens", 8e12), math.log(optimum(LAPTOP, 8e12)[1])
    estimates = [fit_posterior(make_sweep(noise=0.02, seed=seed), law).estimate(goal, 0.9) for seed in range(60)]
    covered = sum(e.interval[0] < truth < e.interval[1] for e in estimates)
    assert 48 <= covered <= 60  # 90% of 60, binomial
    assert {e.status for e in estimates} == {"ok"}
    assert all(e.extrapolation_ratio == pytest.approx(10) for e in estimates)


def test_what_the_prior_holds_is_said_so() -> None:
    """One budget says nothing of how the optimum moves: the interval is the prior's, and the status names it."""
    records = make_sweep(noise=0.02, factors=(0.25, 0.4, 0.6, 1, 1.6, 2.5, 4, 6), budgets=(1e11, 1.05e11))
    estimate = fit_posterior(records).estimate(Goal("log_tokens", 8e12))
    assert estimate.status in ("prior", "nonlinear", "at_bound") and estimate.reason


def test_a_batch_keeps_to_its_budget_and_beats_the_same_money_elsewhere(posterior: Posterior) -> None:
    goal, cells = Goal("log_tokens", TARGET), candidates()
    batch = choose_batch({"": posterior}, goal, cells, budget=2e20)
    assert batch.status == "ok" and batch.cost <= 2e20
    assert batch.cost == pytest.approx(sum(ranked.candidate.cost for ranked in batch.chosen))
    variances = [batch.variance_before, *(ranked.variance_after for ranked in batch.chosen)]
    assert variances == sorted(variances, reverse=True) and variances[-1] == pytest.approx(batch.variance_after)
    rng, names = np.random.default_rng(0), [ranked.candidate.name for ranked in batch.chosen]
    for _ in range(50):
        design, left = Design({"": posterior}, goal, cells), 2e20
        for index in rng.permutation(len(cells)):
            if cells[index].cost <= left:
                design.train(int(index))
                left -= cells[index].cost
        assert design.variance >= batch.variance_after
    assert len(set(names)) == len(names)


def test_the_better_of_two_greedy_batches(posterior: Posterior) -> None:
    """A cheap run of little worth comes first by variance per cost, and would spend what the dear one needs."""
    goal, cells = Goal("log_tokens", TARGET), candidates()
    best = rank({"": posterior}, goal, [replace(cell, cost=1.0) for cell in cells])
    dear, cheap = replace(best[0].candidate, cost=10.0), replace(best[-1].candidate, cost=1e-9)
    batch = choose_batch({"": posterior}, goal, [dear, cheap], budget=10.0)
    assert [ranked.candidate for ranked in batch.chosen] == [dear]


def test_a_target_ends_the_batch(posterior: Posterior) -> None:
    goal, cells = Goal("log_tokens", TARGET), candidates()
    everything = choose_batch({"": posterior}, goal, cells, budget=1e30)
    target = (everything.variance_before + everything.variance_after) / 2
    enough = choose_batch({"": posterior}, goal, cells, budget=1e30, target_variance=target)
    assert enough.variance_after <= target and len(enough.chosen) < len(everything.chosen)
    assert enough.chosen[-1].variance_before > target
    assert len(choose_batch({"": posterior}, goal, cells, budget=1e30, most=2).chosen) == 2


def test_the_order_does_not_depend_on_that_of_the_candidates_or_on_units(posterior: Posterior) -> None:
    goal, cells = Goal("alpha"), candidates()
    names = [ranked.candidate.name for ranked in rank({"": posterior}, goal, cells)]
    assert names == [ranked.candidate.name for ranked in rank({"": posterior}, goal, cells[::-1])]
    assert names == [r.candidate.name for r in rank({"": posterior}, goal, [replace(c, cost=c.cost / 3.6e21) for c in cells])]


@settings(max_examples=60, deadline=None)
@given(difference=st.floats(-0.2, 0.2), std=st.floats(1e-3, 0.2), share=st.floats(0.01, 0.99))
def test_the_expected_probability_of_the_right_choice(difference: float, std: float, share: float) -> None:
    """Against a sum over what the run may show; never below what is known now."""
    variance, after = std**2, share * std**2
    now, later = right_choice(difference, variance), right_choice(difference, variance, after)
    assert 0.5 <= now <= later + 1e-12 <= 1 + 2e-12
    z = np.linspace(-9, 9, 20001)
    moved = difference + math.sqrt(variance - after) * z
    expected = float((stats.norm.cdf(np.abs(moved) / math.sqrt(after)) * stats.norm.pdf(z)).sum() * (z[1] - z[0]))
    assert later == pytest.approx(expected, abs=1e-5)


def test_a_decision_spends_on_the_setting_that_is_less_known() -> None:
    one = fit_posterior(chinchilla(seed=0), noise=0.005)
    other = fit_posterior([r for i, r in enumerate(chinchilla(seed=1)) if i % 2], noise=0.005)  # half the runs
    goal = Goal("loss", TARGET)
    cells = [replace(c, name=f"{c.name} {s}", setting=s) for c in candidates() for s in ("web", "code")]
    batch = choose_batch({"web": one, "code": other}, goal, cells, budget=6.4e19)
    assert batch.status == "ok" and batch.right_before is not None and batch.right_after is not None
    assert 0.5 <= batch.right_before < batch.right_after <= 1
    assert batch.variance_before == pytest.approx(one.estimate(goal).std ** 2 + other.estimate(goal).std ** 2)
    first = rank({"web": one, "code": other}, goal, cells)
    assert [ranked.candidate.setting for ranked in first[:3]] == ["code"] * 3


def test_a_decision_by_simulation() -> None:
    """The share of right choices among redrawn truths and results is what was promised."""
    rng, difference, variance, after = np.random.default_rng(0), 0.01, 0.02**2, 0.008**2
    truth = rng.normal(difference, math.sqrt(variance), 200_000)
    # The posterior mean after further runs: truth seen through a noise that leaves the variance `after`.
    precision = 1 / after - 1 / variance
    seen = truth + rng.normal(0, math.sqrt(1 / precision), len(truth))
    mean = after * (difference / variance + seen * precision)
    assert right_choice(difference, variance, after) == pytest.approx(np.mean(np.sign(mean) == np.sign(truth)), abs=0.004)


def test_pure_error_is_that_of_repeats_alone() -> None:
    rows = [Record(f"r{i}", 1e10, 1e5, 1e6, 1e10, loss) for i, loss in enumerate((5.0, 5.1, 4.9))]
    std, freedom = pure_error([*rows, replace(rows[0], cell="other", parameters=2e5, loss=9.0)])
    assert freedom == 2 and std == pytest.approx(np.std(np.log([5.0, 5.1, 4.9]), ddof=1))
    assert pure_error(rows[:1])[1] == 0


def test_refusals(posterior: Posterior) -> None:
    cells = candidates()
    for bad, says in (
        ([], "no candidate run"),
        ([cells[0], cells[0]], "the same name"),
        ([replace(cells[0], cost=0.0)], "above 0"),
        ([replace(cells[0], setting="web")], "'web', which has no fit"),
    ):
        with pytest.raises(UserError, match=says):
            rank({"": posterior}, Goal("alpha"), bad)
    assert choose_batch({"": posterior}, Goal("alpha"), cells, 1e10).status == "nothing_fits"
    for make, says in (
        (lambda: Goal("alhpa"), "Did you mean 'alpha'"),
        (lambda: Goal("log_tokens"), "above 0"),
        (lambda: fit_posterior(chinchilla(), "cubic"), "Unknown law"),
        (lambda: fit_posterior(chinchilla()[:6], "parabola"), "too few"),
        (lambda: fit_posterior(chinchilla()[:5]), "too few"),
        (lambda: fit_posterior([replace(r, loss=10 - r.loss) for r in chinchilla(0.0)], "parabola"), "open downwards"),
        (lambda: Design({"a": posterior, "b": posterior}, Goal("alpha"), [replace(cells[0], setting="a")]), "by their loss"),
    ):
        with pytest.raises(UserError, match=says):
            make()
