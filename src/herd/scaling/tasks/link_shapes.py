"""Shapes of a link: from 1 (loss far below the midpoint) down to 0, in u = slope x (loss - midpoint); every one is 1/2 at u = 0.

Each shape returns g(u), dg/du and dg/d(ln s), all of u's shape. The asymmetry s, which only
``logistic5`` has, broadcasts with u.
"""

import math
from collections.abc import Callable

import numpy as np
from scipy.special import expit, ndtr

from herd.config.registry import Registry

Asymmetry = np.ndarray | float
Shape = Callable[[np.ndarray, Asymmetry], tuple[np.ndarray, np.ndarray, np.ndarray]]
LINKS: Registry[Shape] = Registry("link")
_EXPONENT = 300.0  # e^u is not needed beyond


@LINKS.register("sigmoid")
def sigmoid(u: np.ndarray, s: Asymmetry) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """1 / (1 + e^u): the link of Llama 3 (section 3.2.1) and of the OLMo ladder."""
    g = expit(-u)
    return g, -g * (1 - g), np.zeros_like(g)


@LINKS.register("probit")
def probit(u: np.ndarray, s: Asymmetry) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The normal distribution's: flatter far from the midpoint than the sigmoid."""
    return ndtr(-u), -np.exp(-(u**2) / 2) / math.sqrt(2 * math.pi), np.zeros_like(u)


@LINKS.register("gompertz")
def gompertz(u: np.ndarray, s: Asymmetry) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """2^(-e^u): rises steeply out of chance and nears the ceiling slowly."""
    q = math.log(2) * np.exp(np.clip(u, -_EXPONENT, _EXPONENT))
    g = np.exp(-q)
    return g, -q * g, np.zeros_like(g)


@LINKS.register("logistic5")
def logistic5(u: np.ndarray, s: Asymmetry) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(1 + (2^(1/s) - 1) e^u)^-s, the five-parameter logistic; s = 1 is the sigmoid, a large s the Gompertz curve."""
    power = 2 ** (1 / s)
    e = np.exp(np.clip(u, -_EXPONENT, _EXPONENT))
    q = (power - 1) * e
    g = np.exp(-s * np.log1p(q))
    along_s = -np.log1p(q) + math.log(2) / s * power * e / (1 + q)
    return g, -s * g * q / (1 + q), s * g * along_s


def predict_links(kind: str, parameters: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Accuracies of a curve (5,) at x of any shape, or of curves (R, 5), each at its own x: (R,) or (R, n)."""
    many = parameters.ndim == 2
    low, high, midpoint, slope, asymmetry = (p[:, None] for p in parameters.T) if many else parameters
    at = x[:, None] if many and x.ndim == 1 else x
    value = low + (high - low) * LINKS.get(kind)(slope * (at - midpoint), asymmetry)[0]
    return np.asarray(value[:, 0] if many and x.ndim == 1 else value)


def curves_and_slopes(kind: str, parameters: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Accuracies (R, n) of curves (R, 5) at common x (n,), and their derivatives (R, n, 5)."""
    low, high, midpoint, slope, asymmetry = (p[:, None] for p in parameters.T)
    distance = x - midpoint
    g, along_u, along_log_s = LINKS.get(kind)(slope * distance, asymmetry)
    span = high - low
    columns = [1 - g, g, -span * slope * along_u, span * along_u * distance, span * along_log_s / asymmetry]
    return low + span * g, np.stack(columns, axis=2)
