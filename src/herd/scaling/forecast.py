"""The forecast of a larger run, with an interval that carries the cells' noise through.

The loss is that of the frontier of vertices (of the surface where too few budgets have an optimum); its interval spans both laws,
because a sweep of a decade cannot tell which of them holds beyond it. On laptop sweeps the surface flattens too early and the
frontier does not.
"""

import math
from dataclasses import dataclass

import numpy as np

from herd.config.errors import UserError, nearest
from herd.runs.seeds import stream
from herd.scaling.curves.power_law import Interval
from herd.scaling.laws import Laws, columns
from herd.scaling.records.record import usable
from herd.scaling.replicates import frontier_losses, quantiles, redraw_surface, surface_losses
from herd.scaling.surface.batch import SurfaceBatch
from herd.scaling.surface.fit import Surface


@dataclass(frozen=True)
class Forecast:
    """What a run of `flops` should be and reach. Intervals are two-sided at the laws' confidence."""

    flops: float
    extrapolation_ratio: float  # flops / largest fitted budget
    method: str  # where tokens come from: power_law | surface | ratio (a guess: tokens per parameter of the best cell)
    tokens: float  # compute-optimal training tokens
    tokens_interval: Interval | None
    parameters: float  # flops / (6 tokens)
    parameters_interval: Interval | None
    loss: float | None  # nats per token, None when no law of the loss could be fitted
    loss_interval: Interval | None  # of one run's measured loss
    loss_method: str | None  # frontier | surface: the law that `loss` comes from
    by_law: dict[str, dict[str, object]]  # each law's own loss and interval


def forecast(laws: Laws, flops: float, fallback: str = "refuse", parameters: float | None = None) -> Forecast:
    """Compute-optimal tokens, parameters and loss at ``flops``.

    Args:
        laws: the fit.
        flops: training compute of the run to forecast.
        fallback: what gives the tokens when fewer than three budgets have an optimum: ``refuse``, ``surface``, or ``ratio``
            (the surface if it can be fitted, else the tokens per parameter of the best cell at the largest budget: a guess,
            without an interval).
        parameters: size of the model that will really be trained, when its shape is known; the surface uses it.

    Raises:
        UserError: no power law with an interval and no allowed fallback.
    """
    if not (math.isfinite(flops) and flops > 0):
        raise UserError(f"Cannot forecast a run of {flops} FLOPs: give a number above 0.")
    method, tokens, interval = _tokens(laws, flops, fallback)
    n = parameters or flops / (6 * tokens)
    by_law: dict[str, dict[str, object]] = {}
    spans: list[Interval] = []
    losses = _losses(laws, flops, n)
    for name, (value, span) in losses.items():
        by_law[name] = {"loss": value, "interval": list(span)}
        spans.append(span)
    chosen = next(iter(losses), None)
    loss = losses[chosen][0] if chosen else None
    loss_interval = (min(s[0] for s in spans), max(s[1] for s in spans)) if spans else None
    return Forecast(
        flops=flops,
        extrapolation_ratio=flops / laws.largest_budget,
        method=method,
        tokens=tokens,
        tokens_interval=interval,
        parameters=flops / (6 * tokens),
        parameters_interval=(flops / 6 / interval[1], flops / 6 / interval[0]) if interval else None,
        loss=loss,
        loss_interval=loss_interval,
        loss_method=chosen,
        by_law=by_law,
    )


FALLBACKS = ("refuse", "surface", "ratio")


def _tokens(laws: Laws, flops: float, fallback: str) -> tuple[str, float, Interval | None]:
    if fallback not in FALLBACKS:
        raise UserError(f"Unknown fallback '{fallback}'.{nearest(fallback, FALLBACKS)} Choices: {', '.join(FALLBACKS)}.")
    if laws.tokens is not None and laws.tokens.status == "ok":
        return "power_law", laws.tokens.predict(flops), laws.tokens.interval(flops)
    if fallback == "refuse":
        why = laws.reasons.get("tokens") or laws.reasons["tokens_interval"]
        raise UserError(f"No law for the optimal tokens: {why}. Add cells, or allow fallback=surface.")
    if laws.surface is not None and laws.surface.status == "ok":
        batch = _surface_replicates(laws, laws.surface)[0]
        optimal = quantiles(batch.optimal_tokens(flops), laws.config.confidence)
        return "surface", laws.surface.optimum(flops)[1], optimal
    if fallback == "surface":
        why = laws.surface.reason if laws.surface else laws.reasons["surface"]
        raise UserError(f"No law for the optimal tokens, nor a surface in its place: {why} Add cells, or fallback=ratio.")
    largest = [record for record in usable(laws.records) if record.budget == laws.largest_budget]
    best = min(largest, key=lambda record: (record.loss, record.cell))
    # Tokens and parameters grow in step, as Hoffmann et al. 2022 found: D = sqrt(C/6 x D/N).
    return "ratio", math.sqrt(flops / 6 * best.tokens / best.parameters), None


def _losses(laws: Laws, flops: float, parameters: float) -> dict[str, tuple[float, Interval]]:
    """Loss of a run at ``flops`` by each law that could be fitted, the preferred first, with the interval of one measured run."""
    result: dict[str, tuple[float, Interval]] = {}
    sizes = np.array([parameters]), np.array([flops / 6 / parameters])
    for name, predicted in measured_losses(laws, np.array([flops]), *sizes).items():
        result[name] = float(predicted[0][0]), quantiles(predicted[1][:, 0], laws.config.confidence)
    return result


def measured_losses(
    laws: Laws, flops: np.ndarray, parameters: np.ndarray, tokens: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What runs would measure, by each law that could be fitted, the preferred first.

    Args:
        laws: the fit.
        flops: (m,) training compute; the frontier reads only this.
        parameters, tokens: (m,) sizes, which the surface reads; parameters as the FLOPs see them, flops / (6 tokens).

    Returns:
        law -> its loss (m,) and replicates (R, m) of one measured run each.
    """
    result: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    count, floor = laws.config.replicates, laws.config.noise_floor
    if laws.frontier is not None:
        drawn = frontier_losses(laws.vertices, flops, count, floor, stream(laws.config.seed, "frontier replicates"))
        if drawn is not None:
            result["frontier"] = laws.frontier.loss(flops), drawn
    if laws.surface is not None and laws.surface.status == "ok":
        batch, std = _surface_replicates(laws, laws.surface)
        rng = stream(laws.config.seed, "surface noise")
        drawn = surface_losses(laws.surface, batch, std, parameters, tokens, floor, rng)
        result["surface"] = laws.surface.loss(parameters, tokens), drawn
    return result


def _surface_replicates(laws: Laws, surface: Surface) -> tuple[SurfaceBatch, np.ndarray]:
    rng = stream(laws.config.seed, "surface replicates")
    return redraw_surface(surface, columns(usable(laws.records)), laws.config.replicates, laws.config.noise_floor, rng)
