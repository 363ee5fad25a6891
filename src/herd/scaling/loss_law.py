"""The loss along the compute-optimal frontier: L*(C) = E + k (C / C0)^-g, C0 the geometric mean of the fitted budgets.

For a fixed exponent g the law is linear in E and k, so one search over g finds the optimum (variable projection); a whole
bootstrap is searched at once. E and k stay at or above 0. With three budgets the law passes through every point.
"""

from dataclasses import dataclass, replace

import numpy as np

from herd.config.errors import UserError

_SMALLEST, _LARGEST = 0.01, 1.5


@dataclass(frozen=True)
class LossLaw:
    """A fitted law; C in FLOPs, L in nats per token."""

    status: str  # ok | exact (three budgets: no scatter left) | at_bound (E = 0, or g at the edge of the search)
    reason: str  # why it is not ok, else ""
    E: float  # irreducible loss
    k: float  # reducible loss at `reference`
    g: float  # exponent
    reference: float  # C0, FLOPs
    points: int
    residual_std: float | None  # scatter of the optimal losses about the law, nats

    def loss(self, flops: np.ndarray | float) -> np.ndarray:
        """L* at ``flops``."""
        return np.asarray(self.E + self.k * (np.asarray(flops) / self.reference) ** -self.g)


def fit_loss_law(budgets: np.ndarray, losses: np.ndarray) -> LossLaw:
    """Least squares on the optimal losses.

    Args:
        budgets: (n,) FLOPs, at least three different ones.
        losses: (n,) compute-optimal losses.

    Raises:
        UserError: fewer than three budgets.
    """
    budgets, losses = np.asarray(budgets, dtype=float), np.asarray(losses, dtype=float)
    if len(np.unique(budgets)) < 3:
        raise UserError(f"The law of the optimal loss has 3 parameters; {len(np.unique(budgets))} budgets are too few.")
    E, k, g, reference = solve_loss_laws(budgets, losses[None])
    law = LossLaw("ok", "", float(E[0]), float(k[0]), float(g[0]), reference, len(budgets), None)
    std = None
    if len(budgets) == 3:
        law = replace(law, status="exact", reason="three budgets determine the law and leave no scatter to judge it by")
    else:
        residual = law.loss(budgets) - losses
        std = float(np.sqrt((residual**2).sum() / (len(budgets) - 3)))
    edges = {"E": law.E <= 0, "g": not _SMALLEST * 1.01 < law.g < _LARGEST * 0.99}
    out = ", ".join(name for name, reached in edges.items() if reached)
    if out:
        law = replace(law, status="at_bound", reason=f"{out} at the edge of what is allowed: the budgets do not determine it")
    return replace(law, residual_std=std)


def solve_loss_laws(
    budgets: np.ndarray, losses: np.ndarray, weights: np.ndarray | None = None, lowest: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Fit many laws at once: budgets (n,), losses (R, n), weights (R, n) of 0 or 1 -> E (R,), k (R,), g (R,), C0.

    ``lowest`` bounds E. A negative one lets a law fall as fast as a straight line in log C, which early training can.
    """
    reference = float(np.exp(np.log(budgets).mean()))
    log_z = np.log(budgets / reference)
    weights = np.ones_like(losses) if weights is None else weights
    grid = np.repeat(np.geomspace(_SMALLEST, _LARGEST, 80)[None], len(losses), axis=0)
    for _ in range(4):  # each round searches between the neighbours of the best
        cost, E, k = _linear(log_z, losses, weights, grid, lowest)
        best = cost.argmin(axis=1)
        rows = np.arange(len(losses))
        low, high = grid[rows, np.maximum(best - 1, 0)], grid[rows, np.minimum(best + 1, grid.shape[1] - 1)]
        chosen = E[rows, best], k[rows, best], grid[rows, best]
        grid = np.exp(np.linspace(np.log(low), np.log(high), 25, axis=1))
    return (*chosen, reference)


def _linear(
    log_z: np.ndarray, y: np.ndarray, w: np.ndarray, g: np.ndarray, lowest: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Best E >= lowest and k >= 0 for each replicate (R) and exponent (G): cost, E, k, all (R, G)."""
    f = np.exp(-g[:, :, None] * log_z)  # (R, G, n)
    w3, y3 = w[:, None, :], y[:, None, :]
    total, sf, sff = w3.sum(-1), (w3 * f).sum(-1), (w3 * f * f).sum(-1)
    sy, sfy = (w3 * y3).sum(-1), (w3 * f * y3).sum(-1)
    determinant = np.maximum(total * sff - sf**2, 1e-300)
    k = (total * sfy - sf * sy) / determinant
    E = (sy - k * sf) / total
    k = np.where(lowest > E, (sfy - lowest * sf) / sff, k)
    E = np.maximum(E, lowest)
    E, k = np.where(k < 0, sy / total, E), np.maximum(k, 0.0)
    return (w3 * (E[..., None] + k[..., None] * f - y3) ** 2).sum(-1), E, k
