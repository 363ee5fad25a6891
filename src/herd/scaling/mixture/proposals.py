"""Proposals: the mixture of the lowest predicted loss, near enough to a prior and without reading a source too often.

Limits: a largest Kullback-Leibler divergence KL(r || prior) = sum r ln(r / prior), and a largest share per source, which is what
its tokens read ``max_epochs`` times are of the budget. Candidates are drawn around the prior, put under the shares' limits and
drawn back towards the best allowed mixture until the divergence fits. Smooth laws are then polished (SLSQP; the problem is
convex for the exponential law); trees have steps, so there the best hundred are averaged, as RegMix does (Liu et al. 2024).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize

from herd.config.errors import UserError, nearest
from herd.corpus.mixture import check_weights
from herd.runs.seeds import stream
from herd.scaling.curves.power_law import Interval
from herd.scaling.mixture.law import MixtureLaw

Objective = Callable[[np.ndarray], Any]  # mixtures (m, k) -> losses (m,)

_AVERAGED = 100  # best candidates of a law with steps
_SEARCHED = 50  # replicates whose own best mixture is searched
_TRACE = 1e-9  # a smaller share is none
_NEGLIGIBLE = 1e-4  # nats of predicted gain that are none


@dataclass(frozen=True)
class Proposal:
    """A mixture to train, and what is known about it. Shares in the order of ``sources``."""

    status: (
        str  # ok | prior_is_best | uncertain (the gain's interval holds 0) | extrapolated (far from what was trained) | poor_law
    )
    reason: str
    sources: tuple[str, ...]
    shares: tuple[float, ...]
    shares_interval: tuple[Interval, ...]  # of the best mixtures of the replicates
    prior: tuple[float, ...]
    loss: float  # predicted, weighted over the domains, nats per token
    prior_loss: float
    gain: float  # prior_loss - loss
    gain_interval: Interval  # of the replicates, at this mixture
    kl: float  # KL(shares || prior), nats
    epochs: tuple[float, ...] | None  # passes over each source; None without a budget
    distance: float  # total variation to the nearest mixture trained
    usual_distance: float  # 95% quantile of that distance among the mixtures trained
    confidence: float


@dataclass(frozen=True)
class Limits:
    """What a proposal may do; at least one of the two kinds of limits."""

    max_kl: float | None = None  # nats
    max_epochs: float | Mapping[str, float] | None = None  # passes over each source (or by source); needs the next two
    available_tokens: Mapping[str, float] | None = None  # source -> tokens there are
    budget_tokens: float | None = None  # tokens of the run to come

    def __post_init__(self) -> None:
        if self.max_kl is None and self.max_epochs is None:
            raise UserError("A proposal without limits would extrapolate: give max_kl, or max_epochs with the tokens there are.")
        if self.max_kl is not None and not self.max_kl > 0:
            raise UserError(f"max_kl {self.max_kl}: give nats above 0.")
        if self.max_epochs is not None and (self.available_tokens is None or self.budget_tokens is None):
            raise UserError("max_epochs needs available_tokens of each source and budget_tokens of the run.")

    def largest_shares(self, sources: Sequence[str]) -> np.ndarray:
        """(k,) by the epochs allowed; 1 where there is no limit."""
        if self.max_epochs is None:
            return np.ones(len(sources))
        assert self.available_tokens is not None and self.budget_tokens is not None
        caps = []
        for name in sources:
            if name not in self.available_tokens:
                raise UserError(f"available_tokens has no '{name}'.{nearest(name, self.available_tokens)}")
            passes = self.max_epochs if isinstance(self.max_epochs, int | float) else self.max_epochs.get(name, np.inf)
            caps.append(min(1.0, passes * self.available_tokens[name] / self.budget_tokens))
        if sum(caps) < 1:
            raise UserError(
                f"The sources last for {sum(caps):.1%} of the budget at the epochs allowed: raise max_epochs, or lower "
                "budget_tokens."
            )
        return np.array(caps)


def propose_mixture(
    laws: Mapping[str, MixtureLaw],
    prior: Mapping[str, float],
    limits: Limits,
    weights: Mapping[str, float] | None = None,
    size: float | None = None,
    replicates: int = 100,
    candidates: int = 4000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Proposal:
    """The best mixture within the limits.

    Args:
        laws: domain -> law of its held-out loss, all of the same sources and rows.
        prior: source -> share, summing to 1; the mixture that the gain is counted from.
        limits: see :class:`Limits`.
        weights: domain -> weight of its loss, summing to 1; by default all alike.
        size: model size to predict for, where the laws have sizes.
        replicates: refits to reweighted rows, behind the intervals.
        candidates: mixtures drawn.

    Raises:
        UserError: names that do not fit together, or limits that no mixture meets.
    """
    names, weighted, center = _checked(laws, prior, weights)
    caps = limits.largest_shares(names)
    base = _under_caps(center, caps)
    if limits.max_kl is not None and _kl(base, center) > limits.max_kl:
        raise UserError(
            f"No mixture meets both limits: the epochs allowed keep every mixture at least {_kl(base, center):.3g} nats from the "
            f"prior, and max_kl is {limits.max_kl:g}."
        )
    drawn = {domain: laws[domain].replicates(replicates, seed) for domain in weighted}
    objective: Objective = lambda at: sum(w * laws[d].predict(at, size) for d, w in weighted.items())  # noqa: E731

    def replicate(row: int) -> Objective:
        own = {domain: drawn[domain].only(row) for domain in weighted}
        return lambda at: sum(w * own[d].predict(at, size)[0] for d, w in weighted.items())

    table = _candidates(center, base, caps, limits, candidates, stream(seed, "mixture candidates"))
    smooth = all(laws[domain].smooth for domain in weighted)
    feasible = _Feasible(center, base, caps, limits.max_kl)
    best = feasible.minimum(objective, table, smooth)
    others = np.array([feasible.minimum(replicate(row), table, smooth) for row in range(min(replicates, _SEARCHED))])
    before, after = (float(objective(at[None])[0]) for at in (base, best))
    both = sum(w * drawn[d].predict(np.stack([base, best]), size) for d, w in weighted.items())
    gains = np.asarray(both)[:, 0] - np.asarray(both)[:, 1]
    if before - after <= _NEGLIGIBLE:
        best, after, gains = base, before, np.zeros(replicates)
    tail = (1 - confidence) / 2
    low, high = (float(v) for v in np.quantile(gains, [tail, 1 - tail]))
    trained = next(iter(laws.values())).mixtures
    distance, usual = float(_distances(best[None], trained).min()), _usual_distance(trained, confidence)
    status, reason = "ok", ""
    if before == after:
        status, reason = "prior_is_best", "no mixture within the limits is predicted to be better"
    elif low <= 0:
        status, reason = "uncertain", f"the gain's {confidence:.0%} interval holds 0: the sweep does not tell this from the prior"
    elif distance > usual:
        status, reason = (
            "extrapolated",
            f"{distance:.2f} from the nearest mixture trained, {usual:.2f} is usual: train one nearer",
        )
    poor = [f"{domain}: {laws[domain].status}" for domain in weighted if laws[domain].status != "ok"]
    if poor:
        status, reason = "poor_law", f"{', '.join(poor)}; " + (reason or "mend the law before the mixture is trained")
    spans = np.quantile(others, [tail, 1 - tail], axis=0).T
    return Proposal(
        status=status,
        reason=reason,
        sources=names,
        shares=tuple(best.tolist()),
        shares_interval=tuple((float(a), float(b)) for a, b in spans),
        prior=tuple(center.tolist()),
        loss=after,
        prior_loss=before,
        gain=before - after,
        gain_interval=(low, high),
        kl=float(_kl(best, center)),
        epochs=_epochs(names, best, limits),
        distance=distance,
        usual_distance=usual,
        confidence=confidence,
    )


@dataclass(frozen=True)
class _Feasible:
    """The mixtures that the limits allow; ``base`` is the one nearest to the prior."""

    prior: np.ndarray
    base: np.ndarray
    caps: np.ndarray
    max_kl: float | None

    def minimum(self, objective: Objective, table: np.ndarray, smooth: bool) -> np.ndarray:
        """The allowed mixture of the lowest objective, from a table of allowed candidates."""
        values = objective(table)
        if not smooth:
            return np.asarray(table[np.argsort(values, kind="stable")[:_AVERAGED]].mean(axis=0))  # allowed: the limits are convex
        start = table[int(values.argmin())]
        constraints: list[dict[str, Any]] = [{"type": "eq", "fun": lambda r: r.sum() - 1}]
        if self.max_kl is not None:
            constraints.append({"type": "ineq", "fun": lambda r: self.max_kl - _kl(r, self.prior)})
        # A source that the prior leaves out would cost an infinite divergence.
        top = np.where((self.prior > 0) | (self.max_kl is None), self.caps, 0.0)
        found = optimize.minimize(
            lambda r: float(objective(r[None])[0]),
            start,
            method="SLSQP",
            bounds=list(zip(np.zeros_like(top), top, strict=True)),
            constraints=constraints,
            options={"maxiter": 100, "ftol": 1e-9},
        )
        at = np.where(found.x > _TRACE, np.minimum(found.x, top), 0.0)
        at = self.draw_back(at[None])[0]
        return at if objective(at[None])[0] <= values.min() else start

    def draw_back(self, mixtures: np.ndarray) -> np.ndarray:
        """Mixtures (m, k) put under the caps, and moved towards the base until their divergence fits."""
        at = np.array([_under_caps(row / row.sum(), self.caps) for row in mixtures])
        if self.max_kl is None:
            return at
        low, high = np.zeros(len(at)), np.ones(len(at))  # the share of the way from the base
        high_fits = _kl(at, self.prior) <= self.max_kl
        for _ in range(40):
            middle = (low + high) / 2
            fits = _kl(self.base + middle[:, None] * (at - self.base), self.prior) <= self.max_kl
            low, high = np.where(fits, middle, low), np.where(fits, high, middle)
        return np.asarray(self.base + np.where(high_fits, 1.0, low)[:, None] * (at - self.base))


def _candidates(
    prior: np.ndarray, base: np.ndarray, caps: np.ndarray, limits: Limits, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Allowed mixtures (count + 1, k): the base, and draws around the prior from narrow to as wide as the simplex."""
    present = prior > 0 if limits.max_kl is not None else np.ones(len(prior), dtype=bool)
    spread = np.geomspace(0.5, 50, count) * present.sum()
    drawn = np.zeros((count, len(prior)))
    centre = np.where(present, np.maximum(prior, 0.02 / present.sum()), 0.0)
    for row, concentration in enumerate(spread):
        drawn[row, present] = rng.dirichlet(concentration * centre[present] / centre.sum() + 1e-3)
    return np.concatenate([base[None], _Feasible(prior, base, caps, limits.max_kl).draw_back(drawn)])


def _under_caps(shares: np.ndarray, caps: np.ndarray) -> np.ndarray:
    """The mixture put under the caps; what is cut off goes to the others in proportion."""
    at = shares.copy()
    for _ in range(len(at)):
        over = at > caps + 1e-12
        if not over.any():
            break
        at = np.minimum(at, caps)
        room = np.where(at < caps, at, 0.0)
        if room.sum() == 0:
            room = np.maximum(caps - at, 0.0)
        at = at + (1 - at.sum()) * room / room.sum()
    return np.asarray(at)


def _kl(shares: np.ndarray, prior: np.ndarray) -> Any:
    """KL(shares || prior) in nats, over the last axis."""
    ratio = np.where(shares > 0, shares, 1.0) / np.maximum(prior, 1e-300)
    return np.where(shares > 0, shares * np.log(ratio), 0.0).sum(axis=-1)


def _distances(mixtures: np.ndarray, trained: np.ndarray) -> np.ndarray:
    """Total variation, (m, n): half of the shares' absolute differences."""
    return np.asarray(0.5 * np.abs(mixtures[:, None] - trained[None]).sum(axis=2))


def _usual_distance(trained: np.ndarray, confidence: float) -> float:
    """Quantile of the distance from each mixture trained to its nearest neighbour."""
    between = _distances(trained, trained)
    np.fill_diagonal(between, np.inf)
    return float(np.quantile(between.min(axis=1), confidence))


def _epochs(names: Sequence[str], shares: np.ndarray, limits: Limits) -> tuple[float, ...] | None:
    if limits.available_tokens is None or limits.budget_tokens is None:
        return None
    tokens = [limits.available_tokens.get(name, np.nan) for name in names]
    return tuple(float(share * limits.budget_tokens / there) for share, there in zip(shares, tokens, strict=True))


def _checked(
    laws: Mapping[str, MixtureLaw], prior: Mapping[str, float], weights: Mapping[str, float] | None
) -> tuple[tuple[str, ...], dict[str, float], np.ndarray]:
    """Sources, weights of the domains that count, and the prior in the order of the sources (k,)."""
    if not laws:
        raise UserError("A proposal needs at least one mixture law.")
    names = next(iter(laws.values())).sources
    if any(law.sources != names for law in laws.values()):
        raise UserError("The mixture laws of a proposal must have the same sources in the same order.")
    unknown = next((name for name in prior if name not in names), None)
    if unknown is not None:
        raise UserError(f"prior: the laws have no source '{unknown}'.{nearest(unknown, names)} They have: {', '.join(names)}.")
    check_weights(prior, "prior")
    if weights is None:
        weights = dict.fromkeys(laws, 1 / len(laws))
    unknown = next((name for name in weights if name not in laws), None)
    if unknown is not None:
        raise UserError(f"weights: no law of '{unknown}'.{nearest(unknown, laws)} There are: {', '.join(laws)}.")
    check_weights(weights, "weights")
    return names, {d: w for d, w in weights.items() if w > 0}, np.array([prior.get(name, 0.0) for name in names])
