"""The nested form of variable projection, to be measured against the library's: after every step of the exponents the amounts
are solved for again. Steps are Newton's on the projected objective (the Schur complement of the full Hessian), damped likewise.
"""

import numpy as np

from herd.scaling.surface.model import Problem


def _inner(problem: Problem, free: np.ndarray, target: np.ndarray, tries: int) -> tuple[np.ndarray, float, int]:
    """Amounts at fixed exponents, by damped Newton: the parameters, the objective, and how often it was evaluated."""
    amounts = np.flatnonzero(problem.amounts)
    at, damping, count = problem.evaluate(free[None], target[None]), 1e-3, 1
    for _ in range(tries):
        scale = 1 / np.sqrt(np.maximum(at.size[0, amounts], 1e-300))
        hessian = at.hessian[0][np.ix_(amounts, amounts)] * np.outer(scale, scale)
        curvature, axes = np.linalg.eigh(hessian)
        along = axes.T @ (at.gradient[0, amounts] * scale)
        stiff = np.maximum(np.abs(curvature), 1e-13)
        if 0.5 * float((along**2 / stiff).sum()) <= 1e-12 * at.cost[0]:
            break
        trial = free.copy()
        trial[amounts] -= axes @ (along / (stiff + damping)) * scale
        trial = np.clip(trial, problem.low, problem.high)
        there = problem.evaluate(trial[None], target[None])
        count += 1
        if there.cost[0] < at.cost[0]:
            free, at, damping = trial, there, damping * 0.2
        else:
            damping *= 5
    return free, float(at.cost[0]), count


def nested(problem: Problem, start: np.ndarray, target: np.ndarray, iterations: int = 1000) -> tuple[float, int]:
    """Objective where the search from ``start`` (5,) ends, and how often it was evaluated."""
    amounts, exponents = np.flatnonzero(problem.amounts), np.flatnonzero(~problem.amounts)
    free, cost, count = _inner(problem, np.clip(start, problem.low, problem.high), target, 200)
    damping = 1e-3
    for _ in range(iterations):
        at = problem.evaluate(free[None], target[None])
        count += 1
        held = ((free <= problem.low) & (at.gradient[0] > 0)) | ((free >= problem.high) & (at.gradient[0] < 0))
        scale = np.where(held, 0.0, 1 / np.sqrt(np.maximum(at.size[0], 1e-300)))
        hessian = at.hessian[0] * np.outer(scale, scale) + np.diag(held.astype(float))
        gradient = at.gradient[0] * scale
        own, mixed = hessian[np.ix_(amounts, amounts)], hessian[np.ix_(amounts, exponents)]
        solve = np.linalg.pinv(own, hermitian=True, rcond=1e-13)
        curvature, axes = np.linalg.eigh(hessian[np.ix_(exponents, exponents)] - mixed.T @ solve @ mixed)
        along = axes.T @ (gradient[exponents] - mixed.T @ solve @ gradient[amounts])
        stiff = np.maximum(np.abs(curvature), 1e-13)
        if 0.5 * float((along**2 / stiff).sum()) <= 1e-13 * cost and curvature[0] > -1e-9:
            break
        step = np.zeros(len(free))
        step[exponents] = -axes @ (along / (stiff + damping))
        step[amounts] = -solve @ (gradient[amounts] + mixed @ step[exponents])
        trial, value, more = _inner(problem, np.clip(free + step * scale, problem.low, problem.high), target, 15)
        count += more
        if value < cost:
            free, cost, damping = trial, value, damping * 0.2
        else:
            damping *= 5
            if damping > 1e8:
                break
    return cost, count
