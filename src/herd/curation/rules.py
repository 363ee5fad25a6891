"""Rules decide from measured statistics alone: Gopher (Rae et al. 2021), C4, FineWeb, dirty words, divergence, as one table.

A limit is named `min_<statistic>` or `max_<statistic>` (statistics and their readings: measures.py) and stands in one table a
domain; null switches it off, as leaving it out does. The first rule that a document breaks, in the order of the statistics,
drops it and stands in the ledger with its value and its limit. Presets with the peers' limits: conf/rules/.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from herd.config.errors import UserError, nearest
from herd.curation.documents import DOMAINS
from herd.curation.line_rules import LINE_RULES, CoverageConfig, LineEdit, bad_lines, count_rules, edit_lines
from herd.curation.measures import STATISTICS, measure

__all__ = [
    "STATISTICS",
    "CoverageConfig",
    "LineEdit",
    "RulesConfig",
    "bad_lines",
    "broken",
    "count_rules",
    "edit_lines",
    "first_broken",
    "measure",
]

Limits = dict[str, float | None]

# (rule, statistic, is a minimum) in the order in which rules are tried.
_RULES = [(f"{side}_{name}", name, side == "min") for name in STATISTICS for side in ("min", "max")]
_KNOWN = frozenset(rule for rule, _, _ in _RULES)
_ENGLISH = ("stop_words", "stop_word_count")  # a list of English words judges English alone


@dataclass(frozen=True)
class RulesConfig:
    """Lines first, then one table of limits per domain."""

    line_rules: str = "notices"  # which reading takes lines out of prose: none, notices, c4, c4_fineweb, c4_dclm, refinedweb
    coverage: CoverageConfig = field(default_factory=CoverageConfig)  # lines of repeated n-grams, prose only
    general: Limits = field(default_factory=dict)
    maths: Limits = field(default_factory=dict)
    code: Limits = field(default_factory=dict)
    multilingual: Limits = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.line_rules not in LINE_RULES:
            hint = nearest(self.line_rules, LINE_RULES) or f" Choices: {', '.join(LINE_RULES)}."
            raise UserError(f"rules.line_rules: there is no '{self.line_rules}'.{hint}")
        for domain in DOMAINS:
            for name in getattr(self, domain):
                if name not in _KNOWN:
                    raise UserError(f"Unknown key 'rules.{domain}.{name}'.{nearest(name, _KNOWN)}")


def first_broken(
    scores: Mapping[str, float], language: str, limits: Mapping[str, float | None]
) -> tuple[str, float, float] | None:
    """The first rule that a document breaks as (name, value, limit), or None when it passes all.

    Args:
        scores: by :func:`measure`.
        language: of the document.
        limits: its domain's table. Limits are inclusive: a value equal to its limit passes.
    """
    return next(broken(scores, language, limits), None)


def broken(scores: Mapping[str, float], language: str, limits: Mapping[str, float | None]) -> Iterator[tuple[str, float, float]]:
    """Every rule that a document breaks, in order."""
    for rule, statistic, minimum in _RULES:
        limit = limits.get(rule)
        if limit is None or (statistic in _ENGLISH and language != "en"):
            continue
        value = scores[statistic]
        if value < limit if minimum else value > limit:
            yield rule, value, float(limit)
