"""Figures of curation, pre-training and post-training. Each returns None when the run has not what it shows."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from herd.report.formats import percent, si
from herd.report.run_data import Round, RunData
from herd.report.style import BLUE, DOMAINS, FORECAST, INK, KINDS, MUTED, canvas, short, ticks_in_si

_STAGE_SHADES = ["#ffffff", "#eef2f7", "#e3e9f1", "#f6eee3"]


def funnel(run: RunData) -> Figure | None:
    """What each step of the curation leaves: documents and characters."""
    steps = run.read("curate", "funnel.json")
    if not steps:
        return None
    names = [step["step"] for step in steps]
    with canvas(0.34 * len(steps) + 0.9, 1, 2, sharey=True) as (figure, axes):
        for panel, key, colour in zip(axes[0], ("documents", "characters"), (BLUE, KINDS["average"]), strict=True):
            values = np.array([step[key] for step in steps], dtype=float)
            rows = np.arange(len(steps))
            panel.barh(rows, values, height=0.68, color=colour, alpha=0.85)
            for row, value in enumerate(values):
                before = values[row - 1] if row else value
                lost = f"  −{percent((before - value) / before)}" if before and value < before else ""
                panel.text(value, row, f" {si(value)}{lost}", va="center", fontsize=8.5, color=INK)
            panel.set(title=f"{key} left", xlim=(0, values.max() * 1.28), yticks=rows, yticklabels=names)
            panel.invert_yaxis()
            panel.grid(axis="y", visible=False)
            ticks_in_si(panel.xaxis)
        axes[0][1].invert_yaxis()  # shared axes are turned once
        return figure


def pretraining(run: RunData) -> Figure | None:
    """Loss by tokens with the curriculum's stages, and under it learning rate, batch and row length."""
    rows = [row for row in run.rows(run.find("pretrain")) if "loss" in row]
    if len(rows) < 2:
        return None
    tokens = np.array([row["num_tokens"] for row in rows], dtype=float)
    with canvas(5.6, 3, 1, sharex=True, height_ratios=[3.2, 1, 1]) as (figure, axes):
        loss, rate, shape = axes[:, 0]
        ends_of: dict[str, float] = {}
        for row, token in zip(rows, tokens.tolist(), strict=True):
            ends_of[row.get("stage", "")] = token
        shade_stages(ends_of, [loss, rate, shape])
        raw = np.array([_finite(row["loss"]) for row in rows])
        loss.plot(tokens, raw, color=BLUE, lw=0.8, alpha=0.35)
        loss.plot(tokens, _smooth(raw), color=BLUE, lw=1.6, label="training (smoothed)")
        ends = [(t, row["eval_loss"]) for t, row in zip(tokens, rows, strict=True) if "eval_loss" in row]
        if ends:
            loss.plot(*zip(*ends, strict=True), "D", ms=6, mfc="white", mec=INK, mew=1.5, clip_on=False, zorder=5,
                      label="held out, end of stage")  # fmt: skip
        for name in ("unigram", "bigram"):
            value = run.results(name, "ngram_baselines").get("loss,none")
            if value is not None:
                loss.axhline(value, color=MUTED, lw=1, ls=(0, (4, 3)))
                # Away from the begin, where the curve falls through these lines, and from the names of the last stages.
                loss.annotate(f"{name}, held out", (0.7, value), xycoords=("axes fraction", "data"), xytext=(0, 3),
                              textcoords="offset points", ha="center", fontsize=8, color=MUTED)  # fmt: skip
        low = min(np.nanmin(_smooth(raw)), *(value for _, value in ends)) if ends else np.nanmin(raw)
        loss.set(ylabel="nats per token", title="Loss", ylim=(low - 0.25, min(np.nanmax(raw), low + 5) + 0.1))
        loss.legend(loc="upper center", bbox_to_anchor=(0.5, 0.92))
        rate.plot(tokens, [row["learning_rate"] for row in rows], color=FORECAST, lw=1.4)
        rate.set(ylabel="learning rate", ylim=(0, None))
        rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        shape.step(
            tokens,
            [row.get("batch_tokens", np.nan) for row in rows],
            where="post",
            color=KINDS["average"],
            label="batch, tokens",
        )
        shape.step(
            tokens,
            [row.get("seq_len", np.nan) for row in rows],
            where="post",
            color=KINDS["reward"],
            label="row length, tokens",
        )
        shape.set_yscale("log", base=2)
        shape.set(xlabel="training tokens", ylabel="tokens", xlim=(0, tokens[-1] * 1.005))
        shape.legend(loc="center left", ncols=2)
        ticks_in_si(shape.xaxis)
        ticks_in_si(shape.yaxis)
        return figure


def forecast(run: RunData) -> Figure | None:
    """The forecast with its interval against what was measured, on one line."""
    fit, measured = run.metrics("scaling-fit"), run.metrics("pretrain").get("initial_loss")
    if fit.get("predicted_loss") is None:
        return None
    with canvas(1.5) as (figure, axes):
        panel: Axes = axes[0][0]
        bounds = fit.get("predicted_loss_interval")
        if bounds:
            panel.plot(bounds, [0, 0], color=FORECAST, lw=6, alpha=0.35, solid_capstyle="round", label="95% interval")
        panel.plot(fit["predicted_loss"], 0, "o", ms=9, color=FORECAST, mec="white", label="forecast")
        shown = [fit["predicted_loss"], *(bounds or [])]
        if measured is not None:
            panel.plot(measured, 0, "D", ms=9, mfc="white", mec=INK, mew=1.8, label="measured", zorder=5)
            shown.append(measured)
        margin = max(0.35 * (max(shown) - min(shown)), 0.03)
        panel.set(
            xlim=(min(shown) - margin, max(shown) + margin),
            ylim=(-1, 1),
            yticks=[],
            xlabel="held-out loss at the end of the initial stage (nats per token)",
        )
        panel.grid(axis="y", visible=False)
        panel.spines["left"].set_visible(False)
        panel.legend(loc="upper center", ncols=3, bbox_to_anchor=(0.5, 1.3))
        return figure


def dpo(run: RunData) -> Figure | None:
    """Implicit rewards, margins and accuracies over the steps of DPO, a row for each round."""
    rounds = [(r, series) for r in run.rounds if (series := _dpo_series(run, r))]
    if not rounds:
        return None
    with canvas(2.5 * len(rounds) + 0.2, len(rounds), 3, sharex="row") as (figure, axes):
        for line, (round_, series) in zip(axes, rounds, strict=True):
            for i, rows in enumerate(series.values()):
                steps = [row["step"] for row in rows]
                lines = (
                    (line[0], "rewards/chosen", KINDS["average"], "chosen"),
                    (line[0], "rewards/rejected", FORECAST, "rejected"),
                    (line[1], "rewards/margins", BLUE, None),
                    (line[2], "rewards/accuracies", KINDS["reward"], None),
                )
                for panel, key, colour, label in lines:
                    values = [row.get(key, np.nan) for row in rows]
                    style: dict[str, Any] = {"lw": 1.1, "ls": "--"} if i else {"lw": 1.7, "label": label}
                    panel.plot(steps, values, color=colour, **style)
            line[0].set(title=f"{round_.name.replace('-', ' ')}: rewards", xlabel="step")
            line[1].set(title="margin, chosen − rejected", xlabel="step")
            line[2].set(title="accuracy", xlabel="step", ylim=(0.25, 1.02))
            line[0].axhline(0, color=MUTED, lw=0.8)
            line[1].axhline(0, color=MUTED, lw=0.8)
            line[2].axhline(0.5, color=MUTED, lw=1, ls=(0, (4, 3)))
            line[0].legend(loc="lower left")
        return figure


def domains(run: RunData) -> Figure | None:
    """Training tokens and characters per token, by domain."""
    metrics = run.metrics("tokenize")
    tokens, compression = metrics.get("tokens_by_domain"), metrics.get("characters_per_token_by_domain", {})
    if not tokens:
        return None
    order = [d for d in DOMAINS if d in tokens] + sorted(set(tokens) - set(DOMAINS))
    colours = [DOMAINS.get(d, MUTED) for d in order]
    panels = [("training tokens", [tokens[d] for d in order])]
    if compression:
        panels.append(("characters per token, held out", [compression.get(d, np.nan) for d in order]))
    with canvas(0.36 * len(order) + 0.9, 1, len(panels), sharey=True) as (figure, axes):
        for panel, (title, values) in zip(axes[0], panels, strict=True):
            panel.barh(np.arange(len(order)), values, height=0.62, color=colours, alpha=0.9)
            for row, value in enumerate(values):
                if np.isfinite(value):
                    panel.text(value, row, f" {si(value)}", va="center", fontsize=8.5)
            panel.set(title=title, yticks=np.arange(len(order)), yticklabels=order, xlim=(0, np.nanmax(values) * 1.2))
            panel.grid(axis="y", visible=False)
            ticks_in_si(panel.xaxis)
        axes[0][0].invert_yaxis()
        return figure


def costs(run: RunData) -> Figure | None:
    """Seconds and FLOPs of each stage."""
    if not run.stages:
        return None
    labels = list(run.stages)
    seconds = np.array([a.manifest["cost"]["seconds"] for a in run.stages.values()])
    flops = np.array([a.manifest["cost"].get("flops_6N") or 0.0 for a in run.stages.values()], dtype=float)
    colours = [_stage_colour(label) for label in labels]
    with canvas(0.235 * len(labels) + 0.9, 1, 2, sharey=True) as (figure, axes):
        rows = np.arange(len(labels))
        left, right = axes[0]
        left.barh(rows, seconds, height=0.7, color=colours)
        for row, value in enumerate(seconds):
            left.text(value, row, f" {value:.1f} s", va="center", fontsize=8)
        left.set(
            title="seconds",
            yticks=rows,
            yticklabels=[short(label) for label in labels],
            xlim=(0, seconds.max() * 1.18 or 1),
        )
        some = flops[flops > 0]
        if len(some):
            right.barh(rows, np.where(flops > 0, flops, np.nan), height=0.7, color=colours)
            right.set(xscale="log", xlim=(some.min() / 3, some.max() * 3))
        right.set(title="FLOPs counted")
        left.invert_yaxis()
        for panel in (left, right):
            panel.grid(axis="y", visible=False)
        return figure


def _stage_colour(label: str) -> str:
    if "/" in label or label.startswith("sft"):
        return KINDS.get(label.rsplit("/", 1)[-1].split("-")[0], "#c98b2b")
    return {"plan": MUTED, "sweep": FORECAST, "fit": FORECAST, "pretrain": KINDS["pretrain"]}.get(label, BLUE)


def _dpo_series(run: RunData, round_: Round) -> dict[str, list[dict[str, Any]]]:
    series = {}
    for stage, artifact in round_.stages.items():
        rows = [row for row in run.rows(artifact) if "rewards/margins" in row]
        if artifact.manifest["stage"] == "dpo" and rows:
            series[stage] = rows
    return series


def shade_stages(ends: dict[str, float], panels: list[Axes]) -> None:
    """A background for each stage of the curriculum, named at the top; ``ends`` are the tokens at which each one ends."""
    begin, last = 0.0, max(ends.values())
    labels: list[tuple[list[str], float, float]] = []  # names, begin, end; stages too narrow for a name share one
    for i, (name, end) in enumerate(ends.items()):
        for panel in panels:
            panel.axvspan(begin, end, color=_STAGE_SHADES[i % len(_STAGE_SHADES)], lw=0, zorder=0)
        narrow = (end - begin) < 0.025 * last
        if narrow and labels and labels[-1][2] - labels[-1][1] < 0.025 * last * len(labels[-1][0]):
            labels[-1] = ([*labels[-1][0], name], labels[-1][1], end)
        else:
            labels.append(([name], begin, end))
        begin = end
    for names, start, end in labels:
        text = " to ".join(dict.fromkeys((names[0], names[-1]))).replace("_", " ")
        panels[0].annotate(
            text, ((start + end) / 2, 1), xycoords=("data", "axes fraction"), xytext=(0, -4), textcoords="offset points",
            ha="center", va="top", rotation=90 if (end - start) < 0.15 * last else 0, fontsize=8, color="#4a4f57",
        )  # fmt: skip


def _smooth(values: np.ndarray) -> np.ndarray:
    """Mean over a window of about a fortieth of the series, shorter at its ends."""
    width = max(1, len(values) // 40)
    padded = np.concatenate([[0.0], np.cumsum(np.nan_to_num(values))])
    low = np.maximum(np.arange(len(values)) - width, 0)
    high = np.minimum(np.arange(len(values)) + width + 1, len(values))
    return (padded[high] - padded[low]) / (high - low)


def _finite(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")
