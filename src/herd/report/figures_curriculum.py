"""`herd curriculum`: a pre-training curriculum as a picture, before anything is trained."""

from itertools import pairwise

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from herd.report.figures_training import shade_stages
from herd.report.style import DOMAINS, FORECAST, KINDS, MUTED, canvas, ticks_in_si
from herd.training.curriculum import Curriculum

_POINTS = 400  # per phase, of the learning rate


def curriculum_figure(curriculum: Curriculum) -> Figure:
    """Learning rate, batch and row length, and the mix, by training tokens."""
    phases = curriculum.phases
    steps = np.unique(np.concatenate([np.linspace(p.first_step, p.first_step + p.steps - 1, _POINTS).round() for p in phases]))
    tokens = np.array([curriculum.tokens_at(int(step)) for step in steps], dtype=float)
    edges = np.array([phase.first_token for phase in phases] + [curriculum.tokens], dtype=float)
    with canvas(6.0, 3, 1, sharex=True, height_ratios=[1.5, 1.2, 1]) as (figure, axes):
        rate, shape, mix = axes[:, 0]
        ends = dict.fromkeys(curriculum.config.stages, 0.0)
        for phase in phases:
            ends[phase.stage] = float(phase.first_token + phase.tokens)
        shade_stages(ends, [rate, shape])
        rate.plot(tokens, [curriculum.learning_rate(int(step)) for step in steps], color=FORECAST, lw=1.5)
        rate.set(ylabel="learning rate", ylim=(0, None), title="Curriculum")
        rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        for label, values, colour in (
            ("batch, tokens", [phase.batch_tokens for phase in phases], KINDS["average"]),
            ("row length, tokens", [phase.seq_len for phase in phases], KINDS["reward"]),
        ):
            shape.stairs(values, edges, color=colour, lw=1.6, label=label, baseline=None)
        shape.set_yscale("log", base=2)
        shape.set(ylabel="tokens")
        shape.legend(loc="center left", ncols=2)
        names = list(dict.fromkeys(name for phase in phases for name in phase.weights))
        below = np.zeros(len(phases))
        for name in names:
            share = np.array([phase.weights.get(name, 0.0) for phase in phases])
            mix.stairs(below + share, edges, baseline=below, fill=True, color=DOMAINS.get(name, MUTED), label=name)
            below = below + share
        for _, end in pairwise(edges):
            mix.axvline(end, color="white", lw=0.6)
        mix.set(xlabel="training tokens", ylabel="mix", ylim=(0, 1), xlim=(0, curriculum.tokens))
        mix.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        mix.legend(loc="upper center", bbox_to_anchor=(0.5, -0.45), ncols=len(names), frameon=False)
        ticks_in_si(mix.xaxis)
        ticks_in_si(shape.yaxis)
        return figure
