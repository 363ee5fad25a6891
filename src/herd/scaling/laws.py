"""All laws of one run table, and the forecast of a larger run with an interval that carries the cells' noise through.

Tokens: D*(C) = A C^alpha through the IsoFLOP vertices. Its interval is the wider of two: Student's t on the scatter of the few
vertices about the law, and the vertices' own errors, from redrawn sweeps, carried through the fit (see `power_law`).
Loss: two laws are fitted, one along the frontier of vertices (E + k C^-g) and one over all cells (E + A/N^a + B/D^b).
Each gets replicates: the cells' losses are drawn anew around its own fit, with a standard deviation that is itself drawn from
its posterior (few degrees of freedom must show), and everything is fitted again. What seeds do to all cells of a budget alike a
parabola swallows, so its residuals may say too little: the deviation is never drawn below `noise_floor`, which comes from the
same cell trained with several seeds. The forecast is that of the frontier (of the
surface where too few budgets have an optimum); its interval spans both laws, because a sweep of a decade cannot tell which of
them holds beyond it. On laptop sweeps the surface flattens too early and the frontier does not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from herd.config.errors import UserError, nearest
from herd.runs.seeds import stream
from herd.scaling.isoflop import IsoFLOPConfig, IsoFLOPCurve, fit_isoflop, parabola_design
from herd.scaling.loss_law import LossLaw, fit_loss_law, solve_loss_laws
from herd.scaling.power_law import Interval, PowerLaw, fit_power_law
from herd.scaling.records import Record, check_table, usable
from herd.scaling.surface import OBJECTIVES, Surface, SurfaceBatch, bootstrap_surface, fit_surface


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
    confidence: float = 0.95  # of every interval
    replicates: int = 1000  # redrawn sweeps behind the intervals
    seed: int = 0  # of the replicates
    noise_floor: float = 0.0  # smallest standard deviation of a cell's loss between seeds that is believed, nats

    def __post_init__(self) -> None:
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
    records: tuple[Record, ...]
    config: LawsConfig

    @property
    def vertices(self) -> tuple[IsoFLOPCurve, ...]:
        """Curves with an optimum."""
        return tuple(curve for curve in self.curves if curve.status == "ok")

    @property
    def largest_budget(self) -> float:
        """Largest training compute among the usable cells, FLOPs."""
        return float(max(record.budget for record in usable(self.records)))


@dataclass(frozen=True)
class Forecast:
    """What a run of `flops` should be and reach. Intervals are two-sided at the laws' confidence."""

    flops: float
    extrapolation_ratio: float  # flops / largest fitted budget
    method: str  # where tokens come from: power_law | surface | ratio (a guess: tokens per parameter of the best cell)
    tokens: float  # compute-optimal training tokens
    tokens_interval: Interval | None
    parameters: float  # flops / (6 tokens)
    parameters_interval: Interval | None
    loss: float | None  # nats per token, None when no law of the loss could be fitted
    loss_interval: Interval | None  # of one run's measured loss
    loss_method: str | None  # frontier | surface: the law that `loss` comes from
    by_law: dict[str, dict[str, object]]  # each law's own loss and interval


def fit_laws(records: Sequence[Record], config: LawsConfig | None = None) -> Laws:
    """Fit IsoFLOP parabolas, the power law of tokens, the law of the optimal loss and the surface.

    Raises:
        UserError: a table that no fit should see (see :func:`herd.scaling.records.check_table`), or without a usable row.
    """
    config = config or LawsConfig()
    check_table(records)
    rows = usable(records)
    if not rows:
        raise UserError("The run table has no usable row: every run failed or diverged.")
    curves = fit_isoflop(records, config.isoflop)
    vertices = [curve for curve in curves if curve.status == "ok"]
    budgets = np.array([curve.budget for curve in vertices])
    reasons: dict[str, str] = {}
    tokens, frontier, surface = None, None, None
    refused = "; ".join(f"{c.budget:.3g} FLOPs: {c.status}, {c.reason}" for c in curves if c.status != "ok")
    try:
        optima = [curve.tokens or math.nan for curve in vertices]
        tokens = fit_power_law(budgets.tolist(), optima, config.confidence, _vertex_errors(vertices, records, config))
        if tokens.status == "exact":
            reasons["tokens_interval"] = "two budgets determine alpha without an interval"
    except UserError:
        reasons["tokens"] = f"{len(vertices)} of {len(curves)} budgets have an optimum, 2 needed ({refused})"
    try:
        frontier = fit_loss_law(budgets, np.array([curve.loss or math.nan for curve in vertices]))
    except UserError:
        reasons["frontier"] = f"{len(vertices)} of {len(curves)} budgets have an optimum, 3 needed ({refused})"
    try:
        n, d, y = _columns(rows)
        surface = fit_surface(n, d, y, config.surface.objective, config.surface.delta)
    except UserError as error:
        reasons["surface"] = str(error)
    return Laws(curves, tokens, frontier, surface, reasons, tuple(records), config)


def forecast(laws: Laws, flops: float, fallback: str = "refuse", parameters: float | None = None) -> Forecast:
    """Compute-optimal tokens, parameters and loss at ``flops``.

    Args:
        laws: the fit.
        flops: training compute of the run to forecast.
        fallback: what gives the tokens when fewer than three budgets have an optimum: ``refuse``, ``surface``, or ``ratio``
            (the surface if it can be fitted, else the tokens per parameter of the best cell at the largest budget: a guess,
            without an interval).
        parameters: size of the model that will really be trained, when its shape is known; the surface uses it.

    Raises:
        UserError: no power law with an interval and no allowed fallback.
    """
    if not (math.isfinite(flops) and flops > 0):
        raise UserError(f"Cannot forecast a run of {flops} FLOPs: give a number above 0.")
    method, tokens, interval = _tokens(laws, flops, fallback)
    n = parameters or flops / (6 * tokens)
    by_law: dict[str, dict[str, object]] = {}
    spans: list[Interval] = []
    losses = _losses(laws, flops, n)
    for name, (value, span) in losses.items():
        by_law[name] = {"loss": value, "interval": list(span)}
        spans.append(span)
    chosen = next(iter(losses), None)
    loss = losses[chosen][0] if chosen else None
    loss_interval = (min(s[0] for s in spans), max(s[1] for s in spans)) if spans else None
    return Forecast(
        flops=flops,
        extrapolation_ratio=flops / laws.largest_budget,
        method=method,
        tokens=tokens,
        tokens_interval=interval,
        parameters=flops / (6 * tokens),
        parameters_interval=(flops / 6 / interval[1], flops / 6 / interval[0]) if interval else None,
        loss=loss,
        loss_interval=loss_interval,
        loss_method=chosen,
        by_law=by_law,
    )


FALLBACKS = ("refuse", "surface", "ratio")


def _tokens(laws: Laws, flops: float, fallback: str) -> tuple[str, float, Interval | None]:
    if fallback not in FALLBACKS:
        raise UserError(f"Unknown fallback '{fallback}'.{nearest(fallback, FALLBACKS)} Choices: {', '.join(FALLBACKS)}.")
    if laws.tokens is not None and laws.tokens.status == "ok":
        return "power_law", laws.tokens.predict(flops), laws.tokens.interval(flops)
    if fallback == "refuse":
        why = laws.reasons.get("tokens") or laws.reasons["tokens_interval"]
        raise UserError(f"No law for the optimal tokens: {why}. Add cells, or allow fallback=surface.")
    if laws.surface is not None and laws.surface.status == "ok":
        batch = _surface_replicates(laws, laws.surface, *laws.surface.optimum(flops))[0]
        return "surface", laws.surface.optimum(flops)[1], _quantiles(laws, batch.optimal_tokens(flops))
    if fallback == "surface":
        why = laws.surface.reason if laws.surface else laws.reasons["surface"]
        raise UserError(f"No law for the optimal tokens, nor a surface in its place: {why} Add cells, or fallback=ratio.")
    largest = [record for record in usable(laws.records) if record.budget == laws.largest_budget]
    best = min(largest, key=lambda record: (record.loss, record.cell))
    # Tokens and parameters grow in step, as Hoffmann et al. 2022 found: D = sqrt(C/6 x D/N).
    return "ratio", math.sqrt(flops / 6 * best.tokens / best.parameters), None


def _losses(laws: Laws, flops: float, parameters: float) -> dict[str, tuple[float, Interval]]:
    """Loss of a run at ``flops`` by each law that could be fitted, the preferred first, with the interval of one measured run."""
    result: dict[str, tuple[float, Interval]] = {}
    if laws.frontier is not None:
        drawn = _frontier_replicates(laws, flops)
        if drawn is not None:
            result["frontier"] = float(laws.frontier.loss(flops)), _quantiles(laws, drawn)
    if laws.surface is not None and laws.surface.status == "ok":
        tokens = flops / 6 / parameters
        batch, noise = _surface_replicates(laws, laws.surface, parameters, tokens)
        drawn = batch.loss(parameters, tokens) * np.exp(noise)
        result["surface"] = float(laws.surface.loss(parameters, tokens)), _quantiles(laws, drawn)
    return result


def _quantiles(laws: Laws, values: np.ndarray) -> Interval:
    tail = (1 - laws.config.confidence) / 2
    low, high = np.quantile(values[np.isfinite(values)], [tail, 1 - tail])
    return float(low), float(high)


def _surface_replicates(laws: Laws, surface: Surface, parameters: float, tokens: float) -> tuple[SurfaceBatch, np.ndarray]:
    """Surfaces refitted on redrawn losses, and for each the noise on ln L, (R,), of one more run of that size."""
    rng = stream(laws.config.seed, "surface replicates")
    n, d, y = _columns(usable(laws.records))
    count, freedom = laws.config.replicates, len(y) - 5
    std = surface.residual_std * np.sqrt(freedom / rng.chisquare(freedom, count))
    fitted, floor = surface.loss(n, d), laws.config.noise_floor
    losses = fitted * np.exp(rng.normal(size=(count, len(y))) * np.maximum(std[:, None], floor / fitted))
    return bootstrap_surface(surface, n, d, losses), rng.normal(size=count) * np.maximum(
        std, floor / surface.loss(parameters, tokens)
    )


@dataclass(frozen=True)
class _Redrawn:
    """Vertices of redrawn sweeps, NaN where a redrawn curve has no optimum; R redraws of V curves."""

    log10_tokens: np.ndarray  # (R, V)
    losses: np.ndarray  # (R, V), nats
    std: np.ndarray  # (R,) noise of one cell, nats


def _redraw(
    vertices: Sequence[IsoFLOPCurve], records: Sequence[Record], config: LawsConfig, rng: np.random.Generator
) -> _Redrawn | None:
    """Redraw the cells of every curve about its parabola and find the vertices again; None without noise to draw."""
    count = config.replicates
    freedom = sum(len(curve.used) - 3 for curve in vertices)
    if freedom == 0 and config.noise_floor == 0:
        return None
    squares = sum((curve.residual_std or 0.0) ** 2 * (len(curve.used) - 3) for curve in vertices)
    std = np.sqrt(squares / rng.chisquare(freedom, count)) if freedom else np.zeros(count)
    std = np.maximum(std, config.noise_floor)
    tokens_of = {record.cell: record.tokens for record in records}
    optimal, positions = np.full((count, len(vertices)), np.nan), np.full((count, len(vertices)), np.nan)
    for i, curve in enumerate(vertices):
        tokens = np.array([tokens_of[cell] for cell in curve.used])
        assert curve.centre is not None
        x = np.log10(tokens) - curve.centre
        losses = curve.loss_at(tokens) + rng.normal(size=(count, len(x))) * std[:, None]
        c0, c1, c2 = (losses @ np.linalg.pinv(parabola_design(x)).T).T
        with np.errstate(divide="ignore", invalid="ignore"):
            at = -c1 / (2 * c2)
            inside = (c2 > 0) & (at > x.min()) & (at < x.max())  # the same refusals as for the data
            optimal[:, i] = np.where(inside, c0 - c1**2 / (4 * c2), np.nan)
            positions[:, i] = np.where(inside, at + curve.centre, np.nan)
    return _Redrawn(positions, optimal, std)


def _vertex_errors(vertices: Sequence[IsoFLOPCurve], records: Sequence[Record], config: LawsConfig) -> list[float] | None:
    """Standard error of ln D* of every curve: half of the redraws' central interval, in units of the normal's."""
    drawn = _redraw(vertices, records, config, stream(config.seed, "vertex replicates")) if len(vertices) > 2 else None
    if drawn is None or not np.isfinite(drawn.log10_tokens).any(axis=0).all():
        return None
    tail = (1 - config.confidence) / 2
    low, high = np.nanquantile(drawn.log10_tokens, [tail, 1 - tail], axis=0)
    return (math.log(10) * (high - low) / 2 / stats.norm.ppf(1 - tail)).tolist()


def _frontier_replicates(laws: Laws, flops: float) -> np.ndarray | None:
    """Losses at ``flops`` of frontier laws fitted through the vertices of redrawn sweeps; None without noise to draw."""
    rng = stream(laws.config.seed, "frontier replicates")
    vertices, count = laws.vertices, laws.config.replicates
    drawn = _redraw(vertices, laws.records, laws.config, rng)
    if drawn is None:
        return None
    weights = np.isfinite(drawn.losses).astype(float)
    enough = weights.sum(axis=1) >= 3
    if enough.sum() < count // 10:  # what is left is conditioned on three optima, as the data are
        return None
    budgets = np.array([curve.budget for curve in vertices])
    # Far from the irreducible loss a sweep cannot tell a power law from a straight line in log C, which E < 0 allows.
    lowest = -min(curve.loss or 0.0 for curve in vertices)
    E, k, g, reference = solve_loss_laws(budgets, np.nan_to_num(drawn.losses[enough]), weights[enough], lowest)
    return np.asarray(E + k * (flops / reference) ** -g + rng.normal(size=int(enough.sum())) * drawn.std[enough])


def _columns(records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # Parameters as the FLOPs see them, so that 6ND is the compute whatever convention counted it.
    n = np.array([record.flops / (6 * record.tokens) for record in records])
    return n, np.array([record.tokens for record in records]), np.array([record.loss for record in records])
