"""IsoFLOP curves: the compute-optimal number of training tokens of one budget.

Llama 3, section 3.2.1: at each budget C fit a second-degree polynomial of the held-out loss against log10 tokens; its minimum
is the compute-optimal run. A parabola that opens downwards has no minimum, and one whose minimum lies outside the sampled
tokens would be an extrapolation: both are refused, with a status instead of a number.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from herd.config.errors import UserError
from herd.scaling.records import Record, by_budget


@dataclass(frozen=True)
class IsoFLOPConfig:
    """How the points of a budget become its parabola."""

    min_points: int = 4  # points a budget needs; 3 fit exactly and leave no standard error
    max_excess_loss: float | None = None  # drop points this far above the budget's lowest loss, nats; null = use all

    def __post_init__(self) -> None:
        if self.min_points < 3:
            raise UserError(f"isoflop.min_points {self.min_points}: a parabola needs at least 3.")
        if self.max_excess_loss is not None and not self.max_excess_loss > 0:
            raise UserError(f"isoflop.max_excess_loss {self.max_excess_loss}: give nats above 0, or null.")


@dataclass(frozen=True)
class Dropped:
    """A point that a curve leaves out."""

    cell: str
    reason: str


@dataclass(frozen=True)
class IsoFLOPCurve:
    """The parabola of one budget: loss = c0 + c1 x + c2 x^2, x = log10 tokens - centre."""

    budget: float  # FLOPs
    status: str  # ok | concave | no_interior_minimum | too_few_points
    reason: str  # why it is not ok, else ""
    tokens: float | None  # compute-optimal tokens D*, None unless ok
    log10_tokens_se: float | None  # standard error of log10 D* (delta method), None with 3 points
    loss: float | None  # loss at D*, nats per token
    loss_se: float | None  # its standard error
    residual_std: float | None  # scatter of the points about the curve, nats; None with 3 points
    centre: float | None  # mean of log10 tokens
    coefficients: tuple[float, float, float] | None  # c0, c1, c2
    range: tuple[float, float] | None  # smallest and largest sampled tokens
    used: tuple[str, ...]  # cells
    dropped: tuple[Dropped, ...]

    def loss_at(self, tokens: np.ndarray) -> np.ndarray:
        """Loss of the parabola at ``tokens`` (any shape)."""
        assert self.coefficients is not None and self.centre is not None
        x = np.log10(tokens) - self.centre
        c0, c1, c2 = self.coefficients
        return np.asarray(c0 + c1 * x + c2 * x * x)


def fit_isoflop(records: Sequence[Record], config: IsoFLOPConfig | None = None) -> tuple[IsoFLOPCurve, ...]:
    """Fit one parabola per budget by plain least squares, budgets ascending.

    Args:
        records: a run table; rows that are not ok are listed as dropped.
    """
    return tuple(_curve(budget, rows, config or IsoFLOPConfig()) for budget, rows in by_budget(records).items())


def _curve(budget: float, rows: Sequence[Record], config: IsoFLOPConfig) -> IsoFLOPCurve:
    kept, dropped = _select(rows, config)
    tokens = np.array([row.tokens for row in kept], dtype=float)
    loss = np.array([row.loss for row in kept], dtype=float)
    used = tuple(row.cell for row in kept)
    sizes = len(np.unique(tokens))
    if sizes < config.min_points:
        reason = f"{sizes} usable sizes, {config.min_points} needed"
        return _refused(budget, "too_few_points", reason, tokens, None, None, used, dropped)
    x = np.log10(tokens)
    centre = float(x.mean())
    design = parabola_design(x - centre)
    coefficients = np.linalg.lstsq(design, loss, rcond=None)[0]
    c0, c1, c2 = (float(c) for c in coefficients)
    # Curvature below rounding error is a straight line, not a very wide parabola.
    if c2 * np.ptp(x) ** 2 <= 1e-9 * abs(c0):
        reason = "the parabola opens downwards: it has no minimum"
        return _refused(budget, "concave", reason, tokens, centre, (c0, c1, c2), used, dropped)
    vertex = -c1 / (2 * c2)
    if not x.min() < vertex + centre < x.max():
        side = "below the smallest" if vertex + centre <= x.min() else "above the largest"
        more = "larger" if vertex + centre <= x.min() else "smaller"
        reason = f"the minimum lies {side} number of tokens sampled: add {more} models at this budget"
        return _refused(budget, "no_interior_minimum", reason, tokens, centre, (c0, c1, c2), used, dropped)
    vertex_se = loss_se = std = None
    freedom = len(loss) - 3
    if freedom > 0:
        residual = loss - design @ coefficients
        std = math.sqrt(float(residual @ residual) / freedom)
        covariance = np.linalg.inv(design.T @ design) * std**2
        # x* = -c1 / 2 c2;  dL*/dc at the vertex is (1, x*, x*^2) since dL/dx = 0 there.
        gradient = np.array([0.0, -1 / (2 * c2), c1 / (2 * c2**2)])
        at_vertex = np.array([1.0, vertex, vertex**2])
        vertex_se = math.sqrt(float(gradient @ covariance @ gradient))
        loss_se = math.sqrt(float(at_vertex @ covariance @ at_vertex))
    return IsoFLOPCurve(
        budget=budget,
        status="ok",
        reason="",
        tokens=float(10 ** (vertex + centre)),
        log10_tokens_se=vertex_se,
        loss=c0 + c1 * vertex + c2 * vertex**2,
        loss_se=loss_se,
        residual_std=std,
        centre=centre,
        coefficients=(c0, c1, c2),
        range=(float(tokens.min()), float(tokens.max())),
        used=used,
        dropped=dropped,
    )


def parabola_design(x: np.ndarray) -> np.ndarray:
    """Design matrix (n, 3) of a parabola at centred ``x`` (n,)."""
    return np.stack([np.ones_like(x), x, x * x], axis=1)


def _select(rows: Sequence[Record], config: IsoFLOPConfig) -> tuple[list[Record], tuple[Dropped, ...]]:
    """Rows to fit, by tokens, and those left out with the reason."""
    ok = [row for row in rows if row.status == "ok"]
    dropped = [Dropped(row.cell, row.error or row.status) for row in rows if row.status != "ok"]
    if config.max_excess_loss is not None and ok:
        ordered = sorted(ok, key=lambda row: (row.loss, row.cell))
        limit = ordered[0].loss + config.max_excess_loss
        # Never below the points that a curve needs: better a wide parabola than none.
        far = [row for row in ordered[config.min_points :] if row.loss > limit]
        dropped += [Dropped(row.cell, f"loss {row.loss:.3f} > lowest + {config.max_excess_loss:g}") for row in far]
        ok = [row for row in ok if row not in far]
    return sorted(ok, key=lambda row: (row.tokens, row.cell)), tuple(dropped)


def _refused(
    budget: float,
    status: str,
    reason: str,
    tokens: np.ndarray,
    centre: float | None,
    coefficients: tuple[float, float, float] | None,
    used: tuple[str, ...],
    dropped: tuple[Dropped, ...],
) -> IsoFLOPCurve:
    sampled = (float(tokens.min()), float(tokens.max())) if len(tokens) else None
    return IsoFLOPCurve(budget, status, reason, None, None, None, None, None, centre, coefficients, sampled, used, dropped)
