"""All laws of one run table.

Tokens: D*(C) = A C^alpha through the IsoFLOP vertices. Its interval is the wider of two: the scatter of the few vertices about
the law, and the vertices' own errors, from redrawn sweeps, carried through the fit (see `power_law`).
Loss: two laws are fitted, one along the frontier of vertices (E + k C^-g) and one over all cells (E + A/N^a + B/D^b).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from herd.config.errors import UserError, nearest
from herd.runs.seeds import stream
from herd.scaling.curves.hyperparameters import mark_untuned
from herd.scaling.curves.isoflop import IsoFLOPConfig, IsoFLOPCurve, fit_isoflop, refusals
from herd.scaling.curves.power_law import METHODS, PowerLaw, fit_power_law
from herd.scaling.loss_law import LossLaw, fit_loss_law
from herd.scaling.records.record import Record, check_table, usable
from herd.scaling.replicates import vertex_errors
from herd.scaling.surface.fit import OBJECTIVES, Surface, fit_surface


@dataclass(frozen=True)
class SurfaceConfig:
    """How the surface over all cells is fitted."""

    objective: str = "huber_log"  # huber_log | squared_log | squared
    delta: float = 1e-3  # Huber's threshold on ln loss; large values make it squared error

    def __post_init__(self) -> None:
        OBJECTIVES.get(self.objective)
        if not self.delta > 0:
            raise UserError(f"surface.delta {self.delta}: must be above 0.")


@dataclass(frozen=True)
class LawsConfig:
    """What :func:`fit_laws` needs beside the table."""

    isoflop: IsoFLOPConfig = field(default_factory=IsoFLOPConfig)
    surface: SurfaceConfig = field(default_factory=SurfaceConfig)
    method: str = "ols"  # of the law of tokens: ols | wls (by the vertices' errors) | theil_sen
    confidence: float = 0.95  # of every interval
    replicates: int = 1000  # redrawn sweeps behind the intervals
    seed: int = 0  # of the replicates
    noise_floor: float = 0.0  # smallest standard deviation of a cell's loss between seeds that is believed, nats
    # Runs of one budget and size with several learning rates or batches: best (only the best setting's are fitted) | all
    settings: str = "best"

    def __post_init__(self) -> None:
        METHODS.get(self.method)
        if self.settings not in ("best", "all"):
            hint = nearest(self.settings, ("best", "all"))
            raise UserError(f"Unknown settings '{self.settings}'.{hint} Choices: best, all.")
        if not (math.isfinite(self.noise_floor) and self.noise_floor >= 0):
            raise UserError(f"noise_floor {self.noise_floor}: give nats of 0 or more.")
        if not 0 < self.confidence < 1:
            raise UserError(f"confidence {self.confidence}: give a fraction between 0 and 1, such as 0.95.")
        if self.replicates < 100:
            raise UserError(f"replicates {self.replicates}: at least 100 are needed for an interval.")


@dataclass(frozen=True)
class Laws:
    """Everything fitted on one table; a part that could not be fitted is None, and `reasons` says why."""

    curves: tuple[IsoFLOPCurve, ...]
    tokens: PowerLaw | None  # D*(C), compute-optimal training tokens
    frontier: LossLaw | None  # L*(C) along the vertices
    surface: Surface | None  # L(N, D) over all cells
    reasons: dict[str, str]  # part -> why it is missing
    records: tuple[Record, ...]  # all rows; those with a worse setting than the best have the status untuned
    config: LawsConfig

    @property
    def vertices(self) -> tuple[IsoFLOPCurve, ...]:
        """Curves with an optimum."""
        return tuple(curve for curve in self.curves if curve.status == "ok")

    @property
    def largest_budget(self) -> float:
        """Largest training compute among the usable cells, FLOPs."""
        return float(max(record.budget for record in usable(self.records)))


def fit_laws(records: Sequence[Record], config: LawsConfig | None = None) -> Laws:
    """Fit IsoFLOP parabolas, the power law of tokens, the law of the optimal loss and the surface.

    Raises:
        UserError: a table that no fit should see (see :func:`herd.scaling.records.record.check_table`), or without a usable row.
    """
    config = config or LawsConfig()
    check_table(records)
    if config.settings == "best":
        records = mark_untuned(records)
    rows = usable(records)
    if not rows:
        raise UserError("The run table has no usable row: every run failed or diverged.")
    curves = fit_isoflop(records, config.isoflop)
    vertices = [curve for curve in curves if curve.status == "ok"]
    budgets = np.array([curve.budget for curve in vertices])
    reasons: dict[str, str] = {}
    tokens, frontier, surface = None, None, None
    try:
        optima = [curve.tokens or math.nan for curve in vertices]
        if len(vertices) < 2:
            raise UserError(refusals(curves, 2))
        errors = errors_of(vertices, config)
        tokens = fit_power_law(budgets, optima, config.confidence, errors, config.method, config.replicates, config.seed)
        if tokens.reason:
            reasons["tokens_interval"] = tokens.reason
    except UserError as error:
        reasons["tokens"] = str(error)
    try:
        frontier = fit_loss_law(budgets, np.array([curve.loss or math.nan for curve in vertices]))
    except UserError:
        reasons["frontier"] = refusals(curves, 3)
    try:
        surface = fit_surface(*columns(rows), config.surface.objective, config.surface.delta)
    except UserError as error:
        reasons["surface"] = str(error)
    return Laws(curves, tokens, frontier, surface, reasons, tuple(records), config)


def errors_of(vertices: Sequence[IsoFLOPCurve], config: LawsConfig) -> list[float] | None:
    """Standard error of ln D* of every vertex, from redrawn sweeps; None when there is no noise to draw."""
    rng = stream(config.seed, "vertex replicates")
    return vertex_errors(vertices, config.replicates, config.noise_floor, rng)


def columns(records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Parameters, tokens and loss, (n,) each, as the surface reads them."""
    # Parameters as the FLOPs see them, so that 6ND is the compute whatever convention counted it.
    n = np.array([record.flops / (6 * record.tokens) for record in records])
    return n, np.array([record.tokens for record in records]), np.array([record.loss for record in records])
