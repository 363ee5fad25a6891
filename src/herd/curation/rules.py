"""Quality rules: Gopher quality and repetition (Rae et al. 2021, table A1), C4 and FineWeb, as one table.

A rule is a name, a statistic of a document and a side. The limits come from the configuration, one set a domain, named
`min_<statistic>` or `max_<statistic>`; a limit of null switches the rule off. The first rule that a document breaks, in
the order of the table, drops it and stands in the ledger with its value and its limit.

Peers disagree on the repetition statistics (what is a copy, what is the denominator). Here: duplicate lines are copies
after the first; the top n-gram counts only when it occurs at least twice; duplicated n-grams count each covered word once;
shares of characters are shares of the characters of words.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import fields

import numpy as np

from herd.curation.config import RuleLimits
from herd.curation.text import ngram_hashes, word_hashes, word_set, words

_STOP_WORDS = word_set("the be to of and that have with")
_BULLETS = ("-", "*", "\u2022", "\u2023", "\u25b6", "\u25cf", "\u25e6", "\u2043", "\u00b7")
_ELLIPSES = ("...", "\u2026")
_POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_LONG_WORD = 1_000  # characters
_SUSPICIOUS = re.compile("|".join((r"\S{1001}", "javascript", *_POLICY)), re.IGNORECASE)


class Measured:
    """One document, tokenised once; every statistic reads from here and is computed when a rule asks for it."""

    def __init__(self, text: str, language: str) -> None:
        self.text, self.language = text, language
        self.words = words(text, language)
        self.lines = [line.strip() for line in text.split("\n") if line.strip()]
        self.lengths = np.fromiter(map(len, self.words), np.int64, len(self.words))
        self.characters = int(self.lengths.sum())  # of words
        self._ids: np.ndarray | None = None

    @property
    def ids(self) -> np.ndarray:
        """(words,) uint64 hashes."""
        if self._ids is None:
            self._ids = word_hashes(self.words)
        return self._ids

    def share_of_words(self, count: float) -> float:
        """``count`` / words; 0 for a document without words."""
        return count / len(self.words) if self.words else 0.0

    def share_of_lines(self, count: float) -> float:
        """``count`` / lines that are not blank."""
        return count / len(self.lines) if self.lines else 0.0


def duplicate_lines(doc: Measured) -> float:
    """Share of lines that repeat an earlier one."""
    return doc.share_of_lines(len(doc.lines) - len(set(doc.lines)))


def duplicate_line_characters(doc: Measured) -> float:
    """Share of the characters of lines that lie in lines which repeat an earlier one."""
    total = sum(map(len, doc.lines))
    return (total - sum(map(len, set(doc.lines)))) / total if total else 0.0


def top_ngram(doc: Measured, n: int) -> float:
    """Share of word characters in occurrences of the most frequent n-gram; the longest of a tie; 0 when none repeats."""
    hashes = ngram_hashes(doc.ids, n)
    if len(hashes) < 2:
        return 0.0
    _, first, counts = np.unique(hashes, return_index=True, return_counts=True)
    most = int(counts.max())
    if most < 2:
        return 0.0
    cumulative = np.concatenate([[0], np.cumsum(doc.lengths)])
    starts = first[counts == most]
    longest = int((cumulative[starts + n] - cumulative[starts]).max())
    return min(longest * most / doc.characters, 1.0) if doc.characters else 0.0


def duplicate_ngram(doc: Measured, n: int) -> float:
    """Share of word characters covered by n-grams that occur more than once, first occurrences included, each word once."""
    hashes = ngram_hashes(doc.ids, n)
    if len(hashes) < 2:
        return 0.0
    _, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    starts = np.flatnonzero(counts[inverse] > 1)
    if not len(starts):
        return 0.0
    covered = np.zeros(len(doc.words) + 1, np.int64)
    np.add.at(covered, starts, 1)
    np.add.at(covered, starts + n, -1)
    inside = np.cumsum(covered[:-1]) > 0
    return float(doc.lengths[inside].sum() / doc.characters) if doc.characters else 0.0


def _symbols(doc: Measured) -> float:
    return doc.share_of_words(doc.text.count("#") + sum(doc.text.count(e) for e in _ELLIPSES))


def _alphabetic(doc: Measured) -> float:
    lettered = {word for word in set(doc.words) if word.isalpha() or any(c.isalpha() for c in word)}
    return doc.share_of_words(sum(word in lettered for word in doc.words))


# Statistic -> function, in the order in which rules are tried: cheap ones first, quality before repetition.
STATISTICS: dict[str, Callable[[Measured], float]] = {
    "characters": lambda d: len(d.text),
    "words": lambda d: len(d.words),
    "placeholders": lambda d: d.text.lower().count("lorem ipsum"),
    "mean_word_length": lambda d: d.share_of_words(d.characters),
    "alphabetic_words": _alphabetic,
    "symbols_per_word": _symbols,
    "bullet_lines": lambda d: d.share_of_lines(sum(line.startswith(_BULLETS) for line in d.lines)),
    "ellipsis_lines": lambda d: d.share_of_lines(sum(line.endswith(_ELLIPSES) for line in d.lines)),
    "stop_words": lambda d: len(_STOP_WORDS.intersection(d.words)),
    "short_lines": lambda d: d.share_of_lines(sum(len(line) <= 30 for line in d.lines)),
    "duplicate_lines": duplicate_lines,
    "duplicate_line_characters": duplicate_line_characters,
    **{f"top_{n}gram": (lambda d, n=n: top_ngram(d, n)) for n in (2, 3, 4)},  # type: ignore[misc]
    **{f"duplicate_{n}gram": (lambda d, n=n: duplicate_ngram(d, n)) for n in range(5, 11)},  # type: ignore[misc]
}

assert {f.name[4:] for f in fields(RuleLimits)} == STATISTICS.keys()


def first_broken(text: str, language: str, limits: RuleLimits) -> tuple[str, float, float] | None:
    """The first rule that ``text`` breaks as (name, value, limit), or None when it passes all.

    ``min_stop_words`` is a list of English words and applies to English alone.
    """
    doc = Measured(text, language)
    for statistic, measure in STATISTICS.items():
        for side in ("min_", "max_"):
            limit = getattr(limits, side + statistic, None)
            if limit is None or (statistic == "stop_words" and language != "en"):
                continue
            value = float(measure(doc))
            if value < limit if side == "min_" else value > limit:
                return side + statistic, value, float(limit)
    return None


def bad_lines(text: str) -> list[tuple[int, str]]:
    """C4's line rules: (line index, rule) of each line with an endless word, "javascript" notices or policy phrases."""
    if not _SUSPICIOUS.search(text):
        return []
    found = []
    for i, line in enumerate(text.split("\n")):
        lowered = line.lower()
        if len(line) > _LONG_WORD and any(len(word) > _LONG_WORD for word in line.split()):
            found.append((i, "endless_word"))
        elif "javascript" in lowered and re.search(r"enable|disabled|requires?\b|turn on", lowered):
            found.append((i, "javascript_notice"))
        elif any(phrase in lowered for phrase in _POLICY):
            found.append((i, "policy_phrase"))
    return found


def count_rules(found: list[tuple[int, str]]) -> dict[str, int]:
    """How often each line rule struck."""
    return dict(sorted(Counter(rule for _, rule in found).items()))
