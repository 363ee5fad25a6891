"""`herd scaling-fit`: a run table to laws, and from them the flagship with its forecast."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Optional

from herd.config.errors import UserError, nearest
from herd.config.loader import from_dict
from herd.model.counts import flops_per_token, parameter_count
from herd.model.family import family_members
from herd.runs.atomic import sha256_file, write_json
from herd.runs.stage import Inputs, Stage, StageRun
from herd.scaling.figures import save_all
from herd.scaling.forecast import FALLBACKS, Forecast, forecast
from herd.scaling.isoflop import IsoFLOPConfig
from herd.scaling.laws import Laws, LawsConfig, SurfaceConfig, fit_laws
from herd.scaling.plan import PlanConfig
from herd.scaling.power_law import PowerLaw
from herd.scaling.record_readers import read_table
from herd.scaling.records import usable


@dataclass(frozen=True)
class ScalingFitConfig:
    """What to fit, and which run to forecast."""

    flagship_flops: float  # training compute of the flagship's initial stage, FLOPs
    table: Optional[str] = None  # noqa: UP045 (OmegaConf) CSV of runs; null = the sweep that is the input
    columns: dict[str, str] = field(default_factory=dict)  # our column -> the table's, for foreign tables
    where: dict[str, str] = field(default_factory=dict)  # the table's column -> value that its rows must have
    fallback: str = "refuse"  # tokens when under three budgets have an optimum: refuse | surface | ratio (a guess)
    batch_multiple: int = 1024  # the flagship's batch is a multiple of this many tokens: its curriculum's longest row
    confidence: float = 0.95  # of every interval
    replicates: int = 1000  # redrawn sweeps behind the intervals
    isoflop: IsoFLOPConfig = field(default_factory=IsoFLOPConfig)
    surface: SurfaceConfig = field(default_factory=SurfaceConfig)
    seed: int = 0  # of the replicates
    noise_floor: float = 0.0  # smallest standard deviation of a cell's loss between seeds that is believed, nats

    def __post_init__(self) -> None:
        if not (math.isfinite(self.flagship_flops) and self.flagship_flops > 0):
            raise UserError(f"flagship_flops {self.flagship_flops}: give a number of FLOPs above 0.")
        if self.fallback not in FALLBACKS:
            raise UserError(
                f"Unknown fallback '{self.fallback}'.{nearest(self.fallback, FALLBACKS)} Choices: {', '.join(FALLBACKS)}."
            )
        if self.batch_multiple < 1:
            raise UserError(f"batch_multiple {self.batch_multiple}: at least 1.")

    def laws(self) -> LawsConfig:
        """The part that the fit itself reads."""
        return LawsConfig(
            isoflop=self.isoflop,
            surface=self.surface,
            confidence=self.confidence,
            replicates=self.replicates,
            seed=self.seed,
            noise_floor=self.noise_floor,
        )


def run(config: ScalingFitConfig, inputs: Inputs, stage_run: StageRun) -> dict[str, Any]:
    """Write ``fit.json``, ``flagship.json`` and ``figures/``."""
    sweep = inputs.get("sweep")
    if (sweep is None) == (config.table is None):
        raise UserError("`herd scaling-fit` fits one table: give table=FILE or inputs.sweep=FOLDER (a finished sweep).")
    source = Path(config.table) if config.table else sweep / "table.csv"  # type: ignore[operator]
    laws = fit_laws(read_table(source, config.columns, config.where), config.laws())
    # The rules that trained the cells choose the flagship's shape, batch and learning rate; a foreign table has none.
    plan = from_dict(PlanConfig, sweep.manifest["config"]["plan"]) if sweep else None
    vocabulary = 0
    if plan is not None and sweep is not None:
        vocabulary = plan.vocab_size or int(sweep.metrics["vocab_size"])
    chosen, target = choose_flagship(laws, config, plan, vocabulary)
    fit = describe(laws, target)
    write_json(stage_run.folder / "fit.json", fit)
    write_json(stage_run.folder / "flagship.json", chosen)
    save_all(laws, target, stage_run.folder / "figures")
    return {
        "status": fit["status"],
        "alpha": fit["alpha"],
        "alpha_interval": fit["alpha_interval"],
        "A": fit["A"],
        "budgets": [curve.budget for curve in laws.curves],
        "optima": len(laws.vertices),  # budgets with an optimum inside their points
        "noise_floor": config.noise_floor,
        "best_cell_loss": min(record.loss for record in usable(laws.records)),
        "flagship": {name: chosen[name] for name in ("parameters", "tokens", "flops")}
        | {f"{name}_interval": chosen[f"optimal_{name}_interval"] for name in ("parameters", "tokens")},
        "predicted_loss": chosen["predicted_loss"],
        "predicted_loss_interval": chosen["predicted_loss_interval"],
        "extrapolation_ratio": chosen["extrapolation_ratio"],
    }


def choose_flagship(
    laws: Laws, config: ScalingFitConfig, plan: PlanConfig | None, vocab_size: int
) -> tuple[dict[str, Any], Forecast]:
    """The run that ``flagship_flops`` should buy: size and tokens by the law; shape, batch and learning rate by the plan's rules.

    Returns ``flagship.json`` and the forecast behind it. Without a plan (a foreign table) there is no model, batch or learning
    rate, and size and tokens are the law's own.

    Raises:
        UserError: no law and no allowed fallback, or a size outside the family of shapes.
    """
    flops = config.flagship_flops
    first = forecast(laws, flops, config.fallback)
    flagship: dict[str, Any] = {
        "predicts": "initial_loss",  # held-out loss at the end of the flagship's initial stage
        "method": first.method,
        "parameters": first.parameters,
        "tokens": first.tokens,
        "flops": flops,
        "flops_convention": usable(laws.records)[0].flops_convention,
        "optimal_tokens": first.tokens,
        "optimal_tokens_interval": first.tokens_interval,
        "optimal_parameters": first.parameters,
        "optimal_parameters_interval": first.parameters_interval,
    }
    final = first
    if plan is not None:
        # FLOPs per token / 6 is the law's N under any convention.
        sizes = {
            flops_per_token(shape, plan.seq_len, plan.flops_convention) / 6: shape
            for shape in family_members(vocab_size, plan.seq_len)
        }
        wanted = min(max(first.parameters, min(sizes)), max(sizes))
        if wanted != first.parameters and config.fallback == "refuse":
            raise UserError(
                f"The law asks for {first.parameters:,.0f} parameters at {flops:.3g} FLOPs, outside the family of shapes "
                f"({min(sizes):,.0f} to {max(sizes):,.0f}): change flagship_flops, or mend the sweep that gave this law."
            )
        size = min(sizes, key=lambda n: abs(math.log(n / wanted)))
        shape, per_token = sizes[size], 6 * size
        batch = plan.training.batch(flops, flops / per_token, config.batch_multiple)
        tokens = max(round(flops / per_token / batch), 1) * batch
        parameters = parameter_count(shape, "6N")
        final = forecast(laws, tokens * per_token, config.fallback, parameters=size)
        flagship |= {
            "model": asdict(shape),
            "parameters": parameters,
            "tokens": tokens,
            "flops": tokens * per_token,
            "lr": plan.training.learning_rate(parameters),
            "batch_tokens": batch,
            "limited_to_family": wanted != first.parameters,
        }
    flagship |= {
        "predicted_loss": final.loss,
        "predicted_loss_interval": final.loss_interval,
        "loss_method": final.loss_method,
        "loss_by_law": final.by_law,
        "extrapolation_ratio": final.extrapolation_ratio,
    }
    return flagship, final


def describe(laws: Laws, chosen: Forecast) -> dict[str, Any]:
    """``fit.json``: every law with its status; what could not be fitted is null, with the reason."""
    tokens: PowerLaw | None = laws.tokens
    return {
        "status": chosen.method if chosen.method == "ratio" else "ok" if chosen.method == "power_law" else "surface",
        "alpha": tokens.exponent if tokens else None,
        "alpha_interval": tokens.exponent_interval if tokens else None,
        "A": tokens.coefficient if tokens else None,
        "A_interval": tokens.coefficient_interval if tokens else None,
        "tokens_law": asdict(tokens) if tokens else None,
        "loss_law": asdict(laws.frontier) if laws.frontier else None,
        "surface": asdict(laws.surface) if laws.surface else None,
        "curves": [asdict(curve) for curve in laws.curves],
        "reasons": laws.reasons,
        "dropped": [asdict(dropped) for curve in laws.curves for dropped in curve.dropped],
        "confidence": laws.config.confidence,
        "forecast": asdict(chosen),
    }


def fingerprint(config: ScalingFitConfig) -> Any:
    """The content of a table given by name."""
    if config.table is None:
        return None
    if not Path(config.table).is_file():
        raise UserError(f"No run table '{config.table}': give table=FILE, or inputs.sweep=FOLDER of a finished sweep.")
    return sha256_file(Path(config.table))


STAGE = Stage(
    name="scaling-fit",
    version=2,
    config=ScalingFitConfig,
    run=run,
    summary="IsoFLOP parabolas, power law, forecast of the flagship",
    optional=("sweep",),
    fingerprint=fingerprint,
)
