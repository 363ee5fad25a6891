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
from scipy import stats

from herd.scaling.curves.isoflop import IsoFLOPCurve
from herd.scaling.curves.valley import parabola_design
from herd.scaling.figure_style import FORECAST, LAW, MEASURED, STYLE, SURFACE, colours, legend, log_ticks, shade_extrapolation
from herd.scaling.forecast import Forecast, measured_losses
from herd.scaling.laws import Laws, columns
from herd.scaling.numbers import power, span
from herd.scaling.records.record import by_budget, usable
from herd.scaling.replicates import quantiles


def isoflop_curves(laws: Laws, axes: Axes) -> Axes:
    """Loss against training tokens, one parabola per budget; hollow points were left out, stars are the optima."""
    palette = colours(len(laws.curves))
    groups = by_budget(laws.records)
    high = max((r.loss for r in laws.records if r.status == "ok"), default=1.0)
    lost: list[tuple[float, Any]] = []
    for curve, colour in zip(laws.curves, palette, strict=True):
        rows = groups[curve.budget]
        used = [r for r in rows if r.cell in curve.used]
        left = [r for r in rows if r.cell not in curve.used and np.isfinite(r.loss)]
        lost += [(r.tokens, colour) for r in rows if r.cell not in curve.used and not np.isfinite(r.loss)]
        axes.plot(
            [r.tokens for r in used],
            [r.loss for r in used],
            "o",
            ms=4.5,
            color=colour,
            mec="white",
            mew=0.4,
            label=power(curve.budget),
        )
        axes.plot([r.tokens for r in left], [min(r.loss, high * 1.02) for r in left], "o", ms=5, mfc="none", color=colour)
        if curve.coefficients is not None and curve.range is not None:
            x = np.geomspace(*curve.range, 120)
            axes.plot(x, curve.loss_at(x), "-" if curve.status == "ok" else ":", lw=1.3, color=colour)
            half = _parabola_band(curve, x, laws.config.confidence)
            if half is not None:
                axes.fill_between(x, curve.loss_at(x) - half, curve.loss_at(x) + half, color=colour, alpha=0.18, lw=0)
        if curve.tokens is not None and curve.loss is not None:
            axes.plot(curve.tokens, curve.loss, "*", ms=12, color="white", mec="black", mew=1.0, zorder=5)
    for tokens, colour in lost:
        axes.plot(tokens, high * 1.02, "x", ms=6, color=colour)
    axes.set(xscale="log", xlabel="training tokens", ylabel=loss_label(laws), title="IsoFLOP curves")
    refused = [curve for curve in laws.curves if curve.status != "ok"]
    note = "no budget has an optimum"
    if laws.vertices:
        note = f"☆ optimum   band: {100 * laws.config.confidence:g}% of where the parabola lies"
    if any(curve.dropped for curve in laws.curves):
        note += "   ○ × not used"
    if any(curve.coefficients is not None for curve in refused):
        note += "   dotted: no optimum"
    if len(palette) <= 16:  # a set without budgets has a "curve" per run
        legend(axes, title="FLOPs", ncols=2 if len(palette) > 5 else 1, loc="upper right")
    else:
        note += f"   dark to light: {power(laws.curves[0].budget)} to {power(laws.curves[-1].budget)} FLOPs"
    axes.text(0.0, 1.0, note, transform=axes.transAxes, fontsize=8.5, color="#555555", va="bottom")
    axes.set_title(axes.get_title(loc="left"), loc="left", pad=20)
    log_ticks(axes)
    return axes


def _parabola_band(curve: IsoFLOPCurve, tokens: np.ndarray, confidence: float) -> np.ndarray | None:
    """Half-width of the interval of the parabola's mean at ``tokens``; None where the points leave no scatter."""
    if curve.curve != "parabola" or curve.x != "tokens" or curve.residual_std is None or curve.centre is None:
        return None
    design = parabola_design(curve.log10_x - curve.centre)
    at = parabola_design(np.log10(tokens) - curve.centre)
    variance = np.einsum("ij,jk,ik->i", at, np.linalg.inv(design.T @ design), at)
    return np.asarray(stats.t.ppf(0.5 + confidence / 2, len(design) - 3) * curve.residual_std * np.sqrt(variance))


def loss_label(laws: Laws) -> str:
    """Label of an axis of losses, with the table's unit."""
    units = {record.loss_unit for record in laws.records if record.status == "ok"}
    return f"held-out loss ({', '.join(sorted(units))})"


def tokens_law(laws: Laws, axes: Axes, forecast: Forecast | None = None) -> Axes:
    """Compute-optimal tokens against compute: the law, the band of where it lies, and the run it is asked about."""
    vertices = laws.vertices
    c = np.array([v.budget for v in vertices])
    errors = np.array([10 ** (v.log10_tokens_se or 0.0) for v in vertices])
    d = np.array([v.tokens for v in vertices], dtype=float)
    if len(c):
        bars = np.stack([d - d / errors, d * errors - d])
        axes.errorbar(
            c, d, yerr=bars, fmt="*", ms=10, color=MEASURED, elinewidth=1, capsize=2, zorder=4, label="IsoFLOP optima ± s.e."
        )
    for curve in laws.curves:
        if curve.status != "ok":  # a budget without an optimum stays visible
            label = "budget without optimum" if curve is next(c for c in laws.curves if c.status != "ok") else None
            axes.plot(curve.budget, 0.03, "x", ms=6, color="#999999", transform=axes.get_xaxis_transform(), label=label)
    if not len(c):
        rows = usable(laws.records)
        label = "runs: no budget has an optimum"
        axes.plot([r.flops for r in rows], [r.tokens for r in rows], "o", ms=3, color="#bbbbbb", label=label)
    law = laws.tokens
    title = "Compute-optimal tokens"
    low = min(c.min(initial=laws.largest_budget), min(curve.budget for curve in laws.curves))
    x = np.geomspace(low / 1.5, max(laws.largest_budget, forecast.flops if forecast else 0) * 1.6, 100)
    if law is not None:
        if law.status == "ok":
            band = np.array([law.interval(v) or (np.nan, np.nan) for v in x])
            level = f"{100 * law.confidence:.0f}%"
            axes.fill_between(x, band[:, 0], band[:, 1], color=LAW, alpha=0.15, lw=0, label=f"{level} interval of the law")
        inside = x <= laws.largest_budget
        axes.plot(x[inside], [law.predict(v) for v in x[inside]], color=LAW, lw=1.6, label=_law_text(laws))
        axes.plot(x[~inside], [law.predict(v) for v in x[~inside]], color=LAW, lw=1.4, ls=(0, (5, 2)))
    if laws.surface is not None and laws.surface.status == "ok":  # the only law of a table without budgets
        best = [laws.surface.optimum(v)[1] for v in x]
        axes.plot(x, best, color=SURFACE, lw=1.2 if law else 1.8, ls=(0, (1, 1.2)), label="surface's optimum")
    if forecast is not None:
        _point_with_interval(axes, forecast.flops, forecast.tokens, forecast.tokens_interval, laws)
    axes.set(xscale="log", yscale="log", xlabel="training compute (FLOPs)", ylabel="training tokens", title=title)
    shade_extrapolation(axes, laws.largest_budget, forecast.flops if forecast else None)
    legend(axes, loc="upper left")
    log_ticks(axes)
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
            c, [v.loss or np.nan for v in vertices], yerr=error, fmt="*", ms=11, color=MEASURED, elinewidth=1, capsize=2,
            label="loss at the optima ± s.e.",
        )  # fmt: skip
    if laws.frontier is not None:
        law = laws.frontier
        offset = f"{law.E:.2f} + " if law.E > 0 else ""
        text = f"frontier: {offset}{law.k:.2f} (C / {power(law.reference)})$^{{-{law.g:.2f}}}$"
        axes.plot(x, law.loss(x), color=LAW, lw=1.5, label=text)
    if laws.surface is not None and laws.surface.status == "ok":
        best = [float(laws.surface.loss(*laws.surface.optimum(v))) for v in x]
        axes.plot(x, best, color=SURFACE, lw=1.4, ls=(0, (1, 1.2)), label="surface, at its optimum")
    _loss_bands(laws, x, axes)
    if forecast is not None and forecast.loss is not None:
        _point_with_interval(axes, forecast.flops, forecast.loss, forecast.loss_interval, laws)
    if measured is not None and forecast is not None:
        axes.plot(forecast.flops, measured, "D", ms=7, color=MEASURED, mfc="white", mew=1.5, zorder=6, label="measured")
    axes.set(xscale="log", xlabel="training compute (FLOPs)", ylabel=loss_label(laws), title="Compute-optimal loss")
    shade_extrapolation(axes, laws.largest_budget, forecast.flops if forecast else None)
    legend(axes, loc="upper right")
    log_ticks(axes)
    return axes


def _loss_bands(laws: Laws, flops: np.ndarray, axes: Axes) -> None:
    """Where one measured run would lie, by each law at its own optimum."""
    coarse = flops[:: max(len(flops) // 25, 1)]
    tokens = coarse / 6
    if laws.surface is not None and laws.surface.status == "ok":
        tokens = np.array([laws.surface.optimum(float(v))[1] for v in coarse])
    for name, (_, drawn) in measured_losses(laws, coarse, coarse / 6 / tokens, tokens).items():
        bounds = np.array([quantiles(column, laws.config.confidence) for column in drawn.T])
        colour = LAW if name == "frontier" else SURFACE
        axes.fill_between(coarse, bounds[:, 0], bounds[:, 1], color=colour, alpha=0.14, lw=0)


def residuals(laws: Laws, axes: Axes) -> Axes:
    """What the surface leaves of every cell's loss, against tokens per parameter: a trend is a misfit, not noise."""
    rows = usable(laws.records)
    n, d, y = columns(rows)
    assert laws.surface is not None
    left = 100 * (y / laws.surface.loss(n, d) - 1)
    groups = by_budget(rows)
    for (budget, members), colour in zip(groups.items(), colours(len(groups)), strict=True):
        picked = [i for i, row in enumerate(rows) if row in members]
        axes.plot((d / n)[picked], left[picked], "o", ms=4.5, color=colour, mec="white", mew=0.4, label=power(budget))
    axes.axhline(0, color="#888888", lw=0.8)
    std = 100 * laws.surface.residual_std
    axes.axhspan(-2 * std, 2 * std, color=SURFACE, alpha=0.1, lw=0)
    axes.set(xscale="log", xlabel="tokens per parameter", ylabel="loss above the surface (%)")
    axes.set_title("Residuals of the surface (band: ± 2 standard deviations)")
    if len(groups) <= 12:
        legend(axes, title="FLOPs", ncols=2 if len(groups) > 5 else 1, loc="best")
    log_ticks(axes)
    return axes


def training_curves(laws: Laws, curves: Mapping[str, Sequence[Mapping[str, Any]]], axes: Axes) -> Axes:
    """Training loss of every cell against the compute spent so far; each budget ends on its own vertical."""
    groups = by_budget(laws.records)
    for (budget, rows), colour in zip(groups.items(), colours(len(groups)), strict=True):
        for i, record in enumerate(rows):
            points = [(row["num_tokens"], row["loss"]) for row in curves.get(record.cell, []) if "loss" in row]
            if len(points) < 2:
                continue
            tokens, loss = np.array(points, dtype=float).T
            flops = tokens * record.flops / record.tokens
            axes.plot(flops, _smooth(loss), lw=0.9, color=colour, alpha=0.75, label=power(budget) if i == 0 else None)
    axes.set(xscale="log", xlabel="training compute so far (FLOPs)", ylabel="training loss (nats/token)")
    axes.set_title("Training curves of the cells")
    legend(axes, title="FLOPs", loc="upper right")
    log_ticks(axes)
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
    return save_panels(panels, folder)


def save_panels(panels: Mapping[str, Callable[[Axes], Axes]], folder: Path) -> list[Path]:
    """Draw each panel into ``<folder>/<name>.png``."""
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
        axes.plot([x, x], list(interval), color=FORECAST, lw=2.2, solid_capstyle="round")
    label = f"forecast, {100 * laws.config.confidence:.0f}% interval" if interval is not None else "forecast, no interval"
    axes.plot(x, y, "o", ms=8, color=FORECAST, mec="white", zorder=5, label=label)


def _law_text(laws: Laws) -> str:
    law = laws.tokens
    assert law is not None
    interval = f" {span(law.exponent_interval)}" if law.exponent_interval else ", no interval"
    return f"$D^* = {law.coefficient:.3g}\\, C^{{\\alpha}}$, α = {law.exponent:.3f}{interval}"
