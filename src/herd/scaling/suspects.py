"""Runs whose loss lies far off the fitted surface: an outlier, another unit, a diverged run that nobody marked."""

import math
from dataclasses import dataclass

import numpy as np

from herd.scaling.laws import Laws, columns
from herd.scaling.records.record import usable

_FAR = 6.0  # robust standard deviations of ln L
_LARGE = 0.05  # and this far in ln L: below, a loss is a loss
_UNIT = 0.03  # of ln L, within which a ratio of losses is that of bits to nats


@dataclass(frozen=True)
class Suspect:
    """One run to look at."""

    row: str  # its cell
    reason: str


def suspects(laws: Laws) -> list[Suspect]:
    """Runs far off the surface, farthest first; none where there is no surface to measure by."""
    surface = laws.surface
    if surface is None or surface.status != "ok":
        return []
    rows = usable(laws.records)
    n, d, y = columns(rows)
    off = np.log(y / surface.loss(n, d))
    # The median is robust: up to half of the rows may be off.
    scatter = 1.4826 * float(np.median(np.abs(off - np.median(off))))
    far = np.flatnonzero(np.abs(off) > max(_FAR * scatter, _LARGE))
    order = sorted(far.tolist(), key=lambda i: (-abs(off[i]), rows[i].cell))
    return [Suspect(rows[i].cell, _why(float(off[i]), rows[i].loss)) for i in order]


def _why(off: float, loss: float) -> str:
    ratio = f"its loss {loss:.4g} is {math.exp(off):.3g} x the surface's {loss / math.exp(off):.4g}"
    if abs(abs(off) + math.log(math.log(2))) < _UNIT:
        return f"{ratio}, as {'bits' if off > 0 else 'nats'} among {'nats' if off > 0 else 'bits'} would be: state loss_unit"
    return f"{ratio}: mend it, or mark the run status=diverged"
