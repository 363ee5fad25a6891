"""The laws beside those of size and tokens, where a table holds what they need: over-training, best learning rate, best batch."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from herd.config.errors import UserError
from herd.scaling.curves.hyperparameters import SETTINGS, HyperparameterConfig, HyperparameterLaw, fit_hyperparameter_law
from herd.scaling.curves.overtraining import OvertrainingLaw, overtraining_of
from herd.scaling.forecast import Forecast
from herd.scaling.laws import Laws
from herd.scaling.records.record import Record


@dataclass(frozen=True)
class FurtherLaws:
    """What :func:`fit_further` found."""

    overtraining: OvertrainingLaw | None  # L(C, tokens per parameter)
    overtraining_reason: str  # why there is none, else ""
    settings: dict[str, HyperparameterLaw]  # lr, batch_tokens -> law of its best value, with a status where there is none


def fit_further(records: Sequence[Record], laws: Laws, config: HyperparameterConfig | None = None) -> FurtherLaws:
    """Fit the over-training law and those of the best settings; what the table does not allow has a reason instead.

    Args:
        records: the run table as it was read.
        laws: of the same table; their confidence, replicates and method count here too.
        config: how the best setting of a budget and size is found.
    """
    config, shared = config or HyperparameterConfig(), laws.config
    overtraining, reason = None, ""
    try:
        overtraining = overtraining_of(laws.records, shared.confidence, shared.replicates, shared.seed)
    except UserError as error:
        reason = str(error)
    settings = {}
    for name in SETTINGS:
        try:
            settings[name] = fit_hyperparameter_law(records, name, config, shared.method, shared.confidence)
        except UserError as error:
            settings[name] = HyperparameterLaw("not_fitted", str(error), name, config.against, (), None)
    return FurtherLaws(overtraining, reason, settings)


def describe_further(further: FurtherLaws, forecasts: Sequence[Forecast]) -> dict[str, Any]:
    """Their part of ``fit.json``, with what they say about each of ``forecasts``."""
    law = further.overtraining
    return {
        "overtraining": law.as_dict() | {"optimal_ratio": law.optimal_ratio(), "forecasts": [_at(law, one) for one in forecasts]}
        if law
        else {"status": "not_fitted", "reason": further.overtraining_reason},
        "settings": {
            name: asdict(found) | {"forecasts": [_best(found, one) for one in forecasts] if found.law else []}
            for name, found in further.settings.items()
        },
    }


def _at(law: OvertrainingLaw, run: Forecast) -> dict[str, Any]:
    """Loss of the forecast run by the over-training law, with the interval of one measurement."""
    ratio = run.tokens / run.parameters
    return {
        "flops": run.flops,
        "tokens_per_parameter": ratio,
        "loss": float(law.loss(run.flops, ratio)),
        "loss_interval": law.interval(run.flops, ratio, "prediction"),
        "extrapolation_ratio": law.extrapolation_ratio(run.flops),
    }


def _best(found: HyperparameterLaw, run: Forecast) -> dict[str, Any]:
    """Best setting of the forecast run."""
    x = {"budget": run.flops, "parameters": run.parameters, "tokens": run.tokens}[found.against]
    best, interval, ratio = found.best(x)
    assert math.isfinite(best)
    return {"flops": run.flops, found.against: x, "best": best, "interval": interval, "extrapolation_ratio": ratio}
