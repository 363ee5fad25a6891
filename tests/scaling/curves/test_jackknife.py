"""Leaving budgets out: agreement with refits, standard errors, refusal."""

import math

import numpy as np
import pytest

from herd.scaling.curves.jackknife import jackknife_budgets
from herd.scaling.laws import LawsConfig, fit_laws

from ..conftest import make_sweep

BUDGETS = tuple(np.geomspace(1e11, 3e12, 6))


def test_each_budget_left_out_is_a_refit_without_it() -> None:
    rows = make_sweep(noise=0.02, budgets=BUDGETS)
    laws = fit_laws(rows)
    found = jackknife_budgets(laws, 1e14)
    assert [row.budget for row in found.left_out] == pytest.approx([c.budget for c in laws.vertices])
    for row in found.left_out:
        rest = fit_laws([r for r in rows if abs(r.budget / row.budget - 1) > 1e-3]).tokens
        assert rest is not None
        assert (row.exponent, row.coefficient) == pytest.approx((rest.exponent, rest.coefficient), rel=1e-9)
        assert row.tokens == pytest.approx(rest.predict(1e14), rel=1e-9)
        assert row.influence == pytest.approx(rest.exponent - laws.tokens.exponent, abs=1e-12)
    largest = max(found.left_out, key=lambda row: abs(row.influence))
    assert found.most_influential == largest.budget


@pytest.mark.slow
def test_the_jackknifes_standard_error_is_that_of_many_sweeps() -> None:
    found = [jackknife_budgets(fit_laws(make_sweep(0.01, seed, BUDGETS), LawsConfig(replicates=100)), 1e14) for seed in range(60)]
    exponents = [np.mean([row.exponent for row in f.left_out]) for f in found]
    tokens = [np.mean([math.log(row.tokens) for row in f.left_out]) for f in found]
    assert math.sqrt(np.mean([f.exponent_se**2 for f in found])) == pytest.approx(np.std(exponents), rel=0.35)
    assert math.sqrt(np.mean([f.log_tokens_se**2 for f in found])) == pytest.approx(np.std(tokens), rel=0.35)


def test_two_budgets_leave_nothing_to_leave_out() -> None:
    found = jackknife_budgets(fit_laws(make_sweep(budgets=BUDGETS[:2])))
    assert (found.status, found.left_out, found.exponent_se) == ("too_few_budgets", (), None)
    assert "3 needed" in found.reason


@pytest.mark.parametrize("method", ["wls", "theil_sen"])
def test_the_method_of_the_laws_is_kept(method: str) -> None:
    rows = make_sweep(noise=0.02, budgets=BUDGETS)
    laws = fit_laws(rows, LawsConfig(method=method))
    row = jackknife_budgets(laws).left_out[0]
    rest = fit_laws([r for r in rows if abs(r.budget / row.budget - 1) > 1e-3], laws.config).tokens
    assert rest is not None
    # wls: what is left out no longer shares in the pooled noise, which all weights have in common.
    assert row.exponent == pytest.approx(rest.exponent, abs=2e-2 if method == "wls" else 1e-9)
