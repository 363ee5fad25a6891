"""The minimum of a smooth curve through noisy losses, for many draws of the losses at once; refused where there is none.

``parabola``: plain least squares of a second-degree polynomial, as Llama 3 (section 3.2.1) fits its IsoFLOP curves. It is biased
where the true curve is not symmetric. ``akima``: Akima's interpolant (Akima 1970) through the mean loss of each x, as Porian et
al. 2024 use; it follows any shape, and any noise.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import Akima1DInterpolator

from herd.config.registry import Registry

CURVES: Registry[int] = Registry("curve")  # name -> the fewest different x that it can be judged by
CURVES.register("parabola")(3)
CURVES.register("akima")(5)  # Akima's slope at a point looks two points to either side


@dataclass(frozen=True)
class Valleys:
    """Minima of R curves; NaN where the status is not ok."""

    status: np.ndarray  # (R,) of str: ok | concave | below (at or under the smallest x) | above (at or over the largest)
    at: np.ndarray  # (R,) position of the minimum
    lowest: np.ndarray  # (R,) loss there


def find_valleys(x: np.ndarray, losses: np.ndarray, curve: str = "parabola") -> Valleys:
    """Minima of curves through x (n,), in any order and with repeats, and losses (R, n)."""
    c0, c1, c2 = parabolas(x, losses).T
    # Curvature below rounding error is a straight line, not a very wide parabola.
    concave = c2 * np.ptp(x) ** 2 <= 1e-9 * np.abs(c0)
    if curve == "akima":
        at, lowest = _lowest_of_akima(x, losses)
    else:
        at = -c1 / np.where(concave, np.nan, 2 * c2)
        lowest, at = c0 + c1 * at / 2, at + x.mean()
    status = np.where(at <= x.min(), "below", np.where(at >= x.max(), "above", "ok")).astype(object)
    status[concave] = "concave"
    ok = status == "ok"
    return Valleys(status, np.where(ok, at, np.nan), np.where(ok, lowest, np.nan))


def parabolas(x: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Coefficients (R, 3) of least-squares parabolas in x - mean(x)."""
    return np.asarray(losses @ np.linalg.pinv(parabola_design(x - x.mean())).T)


def parabola_design(x: np.ndarray) -> np.ndarray:
    """Design matrix (n, 3) of a parabola at centred ``x`` (n,)."""
    return np.stack([np.ones_like(x), x, x * x], axis=1)


def vertex_errors_of(x: np.ndarray, loss: np.ndarray) -> tuple[float, float, float] | None:
    """Standard errors of a parabola's vertex (delta method) and of the loss there, and the scatter about it; None with 3 points.

    x (n,) and loss (n,) have a parabola that opens upwards.
    """
    freedom = len(x) - 3
    if freedom <= 0:
        return None
    centred = x - x.mean()
    design = parabola_design(centred)
    c = parabolas(x, loss[None])[0]
    residual = loss - design @ c
    std = math.sqrt(float(residual @ residual) / freedom)
    covariance = np.linalg.inv(design.T @ design) * std**2
    at = -c[1] / (2 * c[2])
    # u* = -c1 / 2 c2;  dL*/dc at the vertex is (1, u*, u*^2) since dL/du = 0 there.
    gradient, at_vertex = np.array([0.0, -1 / (2 * c[2]), c[1] / (2 * c[2] ** 2)]), np.array([1.0, at, at * at])
    return math.sqrt(float(gradient @ covariance @ gradient)), math.sqrt(float(at_vertex @ covariance @ at_vertex)), std


def akima(x: np.ndarray, losses: np.ndarray) -> Akima1DInterpolator:
    """Interpolant through the mean loss of each different x; losses (R, n), the interpolant's values (..., R)."""
    knots, which = np.unique(x, return_inverse=True)
    means = np.stack([losses[:, which == i].mean(axis=1) for i in range(len(knots))])
    return Akima1DInterpolator(knots, means)


def _lowest_of_akima(x: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Position and value (R,) of the lowest point of each interpolant within its range, ends included."""
    curve = akima(x, losses)
    left, width = curve.x[:-1, None], np.diff(curve.x)[:, None]
    a, b, c, d = curve.c  # each (pieces, R): a t^3 + b t^2 + c t + d, t from the piece's left end
    with np.errstate(divide="ignore", invalid="ignore"):
        root = np.sqrt(b**2 - 3 * a * c)
        # The slope's zero at which it grows, written so that a straight slope (a = 0) gives -c / 2b instead of 0 / 0.
        t = np.where(b >= 0, -c / (b + root), (root - b) / (3 * a))
    t = np.where((t >= 0) & (t <= width), t, 0.0)  # pieces without a minimum inside offer their left end
    position = np.concatenate([left + t, np.broadcast_to(curve.x[-1], (1, t.shape[1]))])
    value = np.concatenate([((a * t + b) * t + c) * t + d, curve(curve.x[-1])[None]])
    best = value.argmin(axis=0)
    columns = np.arange(t.shape[1])
    return position[best, columns], value[best, columns]
