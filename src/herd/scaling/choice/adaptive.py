"""A sweep that plans itself: a coarse wave, then after each wave the results so far choose the next cells.

Each wave does one thing, the first of these that is needed:

1. coarse: a few sizes of every budget;
2. centre: where a budget's lowest loss lies at the edge of its sizes, the next size beyond it;
3. seeds: a few cheap cells once more with other seeds, because no fit tells a seed's noise from a law's misfit;
4. goal: the cells that take most off the variance of the goal per FLOP (see `next_runs`), among new sizes and new seeds.

It ends when the goal's interval is narrower than asked, when the budget is spent, or when no cell is left. A decision reads
nothing but the results of earlier waves, so a sweep that was stopped takes the same decisions again and goes on where it was.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from herd.config.errors import UserError, nearest
from herd.scaling.choice.next_runs import Candidate, choose_batch
from herd.scaling.choice.posterior import LAWS, Goal, GoalEstimate, Posterior, fit_posterior, pure_error
from herd.scaling.records.record import Record, usable
from herd.scaling.sweep.plan import Cell


@dataclass(frozen=True)
class WavesConfig:
    """How an adaptive sweep decides."""

    goal: str = "log_tokens"  # log_tokens (ln D* at goal_flops) | alpha | loss (ln L at goal_flops)
    goal_flops: float = 1e13  # compute of the run that the sweep is for, FLOPs
    law: str = "surface"  # the law that the goal is read off: surface | parabola
    target_interval: float = 0.2  # the sweep ends when the goal's interval is narrower: its full width, in the goal's unit
    confidence: float = 0.9  # of the interval
    coarse: int = 3  # sizes of each budget in the first wave
    cells: int = 4  # cells of each later wave, at most
    seeds: int = 3  # seeds that one cell may be trained with, at most
    noise_cells: int = 2  # cells that are trained with all seeds, to measure their noise; 0 = none
    noise_floor: float = 0.0  # smallest standard deviation of ln L between seeds that is believed
    reach: float = 4.0  # sizes this many times beyond the plan's span may be added where the centre was wrong

    def __post_init__(self) -> None:
        Goal(self.goal, self.goal_flops)
        if self.law not in LAWS:
            raise UserError(f"Unknown law '{self.law}'.{nearest(self.law, LAWS)} Choices: {', '.join(LAWS)}.")
        if not self.target_interval > 0 or not 0 < self.confidence < 1:
            raise UserError("waves: target_interval must be above 0 and confidence between 0 and 1.")
        if self.coarse < 2 or self.cells < 1 or self.seeds < 1 or self.noise_cells < 0 or self.reach < 1:
            raise UserError("waves: coarse must be at least 2, cells, seeds and reach at least 1, noise_cells at least 0.")


@dataclass(frozen=True)
class Wave:
    """One decision, with its reasons."""

    number: int
    status: (
        str  # train | reached (the interval is narrow enough) | spent | exhausted (no cell left): the last three end the sweep
    )
    kind: str  # coarse | centre | seeds | fill | goal | end
    reason: str  # one line
    cells: tuple[str, ...]  # ids to train
    reasons: dict[str, str] = field(default_factory=dict)  # id -> why this cell
    spent: float = 0.0  # FLOPs before the wave
    estimate: GoalEstimate | None = None  # of the goal before the wave; None before there is a fit
    noise: float | None = None  # standard deviation of ln L of one run, as the fit has it
    seed_noise: float | None = None  # the same between seeds of one cell, None before there are any


def waves(
    pool: Sequence[Cell], coarse: Sequence[str], records: Sequence[Record], config: WavesConfig, total_flops: float
) -> Iterator[Wave]:
    """Every wave so far, and the one that is next: the last has cells without a record, or ends the sweep.

    Args:
        pool: all cells that could be trained: sizes of all budgets, each with every seed.
        coarse: ids of the first wave.
        records: results so far, failed and diverged cells included.
        config: see there.
        total_flops: what the sweep may cost.
    """
    known = {record.cell: record for record in records}
    seen: list[Record] = []
    wave = Wave(0, "train", "coarse", f"{len(coarse)} cells: a few sizes of every budget", tuple(coarse))
    while True:
        yield wave
        if wave.status != "train" or any(cell not in known for cell in wave.cells):
            return
        seen += [known[cell] for cell in wave.cells]
        wave = decide(pool, seen, config, total_flops, wave.number + 1)


def decide(pool: Sequence[Cell], records: Sequence[Record], config: WavesConfig, total_flops: float, number: int = 1) -> Wave:
    """The next wave, a pure function of the results so far."""
    by_id = {cell.id: cell for cell in pool}
    spent = sum(by_id[record.cell].flops for record in records)
    state = _State(pool, records, {record.cell for record in records}, total_flops - spent)
    posterior, estimate, missing = _estimate(records, config)
    std, freedom = pure_error(records)

    def wave(status: str, kind: str, reason: str, reasons: dict[str, str] | None = None) -> Wave:
        chosen = reasons or {}
        noise = posterior.noise if posterior else None
        return Wave(
            number, status, kind, reason, tuple(chosen), chosen, spent, estimate, noise, std if freedom else None
        )  # fmt: skip

    found = _beyond_the_edge(state) or _other_seeds(state, config)
    if found:
        return wave("train", *found)
    if estimate is not None and estimate.status == "ok" and 2 * estimate.half_width <= config.target_interval:
        width = f"{2 * estimate.half_width:.3g} wide, {config.target_interval:g} was asked for"
        return wave("reached", "end", f"the {config.confidence:.0%} interval of {config.goal} is {width}")
    if not state.open:
        return wave("exhausted", "end", "every cell between the smallest and largest sizes was trained")
    if not state.affordable:
        cheapest = min(cell.flops for cell in state.open)
        return wave(
            "spent", "end", f"{spent:.3g} of {total_flops:.3g} FLOPs are spent, the cheapest cell left costs {cheapest:.3g}"
        )
    if posterior is None or estimate is None:
        fill = sorted(state.affordable, key=lambda cell: (cell.seed or 0, cell.flops, cell.id))[: config.cells]
        return wave("train", "fill", f"no fit yet: {missing}", {cell.id: "to have enough runs for a fit" for cell in fill})
    return wave("train", "goal", *_towards_the_goal(state, posterior, estimate, config))


@dataclass(frozen=True)
class _State:
    pool: Sequence[Cell]
    records: Sequence[Record]
    tried: set[str]
    left: float  # FLOPs

    @property
    def untried(self) -> list[Cell]:
        return [cell for cell in self.pool if cell.id not in self.tried]

    @property
    def open(self) -> list[Cell]:
        """Untried cells between the smallest and the largest size of their budget: beyond, a law would be believed blindly."""
        ends: dict[float, list[float]] = {}
        for cell in self.pool:
            if cell.id in self.tried:
                ends.setdefault(cell.budget, []).append(cell.parameters)
        return [c for c in self.untried if c.budget in ends and min(ends[c.budget]) <= c.parameters <= max(ends[c.budget])]

    @property
    def affordable(self) -> list[Cell]:
        return [cell for cell in self.open if cell.flops <= self.left]

    def take(self, wanted: Sequence[tuple[Cell, str]]) -> dict[str, str]:
        """Those of the wanted cells that the budget holds, one after the other."""
        left, chosen = self.left, {}
        for cell, reason in wanted:
            if cell.flops <= left:
                chosen[cell.id] = reason
                left -= cell.flops
        return chosen


def _estimate(records: Sequence[Record], config: WavesConfig) -> tuple[Posterior | None, GoalEstimate | None, str]:
    """The law through the results so far and the goal, or why there is none."""
    std, freedom = pure_error(records)
    floor = max(config.noise_floor, std) if freedom > 1 else config.noise_floor
    try:
        posterior = fit_posterior(records, config.law, floor)
    except UserError as error:
        return None, None, str(error)
    return posterior, posterior.estimate(Goal(config.goal, config.goal_flops), config.confidence), ""


def _beyond_the_edge(state: _State) -> tuple[str, str, dict[str, str]] | None:
    """For every budget whose lowest loss is at its smallest or largest size: the next size beyond it."""
    wanted: list[tuple[Cell, str]] = []
    cells = {cell.id: cell for cell in state.pool}
    for budget in sorted({cell.budget for cell in state.pool}):
        losses: dict[float, list[float]] = {}
        for record in usable(state.records):
            if cells[record.cell].budget == budget:
                losses.setdefault(cells[record.cell].parameters, []).append(record.loss)
        if len(losses) < 2:
            continue
        best = min(losses, key=lambda size: (sum(losses[size]) / len(losses[size]), size))
        if min(losses) < best < max(losses):
            continue
        smaller = best == min(losses)
        # A size that failed was tried: the next one beyond it.
        tried = {cell.parameters for cell in state.pool if cell.id in state.tried and cell.budget == budget}
        beyond = [
            cell
            for cell in state.untried
            if cell.budget == budget and (cell.parameters < min(tried) if smaller else cell.parameters > max(tried))
        ]
        if beyond:
            nearest_size = min(beyond, key=lambda cell: (abs(math.log(cell.parameters / best)), cell.seed or 0, cell.id))
            side = "smallest" if smaller else "largest"
            reason = f"the lowest loss of {budget:.3g} FLOPs is at its {side} size, {best:,.0f}: its minimum may lie beyond"
            wanted.append((nearest_size, reason))
    chosen = state.take(wanted)
    return ("centre", f"{len(wanted)} budgets have their lowest loss at an edge", chosen) if chosen else None


def _other_seeds(state: _State, config: WavesConfig) -> tuple[str, str, dict[str, str]] | None:
    """The best cell of the cheapest budgets with further seeds, once."""
    cells = {cell.id: cell for cell in state.pool}
    lowest: dict[float, Record] = {}
    for record in usable(state.records):
        budget = cells[record.cell].budget
        if budget not in lowest or record.loss < lowest[budget].loss:
            lowest[budget] = record
    repeated = {(c.budget, c.parameters) for c in state.pool if c.id in state.tried}
    repeats = sum(
        sum(c.id in state.tried for c in state.pool if (c.budget, c.parameters) == where) >= config.seeds for where in repeated
    )
    wanted: list[tuple[Cell, str]] = []
    for budget in sorted(lowest)[: max(config.noise_cells - repeats, 0)]:
        cell = cells[lowest[budget].cell]
        same = sorted((c for c in state.pool if (c.budget, c.parameters) == (budget, cell.parameters)), key=lambda c: c.seed or 0)
        more = config.seeds - sum(c.id in state.tried for c in same)
        wanted += [(c, f"another seed of {cell.id}, for the noise between seeds") for c in same if c.id not in state.tried][:more]
    chosen = state.take(wanted)
    return ("seeds", "the noise between seeds is not measured yet", chosen) if chosen else None


def _towards_the_goal(
    state: _State, posterior: Posterior, estimate: GoalEstimate, config: WavesConfig
) -> tuple[str, dict[str, str]]:
    cells = {cell.id: cell for cell in state.affordable}
    candidates = [Candidate(c.id, c.flops / (6 * c.tokens), c.tokens, c.flops) for c in cells.values()]
    goal = Goal(config.goal, config.goal_flops)
    target = (estimate.std * config.target_interval / (2 * estimate.half_width)) ** 2
    # All cells that should reach the target are planned, and the first of them trained: what they show changes the rest.
    batch = choose_batch({"": posterior}, goal, candidates, state.left, target_variance=target)
    if not batch.chosen:  # flat in every direction that the goal depends on: the cheapest cell is as good as any
        cheapest = min(cells.values(), key=lambda cell: (cell.flops, cell.id))
        narrow = 2 * estimate.half_width <= config.target_interval  # then the sweep goes on for the fit's sake alone
        reason = f"the interval is narrow enough, but {estimate.reason} ({estimate.status})" if narrow else batch.reason
        return reason, {cheapest.id: "the cheapest cell left"}
    share = math.sqrt(batch.variance_after / batch.variance_before)
    says = f" ({estimate.status}: {estimate.reason})" if estimate.status != "ok" else ""
    width = 2 * estimate.half_width
    reason = (
        f"the interval of {config.goal} is {width:.3g} wide{says}, {width * share:.3g} expected after {len(batch.chosen)} cells"
    )
    reasons = {}
    for ranked in batch.chosen[: config.cells]:
        cell = cells[ranked.candidate.name]
        again = any(cell.budget == c.budget and cell.parameters == c.parameters and c.id in state.tried for c in state.pool)
        kind = "another seed" if again else "a new size"
        reasons[cell.id] = f"{kind} of {cell.budget:.3g} FLOPs takes {ranked.gain:.1%} off the goal's variance"
    return reason, reasons
