"""`herd mix-fit`: a table of mixtures and held-out losses to laws, and to the mixture to train next."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Optional

from herd.config.errors import UserError
from herd.runs.atomic import sha256_file, write_json
from herd.runs.stage import Inputs, Stage, StageRun
from herd.scaling.mixture import figures as mixture_figures
from herd.scaling.mixture.kinds import KINDS
from herd.scaling.mixture.law import MixtureLaw, fit_mixture
from herd.scaling.mixture.proposals import Limits, Proposal, propose_mixture
from herd.scaling.mixture.records import MixtureTable, finished_runs, gather_mixtures, read_mixtures, write_mixtures
from herd.scaling.mixture.report import show_mix_fit


@dataclass(frozen=True)
class MixFitConfig:
    """Which mixtures, which law, and what a proposal may do."""

    runs: Optional[str] = None  # noqa: UP045 (OmegaConf) folder of finished `herd pretrain` runs; or
    table: Optional[str] = None  # noqa: UP045 CSV or Parquet file of mixtures and losses
    mix_prefix: str = "mix/"  # how the table's columns of shares begin
    loss_prefix: str = "loss/"  # how the table's columns of losses begin
    size: Optional[str] = None  # noqa: UP045 column to fit jointly as the model's size, e.g. parameters; null = all alike
    predict_size: Optional[float] = None  # noqa: UP045 size to propose for, in that column's unit; null = the largest
    kind: str = "exponential"  # law: exponential | gbdt | linear | log_linear
    folds: int = 5  # of the cross-validation; up to 20 runs are left out one by one
    prior: dict[str, float] = field(default_factory=dict)  # source -> share, the mix to improve on; empty = mean of the table
    weights: dict[str, float] = field(default_factory=dict)  # domain -> weight of its loss, sum 1; empty = all alike
    max_kl: Optional[float] = 0.1  # noqa: UP045 largest divergence of a proposal from the prior, nats; null = no limit
    max_epochs: Optional[float] = None  # noqa: UP045 passes over each source at most; null = no limit
    available_tokens: dict[str, float] = field(default_factory=dict)  # source -> tokens there are, for max_epochs
    budget_tokens: Optional[float] = None  # noqa: UP045 tokens of the run to come, for max_epochs
    replicates: int = 100  # refits to reweighted runs behind the intervals
    confidence: float = 0.95  # of every interval
    seed: int = 0  # of folds, replicates and candidates

    def __post_init__(self) -> None:
        KINDS.get(self.kind)
        if self.replicates < 2 or not 0 < self.confidence < 1:
            raise UserError("mix-fit needs replicates of 2 or more and a confidence between 0 and 1.")
        if (self.runs is None) == (self.table is None):
            raise UserError(
                "`herd mix-fit` fits one table: give table=FILE, or runs=FOLDER of a finished sweep of `herd pretrain`."
            )
        self.limits()

    def limits(self) -> Limits:
        """What a proposal may do."""
        return Limits(self.max_kl, self.max_epochs, self.available_tokens or None, self.budget_tokens)


def run(config: MixFitConfig, inputs: Inputs, stage_run: StageRun) -> dict[str, Any]:
    """Write ``mix_fit.json``, ``mixtures.csv`` and ``figures/``."""
    table = open_table(config)
    laws = fit_laws(config, table)
    chosen = propose(config, table, laws)
    write_mixtures(stage_run.folder / "mixtures.csv", table)
    described = describe(table, laws, chosen)
    write_json(stage_run.folder / "mix_fit.json", described)
    mixture_figures.save_all(laws, chosen, stage_run.folder / "figures")
    return {
        "status": chosen.status,
        "reason": chosen.reason,
        "mixtures": len(table.runs),
        "spearman": {domain: law.held_out.spearman for domain, law in laws.items()},
        "rmse": {domain: law.held_out.rmse for domain, law in laws.items()},
        "proposal": described["proposal"]["mix"],
        "gain": chosen.gain,
        "gain_interval": list(chosen.gain_interval),
    }


def open_table(config: MixFitConfig) -> MixtureTable:
    """The table that the configuration names."""
    if config.runs is not None:
        return gather_mixtures(Path(config.runs))
    return read_mixtures(str(config.table), config.mix_prefix, config.loss_prefix)


def fit_laws(config: MixFitConfig, table: MixtureTable) -> dict[str, MixtureLaw]:
    """Domain -> law of its loss."""
    sizes = table.sizes(config.size)
    return {
        domain: fit_mixture(
            table.shares, table.losses[:, i], config.kind, table.sources, sizes=sizes, folds=config.folds, seed=config.seed
        )
        for i, domain in enumerate(table.domains)
    }


def propose(config: MixFitConfig, table: MixtureTable, laws: dict[str, MixtureLaw]) -> Proposal:
    """The mixture to train next."""
    mean = table.shares.mean(axis=0)
    prior = config.prior or dict(zip(table.sources, (mean / mean.sum()).tolist(), strict=True))
    return propose_mixture(
        laws,
        prior,
        config.limits(),
        config.weights or None,
        config.predict_size,
        config.replicates,
        confidence=config.confidence,
        seed=config.seed,
    )


def describe(table: MixtureTable, laws: dict[str, MixtureLaw], chosen: Proposal) -> dict[str, Any]:
    """``mix_fit.json``: every law with its status and held-out error, and the proposal with its limits and doubts."""
    hidden = ("mixtures", "losses", "_sizes", "_reference", "_fitted")
    plain = {
        domain: {k: asdict(v) if k == "held_out" else v for k, v in vars(law).items() if k not in hidden}
        for domain, law in laws.items()
    }
    by_source = {
        "mix": chosen.shares,
        "mix_interval": chosen.shares_interval,
        "prior": chosen.prior,
        **({"epochs": chosen.epochs} if chosen.epochs is not None else {}),
    }
    rest = {k: v for k, v in asdict(chosen).items() if k not in ("shares", "shares_interval", "prior", "epochs", "sources")}
    return {
        "runs": list(table.runs),
        "sources": list(table.sources),
        "laws": plain,
        "proposal": rest | {name: dict(zip(chosen.sources, values, strict=True)) for name, values in by_source.items()},
    }


def fingerprint(config: MixFitConfig) -> Any:
    """The content of the table, or the addresses of the runs."""
    if config.runs is not None:
        return {name: artifact.address for name, artifact in finished_runs(Path(config.runs))}
    if not Path(str(config.table)).is_file():
        raise UserError(f"No table of mixtures '{config.table}': give table=FILE (CSV or Parquet), or runs=FOLDER.")
    return sha256_file(Path(str(config.table)))


STAGE = Stage(
    name="mix-fit",
    version=1,
    config=MixFitConfig,
    run=run,
    summary="mixtures and held-out losses to mixture laws and the mix to train next",
    fingerprint=fingerprint,
    show=show_mix_fit,
)
