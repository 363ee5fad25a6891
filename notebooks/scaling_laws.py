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
# # Scaling laws of a run
# From the cells of an IsoFLOP sweep to the size, the tokens and the loss of the flagship, as in section 3.2.1 of "The Llama 3
# Herd of Models". `HERD_RUN_FOLDER` names the run (default: `../runs/laptop`); with `HERD_FIGURES_FOLDER` set, every figure
# is also saved there as PNG.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt

from herd.scaling import figures
from herd.scaling.curves.jackknife import jackknife_budgets
from herd.scaling.figure_style import STYLE
from herd.scaling.fit_json import surface_json
from herd.scaling.numbers import compute, si, span, times
from herd.scaling.records.record import by_budget, usable
from herd.scaling.study import load_study
from herd.scaling.validation import roll_out

RUN_FOLDER = Path(os.environ.get("HERD_RUN_FOLDER", "../runs/laptop"))
FIGURES_FOLDER = os.environ.get("HERD_FIGURES_FOLDER")

plt.rcParams.update(STYLE)
study = load_study(RUN_FOLDER)
laws, chosen = study.laws, study.forecast


def panel(name, draw, size=(7.6, 4.8)):
    figure, axes = plt.subplots(figsize=size)
    draw(axes)
    if FIGURES_FOLDER:
        Path(FIGURES_FOLDER).mkdir(parents=True, exist_ok=True)
        figure.savefig(Path(FIGURES_FOLDER) / f"{name}.png")
    plt.show()


# %% [markdown]
# ## The cells
# One row per budget. A failed or diverged cell stays in the table and is shown, but no law sees it.

# %%
print(f"{'FLOPs':>10}  {'cells':>5}  {'used':>4}  {'optimal tokens':>14}  {'se log10':>8}  {'loss':>6}  status")
for curve, rows in zip(laws.curves, by_budget(laws.records).values(), strict=True):
    tokens = f"{curve.tokens:,.0f}" if curve.tokens else "-"
    error = f"{curve.log10_tokens_se:.3f}" if curve.log10_tokens_se is not None else "-"
    loss = f"{curve.loss:.3f}" if curve.loss else "-"
    print(f"{curve.budget:10.3g}  {len(rows):5d}  {len(curve.used):4d}  {tokens:>14}  {error:>8}  {loss:>6}  {curve.status}")
    for dropped in curve.dropped:
        print(f"{'':>10}  left out {dropped.cell}: {dropped.reason}")

# %% [markdown]
# ## IsoFLOP curves
# Held-out loss against training tokens: small models on many tokens to the right, large ones on few to the left. Stars mark the
# minimum of each budget's parabola; hollow points and crosses were not used; a dotted curve has no minimum inside its points.

# %%
panel("isoflop", lambda axes: figures.isoflop_curves(laws, axes))

# %% [markdown]
# ## Compute-optimal tokens
# The power law through the optima, the band in which the law itself lies, and the flagship that it asks for.

# %%
panel("tokens_law", lambda axes: figures.tokens_law(laws, axes, chosen))

# %% [markdown]
# ## Compute-optimal loss: forecast and measured
# Two laws of the loss: along the optima alone, and a surface over all cells. The forecast's interval spans both.

# %%
panel("loss_law", lambda axes: figures.loss_law(laws, axes, chosen, study.measured))

# %%
if chosen is not None:
    print(f"flagship: {chosen.flops:.3g} FLOPs, {times(chosen.extrapolation_ratio)} the largest budget; method: {chosen.method}")
    print(f"  {study.flagship['parameters']:,.0f} parameters on {study.flagship['tokens']:,.0f} tokens")
    for name, law in chosen.by_law.items():
        print(f"  loss by the {name}: {law['loss']:.3f}, interval {span(law['interval'])}")
if study.measured is not None:
    print(f"  measured: {study.measured:.3f}")
for part, reason in laws.reasons.items():
    print(f"  no {part}: {reason}")

# %% [markdown]
# ## How much hangs on one budget
# The exponent, and the optimal tokens of the flagship, with each budget left out in turn; their spread is a standard error that
# asks nothing of the noise.

# %%
jackknife = jackknife_budgets(laws, chosen.flops if chosen else None)
for row in jackknife.left_out:
    tokens = f", {si(row.tokens)} tokens at {compute(jackknife.target)} FLOPs" if row.tokens else ""
    print(f"without {compute(row.budget)} FLOPs: alpha {row.exponent:.3f} ({row.influence:+.3f}){tokens}")
if jackknife.status == "ok":
    print(f"standard error of alpha: {jackknife.exponent_se:.3f}; check first: {compute(jackknife.most_influential)} FLOPs")
else:
    print(jackknife.reason)

# %% [markdown]
# ## The surface and what it leaves
# L = E + A / N^a + B / D^b over all cells, each parameter with its interval. A trend in the residuals is a misfit, not noise.

# %%
if laws.surface is not None:
    described = surface_json(laws.surface, laws.config.confidence)
    print(f"status: {laws.surface.status} {laws.surface.reason}")
    for name in ("E", "A", "B", "a", "b", "tokens_exponent"):
        bounds = (described["intervals"] or {}).get(name)
        print(f"  {name:>15}  {described[name]:.4g}  {span(bounds, '.4g')}")
    panel("residuals", lambda axes: figures.residuals(laws, axes))
else:
    print(laws.reasons["surface"])

# %% [markdown]
# ## Would this forecast have come true?
# The laws fitted on the lower half of the budgets alone, asked for what the others measured. Bias above 0 promises too much.

# %%
budgets = list(by_budget(usable(laws.records)))
if len(budgets) > 3:
    rolled = roll_out(laws.records, budgets[max(len(budgets) // 2 - 1, 2)], laws.config)
    for score in rolled.scores:
        if score.status != "ok":
            print(f"{score.law:>13}: {score.status}, {score.reason}")
            continue
        covered = f"{score.coverage:.0%} inside the interval" if score.coverage is not None else "no interval"
        print(
            f"{score.law:>13}: error {score.error:.2%}, bias {score.bias:+.2%}, {covered}, {len(score.predictions)} measurements"
        )
else:
    print("A roll-out needs at least four budgets.")

# %% [markdown]
# ## Training curves
# Training loss of every cell on the way to its budget.

# %%
if study.curves:
    panel("training_curves", lambda axes: figures.training_curves(laws, study.curves, axes))
