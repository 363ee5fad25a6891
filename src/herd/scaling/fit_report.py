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

_LONGEST = 400  # letters of a reason
_NOTED = 6  # rows to look at that are listed
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
    table, count = fit["table"], len(fit["curves"])
    out.print(
        f"{table['usable']} runs in {count} {'budget' if count == 1 else 'budgets'}, {compute(table['smallest_budget'])} to "
        f"{compute(table['largest_budget'])} FLOPs (counted: {table['flops_convention']}); loss in {table['loss_unit']}"
    )
    out.print(budgets(fit))
    for line in (*dropped_lines(fit), *note_lines(fit), *law_lines(fit)):
        out.print(line, soft_wrap=True)
    forecasts = [one for one in (fit["forecast"], *fit["forecasts"]) if one]
    if forecasts:
        out.print()
        out.print(forecast_table(forecasts, fit["confidence"]))
    rolled = fit["roll_out"]
    if rolled["cuts"]:
        out.print()
        out.print(roll_out_table(rolled, fit["confidence"]))
    elif rolled["status"] != "not_asked":
        out.print(f"roll-out: {rolled['reason']}", markup=False, soft_wrap=True)
    out.print(f"figures: {artifact / 'figures'}", style="dim", soft_wrap=True)


def budgets(fit: Mapping[str, Any]) -> Table:
    """One row per budget; what was refused says why."""
    table = grid("", "FLOPs", "points", "D* tokens", "± s.e.", "N* = C/6D*", "loss at D*", "± s.e.", "status")
    curves = fit["curves"]
    if curves and all(len(curve["used"]) < 2 for curve in curves):
        table.add_row(f"{len(curves)} budgets", "1 each", *"-----", "no two runs share a budget: no IsoFLOP curves")
        return table
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


def note_lines(fit: Mapping[str, Any]) -> list[str]:
    """Rows that were fitted and deserve a look."""
    notes = [f"[bold]check {plain(one['row'])}[/]: {plain(one['reason'])}" for one in fit["notes"]]
    more = [f"and {len(notes) - _NOTED} more in fit.json"] if len(notes) > _NOTED else []
    return [*notes[:_NOTED], *more, ""] if notes else []


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
        lines.append(f"[bold]tokens[/]     no law: {plain(shorten(reasons.get('tokens', ''), _LONGEST))}")
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
        lines.append(f"[bold]loss[/]       no law along the optima: {plain(shorten(reasons['frontier'], _LONGEST))}")
    lines += _surface_lines(fit.get("surface"), reasons, level)
    return [*lines, *further_lines(fit, level)]


def further_lines(fit: Mapping[str, Any], level: str) -> list[str]:
    """Over-training law and best settings."""
    law = fit["overtraining"]
    if law["status"] == "not_fitted":
        lines = [f"[bold]overtrain[/]  not fitted: {plain(shorten(law['reason'], 240))}"]
    else:
        ratio = law["optimal_ratio"]
        lowest = f"lowest loss at M = {ratio:.3g} tokens per parameter" if ratio else "no best M"
        lines = [
            f"[bold]overtrain[/]  L = E + (a M^eta + b M^-eta) C^-eta: eta {law['eta']:.4f} "
            f"{plain(span(law['eta_interval'], '.4f'))}, E {law['E']:.4f} {plain(span(law['E_interval'], '.4f'))}, {lowest}  "
            f"({level}; {law['points']} runs, M {law['ratios'][0]:.3g} to {law['ratios'][1]:.3g}, {law['status']})"
        ]
    for one in law.get("forecasts", []):
        lines.append(
            f"           at {compute(one['flops'])} FLOPs and M = {one['tokens_per_parameter']:.3g}: loss {one['loss']:.4f} "
            f"{plain(span(one['loss_interval'], '.4f'))}, {times(one['extrapolation_ratio'])} the largest run"
        )
    for name, found in fit["settings"].items():
        label = f"[bold]{_SETTINGS[name]}[/]"
        if found["law"] is None:
            lines.append(f"{label} not fitted: {plain(shorten(found['reason'], 240))}")
            continue
        power = found["law"]
        good = sum(one["status"] == "ok" for one in found["optima"])
        lines.append(
            f"{label} best = {power['coefficient']:.4g} {_AGAINST[found['against']]}^{power['exponent']:.4f} "
            f"{plain(span(power['exponent_interval'], '.4f'))}  ({level}; {good} of {len(found['optima'])} groups "
            f"have an optimum, {found['status']})"
        )
        for one in found["forecasts"]:
            lines.append(
                f"           at {compute(one['flops'])} FLOPs: {one['best']:.4g} {plain(span(one['interval'], '.3g'))}, "
                f"{times(one['extrapolation_ratio'])} the largest {found['against']}"
            )
    return lines


_SETTINGS = {"lr": "best lr   ", "batch_tokens": "best batch"}
_AGAINST = {"budget": "C", "parameters": "N", "tokens": "D"}


def roll_out_table(rolled: Mapping[str, Any], confidence: float) -> Table:
    """What each law, fitted below a cut, said of the runs above it."""
    table = grid(
        "Roll-out: fitted up to a cut, measured above it",
        "law", "cut", "x cut", "predicted", "error", "bias", f"in {100 * confidence:g}%", "decisions", "status",
    )  # fmt: skip
    for cut in rolled["cuts"]:
        for score in cut["scores"]:
            shares = [None if score[name] is None else f"{score[name]:.0%}" for name in ("coverage", "decision_accuracy")]
            errors = [None if score[name] is None else f"{score[name]:+.2%}" for name in ("error", "bias")]
            ratio = max((one["extrapolation_ratio"] for one in score["predictions"]), default=None)
            table.add_row(
                score["law"], compute(cut["cut"]), times(ratio), str(len(score["predictions"])), (errors[0] or "-").lstrip("+"),
                errors[1] or "-", shares[0] or "-", shares[1] or "-",
                score["status"] + (f": {plain(shorten(score['reason'], 80))}" if score["reason"] else ""),
            )  # fmt: skip
    return table


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
        if len(laws) > 1:
            table.add_row(*[""] * (len(first) + 1), plain(span(one["loss_interval"], ".4f")), "all laws")
    return table


def plain(text: str) -> str:
    """Square brackets as themselves; rich reads them as markup."""
    return text.replace("[", "\\[")
