"""Figures of a scaling study, in the manner of figures 2 and 3 of the Llama 3 paper; what a fit left out is told apart.

Each function draws one panel on given axes and returns them, so that a notebook can arrange them; :func:`save_all` writes PNGs.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from herd.scaling.forecast import Forecast
from herd.scaling.laws import Laws
from herd.scaling.numbers import power, si
from herd.scaling.records import by_budget

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
_FORECAST, _MEASURED, _LAW = "#c8553d", "#111111", "#2f5d8a"


def isoflop_curves(laws: Laws, axes: Axes) -> Axes:
    """Loss against training tokens, one parabola per budget; hollow points were left out, stars are the optima."""
    colours = _colours(len(laws.curves))
    groups = by_budget(laws.records)
    high = max((r.loss for r in laws.records if r.status == "ok"), default=1.0)
    lost: list[tuple[float, Any]] = []
    for curve, colour in zip(laws.curves, colours, strict=True):
        rows = groups[curve.budget]
        used = [r for r in rows if r.cell in curve.used]
        left = [r for r in rows if r.cell not in curve.used and np.isfinite(r.loss)]
        lost += [(r.tokens, colour) for r in rows if r.cell not in curve.used and not np.isfinite(r.loss)]
        axes.plot([r.tokens for r in used], [r.loss for r in used], "o", ms=5, color=colour, label=f"{power(curve.budget)}")
        axes.plot([r.tokens for r in left], [min(r.loss, high * 1.02) for r in left], "o", ms=5, mfc="none", color=colour)
        if curve.coefficients is not None and curve.range is not None:
            x = np.geomspace(*curve.range, 120)
            axes.plot(x, curve.loss_at(x), "-" if curve.status == "ok" else ":", lw=1.3, color=colour)
        if curve.tokens is not None and curve.loss is not None:
            axes.plot(curve.tokens, curve.loss, "*", ms=14, color=colour, mec="black", mew=0.9, zorder=5)
    for tokens, colour in lost:
        axes.plot(tokens, high * 1.02, "x", ms=6, color=colour)
    axes.set(xscale="log", xlabel="training tokens", ylabel="held-out loss (nats/token)", title="IsoFLOP curves")
    refused = [curve for curve in laws.curves if curve.status != "ok"]
    note = "★ optimum"
    if any(curve.dropped for curve in laws.curves):
        note += "   ○ × not used"
    if refused:
        note += "   dotted: no optimum"
    _legend(axes, title="FLOPs", ncols=2 if len(colours) > 5 else 1, loc="upper right")
    axes.text(0.0, 1.0, note, transform=axes.transAxes, fontsize=8.5, color="#555555", va="bottom")
    axes.set_title(axes.get_title(loc="left"), loc="left", pad=20)
    _log_ticks(axes)
    return axes


def tokens_law(laws: Laws, axes: Axes, forecast: Forecast | None = None) -> Axes:
    """Compute-optimal tokens against compute: the law, the band of where it lies, and the run it is asked about."""
    vertices = laws.vertices
    c = np.array([v.budget for v in vertices])
    errors = np.array([10 ** (v.log10_tokens_se or 0.0) for v in vertices])
    d = np.array([v.tokens for v in vertices], dtype=float)
    if len(c):
        span = np.stack([d - d / errors, d * errors - d])
        axes.errorbar(c, d, yerr=span, fmt="*", ms=11, color=_MEASURED, elinewidth=1, capsize=2, label="IsoFLOP optima ± s.e.")
    law = laws.tokens
    title = "Compute-optimal tokens"
    if law is not None:
        x = np.geomspace(c.min() / 1.5, max(c.max(), forecast.flops if forecast else 0) * 1.6, 100)
        if law.status == "ok":
            band = np.array([law.interval(v) or (np.nan, np.nan) for v in x])
            level = f"{100 * law.confidence:.0f}%"
            axes.fill_between(x, band[:, 0], band[:, 1], color=_LAW, alpha=0.15, lw=0, label=f"{level} interval of the law")
        axes.plot(x, [law.predict(v) for v in x], color=_LAW, lw=1.5, label=_law_text(laws))
    if forecast is not None:
        _point_with_interval(axes, forecast.flops, forecast.tokens, forecast.tokens_interval, laws)
    axes.set(xscale="log", yscale="log", xlabel="training compute (FLOPs)", ylabel="training tokens", title=title)
    _legend(axes, loc="upper left")
    _log_ticks(axes)
    return axes


def loss_law(laws: Laws, axes: Axes, forecast: Forecast | None = None, measured: float | None = None) -> Axes:
    """Compute-optimal loss against compute, by both laws, with the forecast's interval and what was measured."""
    vertices = laws.vertices
    c = np.array([v.budget for v in vertices])
    budgets = [curve.budget for curve in laws.curves]
    low, high = min(budgets) / 1.5, max(*budgets, forecast.flops if forecast else 0) * 1.6
    x = np.geomspace(low, high, 100)
    if len(c):
        error = [v.loss_se or 0.0 for v in vertices]
        axes.errorbar(
            c, [v.loss or np.nan for v in vertices], yerr=error, fmt="*", ms=11, color=_MEASURED, elinewidth=1, capsize=2,
            label="loss at the optima ± s.e.",
        )  # fmt: skip
    if laws.frontier is not None:
        law = laws.frontier
        offset = f"{law.E:.2f} + " if law.E > 0 else ""
        text = f"frontier: {offset}{law.k:.2f} (C / {power(law.reference)})$^{{-{law.g:.2f}}}$"
        axes.plot(x, law.loss(x), color=_LAW, lw=1.5, label=text)
    if laws.surface is not None and laws.surface.status == "ok":
        best = [float(laws.surface.loss(*laws.surface.optimum(v))) for v in x]
        axes.plot(x, best, "--", color="#5b8c5a", lw=1.5, label="surface, at its optimum")
    if forecast is not None and forecast.loss is not None:
        _point_with_interval(axes, forecast.flops, forecast.loss, forecast.loss_interval, laws)
    if measured is not None and forecast is not None:
        axes.plot(forecast.flops, measured, "D", ms=7, color=_MEASURED, mfc="white", mew=1.5, zorder=6, label="measured")
    axes.set(xscale="log", xlabel="training compute (FLOPs)", ylabel="held-out loss (nats/token)", title="Compute-optimal loss")
    _legend(axes, loc="upper right")
    _log_ticks(axes)
    return axes


def training_curves(laws: Laws, curves: Mapping[str, Sequence[Mapping[str, Any]]], axes: Axes) -> Axes:
    """Training loss of every cell against the compute spent so far; each budget ends on its own vertical."""
    groups = by_budget(laws.records)
    for (budget, rows), colour in zip(groups.items(), _colours(len(groups)), strict=True):
        for i, record in enumerate(rows):
            points = [(row["num_tokens"], row["loss"]) for row in curves.get(record.cell, []) if "loss" in row]
            if len(points) < 2:
                continue
            tokens, loss = np.array(points, dtype=float).T
            flops = tokens * record.flops / record.tokens
            axes.plot(flops, _smooth(loss), lw=0.9, color=colour, alpha=0.75, label=power(budget) if i == 0 else None)
    axes.set(xscale="log", xlabel="training compute so far (FLOPs)", ylabel="training loss (nats/token)")
    axes.set_title("Training curves of the cells")
    _legend(axes, title="FLOPs", loc="upper right")
    _log_ticks(axes)
    return axes


def _smooth(values: np.ndarray, share: float = 0.04) -> np.ndarray:
    """Running mean over ``share`` of the curve, shorter at its ends."""
    half = int(len(values) * share / 2)
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    first, last = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return np.asarray((total[last] - total[first]) / (last - first))


def save_all(laws: Laws, forecast: Forecast | None, folder: Path, measured: float | None = None) -> list[Path]:
    """Write isoflop.png, tokens_law.png and loss_law.png into ``folder``."""
    panels: dict[str, Callable[[Axes], Axes]] = {
        "isoflop": lambda axes: isoflop_curves(laws, axes),
        "tokens_law": lambda axes: tokens_law(laws, axes, forecast),
        "loss_law": lambda axes: loss_law(laws, axes, forecast, measured),
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for name, draw in panels.items():
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(6.4, 4.4))
            draw(figure.add_subplot())
            paths.append(folder / f"{name}.png")
            # No creation time in the file: equal inputs give equal bytes.
            figure.savefig(paths[-1], metadata={"Software": None})
    return paths


def _point_with_interval(axes: Axes, x: float, y: float, interval: Sequence[float] | None, laws: Laws) -> None:
    if interval is not None:
        axes.plot([x, x], list(interval), color=_FORECAST, lw=2.2, solid_capstyle="round")
    label = f"forecast, {100 * laws.config.confidence:.0f}% interval" if interval is not None else "forecast, no interval"
    axes.plot(x, y, "o", ms=8, color=_FORECAST, mec="white", zorder=5, label=label)


def _legend(axes: Axes, **options: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(**options)


def _law_text(laws: Laws) -> str:
    law = laws.tokens
    assert law is not None
    span = f" [{law.exponent_interval[0]:.2f}, {law.exponent_interval[1]:.2f}]" if law.exponent_interval else ", no interval"
    return f"$D^* = {law.coefficient:.3g}\\, C^{{\\alpha}}$, α = {law.exponent:.3f}{span}"


def _colours(count: int) -> list[Any]:
    return [matplotlib.colormaps["viridis"](v) for v in np.linspace(0.05, 0.88, max(count, 1))]


def _log_ticks(axes: Axes) -> None:
    """Readable ticks on logarithmic axes that span little more than a decade."""
    for axis, scale in ((axes.xaxis, axes.get_xscale()), (axes.yaxis, axes.get_yscale())):
        if scale != "log":
            continue
        low, high = axis.get_view_interval()
        narrow = high / max(low, 1e-300) < 300
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,)))
        axis.set_minor_formatter(NullFormatter())
        compute = "FLOPs" in axes.get_xlabel() and axis is axes.xaxis
        axis.set_major_formatter(FuncFormatter(lambda v, _: power(v)) if compute else FuncFormatter(lambda v, _: si(v)))
