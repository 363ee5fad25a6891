"""What pruning did, in numbers and as tables for a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from herd.alignment.quality.dialogs import NOTES, Dialog, Ledger
from herd.runs.stage import Artifact
from herd.scaling.fit_report import console, grid

_NUMBERS = ("reward", "rating", "difficulty")  # notes whose distribution is shown
_NAMES = ("topic", "grade", "difficulty_grade")


def describe(dialogs: Sequence[Dialog]) -> dict[str, Any]:
    """How many dialogs, from where, how long; and of what is known of them, how it is distributed."""
    lengths = [len(answer.split()) for dialog in dialogs for answer in dialog.answers]
    facts: dict[str, Any] = {
        "dialogs": len(dialogs),
        "source": dict(sorted(Counter(d.source for d in dialogs).items())),
        "messages_mean": float(np.mean([len(d.messages) for d in dialogs])) if dialogs else None,
        "answer_words": _spread(lengths),
    }
    for name in _NAMES:
        known = Counter(str(d.notes[name]) for d in dialogs if d.notes.get(name) is not None)
        if known:
            facts[name] = dict(sorted(known.items()))
    for name in _NUMBERS:
        values = [d.notes[name] for d in dialogs if d.notes.get(name) is not None]
        if values:
            facts[name] = _spread(values)
    return facts


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    low, middle, high = np.quantile(values, [0.1, 0.5, 0.9]).tolist()
    return {"mean": float(np.mean(values)), "p10": low, "median": middle, "p90": high}


def with_known_notes(before: Sequence[Dialog], kept: Sequence[Dialog], ledger: Ledger) -> list[Dialog]:
    """The dialogs as they came, with what was found out of each before it went."""
    known = {d.name: d.notes for d in kept} | {f"{r[NOTES]['source']}/{r['id']}": r[NOTES] for r in ledger.rows}
    return [replace(dialog, notes=known[dialog.name]) for dialog in before]


def show_prune(artifact: Artifact) -> None:
    """Prints the report of a finished `herd prune`."""
    metrics = artifact.metrics
    out = console()
    title = f"{metrics['rows_in']:,} dialogs, {metrics['rows_out']:,} kept"
    out.print(rules_table(metrics, title))
    out.print()
    out.print(shares_table(metrics))
    rating = metrics["steps"].get("rating", {}).get("reward_against_judge", {})
    if rating.get("items"):
        out.print()
        out.print(agreement_line(rating), soft_wrap=True)
    out.print(f"\ndialogs: {artifact / 'dialogs.jsonl'}", style="dim", soft_wrap=True)
    out.print(f"why one went: herd why ID {artifact.path}", style="dim", soft_wrap=True)


def rules_table(metrics: Mapping[str, Any], title: str) -> Table:
    """One row per rule: dialogs that it changed or removed, and the share of all."""
    table = grid(title, "rule", "changed", "removed", "of all")
    for name in dict.fromkeys([*metrics["modified"], *metrics["removed"]]):
        changed, removed = metrics["modified"].get(name, 0), metrics["removed"].get(name, 0)
        share = f"{removed / metrics['rows_in']:.1%}" if removed else ""
        table.add_row(escape(name), f"{changed:,}" if changed else "", f"{removed:,}" if removed else "", share)
    if not metrics["modified"] and not metrics["removed"]:
        table.add_row("nothing was changed or removed", "", "", "")
    return table


def shares_table(metrics: Mapping[str, Any]) -> Table:
    """Before and after: dialogs with each phrase, their sources and topics, the length of answers."""
    before, after = metrics["before"], metrics["after"]
    table = grid("", "of the dialogs", "before", "after")
    for name, hits in metrics["phrases_before"]["rules"].items():
        now = metrics["phrases_after"]["rules"][name]["dialogs"]
        table.add_row(f"with {escape(name)}", _share(hits["dialogs"], before["dialogs"]), _share(now, after["dialogs"]))
    for group in ("source", "topic"):
        for name, count in before.get(group, {}).items():
            now = after.get(group, {}).get(name, 0)
            table.add_row(f"{group} {escape(name)}", _share(count, before["dialogs"]), _share(now, after["dialogs"]))
    for name, unit in (("answer_words", "median words of an answer"), ("reward", "median reward")):
        if before.get(name) and after.get(name):
            table.add_row(unit, f"{before[name]['median']:.4g}", f"{after[name]['median']:.4g}")
    return table


def agreement_line(found: Mapping[str, Any]) -> str:
    """How often reward and judge disagree."""
    line = f"reward and judge disagree on {found['disagree']:.1%} of {found['items']:,} dialogs; kappa "
    if found["status"] != "ok":
        return f"{line}undefined: {found['reason']}"
    return f"{line}{found['kappa']:.2f} ({found['interval'][0]:.2f} to {found['interval'][1]:.2f})"


def _share(count: int, total: int) -> str:
    return f"{count / total:.1%}" if total else "-"
