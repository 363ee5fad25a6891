"""The over-training law: the loss of models trained on more tokens than compute alone would choose.

Gadre et al. 2024, "Language models scale reliably with over-training and on downstream tasks", eq. 4:

    L(C, M) = E + (a M^eta + b M^-eta) C^-eta,    M = D / N tokens per parameter, C = 6 N D.

It is the surface E + A/N^x + B/D^x with one exponent x = 2 eta for both terms (their eq. 3), so runs at any M have parallel
lines in log C: what is learnt from small over-trained runs carries over to a large one. For a fixed eta the law is linear in
E, a and b, all three at or above 0, so one search over eta finds the optimum (variable projection) from no start at all.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from herd.config.errors import UserError
from herd.runs.seeds import stream
from herd.scaling.curves.power_law import Interval
from herd.scaling.laws import columns
from herd.scaling.records.record import Record, usable

_SMALLEST, _LARGEST = 0.005, 1.0  # of eta
_MIN_POINTS = 6  # four parameters, and two degrees of freedom to judge them by


@dataclass(frozen=True)
class OvertrainingLaw:
    """A fitted law; C in FLOPs, M in tokens per parameter, L in nats per token."""

    status: str  # ok | at_bound (a term vanished or eta ran away)
    reason: str  # why it is not ok, else ""
    E: float  # irreducible loss
    a: float  # weight of too few parameters
    b: float  # weight of too few tokens
    eta: float
    eta_interval: Interval
    E_interval: Interval
    residual_std: float  # scatter of L about the law, nats, 4 degrees of freedom taken off
    points: int
    confidence: float
    largest_flops: float  # largest C fitted
    ratios: tuple[float, float]  # smallest and largest M fitted
    replicates: "_Solved" = field(repr=False, compare=False)  # refits to redrawn losses, behind every interval

    def loss(self, flops: np.ndarray | float, ratio: np.ndarray | float) -> np.ndarray:
        """L(C, M), broadcast."""
        c, m = np.asarray(flops, dtype=float), np.asarray(ratio, dtype=float)
        return np.asarray(self.E + (self.a * m**self.eta + self.b * m**-self.eta) * c**-self.eta)

    def interval(self, flops: float, ratio: float, kind: str = "mean") -> Interval:
        """Interval of the law at (C, M): ``mean`` of where the law lies, ``prediction`` of what one more run would measure."""
        assert kind in ("mean", "prediction")
        r = self.replicates
        values = r.E + np.exp(r.log_a + r.eta * np.log(ratio / flops)) + np.exp(r.log_b - r.eta * np.log(ratio * flops))
        if kind == "prediction":
            values = values + r.noise
        return _central(values, self.confidence)

    def optimal_ratio(self) -> float | None:
        """M at which C buys the lowest loss: (b / a)^(1 / 2 eta), the same at every C; None when a term has vanished."""
        return (self.b / self.a) ** (0.5 / self.eta) if self.a > 0 and self.b > 0 else None

    def as_dict(self) -> dict[str, Any]:
        """Every number but the replicates."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "replicates"}

    def extrapolation_ratio(self, flops: float) -> float:
        """``flops`` over the largest C fitted."""
        return flops / self.largest_flops


@dataclass(frozen=True)
class _Solved:
    """R laws: arrays (R,)."""

    E: np.ndarray
    log_a: np.ndarray  # -inf where the term vanished
    log_b: np.ndarray
    eta: np.ndarray
    noise: np.ndarray  # noise of one run, nats


def overtraining_of(
    records: Sequence[Record], confidence: float = 0.95, replicates: int = 1000, seed: int = 0
) -> OvertrainingLaw:
    """:func:`fit_overtraining` of the usable rows of a run table; N as the FLOPs see it, flops / 6 tokens."""
    n, d, y = columns(usable(records))
    return fit_overtraining(6 * n * d, d / n, y, confidence, replicates, seed)


def fit_overtraining(
    flops: np.ndarray,
    ratio: np.ndarray,
    loss: np.ndarray,
    confidence: float = 0.95,
    replicates: int = 1000,
    seed: int = 0,
) -> OvertrainingLaw:
    """Least squares on the losses.

    Args:
        flops, ratio, loss: (n,) training compute C, tokens per parameter M = D/N and loss of each run, all above 0; at least 6
            runs with 2 different M and 3 different C.
        confidence: of the intervals.
        replicates, seed: redrawn losses behind the intervals, around the fit with its own scatter.

    Raises:
        UserError: bad numbers, or too few runs to determine four parameters.
    """
    c, m, y = (np.asarray(v, dtype=float) for v in (flops, ratio, loss))
    if not (c.shape == m.shape == y.shape and c.ndim == 1):
        raise UserError("An over-training law needs equally many FLOPs, tokens per parameter and losses.")
    if not all(np.isfinite(v).all() and (v > 0).all() for v in (c, m, y)):
        raise UserError("An over-training law needs finite FLOPs, tokens per parameter and losses above 0.")
    if not 0 < confidence < 1:
        raise UserError(f"confidence {confidence}: give a fraction between 0 and 1, such as 0.95.")
    if replicates < 100:
        raise UserError(f"replicates {replicates}: at least 100 are needed for an interval.")
    kinds = len(np.unique(np.round(np.log(c), 6))), len(np.unique(np.round(np.log(m), 6)))
    if len(y) < _MIN_POINTS or kinds[0] < 3 or kinds[1] < 2:
        raise UserError(
            f"An over-training law has 4 parameters: {len(y)} runs with {kinds[0]} budgets and {kinds[1]} ratios of tokens to "
            f"parameters are too few (at least {_MIN_POINTS}, 3 and 2)."
        )
    order = np.lexsort((y, m, c))
    c, m, y = c[order], m[order], y[order]
    # ln of M/C and 1/(MC), the bases of the two terms, from their means: blind to units and well conditioned.
    u, v = np.log(m / c), -np.log(m * c)
    u0, v0 = float(u.mean()), float(v.mean())
    E, a, b, eta = (values[0] for values in _solve(u - u0, v - v0, y[None], rounds=9))
    fitted = E + a * np.exp(eta * (u - u0)) + b * np.exp(eta * (v - v0))
    freedom = len(y) - 4
    std = math.sqrt(float((y - fitted) @ (y - fitted)) / freedom)
    rng = stream(seed, "over-training replicates")
    drawn_std = std * np.sqrt(freedom / rng.chisquare(freedom, replicates))
    drawn = _solve(u - u0, v - v0, fitted + rng.normal(size=(replicates, len(y))) * drawn_std[:, None])
    with np.errstate(divide="ignore"):
        log_a, log_b = np.log(drawn[1]) - drawn[3] * u0, np.log(drawn[2]) - drawn[3] * v0
    solved = _Solved(drawn[0], log_a, log_b, drawn[3], rng.normal(size=replicates) * drawn_std)
    edges = {"E": E <= 0, "a": a <= 0, "b": b <= 0, "eta": not _SMALLEST * 1.01 < eta < _LARGEST * 0.99}
    out = ", ".join(name for name, reached in edges.items() if reached)
    return OvertrainingLaw(
        status="at_bound" if out else "ok",
        reason=f"{out} at the edge of what is allowed: the runs do not determine it" if out else "",
        E=float(E),
        a=float(a * np.exp(-eta * u0)),
        b=float(b * np.exp(-eta * v0)),
        eta=float(eta),
        eta_interval=_central(drawn[3], confidence),
        E_interval=_central(drawn[0], confidence),
        residual_std=std,
        points=len(y),
        confidence=confidence,
        largest_flops=float(c.max()),
        ratios=(float(m.min()), float(m.max())),
        replicates=solved,
    )


def _central(values: np.ndarray, confidence: float) -> Interval:
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _solve(u: np.ndarray, v: np.ndarray, y: np.ndarray, rounds: int = 2) -> tuple[np.ndarray, ...]:
    """E, a, b, eta (R,) of laws E + a exp(eta u) + b exp(eta v) through losses y (R, n).

    All laws are searched on one grid of ln eta, which narrows to where their optima lie; a parabola through the best three points
    then gives each its own.
    """
    grid = np.linspace(math.log(_SMALLEST), math.log(_LARGEST), 200)
    centre = y.mean(axis=0)
    rows = np.arange(len(y))
    for _ in range(rounds):
        cost, _ = _linear(u, v, centre[None], (y - centre).T, np.exp(grid))
        best = cost.argmin(axis=0).clip(1, len(grid) - 2)
        before, at, after = (cost[best + step, rows] for step in (-1, 0, 1))
        grid_of_best, width = grid[best], grid[1] - grid[0]
        bend = before - 2 * at + after
        shift = np.divide(0.5 * (before - after), bend, out=np.zeros_like(bend), where=bend > 0).clip(-1, 1)
        ends = grid[0], grid[-1]
        grid = np.linspace(max(grid_of_best.min() - width, ends[0]), min(grid_of_best.max() + width, ends[1]), 100)
    eta = np.exp(grid_of_best + shift * width)
    _, linear = _linear(u, v, y, np.zeros((len(u), 1)), eta)
    E, a, b = linear[..., 0].T
    return E, a, b, eta


def _linear(
    u: np.ndarray, v: np.ndarray, centre: np.ndarray, offsets: np.ndarray, eta: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Best E, a, b >= 0 of each exponent eta (K,) for targets centre (K or 1, n) + offsets (n, R): cost (K, R) and (K, 3, R).

    Three terms that may not be negative have seven sets that may be positive: the best of their unconstrained optima that is
    positive is the optimum.
    """
    terms = np.stack([np.ones((len(eta), len(u))), np.exp(eta[:, None] * u), np.exp(eta[:, None] * v)], axis=-1)
    scale = np.sqrt((terms**2).sum(axis=1))  # (K, 3)
    terms = terms / scale[:, None]
    centre = np.broadcast_to(centre, (len(eta), len(u)))
    squares = (offsets**2).sum(axis=0)
    lowest = np.full((len(eta), offsets.shape[1]), np.inf)
    found = np.zeros((len(eta), 3, offsets.shape[1]))
    for size in (3, 2, 1):
        open_ = ~np.isfinite(lowest).all(axis=1)  # dropping a term can only cost more
        for chosen in itertools.combinations(range(3), size):
            q, r = np.linalg.qr(terms[open_][..., list(chosen)])
            solvable = (np.abs(np.einsum("kii->ki", r)) > 1e-12).all(axis=1)
            of_centre, of_offsets = (q.swapaxes(1, 2) @ target for target in (centre[open_][..., None], offsets))
            linear = np.linalg.solve(np.where(solvable[:, None, None], r, np.eye(size)), of_centre + of_offsets)
            left = centre[open_] - (q @ of_centre)[..., 0]
            # |left + offsets - their projection|^2 without an array of all residuals, and without cancelling large squares.
            cost = (left**2).sum(axis=1)[:, None] + 2 * left @ offsets + squares - (of_offsets**2).sum(axis=1)
            better = solvable[:, None] & (linear >= 0).all(axis=1) & (cost < lowest[open_])
            lowest[open_] = np.where(better, cost, lowest[open_])
            whole = np.zeros((len(linear), 3, offsets.shape[1]))
            whole[:, list(chosen)] = linear
            found[open_] = np.where(better[:, None], whole, found[open_])
    return lowest, found / scale[..., None]
