"""``fit.json``: every law of a table with its status and intervals; what could not be fitted is null, with the reason."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from scipy import stats

from herd.scaling.curves.jackknife import jackknife_budgets
from herd.scaling.forecast import Forecast
from herd.scaling.laws import Laws
from herd.scaling.records.readers import RunTable
from herd.scaling.records.record import usable
from herd.scaling.surface.fit import Surface
from herd.scaling.suspects import suspects

_STATUS = {"power_law": "ok", "surface": "surface", "ratio": "ratio"}


def describe(laws: Laws, table: RunTable, chosen: Forecast | None, further: Sequence[Forecast] = ()) -> dict[str, Any]:
    """The whole of ``fit.json``.

    Args:
        laws: the fit.
        table: what it was fitted on.
        chosen: forecast of the flagship, None where nobody asked for one.
        further: forecasts of other runs.

    Returns:
        Plain values. ``status`` is ok (a law of tokens with an interval), surface or ratio (what stands in for it in the
        flagship's forecast), or no_law.
    """
    tokens = laws.tokens
    good = usable(laws.records)
    target = chosen.flops if chosen else further[0].flops if further else None
    status = "ok" if tokens and tokens.status == "ok" else "no_law"
    if chosen:
        status = _STATUS[chosen.method]
    return {
        "status": status,
        "alpha": tokens.exponent if tokens else None,
        "alpha_interval": tokens.exponent_interval if tokens else None,
        "A": tokens.coefficient if tokens else None,
        "A_interval": tokens.coefficient_interval if tokens else None,
        "tokens_law": asdict(tokens) if tokens else None,
        "loss_law": asdict(laws.frontier) if laws.frontier else None,
        "surface": surface_json(laws.surface, laws.config.confidence) if laws.surface else None,
        "jackknife": asdict(jackknife_budgets(laws, target)),
        "curves": [asdict(curve) for curve in laws.curves],
        "reasons": laws.reasons,
        "dropped": [asdict(dropped) for curve in laws.curves for dropped in curve.dropped],
        "dropped_rows": [{"row": problem.row, "reason": problem.what} for problem in table.dropped],
        "notes": [
            *({"row": note.row, "reason": note.what} for note in table.notes),
            *(asdict(one) for one in suspects(laws)),
        ],
        "table": {
            "rows": len(laws.records),
            "usable": len(good),
            "loss_unit": good[0].loss_unit,
            "flops_convention": good[0].flops_convention,
            "smallest_budget": min(record.budget for record in good),
            "largest_budget": laws.largest_budget,
        },
        "confidence": laws.config.confidence,
        "forecast": asdict(chosen) if chosen else None,
        "forecasts": [asdict(one) for one in further],
    }


def surface_json(surface: Surface, confidence: float) -> dict[str, Any]:
    """The surface with an interval for each of its parameters (Student's t, in ln E, ln A, ln B, a and b) and for the exponent of
    tokens that it implies, a / (a + b); intervals are null where the runs do not determine it, and one that holds an exponent
    of 0 makes the status weak."""
    result = asdict(surface) | {"tokens_exponent": surface.a / (surface.a + surface.b), "intervals": None}
    if surface.covariance is None:
        return result
    t = float(stats.t.ppf(0.5 + confidence / 2, surface.freedom))
    half = [t * math.sqrt(max(surface.covariance[i][i], 0.0)) for i in range(5)]
    intervals: dict[str, Any] = {
        name: [getattr(surface, name) * math.exp(sign * half[i]) for sign in (-1, 1)] for i, name in enumerate("EAB")
    }
    intervals |= {name: [getattr(surface, name) + sign * half[3 + i] for sign in (-1, 1)] for i, name in enumerate("ab")}
    # d/da a/(a+b) = b/(a+b)^2, d/db = -a/(a+b)^2
    total = (surface.a + surface.b) ** 2
    slope_a, slope_b = surface.b / total, -surface.a / total
    c = surface.covariance
    variance = slope_a**2 * c[3][3] + slope_b**2 * c[4][4] + 2 * slope_a * slope_b * c[3][4]
    width = t * math.sqrt(max(variance, 0.0))
    centre = result["tokens_exponent"]
    if surface.status == "ok" and any(intervals[name][0] <= 0 for name in "ab"):
        result |= {"status": "weak", "reason": "an exponent's interval holds 0: the runs do not show that both terms are there"}
    return result | {"intervals": intervals | {"tokens_exponent": [centre - width, centre + width]}}
