"""Figures of the over-training law, of the best learning rate and batch, and of a roll-out."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from herd.scaling.curves.hyperparameters import SETTINGS, HyperparameterLaw
from herd.scaling.curves.overtraining import OvertrainingLaw
from herd.scaling.figure_style import FORECAST, LAW, MEASURED, SURFACE, colours, legend, log_ticks, shade_extrapolation
from herd.scaling.figures import loss_label, save_panels
from herd.scaling.forecast import Forecast
from herd.scaling.further_laws import FurtherLaws
from herd.scaling.laws import Laws
from herd.scaling.numbers import power, span
from herd.scaling.records.record import by_budget, usable

_CURVES = 12  # budgets whose curve is drawn: a set without budgets has hundreds
_LAWS = {"tokens": "#8c6d9e", "frontier": LAW, "surface": SURFACE, "overtraining": "#d08c3f", "forecast": FORECAST}


def overtraining_curves(law: OvertrainingLaw, laws: Laws, axes: Axes) -> Axes:
    """Loss against tokens per parameter, a curve of the law per budget with the band of where it lies; hollow: not fitted."""
    high = max(row.loss for row in usable(laws.records))
    groups = by_budget(laws.records)
    drawn = {list(groups)[i] for i in np.linspace(0, len(groups) - 1, min(_CURVES, len(groups))).round().astype(int)}
    for (budget, rows), colour in zip(groups.items(), colours(len(groups)), strict=True):
        for row in rows:
            if not np.isfinite(row.loss):
                continue
            used = row.status == "ok"
            ratio, face = 6 * row.tokens**2 / row.flops, colour if used else "none"
            edge = {"mec": "white", "mew": 0.4} if used else {"mec": colour, "mew": 1.0}
            axes.plot(ratio, min(row.loss, high * 1.02), "o", ms=4.5, mfc=face, **edge)
        good = usable(rows)
        if budget not in drawn or not good:
            continue
        ratios = [6 * row.tokens**2 / row.flops for row in good]
        m = np.geomspace(min(ratios) / 1.2, max(ratios) * 1.2, 60)
        band = np.array([law.interval(budget, float(v)) for v in m])
        axes.plot(m, law.loss(budget, m), lw=1.3, color=colour, label=power(budget))
        axes.fill_between(m, band[:, 0], band[:, 1], color=colour, alpha=0.18, lw=0)
    best = law.optimal_ratio()
    low, high = axes.get_xlim()
    if best is not None and low < best < high:
        axes.axvline(best, color="#888888", lw=0.9, ls=(0, (4, 3)), label=f"lowest loss: M = {best:.3g}")
    title = f"Over-training: $L = E + (a M^\\eta + b M^{{-\\eta}})\\, C^{{-\\eta}}$, η = {law.eta:.3f} {span(law.eta_interval)}"
    axes.set(xscale="log", xlabel="tokens per parameter M", ylabel=loss_label(laws), title=title)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.25 * (high - low))  # room for the legend
    legend(axes, title="FLOPs", ncols=4, loc="upper right")
    log_ticks(axes)
    return axes


def setting_law(found: HyperparameterLaw, axes: Axes, forecast: Forecast | None = None) -> Axes:
    """Best setting against compute: optima with errors, what is near-optimal, the law and its band; crosses had no optimum."""
    assert found.law is not None
    law, name = found.law, SETTINGS[found.setting]
    good = [one for one in found.optima if one.status == "ok" and one.best is not None]
    for i, one in enumerate(good):
        assert one.best is not None
        if one.near is not None:
            axes.plot(
                [one.at, one.at],
                one.near,
                lw=5,
                color=LAW,
                alpha=0.22,
                solid_capstyle="butt",
                label="near-optimal" if i == 0 else None,
            )
        error, label = np.exp(one.log_se or 0.0), "best ± s.e." if i == 0 else None
        bars = [[one.best - one.best / error], [one.best * error - one.best]]
        axes.errorbar(one.at, one.best, yerr=bars, fmt="*", ms=10, color=MEASURED, elinewidth=1, capsize=2, zorder=4, label=label)
    lost = [one.at for one in found.optima if one.status != "ok"]
    axes.plot(
        lost,
        [0.03] * len(lost),
        "x",
        ms=6,
        color="#999999",
        transform=axes.get_xaxis_transform(),
        label="no optimum" if lost else None,
    )
    at = None
    if forecast is not None:
        at = {"budget": forecast.flops, "parameters": forecast.parameters, "tokens": forecast.tokens}[found.against]
    x = np.geomspace(law.smallest_x / 1.5, max(law.largest_x, at or 0) * 1.6, 100)
    if law.status == "ok":
        band = np.array([law.interval(v) or (np.nan, np.nan) for v in x])
        axes.fill_between(
            x, band[:, 0], band[:, 1], color=LAW, alpha=0.15, lw=0, label=f"{100 * law.confidence:g}% interval of the law"
        )
    inside = x <= law.largest_x
    exponent = f"exponent {law.exponent:.3f} {span(law.exponent_interval)}"
    axes.plot(x[inside], [law.predict(v) for v in x[inside]], color=LAW, lw=1.6, label=exponent)
    axes.plot(x[~inside], [law.predict(v) for v in x[~inside]], color=LAW, lw=1.4, ls=(0, (5, 2)))
    if at is not None:
        value, interval, _ = found.best(at)
        if interval is not None:
            axes.plot([at, at], interval, color=FORECAST, lw=2.2, solid_capstyle="round")
        axes.plot(
            at, value, "o", ms=8, color=FORECAST, mec="white", zorder=5, label="forecast" if interval else "forecast, no interval"
        )
    label = {"budget": "training compute (FLOPs)", "parameters": "parameters", "tokens": "training tokens"}[found.against]
    axes.set(xscale="log", yscale="log", xlabel=label, ylabel=f"best {name}", title=f"Best {name}")
    shade_extrapolation(axes, law.largest_x, at, found.against)
    legend(axes, loc="best")
    log_ticks(axes)
    return axes


def roll_out_errors(rolled: Mapping[str, Any], axes: Axes) -> Axes:
    """Relative error of every prediction above a cut against how far it reached; filled: inside its interval."""
    for law, colour in _LAWS.items():
        points = [one for cut in rolled["cuts"] for score in cut["scores"] if score["law"] == law for one in score["predictions"]]
        if not points or law == "tokens":  # tokens are off by tens of percent: they would flatten the losses
            continue
        for covered in (True, False):
            x = [one["extrapolation_ratio"] for one in points if bool(one["covered"]) == covered]
            y = [100 * one["error"] for one in points if bool(one["covered"]) == covered]
            label = law if covered == any(one["covered"] for one in points) else None
            axes.plot(x, y, "o", ms=4.5, color=colour, mfc=colour if covered else "none", mew=0.9, alpha=0.8, label=label)
    axes.axhline(0, color="#888888", lw=0.8)
    axes.set(xscale="log", xlabel="compute of the run / largest budget fitted", ylabel="predicted above measured loss (%)")
    axes.set_title("Roll-out (filled: measured inside the interval)")
    legend(axes, loc="best")
    log_ticks(axes)
    return axes


def save_further(
    further: FurtherLaws, laws: Laws, rolled: Mapping[str, Any], forecast: Forecast | None, folder: Path
) -> list[Path]:
    """Write overtraining.png, lr_law.png, batch_law.png and roll_out.png, those of them that there is something to show for."""
    panels: dict[str, Callable[[Axes], Axes]] = {}
    law = further.overtraining
    if law is not None:
        panels["overtraining"] = lambda axes: overtraining_curves(law, laws, axes)
    for name, file in (("lr", "lr_law"), ("batch_tokens", "batch_law")):
        found = further.settings[name]
        if found.law is not None:
            panels[file] = lambda axes, found=found: setting_law(found, axes, forecast)  # type: ignore[misc]
    if any(score["predictions"] for cut in rolled["cuts"] for score in cut["scores"] if score["law"] != "tokens"):
        panels["roll_out"] = lambda axes: roll_out_errors(rolled, axes)
    return save_panels(panels, folder)
