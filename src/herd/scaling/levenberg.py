"""Levenberg-Marquardt inside bounds, on many small problems at once: the replicates of a bootstrap are one call."""

from collections.abc import Callable

import numpy as np

# theta (r, p), rows (r,) -> objective (r,), its gradient (r, p) and Gauss-Newton's matrix (r, p, p) of those problems
Evaluate = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
_STALLED = 12  # steps without a gain after which a problem is done


def minimise(
    evaluate: Evaluate, start: np.ndarray, low: np.ndarray, high: np.ndarray, iterations: int = 300, precision: float = 1e-14
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Minimise R objectives of p parameters each.

    Args:
        evaluate: objective, gradient and Gauss-Newton matrix of the problems ``rows``; a robust loss enters as weights.
        start: (R, p), put inside the bounds.
        low, high: (p,) bounds.
        iterations: steps at most.
        precision: relative gain that still counts as one.

    Returns:
        parameters (R, p), objective (R,), converged (R,).
    """
    theta = np.clip(np.asarray(start, dtype=float), low, high)
    active = np.arange(len(theta))
    cost, gradient, normal = evaluate(theta, active)
    damping, stalled = np.full(len(theta), 1e-3), np.zeros(len(theta), dtype=int)
    identity = np.eye(theta.shape[1])
    for _ in range(iterations):
        if not len(active):
            break
        slope, curvature = gradient[active], normal[active]
        diagonal = np.einsum("rii->ri", curvature)
        largest = np.maximum(diagonal.max(axis=1, keepdims=True), 1e-300)
        # A parameter at its bound that wants to go further out sits out this step.
        pinned = ((theta[active] <= low) & (slope > 0)) | ((theta[active] >= high) & (slope < 0))
        boost = damping[active][:, None] * np.maximum(diagonal, 1e-14 * largest) + np.where(pinned, 1e12 * largest, 0.0)
        step = -np.linalg.solve(curvature + boost[..., None] * identity, np.where(pinned, 0.0, slope)[..., None])[..., 0]
        trial = np.clip(theta[active] + step, low, high)
        new_cost, new_gradient, new_normal = evaluate(trial, active)
        better = new_cost < cost[active]
        gain = np.where(better, cost[active] - new_cost, 0.0)
        rows = active[better]
        theta[rows], cost[rows] = trial[better], new_cost[better]
        gradient[rows], normal[rows] = new_gradient[better], new_normal[better]
        damping[active] = np.clip(np.where(better, damping[active] * 0.3, damping[active] * 4.0), 1e-12, 1e8)
        stalled[active] = np.where(gain <= precision * cost[active] + 1e-32, stalled[active] + 1, 0)
        active = active[stalled[active] < _STALLED]
    converged = np.ones(len(theta), dtype=bool)
    converged[active] = False
    return theta, cost, converged
