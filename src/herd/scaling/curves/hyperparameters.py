"""Learning-rate and batch laws: the best setting of small runs as a power law of their compute.

Bi et al. 2024, "DeepSeek LLM", section 2.1: eta* = 0.3118 C^-0.1250 and B* = 0.2920 C^0.3271. Runs that differ in the setting
alone form a group (one compute, one size); a parabola of the loss in log10 of the setting gives the group's optimum and its
standard error, or a refusal, as an IsoFLOP curve does; the optima of several groups give the power law. Where learning rate and
batch are swept together, each value of the one stands for its best run over the other: a minimum over noisy runs, a little low
for all values alike.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from herd.config.errors import UserError, nearest
from herd.scaling.curves.power_law import Interval, PowerLaw, fit_power_law
from herd.scaling.curves.valley import find_valleys, parabolas, vertex_errors_of
from herd.scaling.records.record import Record, check_table, usable

SETTINGS = {"lr": "learning rate", "batch_tokens": "batch"}  # column -> in words
AGAINST = ("budget", "parameters", "tokens")


@dataclass(frozen=True)
class HyperparameterConfig:
    """How the best setting of each group is found."""

    against: str = "budget"  # what the best value depends on: budget (FLOPs) | parameters | tokens
    min_points: int = 4  # different values that a group needs; 3 fit a parabola exactly and leave no standard error
    near: float = 0.0025  # settings within this fraction of the lowest loss count as near-optimal (Bi et al.: 0.25%)

    def __post_init__(self) -> None:
        if self.against not in AGAINST:
            raise UserError(
                f"against '{self.against}': no such axis.{nearest(self.against, AGAINST)} Choices: {', '.join(AGAINST)}."
            )
        if self.min_points < 3:
            raise UserError(f"min_points {self.min_points}: a parabola needs at least 3.")
        if not 0 < self.near < 1:
            raise UserError(f"near {self.near}: give a fraction of the loss between 0 and 1, such as 0.0025.")


@dataclass(frozen=True)
class SettingOptimum:
    """The best setting of one group of runs."""

    at: float  # the group's budget, parameters or tokens
    budget: float  # FLOPs
    parameters: float
    status: str  # ok | concave | no_interior_minimum | too_few_points
    reason: str
    values: int  # different settings tried
    best: float | None = None  # of the setting, in its own unit; None unless ok
    log_se: float | None = None  # standard error of ln best; None with 3 values
    near: Interval | None = None  # settings whose loss is within the configured fraction of the lowest, by the parabola
    loss: float | None = None  # at the best setting, nats


@dataclass(frozen=True)
class HyperparameterLaw:
    """best setting = coefficient * x^exponent, and the groups behind it."""

    status: str  # ok | exact (two optima: no interval) | too_few_optima | not_fitted (the table varies no such setting)
    reason: str
    setting: str
    against: str
    optima: tuple[SettingOptimum, ...]
    law: PowerLaw | None

    def best(self, x: float) -> tuple[float, Interval | None, float]:
        """Best setting at ``x``, its interval (None with two optima), and x over the largest x fitted.

        Raises:
            UserError: there is no law.
        """
        if self.law is None:
            raise UserError(f"No law of the best {SETTINGS[self.setting]}: {self.reason}.")
        return self.law.predict(x), self.law.interval(x), self.law.extrapolation_ratio(x)


def fit_hyperparameter_law(
    records: Sequence[Record],
    setting: str = "lr",
    config: HyperparameterConfig | None = None,
    method: str = "ols",
    confidence: float = 0.95,
) -> HyperparameterLaw:
    """Fit the law of the best learning rate or batch.

    Args:
        records: a run table; groups are runs of one budget and size, and repeats of one setting (seeds) are averaged.
        setting: column whose best value is sought, ``lr`` or ``batch_tokens``.
        config: how the best value of a group is found.
        method: of the power law: ``ols``, ``wls`` (by the optima's errors) or ``theil_sen``.
        confidence: of the intervals.

    Returns:
        the law; status ``not_fitted`` where no row has the setting, or no group more than one value of it.

    Raises:
        UserError: a bad table, an unknown setting, or one that some rows have and others lack.
    """
    if setting not in SETTINGS:
        raise UserError(
            f"setting '{setting}': no such hyper-parameter.{nearest(setting, SETTINGS)} Choices: {', '.join(SETTINGS)}."
        )
    config = config or HyperparameterConfig()
    check_table(records)
    rows = usable(records)
    without = [row.cell for row in rows if getattr(row, setting) is None]
    if len(without) == len(rows):
        return HyperparameterLaw("not_fitted", f"no row has {setting}", setting, config.against, (), None)
    if without:
        raise UserError(
            f"{len(without)} of {len(rows)} usable rows have no {setting} (first: {without[0]}): name the table's column with "
            f"columns.{setting}=COLUMN, or leave those rows out."
        )
    if any(not getattr(row, setting) > 0 for row in rows):
        raise UserError(f"{setting} must be above 0 in every usable row.")
    groups = _groups(rows)
    if all(len({getattr(row, setting) for row in group}) == 1 for group in groups):
        reason = f"one {SETTINGS[setting]} per budget and size: nothing to compare"
        return HyperparameterLaw("not_fitted", reason, setting, config.against, (), None)
    optima = tuple(_optimum(group, setting, config) for group in groups)
    found = [optimum for optimum in optima if optimum.status == "ok"]
    known = [optimum.log_se for optimum in found if optimum.log_se is not None]
    try:
        law = fit_power_law(
            [optimum.at for optimum in found],
            [optimum.best or math.nan for optimum in found],
            confidence,
            known if len(known) == len(found) else None,
            method,
        )
    except UserError as error:
        refused = "; ".join(f"{config.against} {o.at:.3g}: {o.reason}" for o in optima if o.status != "ok")
        different = len({optimum.at for optimum in found})
        reason = f"{different} of {len(optima)} groups have an optimum, at least 2 at different {config.against} needed"
        if different >= 2:
            reason = str(error).rstrip(".")
        return HyperparameterLaw(
            "too_few_optima", reason + (f" ({refused})" if refused else ""), setting, config.against, optima, None
        )
    return HyperparameterLaw(law.status, law.reason, setting, config.against, optima, law)


def mark_untuned(records: Sequence[Record]) -> list[Record]:
    """The table as a law of size and tokens should see it: of each budget and size only the best setting stays usable.

    Rows with another learning rate or batch than the one with the lowest mean loss get the status ``untuned`` and a reason; in a
    table with one setting per budget and size nothing changes.
    """
    worse: dict[str, str] = {}
    for group in _groups(usable(records)):
        losses: dict[tuple[float | None, int | None], list[float]] = {}
        for row in group:
            losses.setdefault((row.lr, row.batch_tokens), []).append(row.loss)
        lr, batch = min(losses, key=lambda setting: float(np.mean(losses[setting])))
        for row in group:
            if (row.lr, row.batch_tokens) != (lr, batch):
                best = ", ".join(f"{name} {value:g}" for name, value in (("lr", lr), ("batch", batch)) if value is not None)
                worse[row.cell] = f"not the best setting of its budget and size ({best})"
    return [replace(row, status="untuned", error=worse[row.cell]) if row.cell in worse else row for row in records]


def _groups(rows: Sequence[Record]) -> list[list[Record]]:
    """Rows of one budget, size and mixture together, budgets ascending."""
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for row in sorted(rows, key=lambda row: (row.budget, row.parameters, row.mixture, row.cell)):
        groups.setdefault((f"{row.budget:.5e}", f"{row.parameters:.5e}", row.mixture), []).append(row)
    return list(groups.values())


def _optimum(rows: Sequence[Record], setting: str, config: HyperparameterConfig) -> SettingOptimum:
    x, loss = _profile(rows, setting)
    at = float(getattr(rows[0], config.against))
    known: dict[str, Any] = {"at": at, "budget": rows[0].budget, "parameters": rows[0].parameters, "values": len(x)}
    if len(x) < config.min_points:
        reason = f"{len(x)} different {setting}, {config.min_points} needed"
        return SettingOptimum(status="too_few_points", reason=reason, **known)
    valley = find_valleys(x, loss[None])
    if valley.status[0] == "concave":
        reason = "the parabola opens downwards: it has no minimum"
        return SettingOptimum(status="concave", reason=reason, **known)
    if valley.status[0] != "ok":
        side = "smaller" if valley.status[0] == "below" else "larger"
        reason = f"the minimum lies outside the {setting} tried: try a {side} one"
        return SettingOptimum(status="no_interior_minimum", reason=reason, **known)
    best, lowest = float(valley.at[0]), float(valley.lowest[0])
    c2 = float(parabolas(x, loss[None])[0, 2])
    half = math.sqrt(config.near * lowest / c2)
    errors = vertex_errors_of(x, loss)
    return SettingOptimum(
        status="ok",
        reason="",
        best=10**best,
        log_se=errors[0] * math.log(10) if errors else None,
        near=(10 ** (best - half), 10 ** (best + half)),
        loss=lowest,
        **known,
    )


def _profile(rows: Sequence[Record], setting: str) -> tuple[np.ndarray, np.ndarray]:
    """log10 of each different setting and its loss: seeds averaged, then the best over the other settings and token counts."""
    other = next(name for name in SETTINGS if name != setting)
    runs: dict[tuple[float, object, float], list[float]] = {}
    for row in rows:
        runs.setdefault((getattr(row, setting), getattr(row, other), row.tokens), []).append(row.loss)
    best: dict[float, float] = {}
    for (value, _, _), losses in runs.items():
        best[value] = min(best.get(value, math.inf), float(np.mean(losses)))
    values = sorted(best)
    return np.log10(values), np.array([best[value] for value in values])
