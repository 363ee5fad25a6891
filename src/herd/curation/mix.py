"""What goes into the training mix: over-represented classes sampled down, weights of domains and languages, epochs bounded.

Three questions, three pure functions:

- :func:`keep_rates`: what share of each knowledge class stays. The paper samples down classes that the web has too much of
  (arts and entertainment); a rate is found from target shares, from caps, or from a reference distribution.
- :func:`keeps`: does this document stay? By a hash of its id, so it depends on no order, no worker and no other document, and a
  document that stays at some rate stays at every higher one.
- :func:`bounded_weights`: weights that make no source pass more often than ``max_epochs`` within a token budget; what is over
  flows to the other sources in proportion to their weights, and a statement says so. Repeating up to four times costs little
  (Muennighoff et al. 2023).
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from herd.config.errors import UserError

_TOLERANCE = 1e-9


@dataclass(frozen=True)
class DownsamplingConfig:
    """Which knowledge classes are too frequent. At most one of `targets`, `caps`, `reference` may be given; none: all stays."""

    targets: dict[str, float] = field(default_factory=dict)  # class -> share wanted; they sum to 1. Reached exactly
    caps: dict[str, float] = field(default_factory=dict)  # class -> largest share of what stays; others are free
    reference: dict[str, float] = field(default_factory=dict)  # class -> its share in a corpus that is balanced
    most_over_reference: float = 1.5  # with `reference`: a class may be this many times as frequent as there
    min_rate: float = 0.05  # no class is sampled below it, even where shares are then missed
    unit: str = "characters"  # shares are of characters or of documents

    def __post_init__(self) -> None:
        given = [name for name in ("targets", "caps", "reference") if getattr(self, name)]
        if len(given) > 1:
            raise UserError(f"downsampling: give one of targets, caps and reference, not {' and '.join(given)}.")
        for name in given:
            bad = {k: v for k, v in getattr(self, name).items() if not 0 <= v <= 1}
            if bad:
                raise UserError(f"downsampling.{name}: shares lie in [0, 1], not {bad}.")
        if self.targets and abs(math.fsum(self.targets.values()) - 1) > 1e-6:
            raise UserError(f"downsampling.targets: shares sum to {math.fsum(self.targets.values()):.6g}, not 1.")
        if not 0 <= self.min_rate <= 1 or self.most_over_reference < 1:
            raise UserError("downsampling: min_rate must lie in [0, 1] and most_over_reference be 1 or more.")
        if self.unit not in ("characters", "documents"):
            raise UserError(f"downsampling.unit: '{self.unit}' is not characters or documents.")


def shares(amounts: Mapping[str, float]) -> dict[str, float]:
    """Amounts divided by their sum; all 0 where there is nothing."""
    total = math.fsum(amounts.values())
    return {name: (amount / total if total > 0 else 0.0) for name, amount in amounts.items()}


def keep_rates(amounts: Mapping[str, float], config: DownsamplingConfig) -> dict[str, float]:
    """Class -> share of its documents that stays, in [min_rate, 1]; classes without documents have rate 1.

    Nothing is sampled down more than needed: with targets, some class stays whole; with caps, every class below its cap does.

    Args:
        amounts: class -> characters or documents before.
        config: what is wanted.

    Raises:
        UserError: targets or caps that name no class or cannot be met, e.g. caps on all classes that sum to less than 1.
    """
    present = {name: float(amount) for name, amount in sorted(amounts.items()) if amount > 0}
    rates = dict.fromkeys(amounts, 1.0)
    wanted = config.targets or config.caps or config.reference
    unknown = sorted(set(wanted) - set(amounts))
    if unknown:
        raise UserError(f"downsampling: no document is of class {', '.join(unknown)}; there are {', '.join(sorted(amounts))}.")
    if not present or not wanted:
        return rates
    if config.targets:
        rates |= _rates_to_targets(present, config.targets)
    else:
        caps = config.caps or {name: config.most_over_reference * share for name, share in config.reference.items()}
        rates |= _rates_under_caps(present, caps)
    return {name: max(rate, config.min_rate) for name, rate in rates.items()}


def _rates_to_targets(present: Mapping[str, float], targets: Mapping[str, float]) -> dict[str, float]:
    missing = sorted(name for name in present if name not in targets)
    if missing:
        raise UserError(f"downsampling.targets: no share is given for {', '.join(missing)} (0 drops down to min_rate).")
    total = min(present[name] / targets[name] for name in present if targets[name] > 0) if any(targets.values()) else 0.0
    return {name: min(1.0, targets[name] * total / amount) for name, amount in present.items()}


def _rates_under_caps(present: Mapping[str, float], caps: Mapping[str, float]) -> dict[str, float]:
    """The largest total T with T = sum of min(amount, cap T): each round fixes the classes over their caps, which lowers T."""
    capped: set[str] = set()
    total = math.fsum(present.values())
    while True:
        over = {name for name in present if name not in capped and present[name] > caps.get(name, 1.0) * total * (1 + _TOLERANCE)}
        if not over:
            break
        capped |= over
        free = math.fsum(amount for name, amount in present.items() if name not in capped)
        room = 1 - math.fsum(caps[name] for name in sorted(capped))
        if free <= 0 or room <= 0:
            raise UserError(
                f"downsampling: caps of {', '.join(sorted(capped))} sum to {1 - room:.4g}, and no other class can fill the rest: "
                "raise a cap."
            )
        total = free / room
    return {name: (caps[name] * total / amount if name in capped else 1.0) for name, amount in present.items()}


def keeps(document_id: str, rate: float, seed: int = 0) -> bool:
    """Whether a document stays at this rate: its place in [0, 1), a hash of seed and id, lies below it."""
    return place(document_id, seed) < rate


def place(document_id: str, seed: int = 0) -> float:
    """Where a document stands in [0, 1): uniform over ids, the same on every machine."""
    name = f"{seed}\x1f{document_id}".encode("utf-8", "surrogatepass")
    return (int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 11) / 2**53  # 53 bits: below 1 as a float


def downsampling_report(amounts: Mapping[str, float], rates: Mapping[str, float], config: DownsamplingConfig) -> dict[str, Any]:
    """What the rates do, in expectation: per class its share before, rate, and share after; plain values."""
    after = shares({name: amount * rates[name] for name, amount in amounts.items()})
    before = shares(amounts)
    total = math.fsum(amounts.values())
    return {
        "unit": config.unit,
        "kept": math.fsum(amounts[name] * rates[name] for name in amounts) / total if total > 0 else 1.0,
        "classes": {name: {"before": before[name], "rate": rates[name], "after": after[name]} for name in sorted(amounts)},
    }


# Weights and epochs.


@dataclass(frozen=True)
class WeightsConfig:
    """Weights of domains, and of the languages within them; a source is `domain` or `domain/language`."""

    domains: dict[str, float] = field(default_factory=dict)  # domain -> share of training tokens; they sum to 1
    languages: dict[str, dict[str, float]] = field(default_factory=dict)  # domain -> language -> share within it
    # For domains without an entry in `languages`: weight ~ tokens^exponent. 1 = as they are, 0 = all languages alike; 0.3 to 0.7
    # is the usual way to raise small languages (Conneau et al. 2020 use 0.3 to 0.7).
    language_exponent: float = 1.0
    budget_tokens: float = 0  # tokens that training reads; 0 = unknown, nothing is bounded
    max_epochs: float = 4.0  # passes over a source, at most

    def __post_init__(self) -> None:
        _check_shares("weights.domains", self.domains)
        for domain, inner in self.languages.items():
            _check_shares(f"weights.languages.{domain}", inner)
        if not 0 <= self.language_exponent <= 1 or self.budget_tokens < 0 or self.max_epochs <= 0:
            raise UserError("weights: language_exponent in [0, 1], budget_tokens >= 0 and max_epochs > 0 are needed.")


def _check_shares(name: str, values: Mapping[str, float]) -> None:
    bad = {key: value for key, value in values.items() if not (math.isfinite(value) and value >= 0)}
    if bad:
        raise UserError(f"{name}: shares must be 0 or more, not {bad}.")
    if values and abs(math.fsum(values.values()) - 1) > 1e-6:
        raise UserError(f"{name}: shares sum to {math.fsum(values.values()):.6g}, not 1.")


def source_weights(tokens: Mapping[str, Mapping[str, float]], config: WeightsConfig) -> dict[str, float]:
    """Weights by ``domain/language``, summing to 1.

    Args:
        tokens: domain -> language -> tokens (any unit that is proportional will do).
        config: shares wanted; without `domains`, domains weigh what they hold.

    Raises:
        UserError: weight for a domain or a language of which there is nothing.
    """
    totals = {domain: math.fsum(inner.values()) for domain, inner in tokens.items()}
    domains = config.domains or shares(totals)
    weights: dict[str, float] = {}
    for domain in sorted(domains):
        if domains[domain] == 0:
            continue
        held = {language: n for language, n in sorted(tokens.get(domain, {}).items()) if n > 0}
        if not held:
            raise UserError(f"weights.domains.{domain} = {domains[domain]}, but there is no document of it: set it to 0.")
        inner = config.languages.get(domain) or shares({language: n**config.language_exponent for language, n in held.items()})
        for language, share in sorted(inner.items()):
            if share > 0 and language not in held:
                raise UserError(f"weights.languages.{domain}.{language} = {share}, but there is no document of it: set it to 0.")
            if share > 0:
                weights[f"{domain}/{language}"] = domains[domain] * share
    return shares(weights)


@dataclass(frozen=True)
class Bounded:
    """Weights after the bound, and what it did."""

    weights: dict[str, float]  # source -> share of the budget; they sum to 1
    epochs: dict[str, float]  # source -> passes over it
    capped: tuple[str, ...]  # sources that reach max_epochs
    statements: tuple[str, ...]  # one line for each source whose weight changed much, for a report


def bounded_weights(weights: Mapping[str, float], tokens: Mapping[str, float], budget: float, max_epochs: float) -> Bounded:
    """Lower the weights of sources that would pass more than ``max_epochs`` times; the others take over in proportion.

    Args:
        weights: source -> share of the budget; they sum to 1.
        tokens: source -> tokens in one pass.
        budget: tokens that training reads, > 0.
        max_epochs: passes, at most.

    Raises:
        UserError: a weighted source without tokens, or sources that cannot fill the budget.
    """
    assert budget > 0 and max_epochs > 0
    _check_shares("weights", weights)
    wanted = {name: weight for name, weight in sorted(weights.items()) if weight > 0}
    empty = [name for name in wanted if not tokens.get(name, 0) > 0]
    if empty:
        raise UserError(f"The mix gives weight to {', '.join(empty)}, of which there are no tokens: set it to 0.")
    room = {name: max_epochs * tokens[name] / budget for name in wanted}
    if math.fsum(room.values()) < 1 - _TOLERANCE:
        most = max_epochs * math.fsum(tokens[name] for name in wanted)
        raise UserError(
            f"{max_epochs:g} epochs of all sources are {most:,.0f} tokens, less than the budget of {budget:,.0f}: "
            "lower the budget, raise max_epochs, or give more data."
        )
    capped: list[str] = []
    bounded = dict(wanted)
    while True:
        over = [name for name in bounded if name not in capped and bounded[name] > room[name] * (1 + _TOLERANCE)]
        if not over:
            break
        capped += over
        rest = max(0.0, 1 - math.fsum(room[name] for name in capped))
        free = math.fsum(wanted[name] for name in wanted if name not in capped)
        bounded = {name: room[name] if name in capped else wanted[name] / free * rest for name in wanted}
    bounded = shares(bounded)  # rounding only
    epochs = {name: bounded[name] * budget / tokens[name] for name in bounded}
    statements = [
        f"{name}: weight {wanted[name]:.4g} would be {wanted[name] * budget / tokens[name]:.3g} epochs of its "
        f"{tokens[name]:,.0f} tokens; bounded to {max_epochs:g} epochs, weight {bounded[name]:.4g}"
        for name in sorted(capped)
    ]
    if capped:
        factor = next((bounded[n] / wanted[n] for n in wanted if n not in capped), 1.0)
        statements.append(f"the weights of the other {len(wanted) - len(capped)} sources grow by a factor of {factor:.4g}")
    return Bounded(bounded, epochs, tuple(sorted(capped)), tuple(statements))


def mix_report(tokens: Mapping[str, Mapping[str, float]], config: WeightsConfig) -> dict[str, Any]:
    """Weights, and with a budget the epochs of each ``domain/language`` and what the bound changed; plain values."""
    weights = source_weights(tokens, config)
    report: dict[str, Any] = {"weights": weights}
    if config.budget_tokens > 0 and weights:
        flat = {f"{domain}/{language}": n for domain, inner in tokens.items() for language, n in inner.items()}
        bounded = bounded_weights(weights, flat, config.budget_tokens, config.max_epochs)
        report |= {
            "asked": weights,
            "weights": bounded.weights,
            "epochs": bounded.epochs,
            "capped": list(bounded.capped),
            "statements": list(bounded.statements),
        }
    return report
