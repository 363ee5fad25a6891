"""IsoFLOP curves: the compute-optimal number of training tokens of one budget.

Llama 3, section 3.2.1: at each budget C fit a second-degree polynomial of the held-out loss against log10 tokens; its minimum
is the compute-optimal run. The same can be asked in log10 parameters, and of Akima's interpolant instead of a parabola. A curve
that opens downwards has no minimum, and one whose minimum lies outside the sampled runs would be an extrapolation: both are
refused, with a status instead of a number.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from herd.config.errors import UserError, nearest
from herd.runs.seeds import stream
from herd.scaling.curves.valley import CURVES, akima, find_valleys, parabolas, vertex_errors_of
from herd.scaling.records.record import Record, by_budget, near_groups

AXES = ("tokens", "parameters")
_NAMED = 3  # reasons that a message lists
_NEAR = 0.05  # budgets this near to each other were meant to be one


@dataclass(frozen=True)
class IsoFLOPConfig:
    """How the points of a budget become its curve."""

    x: str = "tokens"  # the curve's axis, in log10: tokens | parameters (as the table counts them)
    curve: str = "parabola"  # parabola (least squares) | akima (interpolant of the mean loss at each x)
    min_points: int = 4  # different x that a budget needs; 3 fit a parabola exactly and leave no standard error
    max_excess_loss: float | None = None  # drop points this far above the budget's lowest loss, nats; null = use all
    redraws: int = 400  # redrawn curves behind Akima's standard error
    seed: int = 0  # of the redraws

    def __post_init__(self) -> None:
        if self.x not in AXES:
            raise UserError(f"isoflop.x '{self.x}': no such axis.{nearest(self.x, AXES)} Choices: {', '.join(AXES)}.")
        CURVES.get(self.curve)
        if self.min_points < 3:
            raise UserError(f"isoflop.min_points {self.min_points}: a parabola needs at least 3.")
        if self.max_excess_loss is not None and not self.max_excess_loss > 0:
            raise UserError(f"isoflop.max_excess_loss {self.max_excess_loss}: give nats above 0, or null.")
        if self.redraws < 100:
            raise UserError(f"isoflop.redraws {self.redraws}: at least 100 are needed for a standard error.")


@dataclass(frozen=True)
class Dropped:
    """A point that a curve leaves out."""

    cell: str
    reason: str


@dataclass(frozen=True)
class IsoFLOPCurve:
    """The curve of one budget; a parabola is loss = c0 + c1 u + c2 u^2, u = log10 x - centre."""

    budget: float  # FLOPs
    status: str  # ok | concave | no_interior_minimum | too_few_points
    reason: str  # why it is not ok, else ""
    used: tuple[str, ...]  # cells
    dropped: tuple[Dropped, ...]
    points: tuple[tuple[float, float, float], ...]  # (tokens, parameters, loss) of the used cells, by x
    x: str  # tokens | parameters
    curve: str  # parabola | akima
    tokens: float | None = None  # compute-optimal tokens D*, None unless ok
    parameters: float | None = None  # compute-optimal parameters N*, as the table counts them, None unless ok
    log10_tokens_se: float | None = None  # standard error of log10 D* (parabola: delta method; akima: redraws)
    loss: float | None = None  # loss at D*, nats per token
    loss_se: float | None = None  # its standard error
    se_reason: str = ""  # why there are no standard errors, else ""
    residual_std: float | None = None  # scatter of the points about the parabola, nats; None with 3 points
    centre: float | None = None  # mean of log10 x
    coefficients: tuple[float, float, float] | None = None  # c0, c1, c2 of the parabola, which Akima's refusals use too
    range: tuple[float, float] | None = None  # smallest and largest sampled tokens

    def loss_at(self, tokens: np.ndarray) -> np.ndarray:
        """Loss of the curve at ``tokens`` (any shape); Akima's is NaN outside its points."""
        assert self.coefficients is not None and self.centre is not None
        at = np.log10(np.asarray(tokens, dtype=float))
        if self.x == "parameters":
            at = _along(at, self._column(0), self._column(1))
        if self.curve == "akima":
            return np.asarray(akima(self.log10_x, np.array([[point[2] for point in self.points]]))(at)[..., 0])
        c0, c1, c2 = self.coefficients
        return np.asarray(c0 + c1 * (at - self.centre) + c2 * (at - self.centre) ** 2)

    @property
    def log10_x(self) -> np.ndarray:
        """Positions (n,) of the used cells on the curve's own axis."""
        return self._column(AXES.index(self.x))

    def fitted(self) -> np.ndarray:
        """Loss (n,) of the curve at its used cells."""
        return self.loss_at(np.array([point[0] for point in self.points]))

    def revisit(self, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """log10 D* and loss there, both (R,), had the used cells reached ``losses`` (R, n); NaN where the curve is refused."""
        valleys = find_valleys(self.log10_x, losses, self.curve)
        return self._log10_tokens(valleys.at), valleys.lowest

    def _column(self, index: int) -> np.ndarray:
        return np.log10([point[index] for point in self.points])

    def _log10_tokens(self, at: np.ndarray) -> np.ndarray:
        return at if self.x == "tokens" else _along(at, self._column(1), self._column(0))


def fit_isoflop(records: Sequence[Record], config: IsoFLOPConfig | None = None) -> tuple[IsoFLOPCurve, ...]:
    """Fit one curve per budget, budgets ascending.

    Args:
        records: a run table; rows that are not ok are listed as dropped.
    """
    return tuple(_curve(budget, rows, config or IsoFLOPConfig()) for budget, rows in by_budget(records).items())


def refusals(curves: Sequence[IsoFLOPCurve], needed: int) -> str:
    """Why fewer than ``needed`` budgets have an optimum, in one line however many budgets there are."""
    alike: dict[str, list[float]] = {}
    for curve in curves:
        if curve.status != "ok":
            alike.setdefault(f"{curve.status}, {curve.reason}", []).append(curve.budget)
    reasons = [f"{_named(budgets)}: {reason}" for reason, budgets in alike.items()]
    more = [f"and {len(reasons) - _NAMED} more reasons"] if len(reasons) > _NAMED else []
    why = "; ".join([*reasons[:_NAMED], *more])
    found = sum(curve.status == "ok" for curve in curves)
    text = f"{found} of {len(curves)} budgets have an optimum, {needed} needed" + (f" ({why})" if why else "")
    return text + _near_misses(curves)


def _named(budgets: Sequence[float]) -> str:
    if len(budgets) == 1:
        return f"{budgets[0]:.3g} FLOPs"
    return f"{min(budgets):.3g} to {max(budgets):.3g} FLOPs, {len(budgets)} budgets"


def _near_misses(curves: Sequence[IsoFLOPCurve]) -> str:
    """Budgets that rounding has torn apart: how to take them as one."""
    runs = {curve.budget: len(curve.used) for curve in curves}
    together = near_groups(list(runs), _NEAR)
    apart = all(high[0] > low[-1] * (1 + 2 * _NEAR) for low, high in itertools.pairwise(together))
    if not apart or not any(len(group) > 1 and sum(runs[budget] for budget in group) > 2 for group in together):
        return ""
    return f"; {len(together)} budgets if those within {_NEAR:.0%} of each other are one: same_budget={_NEAR:g}"


def _curve(budget: float, rows: Sequence[Record], config: IsoFLOPConfig) -> IsoFLOPCurve:
    kept, dropped = _select(rows, config)
    points = tuple((float(row.tokens), float(row.parameters), float(row.loss)) for row in kept)
    known: dict[str, Any] = {
        "x": config.x,
        "curve": config.curve,
        "points": points,
        "used": tuple(row.cell for row in kept),
        "dropped": dropped,
    }
    if points:
        known["range"] = min(point[0] for point in points), max(point[0] for point in points)
    sizes = len({point[AXES.index(config.x)] for point in points})
    needed = max(config.min_points, CURVES.get(config.curve))
    if sizes < needed:
        word = "size" if sizes == 1 else "sizes"
        return IsoFLOPCurve(budget, "too_few_points", f"{sizes} usable {word}, {needed} needed", **known)
    x = np.log10([point[AXES.index(config.x)] for point in points])
    loss = np.array([point[2] for point in points])
    c0, c1, c2 = (float(c) for c in parabolas(x, loss[None])[0])
    known |= {"centre": float(x.mean()), "coefficients": (c0, c1, c2)}
    valley = find_valleys(x, loss[None], config.curve)
    status = valley.status[0]
    if status == "concave":
        return IsoFLOPCurve(budget, "concave", "the parabola opens downwards: it has no minimum", **known)
    if status != "ok":
        side = "below the smallest" if status == "below" else "above the largest"
        models = "larger" if (status == "below") == (config.x == "tokens") else "smaller"
        reason = f"the minimum lies {side} number of {config.x} sampled: add {models} models at this budget"
        return IsoFLOPCurve(budget, "no_interior_minimum", reason, **known)
    known |= {"status": "ok", "reason": "", "loss": float(valley.lowest[0])}
    return IsoFLOPCurve(budget, **known | _vertex(IsoFLOPCurve(budget, **known), float(valley.at[0]), config))


def _vertex(curve: IsoFLOPCurve, at: float, config: IsoFLOPConfig) -> dict[str, Any]:
    """Position of the minimum in tokens and parameters, and its standard errors."""
    x, loss = curve.log10_x, np.array([point[2] for point in curve.points])
    other = float(10 ** _along(np.array(at), x, curve._column(1 - AXES.index(curve.x))))
    found = (float(10**at), other) if curve.x == "tokens" else (other, float(10**at))
    result: dict[str, Any] = {"tokens": found[0], "parameters": found[1]}
    errors = vertex_errors_of(x, loss)
    if errors is None:
        return result | {"se_reason": "three points determine the parabola and leave no scatter to judge it by"}
    result["residual_std"] = errors[2]
    if curve.curve == "akima":
        return result | _akima_errors(curve, errors[2], config)
    step = 1e-4
    per_x = abs(np.diff(curve._log10_tokens(np.array([at - step, at + step])))[0]) / (2 * step)
    return result | {"log10_tokens_se": errors[0] * float(per_x), "loss_se": errors[1]}


def _akima_errors(curve: IsoFLOPCurve, std: float, config: IsoFLOPConfig) -> dict[str, Any]:
    """An interpolant leaves no residuals: its losses are redrawn with the parabola's scatter, which misfit only widens."""
    noise = stream(config.seed, "akima redraws").normal(size=(config.redraws, len(curve.points))) * std
    at, lowest = curve.revisit(np.array([point[2] for point in curve.points]) + noise)
    ok = np.isfinite(at)
    if ok.mean() < 0.8:  # what is left would look surer than it is
        return {"se_reason": f"{1 - ok.mean():.0%} of redrawn curves have no minimum inside their points"}
    return {"log10_tokens_se": float(at[ok].std(ddof=1)), "loss_se": float(lowest[ok].std(ddof=1))}


def _along(at: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """y (...) at ``at`` by straight lines between the points (n,), in any order; the mean of y where x repeats."""
    knots, which = np.unique(x, return_inverse=True)
    means = np.bincount(which, weights=y) / np.bincount(which)
    return np.interp(at, knots, means)


def _select(rows: Sequence[Record], config: IsoFLOPConfig) -> tuple[list[Record], tuple[Dropped, ...]]:
    """Rows to fit, by x, and those left out with the reason."""
    ok = [row for row in rows if row.status == "ok"]
    dropped = [Dropped(row.cell, row.error or row.status) for row in rows if row.status != "ok"]
    if config.max_excess_loss is not None and ok:
        ordered = sorted(ok, key=lambda row: (row.loss, row.cell))
        limit = ordered[0].loss + config.max_excess_loss
        # Never below the points that a curve needs: better a wide parabola than none.
        far = [row for row in ordered[config.min_points :] if row.loss > limit]
        dropped += [Dropped(row.cell, f"loss {row.loss:.3f} > lowest + {config.max_excess_loss:g}") for row in far]
        ok = [row for row in ok if row not in far]
    return sorted(ok, key=lambda row: (getattr(row, config.x), row.tokens, row.cell)), tuple(dropped)
