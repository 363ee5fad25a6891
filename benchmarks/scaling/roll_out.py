"""What the forecasts said and what was then measured: finished studies rolled out, and intervals of sweeps with a known truth.

    python benchmarks/scaling/roll_out.py runs/laptop ...

Each folder is a finished recipe (sweep, fit, flagship). The laws are fitted on all budgets and on all but the largest, with and
without the recipe's noise floor, and asked for the flagship, which no fit has seen. Coverage: 500 sweeps of 5 to 10 budgets over
three decades and 5 to 9 sizes over +-4x on the surface of Hoffmann et al. 2022, with noise of 0.3 to 1% of the loss.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from measure import save

from herd.runs.stage import Artifact
from herd.scaling.curves.isoflop import fit_isoflop
from herd.scaling.curves.power_law import METHODS, fit_power_law
from herd.scaling.laws import LawsConfig, errors_of
from herd.scaling.records.readers import read_runs
from herd.scaling.records.record import Record
from herd.scaling.validation import roll_out

HOFFMANN = (1.69, 406.4, 410.7, 0.34, 0.28)  # E, A, B, a, b
FLOOR = 0.04  # nats, noise_floor of conf/recipe/laptop.yaml
SWEEPS, TARGETS = 500, (1e21, 1e22, 1e24)


def flagship(folder: Path) -> list[dict[str, Any]]:
    """The study's own largest run, predicted from its sweep."""
    sweep, fit, pretrain = (Artifact.open(folder / name) for name in ("sweep", "fit", "pretrain"))
    records = read_runs(str(sweep / "table.csv")).records
    chosen = json.loads((fit / "flagship.json").read_text(encoding="utf-8"))
    measured = pretrain.metrics["initial_loss"]
    run = Record("flagship", chosen["flops"], chosen["parameters"], chosen["tokens"], chosen["flops"], measured)
    budgets = sorted({record.budget for record in records})
    rows = []
    for cut in (budgets[-1], budgets[-2]):
        for floor in (0.0, FLOOR):
            found = roll_out([*records, run], cut, LawsConfig(noise_floor=floor))
            for score in found.scores:
                for said in score.predictions:
                    if said.cell == run.cell:
                        rows.append(
                            {
                                "cut": cut,
                                "noise_floor": floor,
                                "law": score.law,
                                "flops_over_cut": said.extrapolation_ratio,
                                "predicted": said.predicted,
                                "interval": said.interval,
                                "measured": said.measured,
                                "error": said.error,
                                "covered": said.covered,
                            }
                        )
    return rows


def optimal_tokens(flops: float) -> float:
    """Compute-optimal tokens of the surface, in closed form."""
    _, A, B, a, b = HOFFMANN
    return flops / 6 / ((a * A / (b * B)) ** (1 / (a + b)) * (flops / 6) ** (b / (a + b)))


def synthetic(seed: int) -> list[Record]:
    """One noisy sweep."""
    rng = np.random.default_rng(seed)
    budgets, sizes, noise = np.geomspace(1e18, 1e21, rng.integers(5, 11)), rng.integers(5, 10), rng.uniform(0.003, 0.01)
    E, A, B, a, b = HOFFMANN
    rows = []
    for c in budgets:
        for i, factor in enumerate(np.geomspace(0.25, 4, sizes)):
            d = optimal_tokens(c) * factor
            n = c / 6 / d
            loss = (E + A / n**a + B / d**b) * (1 + noise * rng.normal())
            rows.append(Record(f"{c:g}-{i}", c, n, d, c, loss))
    return rows


def coverage(method: str, with_errors: bool) -> dict[str, float]:
    """Share of sweeps whose 95% intervals hold alpha and D* at the largest budget, and 10 and 1,000 times it."""
    hits, widths = np.zeros(1 + len(TARGETS)), []
    truth = HOFFMANN[3] / (HOFFMANN[3] + HOFFMANN[4])
    for seed in range(SWEEPS):
        curves = [curve for curve in fit_isoflop(synthetic(seed)) if curve.tokens is not None]
        errors = errors_of(curves, LawsConfig(replicates=200, seed=seed)) if with_errors else None
        law = fit_power_law(
            [c.budget for c in curves], [c.tokens or 0.0 for c in curves], errors=errors, method=method, replicates=200
        )
        low, high = law.exponent_interval or (-np.inf, np.inf)
        spans = [law.interval(flops) or (0.0, np.inf) for flops in TARGETS]
        hits += [low < truth < high, *(s[0] < optimal_tokens(c) < s[1] for s, c in zip(spans, TARGETS, strict=True))]
        widths.append(high - low)
    names = ("alpha", *(f"tokens at {c:g}" for c in TARGETS))
    return dict(zip(names, (hits / SWEEPS).tolist(), strict=True)) | {"median width of alpha": float(np.median(widths))}


def main() -> None:
    results: dict[str, Any] = {"flagships": [flagship(Path(folder)) for folder in sys.argv[1:]]}
    results["coverage"] = {
        f"{method}{', with the vertices own errors' if errors else ''}": coverage(method, errors)
        for method in METHODS.names()
        for errors in (False, True)
        if errors or method != "wls"
    }
    print(save(__file__, f"python benchmarks/scaling/roll_out.py {' '.join('runs/laptop' for _ in sys.argv[1:])}", results))


if __name__ == "__main__":
    main()
