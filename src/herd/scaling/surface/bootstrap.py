"""Bootstrap of the loss surface: runs are drawn anew and the surface is fitted again, all replicates as one batch.

Every refit passes the second-order test of a minimum, and starts twice, from the point estimate and from the best exponents
of its own grid; where the two end apart the lower one counts, and `moved` counts it. Coverage: tests/scaling/test_coverage.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from herd.config.errors import UserError
from herd.runs.seeds import stream
from herd.scaling.curves.power_law import Interval
from herd.scaling.curves.resampling import bootstrap_counts, interval, jackknife_groups, labels_of
from herd.scaling.surface.batch import Refits, SurfaceBatch, refit_surface
from herd.scaling.surface.fit import Surface, checked_points
from herd.scaling.surface.model import PARAMETERS

Quantity = str | Callable[[SurfaceBatch], np.ndarray]
_MOST_UNDETERMINED = 0.05  # share of replicates that may fail to determine a surface


@dataclass(frozen=True)
class SurfaceBootstrap:
    """Surfaces of redrawn runs."""

    status: str  # ok | not_converged (refits that stopped early are left out) | undetermined (many draws determine no surface)
    reason: str
    surface: Surface  # the fit to all runs
    unit: str  # row | budget | run
    units: int  # how many there are
    replicates: int  # drawn
    undetermined: int  # replicates with too few different runs for a surface: left out
    not_converged: int  # replicates without a certified optimum: left out
    at_bound: int  # replicates with a vanished term or an exponent that ran away: kept
    moved: int  # replicates whose own start found a lower optimum than the point estimate did
    batch: Refits  # the replicates that are kept
    left_out: Refits  # every unit left out once, for the jackknife

    def values(self, quantity: Quantity) -> np.ndarray:
        """A quantity on each replicate, (R,): a parameter's name (E, A, B, a, b) or a function of a batch."""
        return _on(quantity, self.batch)

    def standard_error(self, quantity: Quantity) -> float:
        """Standard deviation over the replicates."""
        return float(self.values(quantity).std(ddof=1))

    def interval(self, quantity: Quantity, confidence: float = 0.95, kind: str = "bca") -> Interval:
        """Two-sided interval of a quantity, such as ``lambda batch: batch.optimal_tokens(1e24)``."""
        estimate = float(_on(quantity, SurfaceBatch.of(self.surface))[0])
        return interval(self.values(quantity), confidence, kind, estimate, _on(quantity, self.left_out))


def bootstrap_surface(
    surface: Surface,
    parameters: np.ndarray,
    tokens: np.ndarray,
    loss: np.ndarray,
    *,
    unit: str = "row",
    groups: Sequence[Any] | np.ndarray | None = None,
    replicates: int = 4000,
    seed: int = 0,
) -> SurfaceBootstrap:
    """Fit the surface again to redrawn runs.

    Args:
        surface: the fit to all runs; its objective, ties and pins are those of every refit.
        parameters, tokens, loss: (n,) the runs that it was fitted to.
        unit: what is drawn: ``row``, ``budget`` or ``run``.
        groups: (n,) the budget or run of every row, for these units.
        replicates: how many.
        seed: of the draws.

    Raises:
        UserError: a surface without an optimum, other runs than its own, or no groups where they are needed.
    """
    n, d, y = checked_points(parameters, tokens, loss)
    if surface.status != "ok":
        raise UserError(f"Only a surface with status ok can be bootstrapped; this one is {surface.status}: {surface.reason}.")
    if surface.points != len(y):
        raise UserError(f"This surface was fitted to {surface.points} runs; {len(y)} were given to its bootstrap.")
    if replicates < 2:
        raise UserError(f"replicates {replicates}: a bootstrap needs many, such as 4000.")
    labels = labels_of(unit, len(y), groups)
    counts = bootstrap_counts(labels, replicates, stream(seed, "surface bootstrap", unit))
    drawn = counts > 0
    determined = (drawn.sum(axis=1) > surface.free) & (_different(n, drawn) >= 3) & (_different(d, drawn) >= 3)
    refits = refit_surface(surface, n, d, y, counts[determined], fresh_starts=1)
    left_out = refit_surface(surface, n, d, y, np.array(jackknife_groups(labels), dtype=float))
    batch = refits.take(refits.converged)
    undetermined, not_converged = int((~determined).sum()), int((~refits.converged).sum())
    status, reason = "ok", ""
    if undetermined > _MOST_UNDETERMINED * replicates:
        status, reason = "undetermined", f"{undetermined} of {replicates} draws have too few different runs for a surface"
    elif not_converged or not left_out.converged.all():
        status, reason = "not_converged", f"{not_converged} of {replicates} refits stopped before the optimum"
    return SurfaceBootstrap(
        status=status,
        reason=reason,
        surface=surface,
        unit=unit,
        units=int(labels.max()) + 1,
        replicates=replicates,
        undetermined=undetermined,
        not_converged=not_converged,
        at_bound=int(batch.at_bound.sum()),
        moved=int(refits.moved.sum()),
        batch=batch,
        left_out=left_out,
    )


def _different(values: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """How many different ``values`` (n,) each replicate of ``drawn`` (R, n) holds, (R,)."""
    labels = np.unique(values, return_inverse=True)[1]
    held = np.zeros((len(drawn), int(labels.max()) + 1), dtype=bool)
    for label in range(held.shape[1]):
        held[:, label] = drawn[:, labels == label].any(axis=1)
    return held.sum(axis=1)


def _on(quantity: Quantity, batch: SurfaceBatch) -> np.ndarray:
    if callable(quantity):
        return np.asarray(quantity(batch))
    if quantity not in PARAMETERS:
        raise UserError(f"Unknown quantity '{quantity}'. Choices: {', '.join(PARAMETERS)}, or a function of a batch.")
    return np.exp(getattr(batch, f"log_{quantity}")) if quantity in "AB" else np.asarray(getattr(batch, quantity))
