"""Loss surface L(N, D) = E + A / N^a + B / D^b (Hoffmann et al. 2022, "Training Compute-Optimal Large Language Models", eq. 2).

For fixed exponents (a, b) the surface is linear in E, A and B, so the starts come from variable projection: every pair of
exponents on a grid is scored by its own linear least squares. The best few are polished by Levenberg-Marquardt in
(ln E, ln A, ln B, a, b), with the residuals reweighted when the objective is Huber's. All replicates of a bootstrap go
through the same solver as one batch.
"""

import math
from dataclasses import dataclass

import numpy as np

from herd.config.errors import UserError
from herd.config.registry import Registry

OBJECTIVES: Registry[str] = Registry("surface objective")
OBJECTIVES.register("huber_log")("Huber loss of ln L, summed (Hoffmann et al. 2022, eq. 3)")
OBJECTIVES.register("squared_log")("squared error of ln L")
OBJECTIVES.register("squared")("squared error of L")

_LARGEST_EXPONENT = 2.0
_SMALLEST_LOG = -12.0  # ln of a term relative to the typical loss: what is below counts as absent
_MIN_POINTS = 8  # five parameters, and three degrees of freedom to judge them by


@dataclass(frozen=True)
class Surface:
    """A fitted surface; N in parameters, D in tokens, L in nats per token."""

    status: str  # ok | at_bound (a term vanished or an exponent ran away: do not read it alone) | not_converged
    reason: str
    E: float  # irreducible loss
    A: float
    B: float
    a: float  # exponent of parameters
    b: float  # exponent of tokens
    objective: str
    delta: float  # Huber's threshold on ln L, used by huber_log
    value: float  # sum of the objective at the optimum
    residual_std: float  # scatter of ln L about the surface, 5 degrees of freedom taken off
    condition: float  # condition number of the scaled Jacobian: above 1e4 single parameters mean little
    points: int
    largest_flops: float  # largest 6ND fitted
    covariance: tuple[tuple[float, ...], ...] | None = None  # (5, 5) of (ln E, ln A, ln B, a, b); None where undetermined

    def loss(self, parameters: np.ndarray | float, tokens: np.ndarray | float) -> np.ndarray:
        """L(N, D), broadcast."""
        return np.asarray(self.E + self.A * np.power(parameters, -self.a) + self.B * np.power(tokens, -self.b))

    def optimum(self, flops: float) -> tuple[float, float]:
        """Compute-optimal (parameters, tokens) under 6ND = flops: N = G (C/6)^(b/(a+b)), G = (aA / bB)^(1/(a+b))."""
        log_g = (math.log(self.a * self.A) - math.log(self.b * self.B)) / (self.a + self.b)
        log_n = log_g + self.b / (self.a + self.b) * math.log(flops / 6)
        return math.exp(log_n), flops / 6 / math.exp(log_n)

    def jacobian(self, parameters: np.ndarray | float, tokens: np.ndarray | float) -> np.ndarray:
        """d ln L / d (ln E, ln A, ln B, a, b) at (parameters, tokens), broadcast to (..., 5)."""
        log_n, log_d = np.broadcast_arrays(np.log(parameters), np.log(tokens))
        n_term, d_term = self.A * np.exp(-self.a * log_n), self.B * np.exp(-self.b * log_d)
        columns = [np.full_like(n_term, self.E), n_term, d_term, -log_n * n_term, -log_d * d_term]
        return np.stack(columns, axis=-1) / (self.E + n_term + d_term)[..., None]


@dataclass(frozen=True)
class SurfaceBatch:
    """Many surfaces fitted at once: arrays (R,), in single parameters and tokens; ln A and ln B, since A and B may overflow."""

    E: np.ndarray
    log_A: np.ndarray
    log_B: np.ndarray
    a: np.ndarray
    b: np.ndarray

    def loss(self, parameters: np.ndarray | float, tokens: np.ndarray | float) -> np.ndarray:
        """Loss of each surface at its own (parameters, tokens), (R,)."""
        n, d = np.log(parameters), np.log(tokens)
        return np.asarray(self.E + np.exp(self.log_A - self.a * n) + np.exp(self.log_B - self.b * d))

    def optimal_tokens(self, flops: float) -> np.ndarray:
        """Compute-optimal tokens of each surface under 6ND = flops, (R,)."""
        log_g = (np.log(self.a) + self.log_A - np.log(self.b) - self.log_B) / (self.a + self.b)
        return np.asarray(flops / 6 / np.exp(log_g + self.b / (self.a + self.b) * np.log(flops / 6)))


def fit_surface(
    parameters: np.ndarray, tokens: np.ndarray, loss: np.ndarray, objective: str = "huber_log", delta: float = 1e-3
) -> Surface:
    """Fit the five numbers of the surface.

    Args:
        parameters, tokens, loss: (n,) arrays, all finite and above 0; at least 8 points with 3 different sizes and token counts.
        objective: ``huber_log``, ``squared_log`` or ``squared``.
        delta: Huber's threshold on ln L.

    Raises:
        UserError: bad numbers, or too few points to determine five parameters.
    """
    OBJECTIVES.get(objective)
    n, d, y = (np.asarray(v, dtype=float) for v in (parameters, tokens, loss))
    if not (n.shape == d.shape == y.shape and n.ndim == 1):
        raise UserError("A surface needs equally many parameters, tokens and losses.")
    if not all(np.isfinite(v).all() and (v > 0).all() for v in (n, d, y)):
        raise UserError("A surface needs finite parameters, tokens and losses above 0.")
    if len(y) < _MIN_POINTS or len(np.unique(n)) < 3 or len(np.unique(d)) < 3:
        raise UserError(
            f"A surface has 5 parameters: {len(y)} runs with {len(np.unique(n))} sizes and {len(np.unique(d))} token counts "
            f"are too few (at least {_MIN_POINTS}, 3 and 3)."
        )
    problem = _Problem.of(n, d, y)
    starts = problem.project(y / problem.scale, objective, keep=6)
    many = np.repeat(y[None] / problem.scale, len(starts), axis=0)
    theta, value, converged = problem.solve(many, starts, objective, delta, iterations=2000)
    best = int(np.argmin(value))
    batch = problem.unscale(theta[best : best + 1])
    relative, jacobian = problem.predict(theta[best : best + 1])
    residual = np.log(y / problem.scale) - np.log(relative[0])
    scaled = jacobian[0] / np.maximum(np.linalg.norm(jacobian[0], axis=0), 1e-300)
    status, reason = "ok", ""
    if not converged[best]:
        status, reason = "not_converged", "the solver stopped before the optimum"
    lowest = theta[best, :3] <= _SMALLEST_LOG + 1e-6
    ran_away = (theta[best, 3:] <= 1.1e-3) | (theta[best, 3:] >= _LARGEST_EXPONENT - 1e-6)
    if lowest.any() or ran_away.any():
        names = [name for name, out in zip("EABab", [*lowest, *ran_away], strict=True) if out]
        status, reason = "at_bound", f"{', '.join(names)} at the edge of what is allowed: the runs do not determine it"
    squared_scale = problem.scale**2 if objective == "squared" else 1.0
    return Surface(
        status=status,
        reason=reason,
        E=float(batch.E[0]),
        A=float(np.exp(batch.log_A[0])),
        B=float(np.exp(batch.log_B[0])),
        a=float(batch.a[0]),
        b=float(batch.b[0]),
        objective=objective,
        delta=delta,
        value=float(value[best]) * squared_scale,
        residual_std=math.sqrt(float(residual @ residual) / (len(y) - 5)),
        condition=float(np.linalg.cond(scaled)),
        points=len(y),
        largest_flops=float((6 * n * d).max()),
        covariance=problem.covariance(theta[best], y / problem.scale, objective, delta) if status == "ok" else None,
    )


def bootstrap_surface(
    surface: Surface, parameters: np.ndarray, tokens: np.ndarray, losses: np.ndarray, iterations: int = 60
) -> SurfaceBatch:
    """Refit the surface to replicated losses (R, n) at the same (n,) parameters and tokens, from the point estimate."""
    problem = _Problem.of(np.asarray(parameters, float), np.asarray(tokens, float), np.asarray(losses, float).mean(axis=0))
    start = problem.scaled_theta(surface)
    targets = np.maximum(np.asarray(losses, dtype=float), 1e-9) / problem.scale
    theta, _, _ = problem.solve(
        targets, np.repeat(start[None], len(targets), axis=0), surface.objective, surface.delta, iterations
    )
    return problem.unscale(theta)


@dataclass(frozen=True)
class _Problem:
    """The points in units of their geometric means, which makes the fit blind to units and well conditioned."""

    log_n0: float
    log_d0: float
    scale: float  # geometric mean of the loss
    u: np.ndarray  # ln N - mean, (n,)
    v: np.ndarray  # ln D - mean, (n,)

    @classmethod
    def of(cls, n: np.ndarray, d: np.ndarray, y: np.ndarray) -> "_Problem":
        log_n0, log_d0 = float(np.log(n).mean()), float(np.log(d).mean())
        return cls(log_n0, log_d0, float(np.exp(np.log(y).mean())), np.log(n) - log_n0, np.log(d) - log_d0)

    def scaled_theta(self, surface: Surface) -> np.ndarray:
        """(ln E, ln A, ln B, a, b) in this problem's units."""
        terms = (
            math.log(surface.E) if surface.E > 0 else -math.inf,
            math.log(surface.A) - surface.a * self.log_n0 if surface.A > 0 else -math.inf,
            math.log(surface.B) - surface.b * self.log_d0 if surface.B > 0 else -math.inf,
        )
        return np.array([*(max(t - math.log(self.scale), _SMALLEST_LOG) for t in terms), surface.a, surface.b])

    def unscale(self, theta: np.ndarray) -> SurfaceBatch:
        """Back to single parameters, tokens and nats; a term at its floor is 0 (E) or vanishing (A, B)."""
        log_e, log_a, log_b, a, b = theta.T
        log_scale = math.log(self.scale)
        irreducible = np.where(log_e <= _SMALLEST_LOG + 1e-6, 0.0, np.exp(log_e + log_scale))
        return SurfaceBatch(irreducible, log_a + log_scale + a * self.log_n0, log_b + log_scale + b * self.log_d0, a, b)

    def predict(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Loss (R, n) in units of ``scale`` and its Jacobian (R, n, 5)."""
        log_e, log_a, log_b, a, b = (t[:, None] for t in theta.T)
        e = np.broadcast_to(np.exp(log_e), (len(theta), len(self.u)))
        n_term, d_term = np.exp(log_a - a * self.u), np.exp(log_b - b * self.v)
        jacobian = np.stack([e, n_term, d_term, -self.u * n_term, -self.v * d_term], axis=2)
        return e + n_term + d_term, jacobian

    def covariance(self, theta: np.ndarray, y: np.ndarray, objective: str, delta: float) -> tuple[tuple[float, ...], ...] | None:
        """Covariance of (ln E, ln A, ln B, a, b) in single parameters and tokens; None when the Jacobian is singular.

        s^2 (J'J)^-1 with s^2 the residual variance; for Huber's loss s^2 = mean psi^2 / (mean psi')^2 (Huber 1981, section 7.6).
        """
        value, jacobian = self.predict(theta[None])
        value, jacobian = value[0], jacobian[0]
        if objective == "squared":
            residual = value - y
        else:
            residual, jacobian = np.log(value / y), jacobian / value[:, None]
        freedom = len(y) - 5
        inside = np.abs(residual) <= delta if objective == "huber_log" else np.ones(len(y), dtype=bool)
        psi = np.where(inside, residual, delta * np.sign(residual))
        size = np.linalg.norm(jacobian, axis=0)
        if not inside.any() or not (size > 0).all() or np.linalg.cond(jacobian / size) > 1e12:
            return None
        inverse = np.linalg.inv((jacobian / size).T @ (jacobian / size)) / np.outer(size, size)
        to_single = np.eye(5)  # ln A = ln A' + a mean(ln N) + constant
        to_single[1, 3], to_single[2, 4] = self.log_n0, self.log_d0
        covariance = to_single @ inverse @ to_single.T * float(psi @ psi) / freedom / float(inside.mean()) ** 2
        return tuple(tuple(row) for row in covariance.tolist())

    def project(self, y: np.ndarray, objective: str, keep: int) -> np.ndarray:
        """Variable projection: the ``keep`` best starts (keep, 5) of a grid over both exponents."""
        grid = np.geomspace(0.02, 1.5, 40)
        a, b = (g.ravel() for g in np.meshgrid(grid, grid, indexing="ij"))
        weight = np.ones_like(y) if objective == "squared" else 1 / y  # squared error of ln L, to first order
        columns = [np.ones((len(a), len(y))), np.exp(-a[:, None] * self.u), np.exp(-b[:, None] * self.v)]
        design = np.stack(columns, axis=2) * weight[:, None]
        linear = (np.linalg.pinv(design) @ (y * weight)[:, None])[..., 0]
        # Terms are positive; a negative one is set to a trace, which scores badly and leaves the pair to the others.
        linear = np.maximum(linear, 1e-3)
        score = (((design @ linear[..., None])[..., 0] - y * weight) ** 2).sum(axis=1)
        order = np.argsort(score, kind="stable")
        chosen: list[int] = []
        for index in order:  # starts that are not neighbours of a better one
            if all(max(abs(math.log(a[index] / a[c])), abs(math.log(b[index] / b[c]))) > 0.3 for c in chosen):
                chosen.append(int(index))
            if len(chosen) == keep:
                break
        return np.column_stack([np.log(linear[chosen]), a[chosen], b[chosen]])

    def solve(
        self, y: np.ndarray, start: np.ndarray, objective: str, delta: float, iterations: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Levenberg-Marquardt on a batch: y (R, n), start (R, 5) -> parameters (R, 5), objective (R,), converged (R,)."""
        low = np.array([_SMALLEST_LOG] * 3 + [1e-3] * 2)
        high = np.array([20.0] * 3 + [_LARGEST_EXPONENT] * 2)
        theta = np.clip(start, low, high)
        damping = np.full(len(theta), 1e-3)
        stalled = np.zeros(len(theta), dtype=int)
        target = y if objective == "squared" else np.log(y)

        def evaluate(t: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
            value, jacobian = self.predict(t)
            if objective != "squared":
                jacobian = jacobian / value[..., None]
                value = np.log(value)
            residual = value - target[rows]
            if objective != "huber_log":
                return 0.5 * (residual**2).sum(axis=1), residual, jacobian, np.ones_like(residual)
            size = np.abs(residual)
            cost = np.where(size <= delta, 0.5 * residual**2, delta * (size - 0.5 * delta)).sum(axis=1)
            return cost, residual, jacobian, np.minimum(1.0, delta / np.maximum(size, 1e-300))

        cost, residual, jacobian, weight = evaluate(theta, np.arange(len(theta)))
        active = np.arange(len(theta))
        for _ in range(iterations):
            if not len(active):
                break
            j, w = jacobian[active], weight[active]
            weighted = j * w[..., None]
            normal = weighted.transpose(0, 2, 1) @ j
            gradient = (weighted * residual[active][..., None]).sum(axis=1)
            # A parameter at its bound that wants to go further out sits out this step.
            pinned = ((theta[active] <= low) & (gradient > 0)) | ((theta[active] >= high) & (gradient < 0))
            gradient = np.where(pinned, 0.0, gradient)
            diagonal = np.einsum("rii->ri", normal)
            boost = damping[active][:, None] * np.maximum(diagonal, 1e-14 * diagonal.max(axis=1, keepdims=True))
            boost = boost + np.where(pinned, 1e12 * diagonal.max(axis=1, keepdims=True), 0.0)
            step = -np.linalg.solve(normal + boost[..., None] * np.eye(5), gradient[..., None])[..., 0]
            trial = np.clip(theta[active] + step, low, high)
            new_cost, new_residual, new_jacobian, new_weight = evaluate(trial, active)
            better = new_cost < cost[active]
            gain = np.where(better, cost[active] - new_cost, 0.0)
            rows = active[better]
            theta[rows], cost[rows] = trial[better], new_cost[better]
            residual[rows], jacobian[rows], weight[rows] = new_residual[better], new_jacobian[better], new_weight[better]
            damping[active] = np.clip(np.where(better, damping[active] * 0.3, damping[active] * 4.0), 1e-12, 1e8)
            small = gain <= 1e-14 * cost[active] + 1e-32
            stalled[active] = np.where(small, stalled[active] + 1, 0)
            active = active[stalled[active] < 12]
        done = np.ones(len(theta), dtype=bool)
        done[active] = False
        return theta, cost, done
