"""Forecasts of runs law by law: each with its status, its interval and how far it lies beyond the fitted compute.

Of a run of which only the compute is known every law names its own optimum; a run of given parameters and tokens (trained longer
than optimal, say) is one point of the surface, held against the best that its compute could buy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from herd.config.errors import UserError
from herd.runs.seeds import stream
from herd.scaling.curves.power_law import Interval
from herd.scaling.forecast import measured_losses
from herd.scaling.laws import Laws, columns
from herd.scaling.records.record import usable
from herd.scaling.replicates import quantiles, redraw_surface

_WIDEST = 1e6  # ratio of an interval's ends beyond which it is none


@dataclass(frozen=True)
class Optimum:
    """Where one law sees the compute-optimal run; None where the law could not be fitted."""

    status: str  # ok, or what is wrong with the law
    reason: str
    tokens: float | None = None
    tokens_interval: Interval | None = None
    parameters: float | None = None  # flops / (6 tokens)
    parameters_interval: Interval | None = None


@dataclass(frozen=True)
class LossForecast:
    """The loss that one run would measure, by one law."""

    status: str  # ok, or what is wrong with the law
    reason: str
    loss: float | None = None  # in the table's unit
    interval: Interval | None = None


@dataclass(frozen=True)
class RunForecast:
    """One run. Intervals are two-sided, at the laws' confidence."""

    status: str  # interpolation | extrapolation
    flops: float
    extrapolation_ratio: float  # flops / largest fitted budget
    given: bool  # parameters and tokens were given, not chosen
    parameters: float
    tokens: float
    tokens_per_parameter: float
    over_training: float | None  # tokens / optimal tokens at the same compute, by the first law that gives them
    optima: dict[str, Optimum]  # power_law, surface
    losses: dict[str, LossForecast]  # frontier (the best at this compute), surface (of these parameters and tokens)
    loss_interval: Interval | None  # spans the laws that say something about this very run
    penalty: float | None  # of a given run: its loss above the best at its compute, by the surface
    penalty_interval: Interval | None


def forecast_runs(laws: Laws, runs: Sequence[tuple[float, float | None]]) -> list[RunForecast]:
    """Forecast several runs from one set of replicates.

    Args:
        laws: the fit.
        runs: (flops, parameters); parameters None = the optimum by the power law, else by the surface. Parameters count as the
            table's FLOPs see them: flops / (6 tokens).

    Raises:
        UserError: compute that is no number above 0, or a table of which neither law gives the optimum.
    """
    surface = laws.surface if laws.surface is not None and laws.surface.status == "ok" else None
    batch = None
    if surface is not None:
        rng = stream(laws.config.seed, "surface replicates")
        batch, _ = redraw_surface(surface, columns(usable(laws.records)), laws.config.replicates, laws.config.noise_floor, rng)
    optima: list[dict[str, Optimum]] = []
    sizes: list[tuple[float, float]] = []
    for flops, parameters in runs:
        if not (math.isfinite(flops) and flops > 0):
            raise UserError(f"Cannot forecast a run of {flops} FLOPs: give a number above 0.")
        found = {"power_law": _by_power_law(laws, flops)}
        drawn = quantiles(batch.optimal_tokens(flops), laws.config.confidence) if batch is not None else None
        found["surface"] = _by_surface(laws, flops, drawn)
        best = next((one for one in found.values() if one.status == "ok"), None)
        if best is None and parameters is None:
            why = "; ".join(f"{name}: {one.reason}" for name, one in found.items())
            raise UserError(f"No law for the optimal tokens ({why}). Add cells, or give parameters and tokens.")
        tokens = flops / 6 / parameters if parameters else best.tokens if best else None
        assert tokens is not None
        optima.append(found)
        sizes.append((flops / 6 / tokens, tokens))
    flops_of = np.array([flops for flops, _ in runs])
    measured = measured_losses(laws, flops_of, *np.array(sizes).T) if runs else {}
    result = []
    for i, ((flops, parameters), (n, d)) in enumerate(zip(runs, sizes, strict=True)):
        losses = {name: _missing(laws, name) for name in ("frontier", "surface")}
        for name, (value, drawn_losses) in measured.items():
            interval = quantiles(drawn_losses[:, i], laws.config.confidence)
            losses[name] = LossForecast("ok", "", float(value[i]), interval)
        # A given run is no point of the frontier.
        own = [losses["surface"]] if parameters else list(losses.values())
        spans = [one.interval for one in own if one.interval]
        best_tokens = next((one.tokens for one in optima[i].values() if one.tokens), None)
        penalty, penalty_interval = None, None
        if parameters and surface is not None and batch is not None:
            penalty = float(surface.loss(n, d) - surface.loss(*surface.optimum(flops)))
            best_d = batch.optimal_tokens(flops)
            penalty_interval = quantiles(batch.loss(n, d) - batch.loss(flops / 6 / best_d, best_d), laws.config.confidence)
        ratio = flops / laws.largest_budget
        result.append(
            RunForecast(
                status="extrapolation" if ratio > 1 + 1e-9 else "interpolation",
                flops=float(flops),
                extrapolation_ratio=ratio,
                given=parameters is not None,
                parameters=n,
                tokens=d,
                tokens_per_parameter=d / n,
                over_training=d / best_tokens if best_tokens else None,
                optima=optima[i],
                losses=losses,
                loss_interval=(min(s[0] for s in spans), max(s[1] for s in spans)) if spans else None,
                penalty=penalty,
                penalty_interval=penalty_interval,
            )
        )
    return result


def _by_power_law(laws: Laws, flops: float) -> Optimum:
    law = laws.tokens
    if law is None:
        return Optimum("no_law", laws.reasons["tokens"])
    interval = law.interval(flops)
    if law.status != "ok" or interval is None:
        return Optimum(law.status, law.reason or "no interval")
    return _optimum(flops, law.predict(flops), interval)


def _by_surface(laws: Laws, flops: float, interval: Interval | None) -> Optimum:
    if laws.surface is None:
        return Optimum("no_law", laws.reasons["surface"])
    if interval is None:
        return Optimum(laws.surface.status, laws.surface.reason)
    if not interval[1] < _WIDEST * interval[0]:
        return Optimum("undetermined", "redrawn sweeps put the optimum anywhere: a term of the surface is lost in the noise")
    return _optimum(flops, laws.surface.optimum(flops)[1], interval)


def _optimum(flops: float, tokens: float, interval: Interval) -> Optimum:
    sizes = flops / 6 / interval[1], flops / 6 / interval[0]
    return Optimum("ok", "", tokens, interval, flops / 6 / tokens, sizes)


def _missing(laws: Laws, name: str) -> LossForecast:
    """Why a law says nothing."""
    law = laws.frontier if name == "frontier" else laws.surface
    if law is None:
        return LossForecast("no_law", laws.reasons[name])
    if name == "surface" and law.status != "ok":
        return LossForecast(law.status, law.reason)
    return LossForecast("no_interval", "the cells leave no noise to draw an interval from")
