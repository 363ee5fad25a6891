"""Figures of a mixture study: held-out prediction against measurement, and the proposal beside the prior."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from herd.scaling.figure_style import STYLE
from herd.scaling.mixture.annealing import Appraisal
from herd.scaling.mixture.law import MixtureLaw
from herd.scaling.mixture.proposals import Proposal

_LAW, _PROPOSAL, _PRIOR = "#2f5d8a", "#c8553d", "#8a8f98"


def held_out(laws: Mapping[str, MixtureLaw], axes: Axes) -> Axes:
    """Loss of every run against its prediction by the law fitted without it, one colour per domain."""
    colours = matplotlib.colormaps["viridis"](np.linspace(0.05, 0.88, len(laws)))
    for (domain, law), colour in zip(laws.items(), colours, strict=True):
        mark = "" if law.status == "ok" else f" ({law.status.replace('_', ' ')})"
        label = f"{domain}: rank {law.held_out.spearman:.2f}, error {law.held_out.rmse:.3f}{mark}"
        axes.plot(law.held_out.predicted, law.losses, "o", ms=4.5, color=colour, mec="white", mew=0.4, label=label)
    ends = [min(law.losses.min() for law in laws.values()), max(law.losses.max() for law in laws.values())]
    axes.plot(ends, ends, color="#8a8f98", lw=1, ls=(0, (4, 3)), zorder=1)
    axes.set(xlabel="predicted by the law without the run (nats/token)", ylabel="measured (nats/token)")
    axes.set_title("Mixture law on mixtures that it has not seen")
    if len(laws) > 6:  # beside the points, not on them
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    else:
        axes.legend(fontsize=8)
    return axes


def proposal(chosen: Proposal, axes: Axes) -> Axes:
    """Shares of the prior and of the proposal, with the interval of what the replicates would propose."""
    places = np.arange(len(chosen.sources))
    spans = np.array(chosen.shares_interval)
    shares = np.array(chosen.shares)
    axes.barh(places + 0.2, chosen.prior, height=0.36, color=_PRIOR, label="prior")
    axes.barh(places - 0.2, shares, height=0.36, color=_PROPOSAL, label=f"proposal ({chosen.status.replace('_', ' ')})")
    for place, (low, high) in zip(places - 0.2, spans, strict=True):
        axes.plot([low, high], [place, place], color="black", lw=1.3, solid_capstyle="round")
    axes.set_yticks(places, list(chosen.sources))
    axes.invert_yaxis()
    low, high = chosen.gain_interval
    axes.set(xlabel=f"share of the tokens (bars: {chosen.confidence:.0%} interval)")
    axes.set_title(f"Proposed mixture: predicted gain {chosen.gain:.3f} nats [{low:.3f}, {high:.3f}]")
    axes.legend(loc="lower right")
    return axes


def appraisal_gains(appraisal: Appraisal, axes: Axes) -> Axes:
    """Gain of each candidate over the default mix with its interval, the best on top."""
    places = np.arange(len(appraisal.candidates))
    for place, one in zip(places, appraisal.candidates, strict=True):
        told = one.status != "undecided"
        axes.plot(one.gain_interval, [place, place], color=_LAW, lw=2)
        axes.plot(one.gain, place, "o", ms=8, color=_LAW, mfc=_LAW if told else "white", mec="white" if told else _LAW)
    axes.axvline(0, color=_PRIOR, lw=1, ls=(0, (4, 3)))
    axes.set_yticks(places, [one.name for one in appraisal.candidates])
    axes.invert_yaxis()
    axes.set(xlabel=f"gain over the default mix (nats/token, {appraisal.confidence:.0%} interval)")
    axes.set_title(f"Annealing on a candidate, paired by {appraisal.units} {appraisal.pairing}s (hollow: undecided)")
    return axes


def save_all(laws: Mapping[str, MixtureLaw], chosen: Proposal | None, folder: Path) -> list[Path]:
    """Write held_out.png and, with a proposal, proposal.png into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in ["held_out", *(["proposal"] if chosen is not None else [])]:
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(6.4, 4.4))
            axes = figure.add_subplot()
            if name == "held_out":
                held_out(laws, axes)
            elif chosen is not None:
                proposal(chosen, axes)
            paths.append(folder / f"{name}.png")
            figure.savefig(paths[-1], metadata={"Software": None})  # equal inputs give equal bytes
    return paths
