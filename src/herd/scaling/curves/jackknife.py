"""Jackknife by budget: how much one budget's optimum decides the law of tokens.

Each budget is left out in turn and the law fitted again. The spread of the exponents gives a standard error that asks nothing
of the noise (Efron and Tibshirani 1993, chapter 11); the budget with the largest influence is the one to check first.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from herd.scaling.curves.isoflop import IsoFLOPCurve
from herd.scaling.curves.power_law import PowerLaw, fit_power_law
from herd.scaling.laws import Laws, errors_of


@dataclass(frozen=True)
class LeftOut:
    """The law without one budget."""

    budget: float  # FLOPs
    exponent: float
    influence: float  # this exponent minus that of all budgets
    coefficient: float
    tokens: float | None  # optimal tokens at the target, None without a target


@dataclass(frozen=True)
class Jackknife:
    """Every budget left out once."""

    status: str  # ok | too_few_budgets
    reason: str
    left_out: tuple[LeftOut, ...]  # budgets ascending
    exponent_se: float | None  # jackknife standard error of the exponent
    log_tokens_se: float | None  # of ln D* at the target
    target: float | None  # FLOPs
    most_influential: float | None  # budget whose absence moves the exponent most, FLOPs


def jackknife_budgets(laws: Laws, target: float | None = None) -> Jackknife:
    """Leave each budget with an optimum out of the law of tokens.

    Args:
        laws: the fit.
        target: training compute whose optimal tokens are followed too, FLOPs.
    """
    curves = laws.vertices
    if laws.tokens is None or len(curves) < 3:
        reason = f"{len(curves)} budgets have an optimum: without one of them there is no law; 3 needed"
        return Jackknife("too_few_budgets", reason, (), None, None, target, None)
    rows = []
    for i, curve in enumerate(curves):
        law = _law(laws, [c for j, c in enumerate(curves) if j != i])
        tokens = law.predict(target) if target is not None else None
        rows.append(LeftOut(curve.budget, law.exponent, law.exponent - laws.tokens.exponent, law.coefficient, tokens))
    log_tokens = [math.log(row.tokens) for row in rows if row.tokens is not None]
    return Jackknife(
        status="ok",
        reason="",
        left_out=tuple(rows),
        exponent_se=_standard_error([row.exponent for row in rows]),
        log_tokens_se=_standard_error(log_tokens) if log_tokens else None,
        target=target,
        most_influential=max(rows, key=lambda row: abs(row.influence)).budget,
    )


def _law(laws: Laws, curves: Sequence[IsoFLOPCurve]) -> PowerLaw:
    config = laws.config
    budgets, tokens = [c.budget for c in curves], [c.tokens or math.nan for c in curves]
    errors = errors_of(curves, config) if config.method == "wls" else None
    return fit_power_law(budgets, tokens, config.confidence, errors, config.method, 100, config.seed)


def _standard_error(values: list[float]) -> float:
    n = len(values)
    return math.sqrt((n - 1) / n * float(((np.array(values) - np.mean(values)) ** 2).sum()))
