# ---
# jupyter:
#   jupytext:
#     formats: py:percent,ipynb
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Data mix of a run
# From a few small runs on different mixes to the mix to train next (section 3.1.2 of "The Llama 3 Herd of Models"), and from
# short annealing runs to the worth of each source (section 3.1.3). `HERD_RUN_FOLDER` names the run (default:
# `../runs/laptop`), which holds `mix/` (`herd pretrain -m +sweeps=mix_laptop`) or a `mixtures.csv`, and may hold `anneal/`
# (`+sweeps=anneal_laptop`); with `HERD_FIGURES_FOLDER` set, every figure is also saved there as PNG.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from herd.scaling.figure_style import STYLE
from herd.scaling.mixture import figures as mixture_figures
from herd.scaling.mixture.annealing import gather_seeds, rank_by_seeds
from herd.scaling.mixture.law import fit_mixture
from herd.scaling.mixture.proposals import Limits, propose_mixture
from herd.scaling.mixture.records import gather_mixtures, read_mixtures

RUN_FOLDER = Path(os.environ.get("HERD_RUN_FOLDER", "../runs/laptop"))
FIGURES_FOLDER = os.environ.get("HERD_FIGURES_FOLDER")

plt.rcParams.update(STYLE)
given = RUN_FOLDER / "mixtures.csv"
table = read_mixtures(str(given)) if given.is_file() else gather_mixtures(RUN_FOLDER / "mix")


def panel(name, draw, size=(7.6, 4.8)):
    figure, axes = plt.subplots(figsize=size)
    draw(axes)
    if FIGURES_FOLDER:
        Path(FIGURES_FOLDER).mkdir(parents=True, exist_ok=True)
        figure.savefig(Path(FIGURES_FOLDER) / f"{name}.png")
    plt.show()


# %% [markdown]
# ## The runs
# Shares of each source, and the held-out loss on each domain.

# %%
print("run".ljust(8), *(s[:9].rjust(9) for s in table.sources), "  |", *(d[:9].rjust(9) for d in table.domains))
for run, shares, losses in zip(table.runs, table.shares, table.losses, strict=True):
    print(run[:8].ljust(8), *(f"{v:9.2f}" for v in shares), "  |", *(f"{v:9.3f}" for v in losses))

# %% [markdown]
# ## Which law foretells unseen mixtures
# Each law predicts every run from the others. Rank: Spearman's correlation of prediction and measurement; error: root mean
# square, nats. A law without skill, or one that cannot tell its sources apart, says so.

# %%
laws = {}
for kind in ("exponential", "linear", "log_linear"):
    laws[kind] = {
        domain: fit_mixture(table.shares, table.losses[:, i], kind, table.sources) for i, domain in enumerate(table.domains)
    }
    for domain, law in laws[kind].items():
        held = law.held_out
        print(f"{kind:12} {domain:14} rank {held.spearman:5.2f}  error {held.rmse:.3f}  R2 {held.r2:5.2f}  {law.status}")

# %% [markdown]
# ## Predicted and measured
# The exponential law, L = c + exp(sum of t times share), on runs that each fit has not seen.

# %%
panel("held_out", lambda axes: mixture_figures.held_out(laws["exponential"], axes))

# %% [markdown]
# ## How near to the prior
# The prior is the first run's mix, all domains count alike. The further a proposal may go from it, the larger the predicted gain,
# and the less of it has been tried: the distance is to the nearest mix that was trained.

# %%
prior = dict(zip(table.sources, (table.shares[0] / table.shares[0].sum()).tolist(), strict=True))
for max_kl in (0.02, 0.1, 0.5):
    chosen = propose_mixture(laws["exponential"], prior, Limits(max_kl=max_kl), replicates=50)
    low, high = chosen.gain_interval
    mix = ", ".join(f"{s} {v:.2f}" for s, v in zip(chosen.sources, chosen.shares, strict=True))
    gain = f"{chosen.gain:.3f} [{low:.3f}, {high:.3f}]"
    print(f"KL up to {max_kl:4}: gain {gain}  distance {chosen.distance:.2f}  {chosen.status}: {mix}")
    if chosen.reason:
        print(f"    {chosen.reason}")

# %% [markdown]
# ## The proposed mixture
# Within a divergence of 0.1 nats; bars show what the law would propose on reweighted runs.

# %%
chosen = propose_mixture(laws["exponential"], prior, Limits(max_kl=0.1), replicates=50)
panel("proposal", lambda axes: mixture_figures.proposal(chosen, axes))

# %% [markdown]
# ## What each source is worth
# A half-trained model's learning rate goes to 0 on 30% of a candidate and 70% of the default mix. The gain is against the default
# mix alone, each domain counted by its share in it; runs are paired by seed.

# %%
if (RUN_FOLDER / "anneal").is_dir():
    appraisal = rank_by_seeds(gather_seeds(RUN_FOLDER / "anneal"))
    print(f"{appraisal.units} seeds, noise of one run {appraisal.noise:.3f} nats, default mix {appraisal.default_loss:.3f}")
    for c in appraisal.candidates:
        low, high = c.gain_interval
        print(f"{c.name:14} gain {c.gain:+.3f} [{low:+.3f}, {high:+.3f}]  {c.status}, best of all: {c.best_probability:.0%}")

    def draw(axes):
        places = np.arange(len(appraisal.candidates))
        for place, c in zip(places, appraisal.candidates, strict=True):
            axes.plot(c.gain_interval, [place, place], color="#2f5d8a", lw=2)
            axes.plot(c.gain, place, "o", ms=8, color="#2f5d8a", mec="white")
        axes.axvline(0, color="#8a8f98", lw=1, ls=(0, (4, 3)))
        axes.set_yticks(places, [c.name for c in appraisal.candidates])
        axes.invert_yaxis()
        axes.set(xlabel=f"gain over the default mix (nats/token, {appraisal.confidence:.0%} interval)")
        axes.set_title("Annealing on a candidate")

    panel("annealing", draw, size=(7.6, 3.2))
else:
    print(f"no annealing runs in {RUN_FOLDER.name}/anneal")
