"""What `herd mix-fit` prints: the laws with their held-out error, and the proposed mix with its intervals, limits and doubts."""

import json
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from herd.runs.stage import Artifact
from herd.scaling.fit_report import console, grid, plain
from herd.scaling.numbers import span


def show_mix_fit(artifact: Artifact) -> None:
    """Print ``mix_fit.json`` of a finished fit."""
    fit = json.loads((artifact / "mix_fit.json").read_text(encoding="utf-8"))
    proposal, out = fit["proposal"], console()
    level = f"{100 * proposal['confidence']:g}%"
    out.print(_laws(fit))
    out.print()
    out.print(_shares(proposal, level))
    reason = f": {proposal['reason']}" if proposal["reason"] else ""
    for line in (
        f"loss {proposal['loss']:.4f} predicted, {proposal['prior_loss']:.4f} at the prior: gain {proposal['gain']:.4f} "
        f"{span(proposal['gain_interval'], '.4f')} ({level}; {proposal['status']}{reason})",
        f"{proposal['kl']:.3g} nats from the prior; {proposal['distance']:.2f} from the nearest mixture trained, "
        f"{proposal['usual_distance']:.2f} is usual",
        f"figures: {artifact / 'figures'}",
    ):
        out.print(line, markup=False, soft_wrap=True)


def _laws(fit: Mapping[str, Any]) -> Table:
    title = f"{len(fit['runs'])} mixtures of {len(fit['sources'])} sources: error on runs that the fit has not seen"
    table = grid(title, "domain", "law", "rank correlation", "error, nats", "R2", "status")
    for domain, law in fit["laws"].items():
        held = law["held_out"]
        status = law["status"] + (f": {law['reason']}" if law["reason"] else "")
        numbers = (f"{held['spearman']:.3f}", f"{held['rmse']:.4f}", f"{held['r2']:.3f}")
        table.add_row(plain(domain), law["kind"], *numbers, plain(status))
    return table


def _shares(proposal: Mapping[str, Any], level: str) -> Table:
    columns = ["source", "prior", "proposal", level, *(["epochs"] if "epochs" in proposal else [])]
    table = grid(f"Mix to train next ({proposal['status'].replace('_', ' ')})", *columns)
    for source, share in proposal["mix"].items():
        cells = [f"{proposal['prior'][source]:.4f}", f"{share:.4f}", plain(span(proposal["mix_interval"][source], ".4f"))]
        cells += [f"{proposal['epochs'][source]:.3g}"] if "epochs" in proposal else []
        table.add_row(plain(source), *cells)
    return table
