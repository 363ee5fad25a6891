"""The look of the scaling figures, and the parts that several panels draw."""

import math
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from herd.scaling.numbers import power, times

STYLE: Any = {
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.constrained_layout.use": True,
}
FORECAST, MEASURED, LAW, SURFACE = "#c8553d", "#111111", "#2f5d8a", "#5b8c5a"


def shade_extrapolation(axes: Axes, largest: float, flops: float | None, what: str = "budget") -> None:
    """Grey what lies beyond the largest budget, and say how far the forecast reaches; call it when the limits stand.

    ``what`` names the axis, where it is not the budget.
    """
    high = axes.get_xlim()[1]
    if flops is None or flops <= largest * 1.001 or high <= largest:
        return
    axes.axvspan(largest * 10**0.02, high, color="#f3f1ee", zorder=-5, lw=0)
    axes.axvline(largest * 10**0.02, color="#b8b2aa", lw=0.8, ls=(0, (4, 3)), zorder=-4)
    axes.set_xlim(right=high)
    text = f"extrapolation: {times(flops / largest)} the largest {what}"
    # To the left end of the region where the text fits into it, else against the right edge of the axes.
    low = axes.get_xlim()[0]
    wide = math.log(high / largest) / math.log(high / low) > 0.5
    where, side = (largest * 1.3, "left") if wide else (high, "right")
    axes.text(where, 0.015, text, transform=axes.get_xaxis_transform(), ha=side, va="bottom", fontsize=8, color="#7d766d")


def legend(axes: Axes, **options: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(**options)


def colours(count: int) -> list[Any]:
    return [matplotlib.colormaps["viridis"](v) for v in np.linspace(0.05, 0.88, max(count, 1))]


def _short(value: float, _: object = None) -> str:
    """A tick: 5B, 200B, 1T."""
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= size * 0.999:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"


def log_ticks(axes: Axes) -> None:
    """Readable ticks on logarithmic axes that span little more than a decade."""
    for axis, scale in ((axes.xaxis, axes.get_xscale()), (axes.yaxis, axes.get_yscale())):
        if scale != "log":
            continue
        low, high = axis.get_view_interval()
        narrow = high / max(low, 1e-300) < 300
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,)))
        axis.set_minor_formatter(NullFormatter())
        compute = "FLOPs" in axes.get_xlabel() and axis is axes.xaxis
        axis.set_major_formatter(FuncFormatter(lambda v, _: power(v)) if compute else FuncFormatter(_short))
