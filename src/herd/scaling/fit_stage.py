"""`herd scaling-fit`: a run table to laws, and from them the flagship with its forecast."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from herd.config.errors import UserError, nearest
from herd.config.loader import from_dict
from herd.model.counts import flops_per_token, parameter_count
from herd.model.family import family_members
from herd.runs.atomic import write_json
from herd.runs.metrics import read_metrics
from herd.runs.stage import Artifact, Inputs, Stage, StageRun
from herd.scaling.curves.hyperparameters import HyperparameterConfig
from herd.scaling.figures import save_all
from herd.scaling.fit_json import describe
from herd.scaling.fit_options import FitOptions, fingerprint
from herd.scaling.fit_report import show_fit
from herd.scaling.forecast import FALLBACKS, Forecast, forecast
from herd.scaling.further_figures import save_further
from herd.scaling.further_laws import describe_further, fit_further
from herd.scaling.laws import Laws, fit_laws
from herd.scaling.records.record import usable, write_table
from herd.scaling.sweep.plan import PlanConfig
from herd.scaling.sweep.wandb import SweepWandbConfig, log_sweep
from herd.scaling.validation import ValidationConfig, describe_roll_outs


@dataclass(frozen=True)
class ScalingFitConfig(FitOptions):
    """What to fit, and which run to forecast."""

    flagship_flops: float | None = None  # training compute of the flagship's initial stage, FLOPs; null = no flagship
    target_flops: list[float] = field(default_factory=list)  # further runs to forecast, FLOPs
    fallback: str = "refuse"  # tokens when under three budgets have an optimum: refuse | surface | ratio (a guess)
    hyperparameters: HyperparameterConfig = field(default_factory=HyperparameterConfig)  # best learning rate, best batch
    validation: ValidationConfig = field(default_factory=ValidationConfig)  # roll-out: fit below cuts, predict above
    wandb: SweepWandbConfig = field(default_factory=SweepWandbConfig)  # the sweep's cells and laws on a dashboard
    batch_multiple: int = 1024  # the flagship's batch is a multiple of this many tokens: its curriculum's longest row

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("flagship_flops", self.flagship_flops), *(("target_flops", v) for v in self.target_flops)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UserError(f"{name} {value}: give a number of FLOPs above 0.")
        if self.fallback not in FALLBACKS:
            raise UserError(
                f"Unknown fallback '{self.fallback}'.{nearest(self.fallback, FALLBACKS)} Choices: {', '.join(FALLBACKS)}."
            )
        if self.batch_multiple < 1:
            raise UserError(f"batch_multiple {self.batch_multiple}: at least 1.")


def run(config: ScalingFitConfig, inputs: Inputs, stage_run: StageRun) -> dict[str, Any]:
    """Write ``fit.json``, ``table.csv`` (the rows that were read), ``figures/`` and, where asked for one, ``flagship.json``."""
    sweep = inputs.get("sweep")
    if (sweep is None) == (config.table is None):
        raise UserError("`herd scaling-fit` fits one table: give table=FILE or inputs.sweep=FOLDER (a finished sweep).")
    table = config.read(sweep)
    laws = fit_laws(table.records, config.laws())
    chosen, target = None, None
    if config.flagship_flops is not None:
        chosen, target = choose_flagship(laws, config, config.flagship_flops, *_plan_of(sweep))
        write_json(stage_run.folder / "flagship.json", chosen)
    further = [forecast(laws, flops, config.fallback) for flops in config.target_flops]
    others = fit_further(table.records, laws, config.hyperparameters)
    rolled = describe_roll_outs(table.records, config.validation, config.laws())
    fit = describe(laws, table, target, further) | describe_further(others, [target, *further] if target else further)
    fit["roll_out"] = rolled
    write_json(stage_run.folder / "fit.json", fit)
    write_table(stage_run.folder / "table.csv", table.records)
    shown = target or next(iter(further), None)
    figures = save_all(laws, shown, stage_run.folder / "figures") + save_further(
        others, laws, rolled, shown, stage_run.folder / "figures"
    )
    summary = {name: fit[name] for name in ("status", "alpha", "alpha_interval", "A", "A_interval")}
    followed = bool(sweep and sweep.manifest["config"].get("wandb", {}).get("mode", "disabled") != "disabled")
    log_sweep(config.wandb, stage_run.folder, table.records, curves_of(sweep), summary, figures, cells=not followed)
    metrics = {
        "status": fit["status"],
        "alpha": fit["alpha"],
        "alpha_interval": fit["alpha_interval"],
        "A": fit["A"],
        "budgets": [curve.budget for curve in laws.curves],
        "optima": len(laws.vertices),  # budgets with an optimum inside their points
        "noise_floor": config.noise_floor,
        "overtraining": others.overtraining.status if others.overtraining else "not_fitted",
        "settings": {name: law.status for name, law in others.settings.items()},
        "roll_out": rolled["status"],
        "best_cell_loss": min(record.loss for record in usable(laws.records)),
    }
    if chosen is None:
        return metrics
    return metrics | {
        "flagship": {name: chosen[name] for name in ("parameters", "tokens", "flops")}
        | {f"{name}_interval": chosen[f"optimal_{name}_interval"] for name in ("parameters", "tokens")},
        "predicted_loss": chosen["predicted_loss"],
        "predicted_loss_interval": chosen["predicted_loss_interval"],
        "extrapolation_ratio": chosen["extrapolation_ratio"],
    }


def curves_of(sweep: Artifact | None) -> dict[str, list[dict[str, Any]]]:
    """Cell -> rows of its metrics.jsonl, as a sweep of ours keeps them."""
    return {path.stem: read_metrics(path) for path in sorted((sweep.path / "curves").glob("*.jsonl"))} if sweep else {}


def _plan_of(sweep: Artifact | None) -> tuple[PlanConfig | None, int]:
    """The rules that trained the cells, and their vocabulary: they choose the flagship's shape; a foreign table has none."""
    if sweep is None:
        return None, 0
    plan = from_dict(PlanConfig, sweep.manifest["config"]["plan"])
    return plan, plan.vocab_size or int(sweep.metrics["vocab_size"])


def choose_flagship(
    laws: Laws, config: ScalingFitConfig, flops: float, plan: PlanConfig | None, vocab_size: int
) -> tuple[dict[str, Any], Forecast]:
    """The run that ``flops`` should buy: size and tokens by the law; shape, batch and learning rate by the plan's rules.

    Returns ``flagship.json`` and the forecast behind it. Without a plan (a foreign table) there is no model, batch or learning
    rate, and size and tokens are the law's own.

    Raises:
        UserError: no law and no allowed fallback, or a size outside the family of shapes.
    """
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


STAGE = Stage(
    name="scaling-fit",
    version=4,
    config=ScalingFitConfig,
    run=run,
    summary="IsoFLOP parabolas, power law, forecast of the flagship",
    optional=("sweep",),
    fingerprint=fingerprint,
    show=show_fit,
)
