"""Figures of the evaluation, every score with its interval and its chance level."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from herd.report.run_data import RunData
from herd.report.style import BLUE, DOMAINS, INK, MUTED, canvas, dots, model_colour, reference_line, short

_ROUND_MARKS = "s^Dv<>"
_TASKS = ("bits_per_byte", "documentation_choice")


def bits_per_byte(run: RunData) -> Figure | None:
    """By domain, a point for each model."""
    labels = run.labels("bits_per_byte")
    domains = [d for d in DOMAINS if any(run.results(label, f"bits_per_byte_{d}") for label in labels)]
    if not labels or not domains:
        return None
    with canvas(3.0) as (figure, axes):
        panel = axes[0][0]
        step = 0.72 / max(len(labels), 1)
        for i, label in enumerate(labels):
            places = [d + (i - (len(labels) - 1) / 2) * step for d in range(len(domains))]
            found = [run.results(label, f"bits_per_byte_{d}") for d in domains]
            values = [f["bits_per_byte,none"] for f in found]
            bounds = [f.get("bits_per_byte_interval,none") for f in found]
            dots(panel, places, values, bounds, [model_colour(label)] * len(domains), size=5.5, marker=_mark(label))
            panel.plot([], [], _mark(label), color=model_colour(label), label=short(label))
        panel.set(title="Bits per byte of held-out text (lower is better)", xticks=range(len(domains)), xticklabels=domains)
        panel.grid(axis="x", visible=False)
        panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        return figure


def baselines(run: RunData, label: str) -> Figure | None:
    """Nats per token of unigram, bigram and one model on the same held-out tokens."""
    domains = [d for d in DOMAINS if run.results(label, f"ngram_baselines_{d}")]
    rows = [("mean under the mix", "ngram_baselines"), *((d, f"ngram_baselines_{d}") for d in domains)]
    if not run.results(label, "ngram_baselines"):
        return None
    with canvas(0.42 * len(rows) + 1.1) as (figure, axes):
        panel = axes[0][0]
        for name, colour in (("unigram", "#b9bec7"), ("bigram", INK), (label, BLUE)):
            found = [run.results(name, task) for _, task in rows]
            values = [f["loss,none"] for f in found]
            bounds = [f.get("loss_interval,none") for f in found]
            dots(panel, list(range(len(rows))), values, bounds, [colour] * len(rows), vertical=False, size=7)
            panel.plot([], [], "o", color=colour, label=short(name))
        panel.set(yticks=range(len(rows)), yticklabels=[name for name, _ in rows], ylim=(len(rows) - 0.5, -0.5))
        panel.set(xlabel="nats per token (lower is better)", title="The model against n-gram models of the same training text")
        panel.grid(axis="y", visible=False)
        panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        return figure


def multiple_choice(run: RunData) -> Figure | None:
    """Accuracy of every model with its interval and the chance line."""
    labels = run.labels("documentation_choice")
    if not labels:
        return None
    notes = run.evaluation.get("notes", {}).get("documentation_choice", {})
    metric = notes.get("headline", "acc_norm")
    found = [run.results(label, "documentation_choice") for label in labels]
    values = [100 * f[f"{metric},none"] for f in found]
    bounds = [[100 * b for b in f[f"{metric}_interval,none"]] for f in found]
    with canvas(2.9) as (figure, axes):
        panel = axes[0][0]
        dots(panel, range(len(labels)), values, bounds, [model_colour(label) for label in labels], size=7)
        for place, value in enumerate(values):
            panel.annotate(f"{value:.1f}", (place, value), xytext=(7, 0), textcoords="offset points", va="center", fontsize=8.5)
        reference_line(panel, 100 * notes.get("chance", 0.25), "chance")
        panel.set(title=f"Four-way choice from held-out documentation: {metric}, %", xticks=range(len(labels)))
        panel.set_xticklabels([short(label) for label in labels])
        panel.set(ylim=(min(20, *(b[0] for b in bounds)) - 2, max(b[1] for b in bounds) + 4), xlim=(-0.5, len(labels) - 0.4))
        panel.grid(axis="x", visible=False)
        return figure


def preferences(run: RunData) -> Figure | None:
    """Reward accuracy on held-out pairs, and win rates by the reward model."""
    accuracies = _accuracies(run)
    wins = [c for c in run.evaluation.get("comparisons", []) if c["task"] == "win_rate"]
    panels: list[tuple[str, str, list[tuple[str, float, list[float], str]]]] = []
    if accuracies:
        panels.append(("Reward model: chosen above rejected, %", "chance: 50", accuracies))
    if wins:
        rows = [
            (
                f"{short(c['models'][0])} over {short(c['models'][1])}",
                c["win_rate"],
                c["interval"],
                model_colour(c["models"][0]),
            )
            for c in wins
        ]
        panels.append(("Win rate on held-out prompts, %", "equally good: 50", rows))
    if not panels:
        return None
    tallest = max(len(rows) for *_, rows in panels)
    with canvas(0.42 * tallest + 1.1, 1, len(panels)) as (figure, axes):
        for panel, (title, middle, rows) in zip(axes[0], panels, strict=True):
            values, bounds = [100 * row[1] for row in rows], [[100 * b for b in row[2]] for row in rows]
            dots(panel, range(len(rows)), values, bounds, [row[3] for row in rows], vertical=False, size=7)
            for place, value in enumerate(values):
                panel.annotate(
                    f"{value:.1f}", (value, place), xytext=(0, 6), textcoords="offset points", ha="center", fontsize=8.5
                )
            panel.axvline(50, color=MUTED, lw=1, ls=(0, (4, 3)), zorder=1)
            low, high = min(45, *(b[0] for b in bounds)), max(55, *(b[1] for b in bounds))
            panel.set(yticks=range(len(rows)), yticklabels=[row[0] for row in rows], ylim=(len(rows) - 0.4, -0.6))
            panel.set(title=title, xlim=(max(low - 4, -1), min(high + 4, 101)), xlabel=middle)
            panel.grid(axis="y", visible=False)
        return figure


def needle(run: RunData, most: int = 3) -> Figure | None:
    """Accuracy by length and depth; a panel for the first, and the last, of the models measured."""
    labels = run.labels("needle")
    if not labels:
        return None
    chosen = labels if len(labels) <= most else [labels[0], *labels[-(most - 1) :]]
    notes = run.evaluation.get("notes", {}).get("needle", {})
    with canvas(2.9, 1, len(chosen), sharey=True) as (figure, axes):
        for panel, label in zip(axes[0], chosen, strict=True):
            image = _needle_panel(panel, run.results(label, "needle")["grid"], notes.get("chance", 0.0))
            panel.set(title=short(label), xlabel="length, tokens")
        axes[0][0].set_ylabel("depth of the needle")
        bar = figure.colorbar(image, ax=axes[0].tolist(), shrink=0.85, pad=0.01)
        bar.set_label("accuracy, %")
        bar.ax.axhline(100 * notes.get("chance", 0.0), color=INK, lw=1.5)
        bar.outline.set_visible(False)
        return figure


def _needle_panel(panel: Any, grid: list[dict[str, Any]], chance: float) -> Any:
    lengths = sorted({cell["length"] for cell in grid})
    depths = sorted({cell["depth"] for cell in grid})
    values = np.full((len(depths), len(lengths)), np.nan)
    for cell in grid:
        values[depths.index(cell["depth"]), lengths.index(cell["length"])] = 100 * cell["acc,none"]
    image = panel.imshow(values, cmap="YlGnBu", vmin=0, vmax=100, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            panel.text(
                column,
                row,
                f"{value:.0f}",
                ha="center",
                va="center",
                fontsize=8.5,
                color="white" if value > 60 else INK,
            )
    panel.set(xticks=range(len(lengths)), xticklabels=lengths, yticks=range(len(depths)))
    panel.set_yticklabels([f"{100 * depth:.0f}%" for depth in depths])
    panel.grid(visible=False)
    for spine in panel.spines.values():
        spine.set_visible(False)
    return image


def _accuracies(run: RunData) -> list[tuple[str, float, list[float], str]]:
    rows = []
    for label, by_task in run.evaluation.get("results", {}).items():
        for task, metrics in by_task.items():
            if task.startswith("reward_accuracy_"):
                pairs = task.removeprefix("reward_accuracy_").removeprefix("round-")
                rows.append(
                    (
                        f"{short(label)} on pairs {pairs}",
                        metrics["acc,none"],
                        metrics["acc_interval,none"],
                        model_colour(label),
                    )
                )
    return rows


def _mark(label: str) -> str:
    """A marker for each round, to tell models of one colour apart; a circle for a model of none."""
    head, _, stage = label.partition("/")
    number = head.removeprefix("round-")
    return _ROUND_MARKS[(int(number) - 1) % len(_ROUND_MARKS)] if stage and number.isdigit() else "o"
