"""Redrawn sweeps: what the laws would have been with other noise in the cells.

The cells' losses are drawn anew around a fit, with a standard deviation that is itself drawn from its posterior (few degrees of
freedom must show), and everything is fitted again. What seeds do to all cells of a budget alike a curve swallows, so its
residuals may say too little: the deviation is never drawn below a noise floor, which comes from the same cell trained with
several seeds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from herd.scaling.curves.isoflop import IsoFLOPCurve
from herd.scaling.curves.power_law import Interval
from herd.scaling.loss_law import solve_loss_laws
from herd.scaling.surface.batch import SurfaceBatch, refit_surface
from herd.scaling.surface.fit import Surface


@dataclass(frozen=True)
class Redrawn:
    """Vertices of redrawn sweeps, NaN where a redrawn curve has no optimum; R redraws of V curves."""

    log10_tokens: np.ndarray  # (R, V)
    losses: np.ndarray  # (R, V), nats
    std: np.ndarray  # (R,) noise of one cell on ln L


def quantiles(values: np.ndarray, confidence: float) -> Interval:
    """Central interval of the finite ``values``."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(values[np.isfinite(values)], [tail, 1 - tail])
    return float(low), float(high)


def redraw_curves(curves: Sequence[IsoFLOPCurve], count: int, floor: float, rng: np.random.Generator) -> Redrawn | None:
    """Redraw the cells of every curve about it and find the vertices again; None without noise to draw.

    Args:
        curves: of one sweep, all with an optimum.
        count: of redraws.
        floor: smallest standard deviation of a cell's loss that is believed, nats.
        rng: the stream.
    """
    freedom = sum(len(curve.used) - 3 for curve in curves)
    if freedom == 0 and floor == 0:
        return None
    # Pooled relative to the loss: where noise is, large budgets have less of it, and absolute pooling overstates theirs.
    squares = sum(((curve.residual_std or 0.0) / (curve.loss or 1.0)) ** 2 * (len(curve.used) - 3) for curve in curves)
    std = np.sqrt(squares / rng.chisquare(freedom, count)) if freedom else np.zeros(count)
    positions, optimal = np.full((count, len(curves)), np.nan), np.full((count, len(curves)), np.nan)
    for i, curve in enumerate(curves):
        fitted = curve.fitted()
        noise = rng.normal(size=(count, len(fitted))) * np.maximum(std[:, None] * fitted, floor)
        positions[:, i], optimal[:, i] = curve.revisit(fitted + noise)
    return Redrawn(positions, optimal, std)


def vertex_errors(curves: Sequence[IsoFLOPCurve], count: int, floor: float, rng: np.random.Generator) -> list[float] | None:
    """Standard error of ln D* of every curve: half of the redraws' central 68%, which a few far vertices do not stretch."""
    drawn = redraw_curves(curves, count, floor, rng) if len(curves) > 2 else None
    if drawn is None or not np.isfinite(drawn.log10_tokens).any(axis=0).all():
        return None
    low, high = np.nanquantile(drawn.log10_tokens, stats.norm.cdf([-1, 1]), axis=0)
    return (math.log(10) * (high - low) / 2).tolist()


def frontier_losses(
    curves: Sequence[IsoFLOPCurve], flops: np.ndarray, count: int, floor: float, rng: np.random.Generator
) -> np.ndarray | None:
    """Losses (R, m) that one run at each of ``flops`` (m,) would measure, by frontier laws of redrawn sweeps.

    None without noise to draw, or where under a tenth of the sweeps keep three optima.
    """
    drawn = redraw_curves(curves, count, floor, rng)
    if drawn is None:
        return None
    weights = np.isfinite(drawn.losses).astype(float)
    enough = weights.sum(axis=1) >= 3
    if enough.sum() < count // 10:  # what is left is conditioned on three optima, as the data are
        return None
    budgets = np.array([curve.budget for curve in curves])
    # Far from the irreducible loss a sweep cannot tell a power law from a straight line in log C, which E < 0 allows.
    lowest = -min(curve.loss or 0.0 for curve in curves)
    E, k, g, reference = solve_loss_laws(budgets, np.nan_to_num(drawn.losses[enough]), weights[enough], lowest)
    law = E[:, None] + k[:, None] * (np.asarray(flops) / reference) ** -g[:, None]
    noise = rng.normal(size=law.shape) * np.maximum(drawn.std[enough][:, None] * law, floor)
    return np.asarray(law + noise)


def redraw_surface(
    surface: Surface,
    columns: tuple[np.ndarray, np.ndarray, np.ndarray],
    count: int,
    floor: float,
    rng: np.random.Generator,
) -> tuple[SurfaceBatch, np.ndarray]:
    """Surfaces refitted on redrawn losses of the cells ``columns`` (N, D, L), and for each the noise (R,) of one cell on ln L."""
    n, d, y = columns
    freedom = len(y) - 5
    std = surface.residual_std * np.sqrt(freedom / rng.chisquare(freedom, count))
    fitted = surface.loss(n, d)
    losses = fitted * np.exp(rng.normal(size=(count, len(y))) * np.maximum(std[:, None], floor / fitted))
    return refit_surface(surface, n, d, losses), std


def surface_losses(
    surface: Surface,
    batch: SurfaceBatch,
    std: np.ndarray,
    parameters: np.ndarray,
    tokens: np.ndarray,
    floor: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Losses (R, m) that one run of each size (m,) would measure, by every surface of a redraw."""
    result = []
    for n, d in zip(np.atleast_1d(parameters), np.atleast_1d(tokens), strict=True):
        noise = rng.normal(size=len(std)) * np.maximum(std, floor / surface.loss(n, d))
        result.append(batch.loss(n, d) * np.exp(noise))
    return np.stack(result, axis=1)
