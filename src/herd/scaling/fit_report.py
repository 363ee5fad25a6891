"""What `herd scaling-fit` prints: the budgets, the laws with their intervals, and how far a forecast reaches."""

import json
import sys
from collections.abc import Mapping, Sequence
from textwrap import shorten
from typing import Any

from rich.console import Console
from rich.table import Table

from herd.runs.stage import Artifact
from herd.scaling.numbers import compute, si, span, times

_MOST = 24  # rows of a table: a set without budgets has hundreds


def console() -> Console:
    """Plain and wide where nobody looks at a terminal, so that a file holds whole lines."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 132, highlight=False, soft_wrap=False)


def grid(title: str, *columns: str) -> Table:
    """A table with numbers to the right."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i == 0 or name in ("status", "by") else "right", no_wrap=name != "status")
    return table


def show_fit(artifact: Artifact) -> None:
    """Print ``fit.json`` of a finished fit."""
    fit = json.loads((artifact / "fit.json").read_text(encoding="utf-8"))
    out = console()
    table = fit["table"]
    out.print(
        f"{table['usable']} runs in {len(fit['curves'])} budgets, {compute(table['smallest_budget'])} to "
        f"{compute(table['largest_budget'])} FLOPs (counted: {table['flops_convention']}); loss in {table['loss_unit']}"
    )
    out.print(budgets(fit))
    for line in (*dropped_lines(fit), *law_lines(fit)):
        out.print(line, soft_wrap=True)
    forecasts = [one for one in (fit["forecast"], *fit["forecasts"]) if one]
    if forecasts:
        out.print()
        out.print(forecast_table(forecasts, fit["confidence"]))
    out.print(f"figures: {artifact / 'figures'}", style="dim", soft_wrap=True)


def budgets(fit: Mapping[str, Any]) -> Table:
    """One row per budget; what was refused says why."""
    table = grid("", "FLOPs", "points", "D* tokens", "± s.e.", "N* = C/6D*", "loss at D*", "± s.e.", "status")
    curves = fit["curves"]
    for curve in curves[:_MOST]:
        error = curve["log10_tokens_se"]
        tokens, loss = curve["tokens"], curve["loss"]
        table.add_row(
            compute(curve["budget"]),
            str(len(curve["used"])),
            si(tokens, 4),
            f"{100 * (10**error - 1):.1f}%" if error is not None else "-",
            si(curve["budget"] / 6 / tokens) if tokens else "-",
            f"{loss:.4f}" if loss is not None else "-",
            f"{curve['loss_se']:.4f}" if curve["loss_se"] is not None else "-",
            curve["status"] + (f": {curve['reason']}" if curve["reason"] else ""),
        )
    if len(curves) > _MOST:
        table.add_row(f"and {len(curves) - _MOST} more in fit.json")
    return table


def dropped_lines(fit: Mapping[str, Any]) -> list[str]:
    """Rows and points that no law saw."""
    lines = [f"dropped {one['row']}: {one['reason']}" for one in fit["dropped_rows"]]
    lines += [f"not used {one['cell']}: {one['reason']}" for one in fit["dropped"]]
    more = [f"and {len(lines) - _MOST} more in fit.json"] if len(lines) > _MOST else []
    return [*lines[:_MOST], *more, ""] if lines else [""]


def law_lines(fit: Mapping[str, Any]) -> list[str]:
    """The laws, one a line or two; a missing one says why."""
    level = f"{100 * fit['confidence']:g}%"
    lines: list[str] = []
    reasons = fit["reasons"]
    if fit["alpha"] is not None:
        lines.append(
            f"[bold]tokens[/]     D* = A C^alpha: alpha {fit['alpha']:.4f} {plain(span(fit['alpha_interval'], '.4f'))}, "
            f"A {fit['A']:.4g} {plain(span(fit['A_interval'], '.3g'))}  ({level}; {fit['tokens_law']['points']} optima, "
            f"{fit['tokens_law']['method']}, {fit['tokens_law']['status']})"
        )
    else:
        lines.append(f"[bold]tokens[/]     no law: {plain(shorten(reasons.get('tokens', ''), 240))}")
    jackknife = fit["jackknife"]
    if jackknife["status"] == "ok":
        low, high = (pick(jackknife["left_out"], key=lambda one: one["exponent"]) for pick in (min, max))
        lines.append(
            f"[bold]jackknife[/]  without one budget alpha lies in {plain(span((low['exponent'], high['exponent']), '.4f'))} "
            f"(without {compute(low['budget'])}, without {compute(high['budget'])}); "
            f"standard error {jackknife['exponent_se']:.4f}"
        )
    law = fit["loss_law"]
    if law:
        lines.append(
            f"[bold]loss[/]       at the optima {law['E']:.4f} + {law['k']:.4f} (C / {compute(law['reference'])})^-{law['g']:.4f}"
            f"  ({law['points']} optima, {law['status']})"
        )
    elif "frontier" in reasons:
        lines.append(f"[bold]loss[/]       no law along the optima: {plain(shorten(reasons['frontier'], 240))}")
    lines += _surface_lines(fit.get("surface"), reasons, level)
    return lines


def _surface_lines(surface: Mapping[str, Any] | None, reasons: Mapping[str, str], level: str) -> list[str]:
    if not surface:
        return [f"[bold]surface[/]    none: {plain(reasons.get('surface', ''))}"]
    first = (
        f"[bold]surface[/]    L = {surface['E']:.4f} + {surface['A']:.4g} / N^{surface['a']:.4f} + {surface['B']:.4g} / "
        f"D^{surface['b']:.4f}  ({surface['points']} runs, {surface['objective']}, {surface['status']})"
    )
    if surface["reason"]:
        first += f": {plain(surface['reason'])}"
    ranges = surface["intervals"]
    if not ranges:
        return [first]
    parts = ", ".join(f"{name} {plain(span(ranges[name], '.4g'))}" for name in "EABab")
    return [
        first,
        f"           {level}: {parts}",
        f"           its D* grows as C^{surface['tokens_exponent']:.4f} {plain(span(ranges['tokens_exponent'], '.4f'))}",
    ]


def forecast_table(forecasts: Sequence[Mapping[str, Any]], confidence: float) -> Table:
    """Size, tokens and loss of larger runs; nothing without its interval and the ratio to the largest budget."""
    level = f"{100 * confidence:g}%"
    table = grid(
        "Forecasts", "FLOPs", "x largest budget", "D* tokens", level, "N* = C/6D*", f"{level} ", "loss", f"{level}  ", "by"
    )
    for one in forecasts:
        first = [compute(one["flops"]), times(one["extrapolation_ratio"]), si(one["tokens"], 4)]
        first += [span(one["tokens_interval"], "si"), si(one["parameters"], 4), span(one["parameters_interval"], "si")]
        laws = list(one["by_law"].items())
        if not laws:
            table.add_row(*(plain(cell) for cell in first), "-", "no interval", "no law of the loss")
        for i, (name, law) in enumerate(laws):
            cells = first if i == 0 else [""] * len(first)
            table.add_row(*(plain(c) for c in cells), f"{law['loss']:.4f}", plain(span(law["interval"], ".4f")), name)
    return table


def plain(text: str) -> str:
    """Square brackets as themselves; rich reads them as markup."""
    return text.replace("[", "\\[")
