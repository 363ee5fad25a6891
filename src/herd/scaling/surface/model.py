"""The surface as a problem for a solver: scaled points, pins and ties, the objective with exact first and second derivatives.

Points are kept as ln N, ln D and ln L less their means, which makes every fit blind to units and well conditioned. A point of the
search is theta = (ln E, ln A, ln B, a, b) in these units. Ties and pins are affine, theta = offset + basis @ free: in scaled
units a pinned A moves with a, since A / N^a is the same term whatever N is counted in.

Everything works on a batch of R replicates at once, which differ in their losses or in the weights of their points.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from herd.config.errors import UserError, nearest
from herd.config.registry import Registry

OBJECTIVES: Registry[str] = Registry("surface objective")
OBJECTIVES.register("huber_log")("Huber loss of ln L, summed (Hoffmann et al. 2022, eq. 3)")
OBJECTIVES.register("squared_log")("squared error of ln L")
OBJECTIVES.register("squared")("squared error of L")

PARAMETERS = ("E", "A", "B", "a", "b")
SMALLEST_LOG = -12.0  # ln of a term relative to the typical loss: what is below counts as absent
SMALLEST_EXPONENT, LARGEST_EXPONENT = 1e-3, 2.0
LOW = np.array([SMALLEST_LOG] * 3 + [SMALLEST_EXPONENT] * 2)
_IN_CACHE = 16_000  # replicates x points that are evaluated at once
HIGH = np.array([20.0] * 3 + [LARGEST_EXPONENT] * 2)


@dataclass(frozen=True)
class Derivatives:
    """The objective of R replicates at one theta each."""

    cost: np.ndarray  # (R,)
    gradient: np.ndarray  # (R, k) in the free parameters
    hessian: np.ndarray  # (R, k, k), exact away from Huber's two corners
    size: (
        np.ndarray
    )  # (R, k) squared natural scale of each parameter: the diagonal of the Gauss-Newton matrix (a bound of it when tied)

    def put(self, rows: np.ndarray, other: "Derivatives", chosen: np.ndarray) -> None:
        """Overwrite ``rows`` by the ``chosen`` rows of another."""
        for name, values in vars(self).items():
            values[rows] = getattr(other, name)[chosen]

    def take(self, rows: np.ndarray) -> "Derivatives":
        """Some of the replicates."""
        return Derivatives(*(values[rows] for values in vars(self).values()))


@dataclass(frozen=True)
class Problem:
    """n points in scaled units, an objective, and which of the five parameters are free."""

    log_n0: float  # mean of ln N
    log_d0: float
    log_scale: float  # mean of ln L
    u: np.ndarray  # ln N - log_n0, (n,)
    v: np.ndarray  # ln D - log_d0, (n,)
    objective: str
    delta: float
    free: tuple[int, ...]  # positions in PARAMETERS that the solver moves; the first exponent stands for both when tied
    offset: np.ndarray  # (5,)
    basis: np.ndarray  # (5, k)

    @classmethod
    def of(
        cls,
        n: np.ndarray,
        d: np.ndarray,
        y: np.ndarray,
        objective: str,
        delta: float,
        tie_exponents: bool = False,
        pins: Mapping[str, float] | None = None,
    ) -> "Problem":
        """Scale the points; refuse pins that contradict each other."""
        log_n0, log_d0, log_scale = (float(np.log(x).mean()) for x in (n, d, y))
        pins = _checked(pins or {}, tie_exponents)
        free = tuple(i for i, name in enumerate(PARAMETERS) if name not in pins and not (tie_exponents and name == "b"))
        offset, basis = np.zeros(5), np.zeros((5, len(free)))
        for column, i in enumerate(free):
            basis[i, column] = 1.0
            if tie_exponents and i == 3:
                basis[4, column] = 1.0
        for i in (3, 4):
            offset[i] = pins.get(PARAMETERS[i], 0.0)
        for i, name in enumerate("EAB"):
            if name in pins:
                with np.errstate(divide="ignore"):
                    offset[i] = np.log(pins[name]) - log_scale
        for i, centre in ((1, log_n0), (2, log_d0)):
            if PARAMETERS[i] in pins:
                offset[i] -= offset[i + 2] * centre
                basis[i] -= basis[i + 2] * centre
        u, v = np.log(n) - log_n0, np.log(d) - log_d0
        return cls(log_n0, log_d0, log_scale, u, v, objective, delta, free, offset, basis)

    @property
    def low(self) -> np.ndarray:
        """Bounds of the free parameters, (k,)."""
        return LOW[list(self.free)]

    @property
    def high(self) -> np.ndarray:
        """Bounds of the free parameters, (k,)."""
        return HIGH[list(self.free)]

    @property
    def amounts(self) -> np.ndarray:
        """Which free parameters are logarithms of E, A, B, (k,)."""
        return np.array(self.free, dtype=int) < 3

    @property
    def tied(self) -> bool:
        """Whether one free exponent stands for both."""
        return 3 in self.free and self.basis[4, self.free.index(3)] == 1.0

    def out(self, free: np.ndarray) -> np.ndarray:
        """Which of (..., k) free parameters are at the edge of what is allowed."""
        return (free <= self.low + 1e-6) | ((free >= self.high - 1e-6) & ~self.amounts)

    def theta(self, free: np.ndarray) -> np.ndarray:
        """(R, k) -> (R, 5)."""
        return np.asarray(self.offset + free @ self.basis.T)

    def target(self, losses: np.ndarray) -> np.ndarray:
        """Losses in nats (R, n) -> what the residuals are taken from."""
        log_losses = np.log(losses) - self.log_scale
        return np.asarray(np.exp(log_losses) if self.objective == "squared" else log_losses)

    def scaled(self, E: float, A: float, B: float, a: float, b: float) -> np.ndarray:
        """A surface as free parameters (k,), within their bounds."""
        with np.errstate(divide="ignore"):
            logs = np.log([E, A, B]) - self.log_scale - np.array([0.0, a * self.log_n0, b * self.log_d0])
        return np.clip(np.array([*logs, a, b])[list(self.free)], self.low, self.high)

    def unscaled(self, theta: np.ndarray) -> np.ndarray:
        """(R, 5) -> (ln E, ln A, ln B, a, b) in single parameters, tokens and nats; a vanished E is -inf."""
        log_e, log_a, log_b, a, b = theta.T
        log_e = np.where(log_e <= SMALLEST_LOG + 1e-6, -np.inf, log_e + self.log_scale)
        return np.stack([log_e, log_a + self.log_scale + a * self.log_n0, log_b + self.log_scale + b * self.log_d0, a, b], axis=1)

    def terms(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The three terms of the loss in scaled units: (R, 1), (R, n), (R, n)."""
        log_e, log_a, log_b, a, b = (t[:, None] for t in theta.T)
        return np.exp(log_e), np.exp(log_a - a * self.u), np.exp(log_b - b * self.v)

    def loss(self, free: np.ndarray) -> np.ndarray:
        """Loss of every point in units of the typical one: (R, k) -> (R, n)."""
        e, s, t = self.terms(self.theta(free))
        return e + s + t

    def influence(self, residual: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """rho, psi = rho', rho'' and psi / r of each residual; rho is r^2 / 2, beyond delta (Huber) delta (|r| - delta / 2)."""
        ones = np.ones_like(residual)
        if self.objective != "huber_log":
            return 0.5 * residual**2, residual, ones, ones
        psi = np.clip(residual, -self.delta, self.delta)
        above = self.delta / np.maximum(np.abs(residual), self.delta)
        return psi * (residual - 0.5 * psi), psi, (psi == residual).astype(float), above

    def jacobian(self, free: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Jacobian (n, k) in the free parameters and residuals (n,) of one data set: free (1, k), target (n,)."""
        (e, s, t), residual = self.residuals(free, target)
        return np.stack([e[0], s[0], t[0], -self.u * s[0], -self.v * t[0]], axis=1) @ self.basis, residual[0]

    def noise(self, residual: np.ndarray) -> tuple[float, float]:
        """Mean psi^2 per degree of freedom and mean psi' of residuals (n,) at an optimum; both are needed for any variance.

        Where Huber's delta is small against the scatter, few residuals lie within it, and the fit has drawn as many as it has
        parameters to 0: counting them overstates psi'. There it is delta times the density of the residuals at 0, from
        a window of Silverman's width, corrected for the residuals' being smaller than the noise.
        """
        count, freedom = len(residual), len(residual) - len(self.free)
        _, psi, curve, _ = self.influence(residual)
        square = float(psi @ psi) / freedom
        sizes = np.sort(np.abs(residual))
        window = 1.06 * 1.4826 * float(np.median(sizes[len(self.free) :])) * count**-0.2
        if self.objective != "huber_log" or self.delta >= window:
            return square, float(curve.mean())
        return square, self.delta / window * float((sizes < window).mean()) * (freedom / count) ** 0.5

    def evaluate(self, free: np.ndarray, target: np.ndarray, weight: np.ndarray | None = None) -> Derivatives:
        """Objective and derivatives of (R, k) free parameters against targets (R, n), with weights (R, n) of the points."""
        step = max(1, _IN_CACHE // len(self.u))
        parts = [
            self._evaluate(free[i : i + step], target[i : i + step], None if weight is None else weight[i : i + step])
            for i in range(0, len(free), step)
        ]
        return Derivatives(*(np.concatenate([getattr(p, name) for p in parts]) for name in Derivatives.__annotations__))

    def slope(self, free: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
        """Objective and gradient (k,) of one data set: free (k,), target (n,)."""
        (e, s, t), residual = self.residuals(free[None], target)
        rho, psi, _, _ = self.influence(residual)
        u0, u1, _ = ((psi * s) @ self.powers_u)[0]
        v0, v1, _ = ((psi * t) @ self.powers_v)[0]
        return float(rho.sum()), np.array([(psi * e).sum(), u0, v0, -u1, -v1]) @ self.basis

    def residuals(self, free: np.ndarray, target: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
        """The terms' derivatives by their own logarithms (3 of (R, n)) and the residuals (R, n) of the objective."""
        e, s, t = self.terms(self.theta(free))
        value = e + s + t
        if self.objective == "squared":
            return (np.broadcast_to(e, value.shape), s, t), value - target
        return (e / value, s / value, t / value), np.log(value) - target  # ln m has the derivatives of m over m

    def _evaluate(self, free: np.ndarray, target: np.ndarray, weight: np.ndarray | None) -> Derivatives:
        (e, s, t), residual = self.residuals(free, target)
        rho, psi, curve, above = self.influence(residual)
        if weight is not None:
            rho, psi, curve, above = rho * weight, psi * weight, curve * weight, above * weight
        # The derivatives are sums over points of products of terms with powers of u and v.
        u0, u1, u2 = ((psi * s) @ self.powers_u).T
        v0, v1, v2 = ((psi * t) @ self.powers_v).T
        gradient = np.stack([(psi * e).sum(axis=1), u0, v0, -u1, -v1], axis=1)
        # r = m - y bends as each term does; r = ln m - ln y as m''/m - (m'/m)(m'/m)'.
        hessian = self._outer(e, s, t, curve if self.objective == "squared" else curve - psi)
        for i, j, bend in ((0, 0, gradient[:, 0]), (1, 1, u0), (2, 2, v0), (1, 3, -u1), (2, 4, -v1), (3, 3, u2), (4, 4, v2)):
            hessian[:, i, j] += bend
            if i != j:
                hessian[:, j, i] += bend
        (s0, s2), (t0, t2) = ((above * s * s) @ self.powers_u[:, ::2]).T, ((above * t * t) @ self.powers_v[:, ::2]).T
        squares = np.stack([(above * e * e).sum(axis=1), s0, t0, s2, t2], axis=1)
        size = (np.sqrt(squares) @ np.abs(self.basis)) ** 2
        return Derivatives(rho.sum(axis=1), gradient @ self.basis, self.basis.T @ hessian @ self.basis, size)

    def _outer(self, e: np.ndarray, s: np.ndarray, t: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Sum over points of weight * j j', j = (e, s, t, -u s, -v t): (R, 5, 5)."""
        we, ws, wt = weight * e, weight * s, weight * t
        result = np.empty((len(weight), 5, 5))
        result[:, 0, 0] = (we * e).sum(axis=1)
        es, et = (we * s) @ self.powers_u[:, :2], (we * t) @ self.powers_v[:, :2]
        ss, tt, st = (ws * s) @ self.powers_u, (wt * t) @ self.powers_v, (ws * t) @ self.crossed
        upper = {(0, 1): es[:, 0], (0, 3): -es[:, 1], (0, 2): et[:, 0], (0, 4): -et[:, 1]}
        upper |= {(1, 1): ss[:, 0], (1, 3): -ss[:, 1], (3, 3): ss[:, 2], (2, 2): tt[:, 0], (2, 4): -tt[:, 1], (4, 4): tt[:, 2]}
        upper |= {(1, 2): st[:, 0], (2, 3): -st[:, 1], (1, 4): -st[:, 2], (3, 4): st[:, 3]}
        for (i, j), values in upper.items():
            result[:, i, j] = result[:, j, i] = values
        return result

    @cached_property
    def powers_u(self) -> np.ndarray:
        """1, u, u^2 of the points, (n, 3)."""
        return np.stack([np.ones_like(self.u), self.u, self.u**2], axis=1)

    @cached_property
    def powers_v(self) -> np.ndarray:
        """1, v, v^2 of the points, (n, 3)."""
        return np.stack([np.ones_like(self.v), self.v, self.v**2], axis=1)

    @cached_property
    def crossed(self) -> np.ndarray:
        """1, u, v, u v of the points, (n, 4)."""
        return np.stack([np.ones_like(self.u), self.u, self.v, self.u * self.v], axis=1)


def log_optimal_size(log_A: Any, log_B: Any, a: Any, b: Any, flops: float) -> Any:
    """ln of the compute-optimal parameters under 6ND = flops: (ln aA - ln bB + b ln(C/6)) / (a + b) (Hoffmann et al., eq. 4)."""
    return (np.log(a) + log_A - np.log(b) - log_B + b * np.log(flops / 6)) / (a + b)


def _checked(pins: Mapping[str, float], tie_exponents: bool) -> dict[str, float]:
    for name, value in pins.items():
        if name not in PARAMETERS:
            raise UserError(f"Cannot pin '{name}'.{nearest(name, PARAMETERS)} Choices: {', '.join(PARAMETERS)}.")
        if not (np.isfinite(value) and (value > 0 or (name == "E" and value == 0))):
            raise UserError(f"Cannot pin {name} at {value}: give a finite number above 0{' (or E = 0)' if name == 'E' else ''}.")
    pins = {name: float(value) for name, value in pins.items()}
    if tie_exponents and (set(pins) & {"a", "b"}):
        values = {pins[name] for name in ("a", "b") if name in pins}
        if len(values) > 1:
            raise UserError(f"Tied exponents cannot be pinned at a = {pins['a']:g} and b = {pins['b']:g}: give one of them.")
        pins["a"] = pins["b"] = values.pop()
    if len(pins) == 5:
        raise UserError("All five parameters of the surface are pinned: nothing is left to fit.")
    return pins
