"""Which run to train next: the one that shrinks the variance of the goal most for its cost.

Near the fit every law is linear (see `posterior`), so a run's worth is known before it is trained. With covariance S of the
parameters, gradient g of the goal and row r of the run (derivative of its ln L), training it with noise s takes

    (g' S r)^2 / (s^2 + r' S r)

off the goal's variance g' S g: Bayesian c-optimal design (Chaloner and Verdinelli 1995, "Bayesian Experimental Design: A
Review"). A batch is chosen one after the other, each given the earlier ones. By variance per cost a greedy batch may
leave out the dear run that alone matters, so the greedy batch by variance is made too and the better of both is taken
(Leskovec et al. 2007, "Cost-effective outbreak detection in networks").

A decision between two settings (mixes, learning rates) is the sign of a difference of losses at the goal's compute, each under
its own law. What counts is the probability that the setting with the lower forecast is the better one, and what it is expected to
be once a run's result is known: the mean over that result, which the same formula makes normal.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from herd.config.errors import UserError
from herd.scaling.choice.posterior import Goal, Posterior


@dataclass(frozen=True)
class Candidate:
    """A run that could be trained."""

    name: str  # unique among the candidates
    parameters: float  # N, so that 6ND is the compute
    tokens: float  # D
    cost: float  # FLOPs, or hours: any unit, the same for all
    setting: str = ""  # of a decision: which of the two settings it trains; "" = the only one


@dataclass(frozen=True)
class Ranked:
    """What one candidate alone would do, or a chosen one after those before it."""

    candidate: Candidate
    variance_before: float  # of the goal, in its unit squared
    variance_after: float
    right_before: float | None  # decision only: probability that the setting preferred now is the better one
    right_after: float | None  # decision only: what that is expected to be with the run's result

    @property
    def reduction(self) -> float:
        """Variance that the run takes off."""
        return self.variance_before - self.variance_after

    @property
    def gain(self) -> float:
        """What the ranking maximises per cost: probability for a decision, relative variance otherwise."""
        if self.right_before is not None and self.right_after is not None:
            return self.right_after - self.right_before
        return self.reduction / self.variance_before


@dataclass(frozen=True)
class Batch:
    """Runs to train next, in the order in which they were chosen."""

    status: str  # ok | nothing_fits (no candidate within the budget) | no_gain (none takes anything off)
    reason: str
    chosen: tuple[Ranked, ...]
    cost: float
    variance_before: float
    variance_after: float  # with all of them, as expected before they are trained
    right_before: float | None  # decision only
    right_after: float | None


class Design:
    """The state of the search: covariance of all parameters, gradient of the goal, and a row for each candidate.

    Args:
        laws: setting -> its posterior; one setting named "" unless the goal is a decision between two.
        goal: of one setting. For a decision it is the loss at the goal's compute, and the goal's value is the first setting's
            minus the second's.
        candidates: what could be trained.

    Raises:
        UserError: no candidate, a name twice, numbers out of range, or a setting without a law.
    """

    def __init__(self, laws: Mapping[str, Posterior], goal: Goal, candidates: Sequence[Candidate]) -> None:
        check_candidates(candidates, laws)
        if len(laws) > 2 or (len(laws) == 2 and goal.kind != "loss"):
            raise UserError(
                f"A decision is between two settings by their loss; there are {len(laws)}, and the goal is {goal.kind}."
            )
        self.candidates = tuple(candidates)
        self.decision = len(laws) == 2
        sizes = [len(law.theta) for law in laws.values()]
        starts = np.cumsum([0, *sizes])
        covariance, gradient = np.zeros((starts[-1], starts[-1])), np.zeros(starts[-1])
        self.rows, self.noise = np.zeros((len(candidates), starts[-1])), np.zeros(len(candidates))
        self.difference = 0.0
        for index, (name, law) in enumerate(laws.items()):
            part, sign = slice(starts[index], starts[index + 1]), 1.0 if index == 0 else -1.0
            covariance[part, part] = law.covariance
            gradient[part] = sign * law.gradient(goal)
            self.difference += sign * float(law.value(goal))
            mine = [i for i, candidate in enumerate(candidates) if candidate.setting == name]
            n = np.array([candidates[i].parameters for i in mine])
            d = np.array([candidates[i].tokens for i in mine])
            self.rows[mine, part] = law.rows(n, d) if mine else 0.0
            self.noise[mine] = law.noise
        self.covariance, self.gradient = covariance, gradient

    @property
    def variance(self) -> float:
        """Of the goal, as things stand."""
        return float(self.gradient @ self.covariance @ self.gradient)

    def reductions(self) -> np.ndarray:
        """Variance that each candidate, trained once more, takes off the goal, (n,)."""
        moved = self.rows @ self.covariance
        return np.asarray((moved @ self.gradient) ** 2 / (self.noise**2 + (moved * self.rows).sum(axis=1)))

    def train(self, index: int) -> None:
        """Take the candidate as trained: the covariance shrinks, whatever its loss will be."""
        moved = self.covariance @ self.rows[index]
        self.covariance = self.covariance - np.outer(moved, moved) / (self.noise[index] ** 2 + self.rows[index] @ moved)

    def ranked(self, index: int, reduction: float) -> Ranked:
        """The candidate with what it takes off now."""
        before = self.variance
        after = max(before - reduction, 0.0)
        right = right_choice(self.difference, before), right_choice(self.difference, before, after)
        return Ranked(self.candidates[index], before, after, *(right if self.decision else (None, None)))

    def gains(self) -> np.ndarray:
        """What each candidate is chosen by, (n,)."""
        reductions = self.reductions()
        if not self.decision:
            return reductions / self.variance
        before = right_choice(self.difference, self.variance)
        return np.array([right_choice(self.difference, self.variance, self.variance - r) - before for r in reductions])


def check_candidates(candidates: Sequence[Candidate], laws: Mapping[str, Posterior]) -> None:
    """UserError for candidates that cannot be ranked."""
    if not candidates:
        raise UserError("There is no candidate run: give plan.budgets and plan.sizes that hold runs not yet trained.")
    if len({candidate.name for candidate in candidates}) < len(candidates):
        raise UserError("Two candidate runs have the same name: name each once.")
    for candidate in candidates:
        numbers = (candidate.parameters, candidate.tokens, candidate.cost)
        if not all(math.isfinite(number) and number > 0 for number in numbers):
            raise UserError(f"Candidate '{candidate.name}': parameters, tokens and cost must be finite and above 0.")
        if candidate.setting not in laws:
            raise UserError(f"Candidate '{candidate.name}' is of setting '{candidate.setting}', which has no fit.")


def rank(laws: Mapping[str, Posterior], goal: Goal, candidates: Sequence[Candidate]) -> tuple[Ranked, ...]:
    """Every candidate alone, the best per cost first; equal ones by name."""
    design = Design(laws, goal, candidates)
    reductions, gains = design.reductions(), design.gains()
    costs = np.array([candidate.cost for candidate in candidates])
    order = sorted(range(len(candidates)), key=lambda i: (-gains[i] / costs[i], candidates[i].name))
    return tuple(design.ranked(i, float(reductions[i])) for i in order)


def choose_batch(
    laws: Mapping[str, Posterior],
    goal: Goal,
    candidates: Sequence[Candidate],
    budget: float,
    most: int | None = None,
    target_variance: float = 0.0,
) -> Batch:
    """The runs to train next within ``budget`` (in the candidates' unit of cost).

    Args:
        laws: setting -> posterior, one named "" unless two settings are compared.
        goal: what to pin down.
        candidates: each is trained at most once; a replicate is a candidate of its own.
        budget: what the batch may cost.
        most: runs of the batch at most.
        target_variance: stop once the goal's variance should be this low.
    """
    batches = [_greedy(Design(laws, goal, candidates), budget, most, target_variance, per_cost) for per_cost in (True, False)]
    by_cost, plain = batches
    # With the target reached, the cheaper batch; otherwise the one that leaves less variance.
    if max(by_cost.variance_after, plain.variance_after) <= target_variance:
        return min(batches, key=lambda batch: batch.cost)
    if by_cost.right_after is not None and plain.right_after is not None:
        return plain if plain.right_after > by_cost.right_after + 1e-12 else by_cost
    return plain if plain.variance_after < by_cost.variance_after * (1 - 1e-9) else by_cost


def _greedy(design: Design, budget: float, most: int | None, target: float, per_cost: bool) -> Batch:
    costs = np.array([candidate.cost for candidate in design.candidates])
    start = design.variance
    chosen: list[Ranked] = []
    left, taken = budget, np.zeros(len(costs), dtype=bool)
    while (most is None or len(chosen) < most) and design.variance > target:
        fits = ~taken & (costs <= left)
        gains = np.where(fits, design.gains(), -math.inf)
        if not fits.any() or not gains.max() > 0:
            break
        score = gains / costs if per_cost else gains
        best = int(np.argmax(score))
        chosen.append(design.ranked(best, float(design.reductions()[best])))
        design.train(best)
        taken[best], left = True, left - costs[best]
    status, reason = "ok", ""
    if not chosen and costs.min() > budget:
        status, reason = "nothing_fits", f"the cheapest candidate costs {costs.min():.3g}, {budget:.3g} is left"
    elif not chosen:
        status, reason = "no_gain", "no candidate takes anything off the goal's variance"
    decided = (
        (right_choice(design.difference, start), right_choice(design.difference, start, design.variance))
        if design.decision
        else (None, None)
    )
    return Batch(status, reason, tuple(chosen), budget - left, start, design.variance, *decided)


def right_choice(difference: float, variance: float, after: float | None = None) -> float:
    """Probability that the setting with the lower forecast is the better one.

    Args:
        difference: forecast of the first setting's ln loss minus the second's.
        variance: of the difference, now.
        after: of the difference once further runs are known; then the result is the expectation over what they may show. They
            move the forecast by a normal with the variance v that they take off, so forecast and truth are bivariate normal, and
            the probability that their signs agree is 1 - 2 T(difference / sqrt(variance), sqrt(after / v)), T Owen's function.
    """
    if variance <= 0:
        return 1.0
    size = abs(difference) / math.sqrt(variance)
    if after is None or after >= variance:
        return float(stats.norm.cdf(size))
    return 1 - 2 * float(special.owens_t(size, math.sqrt(max(after, 0.0) / (variance - after))))
