"""One look for all figures: the scaling figures' style, and a colour that means the same thing everywhere."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from herd.report.formats import si
from herd.scaling.figure_style import STYLE

WIDTH = 8.4  # inches; the page shows figures at their width of 840 px
INK, MUTED, FORECAST, BLUE = "#1c1e21", "#8a8f98", "#c8553d", "#2f5d8a"
DOMAINS = {"general": "#2f5d8a", "maths": "#8e5ea2", "code": "#5b8c5a", "multilingual": "#c98b2b"}
KINDS = {"pretrain": "#60656d", "sft": "#2f6fb2", "dpo": "#c8553d", "average": "#3f8f6b", "reward": "#8e5ea2"}
_OURS: Any = STYLE | {
    "font.size": 9.5,
    "font.family": "sans-serif",
    "axes.titlesize": 10.5,
    "axes.labelcolor": INK,
    "text.color": INK,
    "axes.edgecolor": "#b8bcc4",
    "xtick.color": "#4a4f57",
    "ytick.color": "#4a4f57",
    "figure.facecolor": "white",
    "savefig.dpi": 170,
}


@contextmanager
def canvas(height: float, rows: int = 1, columns: int = 1, **options: Any) -> Iterator[tuple[Figure, Any]]:
    """A figure of the page's width and its axes (always a 2-d array) in the common style."""
    with matplotlib.rc_context(_OURS):
        figure = Figure(figsize=(WIDTH, height))
        yield figure, figure.subplots(rows, columns, squeeze=False, **options)


def png(figure: Figure) -> bytes:
    """The figure as PNG; equal figures give equal bytes."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(_OURS):
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def model_colour(label: str) -> str:
    """By what made the model: its label's last part, ``dpo-b`` like ``dpo``."""
    stage = label.rsplit("/", 1)[-1].split("-")[0]
    return KINDS.get(stage, MUTED)


def short(label: str) -> str:
    """``round-1/dpo`` as ``dpo · 1``."""
    head, _, stage = label.partition("/")
    return f"{stage} · {head.removeprefix('round-')}" if stage else label


def ticks_in_si(axis: Any) -> None:
    """Tick labels such as 250K and 2M."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: si(value)))


def dots(
    axes: Axes,
    positions: Sequence[float],
    values: Sequence[float],
    bounds: Sequence[Sequence[float] | None],
    colours: Sequence[str],
    vertical: bool = True,
    size: float = 6,
    marker: str = "o",
) -> None:
    """Points with 95% intervals, one colour each; along x (``vertical`` intervals) or along y."""
    for place, value, pair, colour in zip(positions, values, bounds, colours, strict=True):
        if pair is not None:
            ends = ([place, place], list(pair))
            axes.plot(*(ends if vertical else ends[::-1]), color=colour, lw=1.8, solid_capstyle="round", zorder=2)
        point = (place, value) if vertical else (value, place)
        axes.plot(*point, marker, ms=size, color=colour, mec="white", mew=0.8, zorder=3)


def reference_line(axes: Axes, value: float, text: str, vertical: bool = False) -> None:
    """A dashed line such as chance, named at its end."""
    draw = axes.axvline if vertical else axes.axhline
    draw(value, color=MUTED, lw=1, ls=(0, (4, 3)), zorder=1)
    if vertical:
        axes.annotate(text, (value, 1), xycoords=("data", "axes fraction"), xytext=(0, 2), textcoords="offset points",
                      ha="center", va="bottom", fontsize=8, color=MUTED)  # fmt: skip
    else:
        axes.annotate(text, (1, value), xycoords=("axes fraction", "data"), xytext=(-2, 2), textcoords="offset points",
                      ha="right", va="bottom", fontsize=8, color=MUTED)  # fmt: skip
