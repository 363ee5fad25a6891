"""Roll-out validation: fit below a compute cut, predict what was measured above it.

The only honest test of an extrapolation is another extrapolation: every law is fitted on the budgets up to the cut alone and
judged on the runs beyond it, by its error, its bias, how often its interval held the measurement, and how often it would have
chosen the better of two runs of one budget.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from herd.config.errors import UserError
from herd.scaling.curves.hyperparameters import mark_untuned
from herd.scaling.curves.isoflop import fit_isoflop
from herd.scaling.curves.overtraining import overtraining_of
from herd.scaling.curves.power_law import Interval
from herd.scaling.forecast import measured_losses
from herd.scaling.laws import Laws, LawsConfig, columns, fit_laws
from herd.scaling.records.record import Record, by_budget, check_table, usable
from herd.scaling.replicates import quantiles


@dataclass(frozen=True)
class ValidationConfig:
    """Whether `herd scaling-fit` also fits below cuts and predicts above them, and where it cuts."""

    roll_out: bool = False
    cuts: list[float] = field(
        default_factory=list
    )  # FLOPs, the largest budget fitted; empty = budgets that leave three or more to fit
    most: int = 4  # cuts at most, where none are given

    def __post_init__(self) -> None:
        if any(not (math.isfinite(cut) and cut > 0) for cut in self.cuts):
            raise UserError(f"validation.cuts {list(self.cuts)}: give numbers of FLOPs above 0.")
        if self.most < 1:
            raise UserError(f"validation.most {self.most}: at least 1.")

    def cuts_of(self, records: Sequence[Record]) -> list[float]:
        """Where a run table is cut, FLOPs, ascending; below the last one lies all but the largest budget.

        Raises:
            UserError: fewer than four budgets, and no cut given.
        """
        if self.cuts:
            return sorted(set(self.cuts))
        budgets = list(by_budget(usable(records)))
        if len(budgets) < 4:
            raise UserError(
                f"The table has {len(budgets)} budgets; a roll-out fits three or more of them and predicts the rest: "
                "add a budget, or give validation.cuts."
            )
        chosen = np.linspace(len(budgets) - 2, 2, min(self.most, len(budgets) - 3))
        return [budgets[i] for i in sorted({round(i) for i in chosen})]


@dataclass(frozen=True)
class Prediction:
    """One measurement above the cut, and what the law had said."""

    cell: str  # the run, or the run that stands for a budget; "vertex" for the minimum of a budget's curve
    flops: float  # training compute
    extrapolation_ratio: float  # flops / largest fitted budget
    measured: float  # nats per token, or tokens
    predicted: float
    interval: Interval | None  # of one measurement, at the laws' confidence

    @property
    def error(self) -> float:
        """Relative: predicted / measured - 1."""
        return self.predicted / self.measured - 1

    @property
    def covered(self) -> bool | None:
        """Whether the interval holds the measurement; None without an interval."""
        return None if self.interval is None else self.interval[0] <= self.measured <= self.interval[1]


@dataclass(frozen=True)
class LawScore:
    """How one law did above the cut; a number is None where there is nothing to count."""

    law: str  # tokens | frontier | surface | overtraining | forecast
    predicts: str  # in words
    status: str  # ok | not_fitted (below the cut) | nothing_measured (above it)
    reason: str
    predictions: tuple[Prediction, ...] = ()
    error: float | None = None  # mean of |relative error|
    bias: float | None = None  # mean of the relative error: above 0 the law promises too much loss (or tokens)
    coverage: float | None = None  # share of measurements inside their intervals
    decision_accuracy: float | None = None  # share of pairs of runs of one budget that are ranked as measured
    pairs: int = 0  # behind decision_accuracy; none for a law that says nothing about a single run


@dataclass(frozen=True)
class RollOut:
    """All laws of one cut."""

    cut: float  # FLOPs
    fitted: tuple[float, ...]  # budgets up to the cut
    held_out: tuple[float, ...]  # budgets above it
    confidence: float  # of the intervals whose coverage is counted
    scores: tuple[LawScore, ...]

    def score(self, law: str) -> LawScore:
        """The score of one law, by its name."""
        return next(score for score in self.scores if score.law == law)


def roll_out(records: Sequence[Record], cut: float, config: LawsConfig | None = None) -> RollOut:
    """Fit every law on budgets up to ``cut`` and score it on the runs above.

    Laws: ``tokens`` (D* of each budget's curve; ranks the runs of a budget by their distance from D* in log tokens), ``frontier``
    (lowest loss of each budget: the curve's minimum, the best run where there is no curve), ``surface`` and ``overtraining``
    (loss of each run), ``forecast`` (best run of each budget, with the interval that spans frontier and surface).

    Args:
        records: a run table with budgets on both sides of the cut.
        cut: largest budget to fit, FLOPs.
        config: of the laws.

    Raises:
        UserError: a bad table, or no usable run on one side of the cut.
    """
    config = config or LawsConfig()
    check_table(records)
    rows = usable(mark_untuned(records) if config.settings == "best" else records)
    below, above = ([row for row in rows if (row.budget <= cut * (1 + 1e-6)) == side] for side in (True, False))
    if not below or not above:
        side, budgets = ("up to" if not below else "above"), ", ".join(f"{b:.3g}" for b in by_budget(rows))
        raise UserError(f"No usable run {side} the cut of {cut:.3g} FLOPs: choose one between the budgets ({budgets}).")
    laws = fit_laws(below, config)
    ratio = 1 / laws.largest_budget
    scores = [_tokens(laws, above, ratio), _frontier(laws, above, ratio), *_run_losses(laws, above, ratio)]
    return RollOut(cut, tuple(by_budget(below)), tuple(by_budget(above)), config.confidence, tuple(scores))


def _tokens(laws: Laws, above: Sequence[Record], ratio: float) -> LawScore:
    law, predicts = laws.tokens, "optimal tokens of each budget"
    if law is None:
        return LawScore("tokens", predicts, "not_fitted", laws.reasons["tokens"])
    curves = [curve for curve in fit_isoflop(above, laws.config.isoflop) if curve.tokens is not None]
    predictions = []
    for curve in curves:
        c, measured = curve.budget, curve.tokens or math.nan
        predictions.append(Prediction("vertex", c, c * ratio, measured, law.predict(c), law.interval(c, "prediction")))
    return _scored("tokens", predicts, predictions, above, lambda row: abs(math.log(row.tokens / law.predict(row.budget))))


def _frontier(laws: Laws, above: Sequence[Record], ratio: float) -> LawScore:
    predicts = "lowest loss of each budget"
    curves = {curve.budget: curve for curve in fit_isoflop(above, laws.config.isoflop)}
    measured: list[tuple[str, float, float]] = []
    for budget, rows in by_budget(above).items():
        best, vertex = _best(rows), curves[budget].loss
        measured.append(("vertex", budget, vertex) if vertex is not None else (best.cell, best.flops, best.loss))
    flops = np.array([row[1] for row in measured])
    found = measured_losses(laws, flops, *_any_sizes(flops)).get("frontier")
    if found is None:
        return LawScore("frontier", predicts, "not_fitted", laws.reasons.get("frontier", "no noise to draw an interval from"))
    predictions = [
        Prediction(cell, c, c * ratio, loss, float(found[0][i]), quantiles(found[1][:, i], laws.config.confidence))
        for i, (cell, c, loss) in enumerate(measured)
    ]
    return _scored("frontier", predicts, predictions, above, None)


def _run_losses(laws: Laws, above: Sequence[Record], ratio: float) -> list[LawScore]:
    """Surface, over-training law and forecast: laws that name a loss for a run of given size."""
    n, d, _ = columns(above)
    confidence = laws.config.confidence
    found = measured_losses(laws, 6 * n * d, n, d)
    scores = []
    each = "loss of each run"
    if "surface" in found:
        value, drawn = found["surface"]
        at = {row.cell: i for i, row in enumerate(above)}
        predictions = [
            _prediction(row, float(value[i]), quantiles(drawn[:, i], confidence), ratio) for i, row in enumerate(above)
        ]
        scores.append(_scored("surface", each, predictions, above, lambda row: float(value[at[row.cell]])))
    else:
        reason = laws.surface.reason if laws.surface else laws.reasons["surface"]
        scores.append(LawScore("surface", each, "not_fitted", reason))
    scores.append(_overtraining(laws, above, ratio))
    best = [_best(rows) for rows in by_budget(above).values()]
    predictions = []
    for row in best:
        i = above.index(row)
        spans = [quantiles(drawn[:, i], confidence) for _, drawn in found.values()]
        if spans:
            span = min(s[0] for s in spans), max(s[1] for s in spans)
            predictions.append(_prediction(row, float(next(iter(found.values()))[0][i]), span, ratio))
    if predictions:
        scores.append(_scored("forecast", "loss of each budget's best run", predictions, above, None))
    else:
        reason = "neither frontier nor surface was fitted"
        scores.append(LawScore("forecast", "loss of each budget's best run", "not_fitted", reason))
    return scores


def _overtraining(laws: Laws, above: Sequence[Record], ratio: float) -> LawScore:
    config, each = laws.config, "loss of each run"
    try:
        law = overtraining_of(laws.records, config.confidence, config.replicates, config.seed)
    except UserError as error:
        return LawScore("overtraining", each, "not_fitted", str(error))
    if law.status != "ok":
        return LawScore("overtraining", each, "not_fitted", law.reason)
    n, d, _ = columns(above)
    sizes = {row.cell: (6 * n[i] * d[i], d[i] / n[i]) for i, row in enumerate(above)}
    predictions = [
        _prediction(row, float(law.loss(*sizes[row.cell])), law.interval(*sizes[row.cell], "prediction"), ratio) for row in above
    ]
    return _scored("overtraining", each, predictions, above, lambda row: float(law.loss(*sizes[row.cell])))


def _prediction(row: Record, predicted: float, interval: Interval, ratio: float) -> Prediction:
    return Prediction(row.cell, row.flops, row.flops * ratio, row.loss, predicted, interval)


def _best(rows: Sequence[Record]) -> Record:
    return min(rows, key=lambda row: (row.loss, row.cell))


def _any_sizes(flops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Parameters and tokens of any runs at ``flops``, for a law that does not read them."""
    return np.sqrt(flops / 6), np.sqrt(flops / 6)


def _scored(
    law: str, predicts: str, predictions: Sequence[Prediction], above: Sequence[Record], rank: Callable[[Record], float] | None
) -> LawScore:
    errors = np.array([prediction.error for prediction in predictions])
    covered = [prediction.covered for prediction in predictions if prediction.covered is not None]
    right = _decisions(above, rank) if rank else []
    return LawScore(
        law=law,
        predicts=predicts,
        status="ok" if predictions else "nothing_measured",
        reason="" if predictions else "no budget above the cut has an optimum inside its points",
        predictions=tuple(predictions),
        error=float(np.abs(errors).mean()) if predictions else None,
        bias=float(errors.mean()) if predictions else None,
        coverage=float(np.mean(covered)) if covered else None,
        decision_accuracy=float(np.mean(right)) if right else None,
        pairs=len(right),
    )


def _decisions(rows: Sequence[Record], rank: Callable[[Record], float]) -> list[float]:
    """For each pair of runs of one budget with different losses: 1 where the smaller rank has the lower loss, 1/2 for a tie."""
    right = []
    for group in by_budget(rows).values():
        for one, other in itertools.combinations(group, 2):
            if one.loss == other.loss:
                continue
            difference = rank(one) - rank(other)
            right.append(0.5 if difference == 0 else float((difference < 0) == (one.loss < other.loss)))
    return right


def describe_roll_outs(records: Sequence[Record], config: ValidationConfig, laws: LawsConfig) -> dict[str, Any]:
    """``roll_out`` of ``fit.json``: a status, and for each cut every law's score with its predictions."""
    if not config.roll_out:
        return {"status": "not_asked", "reason": "validation.roll_out is false", "cuts": []}
    try:
        found = [roll_out(records, cut, laws) for cut in config.cuts_of(records)]
    except UserError as error:
        if config.cuts:  # a cut that the user gave and that divides nothing
            raise
        return {"status": "not_possible", "reason": str(error), "cuts": []}
    cuts = [asdict(one) for one in found]
    for cut, one in zip(cuts, found, strict=True):
        for score, law in zip(cut["scores"], one.scores, strict=True):
            score["predictions"] = [asdict(p) | {"error": p.error, "covered": p.covered} for p in law.predictions]
    return {"status": "ok", "reason": "", "cuts": cuts}
