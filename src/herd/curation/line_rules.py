"""Rules that take lines out of prose: C4 and RefinedWeb in the peers' readings, and the paper's n-gram coverage of lines.

Line rules run before a document is measured, for they change its text. C4 drops some pages while it looks at lines, and a line
that an earlier rule removed cannot drop its page; so a reading of C4 also gives the page's numbers (sentences, braces,
placeholders), which take the place of those that :func:`herd.curation.measures.measure` counts on the remaining text.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from herd.config.errors import UserError
from herd.curation.documents import DOMAINS
from herd.curation.measures import count_sentences
from herd.curation.text import UNSPACED, ngram_hashes, run_length, tidy, tokenise, words

_POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_LONG_WORD = 1_000  # characters
_PHRASES = ("javascript", "lorem ipsum", *_POLICY)
_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_COUNTER = re.compile(
    r"\W*\d[\d.,]*[kmb]?\s+(?:likes|shares|comments|retweets|reposts|quotes|bookmarks|upvotes|downvotes|downloads|views|followers)\W*"
)

Found = list[tuple[int, str]]  # (line index, rule)


@dataclass(frozen=True)
class LineEdit:
    """What line rules made of a text."""

    text: str
    removed: Found = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)  # statistics that replace the measured ones


def bad_lines(text: str, language: str = "en") -> Found:
    """(line index, rule) of each line with an endless word, a "javascript" notice or a policy phrase.

    C4's rules as far as they name what is no content anywhere: documentation may mention JavaScript, have short lines and
    lines without a full stop. In unspaced scripts a paragraph is one "word", and none is endless.
    """
    lines = text.split("\n")
    spaced = language not in UNSPACED
    suspicious = _suspicious(text)
    found = []
    for i, line in enumerate(lines):
        if not suspicious and len(line) <= _LONG_WORD:
            continue
        lowered = line.lower()
        if spaced and _endless(line):
            found.append((i, "endless_word"))
        elif "javascript" in lowered and re.search(r"enable|disabled|requires?\b|turn on", lowered):
            found.append((i, "javascript_notice"))
        elif any(phrase in lowered for phrase in _POLICY):
            found.append((i, "policy_phrase"))
    return found


def _suspicious(text: str) -> bool:
    """Whether the text holds a phrase at all: looking once spares most documents the search in each line."""
    lowered = text.lower()
    return any(phrase in lowered for phrase in _PHRASES)


def _endless(line: str) -> bool:
    return len(line) > _LONG_WORD and any(len(word) > _LONG_WORD for word in line.split())


def _notices(text: str, language: str = "en") -> LineEdit:
    found = bad_lines(text, language)
    return LineEdit(without_lines(text, [i for i, _ in found]), found) if found else LineEdit(text)


@dataclass(frozen=True)
class _C4:
    """One reading of C4 (Raffel et al. 2020, section 2.2). Rules of a line in the order of the peers; the first one counts."""

    ends: tuple[str, ...]  # a line must end in one of them, and not in an ellipsis; () = any end
    words: int  # a line must have as many, split at white space
    words_with_citations: bool  # counted before "[1]" and the like are cut out

    def __call__(self, text: str) -> LineEdit:
        suspicious = _suspicious(text)
        kept: list[str] = []
        removed: Found = []
        braces = placeholders = 0
        for i, raw in enumerate(text.split("\n")):
            line = raw.strip()
            if not line:
                continue
            if _endless(line):
                removed.append((i, "endless_word"))
                continue
            counted = line
            if "[" in line:
                line = _CITATION.sub("", line).rstrip()
                counted = counted if self.words_with_citations else line
            if self.ends and (not line.endswith(self.ends) or line.endswith(("...", "\u2026"))):
                removed.append((i, "no_terminal_mark"))
                continue
            if len(counted.split(None, self.words - 1)) < self.words:
                removed.append((i, "few_words"))
                continue
            lowered = line.lower() if suspicious else ""
            if "lorem ipsum" in lowered:
                placeholders += 1
            elif "javascript" in lowered:
                removed.append((i, "javascript"))
                continue
            elif "{" in line:
                braces += 1
            elif suspicious and any(phrase in lowered for phrase in _POLICY):
                removed.append((i, "policy_phrase"))
                continue
            kept.append(line)
        scores = {"sentences": float(count_sentences(kept)), "braces": float(braces), "placeholders": float(placeholders)}
        return LineEdit("\n".join([*kept, ""]), removed, scores)


def _refinedweb(text: str) -> LineEdit:
    """DCLM's corrections of lines: mostly capitals, digits alone, counters ("3 likes"), a single word."""
    removed: Found = []
    for i, line in enumerate(text.split("\n")):
        if not line:
            continue
        if not line.islower() and sum(map(str.isupper, line)) / len(line) > 0.5:
            removed.append((i, "capitals"))
        elif line[0].isdigit() and sum(map(str.isdigit, line)) / len(line) > 0.999999:
            removed.append((i, "digits"))
        elif len(line) < 200 and _COUNTER.fullmatch(line.lower()):
            removed.append((i, "counter"))
        elif len(line.split()) < 2:
            removed.append((i, "few_words"))
    return LineEdit(without_lines(text, [i for i, _ in removed]), removed) if removed else LineEdit(text)


# Reading -> function. C4 by datatrove 0.10 (`c4`; FineWeb switches its rule of terminal marks off), by DCLM (`c4_dclm`).
LINE_RULES: dict[str, Callable[[str], LineEdit]] = {
    "none": LineEdit,
    "notices": _notices,
    "c4": _C4(ends=(".", "?", "!", '"', "'"), words=3, words_with_citations=True),
    "c4_fineweb": _C4(ends=(), words=3, words_with_citations=True),
    "c4_dclm": _C4(ends=(".", "?", "!", '"'), words=5, words_with_citations=False),
    "refinedweb": _refinedweb,
}


@dataclass(frozen=True)
class CoverageConfig:
    """Lines that consist of n-grams which the document repeats: logs, error messages, tables (paper, section 3.1.1)."""

    enabled: bool = True
    ngram_words: int = 5  # words per n-gram, three times as many characters in unspaced scripts
    copies: int = 4  # an n-gram is duplicated when the document holds it at least as often
    max_coverage: float = 0.8  # share of a line's characters in duplicated n-grams above which the line goes
    min_words: int = 8  # shorter lines stay: headings, rows of matrices; the line rule takes the frequent ones
    domains: list[str] = field(default_factory=lambda: ["general", "multilingual"])  # maths repeats itself with reason

    def __post_init__(self) -> None:
        if self.ngram_words < 2 or self.copies < 2:
            raise UserError("rules.coverage: ngram_words and copies must be at least 2.")
        for domain in self.domains:
            if domain not in DOMAINS:
                raise UserError(f"rules.coverage.domains: '{domain}' is no domain. Choices: {', '.join(DOMAINS)}.")
        if not 0 <= self.max_coverage <= 1:
            raise UserError(f"rules.coverage.max_coverage = {self.max_coverage}: must lie in [0, 1].")


def covered_lines(text: str, language: str, config: CoverageConfig) -> list[tuple[int, float]]:
    """(line index, coverage) of each line above ``config.max_coverage``.

    The paper removes "lines that consist of repeated content such as logging or error messages. Those lines could be very long
    and unique, hence cannot be filtered by line-dedup", by their duplicated n-gram coverage ratio (after Rae et al. 2021), and
    gives no more. Here the coverage of a line is the share of the characters of its words that lie in duplicated n-grams; an
    n-gram is a run of words within one line, with digits as 0 (time stamps and addresses differ), and is duplicated when the
    document holds it at least ``copies`` times. Each word counts once; a line shorter than ``min_words`` words stays. The
    first occurrences go as well, as in line de-duplication.
    """
    size = run_length(config.ngram_words, language)
    tokens = tokenise(text, language)
    if len(tokens) < size + config.copies - 1:
        return []
    inside = tokens.lines[size - 1 :] == tokens.lines[: len(tokens) - size + 1]
    starts = inside.nonzero()[0]
    runs = ngram_hashes(tokens.folded, size)[starts]
    order = np.argsort(runs)
    ordered = runs[order]
    edges = np.concatenate([[0], (ordered[1:] != ordered[:-1]).nonzero()[0] + 1, [len(ordered)]])
    counts = np.diff(edges)
    frequent = np.repeat(counts >= config.copies, counts)
    if not frequent.any():
        return []
    places = starts[order[frequent]]
    change = np.zeros(len(tokens) + 1, np.int64)
    np.add.at(change, places, 1)
    np.add.at(change, places + size, -1)
    covered = np.cumsum(change[:-1]) > 0
    whole = np.bincount(tokens.lines, weights=tokens.lengths)
    share = np.bincount(tokens.lines, weights=tokens.lengths * covered) / np.maximum(whole, 1)
    found = (share > config.max_coverage) & (np.bincount(tokens.lines) >= config.min_words)
    return [(int(i), float(share[i])) for i in found.nonzero()[0]]


def edit_lines(text: str, language: str, reading: str, coverage: CoverageConfig, domain: str = "general") -> LineEdit:
    """Line rules by name, then coverage in its domains; what both removed, by line of ``text``, and the share of words that went.

    The readings of C4 and RefinedWeb judge English alone, the language they are published for: they ask for Latin marks at the
    end of a line and for words between spaces. Other languages lose their notices (mC4 dropped C4's rule of marks as well).
    A text that loses all its lines becomes "".
    """
    if language == "en" or reading == "none":
        edit = LINE_RULES[reading](text)
    else:
        edit = _notices(text, language)
    removed = list(edit.removed)
    result = edit.text
    covered = covered_lines(result, language, coverage) if coverage.enabled and domain in coverage.domains else []
    if covered:
        # Line numbers of the ledger are those of the text that came in: the lines left are matched to them in order.
        numbers = _numbers(text, result, {i for i, _ in removed})
        removed += [(numbers[i], "ngram_coverage") for i, _ in covered]
        result = without_lines(result, [i for i, _ in covered])
    scores = dict(edit.scores)
    if removed:
        lines = text.split("\n")
        gone = len(words("\n".join([lines[i] for i in sorted({i for i, _ in removed})]), language))
        scores["removed_words"] = gone / (gone + len(tokenise(result, language))) if gone else 0.0
    return LineEdit(result, sorted(removed), scores)


def _numbers(before: str, after: str, removed: set[int]) -> dict[int, int]:
    """Index of each line of ``after`` that is not blank -> its index in ``before``."""
    left = [i for i, line in enumerate(before.split("\n")) if line.strip() and i not in removed]
    now = [i for i, line in enumerate(after.split("\n")) if line.strip()]
    return dict(zip(now, left, strict=False))


def without_lines(text: str, numbers: Sequence[int]) -> str:
    """The text without the lines of these indexes, tidy; "" when nothing is left."""
    gone = set(numbers)
    return tidy("\n".join(line for i, line in enumerate(text.split("\n")) if i not in gone))


def count_rules(found: Found) -> dict[str, int]:
    """How often each line rule struck."""
    return dict(sorted(Counter(rule for _, rule in found).items()))
