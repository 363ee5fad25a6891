"""Every statistic of a document, measured once from one tokenisation; rules decide later from the numbers alone.

Words are those of :func:`herd.curation.text.words` (lower case, letters, digits and marks), the same for every statistic.
Peers agree on limits and disagree on what is limited, so a disputed statistic is given once per reading:

====================  ===================================  ================================  ====================================
reading               duplicate lines and paragraphs       top n-gram                        duplicated n-grams
====================  ===================================  ================================  ====================================
(no suffix)           copies after the first; lines that   0 when none repeats; the longest  union of all words in n-grams that
                      are not blank, stripped; characters  of a tie; share of the            occur more than once, the first
                      / characters of such lines           characters of words               occurrence included; / characters of
                                                                                             words
``_datatrove``        copies after the first; lines as     the first of a tie, even when it  repeats after the first, going left
                      they are; characters / all of the    occurs once; spaces included; /   to right and stepping over n words
                      text                                 all characters of the text        after each; / all characters
``_dolma``            every copy, the first included,      the first of a tie, even when it  every occurrence of a repeated
                      blank lines too; spaces in lines     occurs once; / characters of      n-gram, overlaps counted again; /
                      counted, / characters that are no    words                             characters of all n-grams
                      space (can exceed 1)
``_dclm``             every copy, the first included; a    as without suffix                 as without suffix
                      single line is no copy; characters
                      / characters of such lines
====================  ===================================  ================================  ====================================

In unspaced scripts a word is a character and an n-gram has 3 n of them (:func:`herd.curation.text.run_length`), without spaces.

The statistics without suffix of n-grams are DCLM's. They count the first occurrence, so on the same text they are about
twice datatrove's: a page in which everything is said twice has 1.0 here and 0.5 there.
"""

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

from herd.curation.dirty_words import DirtyWords
from herd.curation.kl import Reference
from herd.curation.text import STOP_WORDS, Tokens, paragraphs, run_length, tokenise

_BULLETS = "-*\u2022\u2023\u25b6\u25cf\u25e6\u2043\u00b7"
# Ends of sentences of the scripts with most text on the web; closing quotes are none, as in FineWeb.
_TERMINALS = (
    ".?!\u203c\u203d\u2047\u2048\u2049\u3002\uff0e\uff1f\uff01\uff61\u061f\u06d4\u0964\u0965\u0589\u1362\u17d4\u17d5\u104a\u104b"
)
_SHORT_LINE = 30  # characters, FineWeb
_LONG_LINE = 200  # characters, mC4
_BLANK_LINES = re.compile(r"\n{2,}")
# An end of a sentence inside a line: a mark, then a space and no lower-case letter ("e.g. this" is none).
_INNER_END = re.compile(
    "[.?!\u2026][\"'\u201d\u2019)\\]]*[ \t]+(?=[^\\Wa-z]|[\"'\u201c\u2018(\\[])|[\u3002\uff01\uff1f\u0964](?=.)"
)

TOP_NGRAMS = (2, 3, 4)
DUPLICATE_NGRAMS = (5, 6, 7, 8, 9, 10)
_SUFFIXES = ("", "_datatrove", "_dolma")

# The names that `measure` gives, in the order in which rules are tried: cheap ones first, quality before repetition.
STATISTICS: tuple[str, ...] = (
    "characters",  # of the text
    "words",
    "removed_words",  # share of words that line rules took away (0 when none ran)
    "sentences",
    "placeholders",  # occurrences of "lorem ipsum"
    "braces",  # lines with "{"
    "long_lines",  # lines of at least 200 characters
    "mean_word_length",  # characters
    "alphabetic_words",  # share of words with a letter
    "alphabetic_words_datatrove",  # the same among words and punctuation marks together, which spaCy calls tokens
    "symbols_per_word",  # '#' and ellipses together, per word
    "hashes_per_word",
    "ellipses_per_word",
    "bullet_lines",  # share of lines
    "ellipsis_lines",  # share of lines
    "stop_words",  # distinct ones of the eight
    "stop_word_count",  # occurrences of the eight
    "terminal_lines",  # share of lines that end a sentence
    "short_lines",  # share of lines of at most 30 characters
    "newlines_per_word",
    "dirty_words",  # occurrences of words and phrases of the user's list
    "dirty_words_per_1000",  # the same per 1,000 words
    "kl",  # Kullback-Leibler divergence from the reference in nats (see kl.py); 0 without a reference
    "kl_excess",  # the same above what as many words of the reference itself give
    "unseen_words",  # share of words whose bucket is empty in the reference
    "duplicate_lines",  # share of lines
    "duplicate_line_characters",  # share of characters
    "duplicate_paragraphs",
    "duplicate_paragraph_characters",
    *(
        f"{name}{suffix}"
        for suffix in ("_datatrove", "_dclm")
        for name in ("duplicate_lines", "duplicate_line_characters", "duplicate_paragraphs", "duplicate_paragraph_characters")
    ),
    "duplicate_lines_dolma",
    "duplicate_line_characters_dolma",
    "duplicate_line_characters_fineweb",  # copies after the first; / characters of the text without line ends
    *(f"top_{n}gram{suffix}" for suffix in _SUFFIXES for n in TOP_NGRAMS),
    *(f"duplicate_{n}gram{suffix}" for suffix in _SUFFIXES for n in DUPLICATE_NGRAMS),
)


def measure(
    text: str,
    language: str,
    dirty: DirtyWords | None = None,
    reference: Reference | None = None,
) -> dict[str, float]:
    """All :data:`STATISTICS` of a text.

    Args:
        text: the document, after line rules.
        language: ISO 639-1; decides what a word is.
        dirty: the user's list of words for this language.
        reference: word distribution of the language's corpus.

    Returns:
        statistic -> value, in the order of :data:`STATISTICS`; shares of an empty text are 0.
    """
    tokens = tokenise(text, language)
    scores = dict.fromkeys(STATISTICS, 0.0)
    _quality(text, tokens, scores)
    _lines(text, scores)
    _ngrams(text, tokens, scores, language)
    if dirty is not None:
        found = dirty.count(tokens)
        scores["dirty_words"] = float(found)
        scores["dirty_words_per_1000"] = _share(1000 * found, len(tokens))
    if reference is not None:
        scores["kl"], scores["kl_excess"], scores["unseen_words"] = reference.divergence(tokens.hashes)
    assert len(scores) == len(STATISTICS)
    return scores


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _quality(text: str, tokens: Tokens, scores: dict[str, float]) -> None:
    """Gopher's quality statistics and FineWeb's ratio of line ends, on words."""
    count = len(tokens)
    marks = max(sum(map(len, text.split())) - tokens.characters, 0)
    hashes, ellipses = text.count("#"), text.count("...") + text.count("\u2026")
    stops = np.bincount(tokens.stops, minlength=len(STOP_WORDS) + 1)[1:]
    scores |= {
        "characters": float(len(text)),
        "words": float(count),
        "placeholders": float(text.lower().count("lorem ipsum")),
        "mean_word_length": _share(tokens.characters, count),
        "alphabetic_words": _share(int(tokens.lettered.sum()), count),
        "alphabetic_words_datatrove": _share(int(tokens.lettered.sum()), count + marks),
        "symbols_per_word": _share(hashes + ellipses, count),
        "hashes_per_word": _share(hashes, count),
        "ellipses_per_word": _share(ellipses, count),
        "stop_words": float(np.count_nonzero(stops)),
        "stop_word_count": float(stops.sum()),
        "newlines_per_word": _share(text.count("\n"), count),
    }


def _lines(text: str, scores: dict[str, float]) -> None:
    """Statistics of lines and paragraphs."""
    raw = text.split("\n")
    lines = [line for line in map(str.strip, raw) if line]
    total = len(lines)
    lengths = list(map(len, lines))
    begins, ends = "".join([line[0] for line in lines]), "".join([line[-1] for line in lines])
    dotted = sum(line.endswith("...") for line in lines) if "..." in text else 0
    scores |= {
        "sentences": float(count_sentences(lines)),
        "braces": float(sum("{" in line for line in lines)) if "{" in text else 0.0,
        "long_lines": float(sum(length >= _LONG_LINE for length in lengths)),
        "bullet_lines": _share(sum(map(begins.count, _BULLETS)), total),
        "ellipsis_lines": _share(dotted + ends.count("\u2026"), total),
        "terminal_lines": _share(sum(map(ends.count, _TERMINALS)), total),
        "short_lines": _share(sum(length <= _SHORT_LINE for length in lengths), total),
    }
    blocks = list(map(str.strip, paragraphs(text)))
    characters = len(text)
    for unit, items, loose in (
        ("line", lines, _split_at_line_ends(raw)),
        ("paragraph", blocks, _BLANK_LINES.split(text.strip())),
    ):
        count, copies, inside = _copies(items)
        scores[f"duplicate_{unit}s"] = _share(copies, len(items))
        scores[f"duplicate_{unit}_characters"] = _share(inside, count)
        every, every_inside = _every_copy(items) if copies else (0, 0)
        scores[f"duplicate_{unit}s_dclm"] = _share(every, len(items))
        scores[f"duplicate_{unit}_characters_dclm"] = _share(every_inside, count)
        _, copies, inside = _copies(loose)
        scores[f"duplicate_{unit}s_datatrove"] = _share(copies, len(loose)) if text else 0.0
        scores[f"duplicate_{unit}_characters_datatrove"] = _share(inside, characters)
    every, inside = _every_copy(raw)
    scores["duplicate_lines_dolma"] = _share(every, len(raw)) if text else 0.0
    scores["duplicate_line_characters_dolma"] = _share(inside, sum(map(len, text.split())) if inside else 0)
    _, _, inside = _copies([line for line in raw if line and not line.isspace()])
    scores["duplicate_line_characters_fineweb"] = _share(inside, characters - len(raw) + 1)


def _split_at_line_ends(raw: list[str]) -> list[str]:
    """The text split at runs of line ends: an empty string stays only where the text begins or ends with one."""
    full = [line for line in raw if line]
    return full if raw[0] and raw[-1] else [""] * (not raw[0]) + full + [""] * (not raw[-1] and len(raw) > 1)


def count_sentences(lines: list[str]) -> int:
    """Sentences of lines that are not blank: each line ends one, and ends inside a line are counted by their marks."""
    return len(lines) + len(_INNER_END.findall("\n".join(lines)))


def _copies(items: list[str]) -> tuple[int, int, int]:
    """(characters, copies after the first, their characters)."""
    unique = set(items)
    total = sum(map(len, items))
    return total, len(items) - len(unique), total - sum(map(len, unique))


def _every_copy(items: list[str]) -> tuple[int, int]:
    """(items that occur more than once, their characters), first occurrences included."""
    if len(set(items)) == len(items):
        return 0, 0
    repeated = [(item, count) for item, count in Counter(items).items() if count > 1]
    return sum(count for _, count in repeated), sum(len(item) * count for item, count in repeated)


def _ngrams(text: str, tokens: Tokens, scores: dict[str, float], language: str) -> None:
    """Top and duplicated n-grams in all readings, n = 2 to 10.

    A run of n + 1 words repeats only where the runs of n at its place and at the next repeat, so each length looks at the
    places that the one before left: on most pages a tenth of the words after n = 2, none after n = 6. In unspaced scripts the
    runs grow by three characters, and those at the next three places must repeat.
    """
    count, total = len(tokens), tokens.characters
    ends = np.concatenate([[0], np.cumsum(tokens.lengths)])  # characters of words before each place
    starts = np.arange(count)
    found = np.zeros(count + 1, bool)
    run, length, step = tokens.hashes, 1, run_length(1, language)
    for n in range(2, 11):
        size = n * step
        if count < size:
            return
        while length < size:
            run = run[:-1] * _ODD + tokens.hashes[length:]  # hash of each run of one word more
            length += 1
        starts = starts[starts < len(run)]
        places, firsts = _repeated(run, starts)
        repeats = _Repeats(n, step, places, firsts, ends, total, len(text))
        if n in TOP_NGRAMS:
            _top(repeats, scores)
        elif len(places):
            _duplicate(repeats, scores)
        if not len(places) and n >= max(TOP_NGRAMS):
            return
        found[:] = False
        found[places] = True
        both = found[:-1] & found[1:]
        for _ in range(step - 1):
            both = both[:-1] & both[1:]
        starts = both.nonzero()[0]


_ODD = np.uint64(0x9E3779B97F4A7C15)


def _repeated(run: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of runs that occur more than once, grouped by run, in order within a group; and where each group begins.

    Sorted by value and place packed in one integer, which is three times as fast as an indirect sort; the comparison of
    neighbours then uses all 64 bits.
    """
    if len(starts) < 2:
        return starts[:0], starts[:0]
    bits = np.uint64(len(run).bit_length())
    packed = run[starts] >> bits << bits | starts.astype(np.uint64)
    packed.sort()
    places = (packed & (np.uint64(1) << bits) - np.uint64(1)).astype(np.int64)
    values = run[places]
    same = values[1:] == values[:-1]
    if not same.any():
        return starts[:0], starts[:0]
    edge = np.zeros(1, bool)
    after = np.concatenate([edge, same])  # equal to the one before
    member = after | np.concatenate([same, edge])
    return places[member], (~after[member]).nonzero()[0]


@dataclass(frozen=True)
class _Repeats:
    """The n-grams of a text that occur more than once."""

    n: int
    step: int  # words that count as one
    places: np.ndarray  # (k,) where each stands, equal ones side by side
    firsts: np.ndarray  # which of `places` begin a group of equal ones
    ends: np.ndarray  # (words + 1,) characters of words before each place
    total: int  # characters of all words
    characters: int  # of the text


def _top(repeats: _Repeats, scores: dict[str, float]) -> None:
    n, step, places, firsts, ends = repeats.n, repeats.step, repeats.places, repeats.firsts, repeats.ends
    size, spaces = n * step, n - 1 if step == 1 else 0
    most, place = 1, 0  # without repeats the first n-gram is the most frequent one
    if len(places):
        counts = np.concatenate([firsts[1:], [len(places)]]) - firsts
        most = int(counts.max())
        tied = places[firsts[counts == most]]
        place = int(tied.min())
        longest = int((ends[tied + size] - ends[tied]).max())
        scores[f"top_{n}gram"] = min(_share(longest * most, repeats.total), 1.0)  # overlapping occurrences can exceed the text
    length = int(ends[place + size] - ends[place])
    scores[f"top_{n}gram_dolma"] = _share(length * most, repeats.total)
    scores[f"top_{n}gram_datatrove"] = _share((length + spaces) * most, repeats.characters)


def _duplicate(repeats: _Repeats, scores: dict[str, float]) -> None:
    n, step, places, firsts, ends = repeats.n, repeats.step, repeats.places, repeats.firsts, repeats.ends
    size = n * step
    lengths = ends[places + size] - ends[places]
    all_runs = int((ends[size:] - ends[:-size]).sum())
    scores[f"duplicate_{n}gram_dolma"] = _share(int(lengths.sum()), all_runs)
    group = np.zeros(len(places), np.int64)
    group[firsts] = 1
    packed = places << 32 | np.cumsum(group)
    packed.sort()
    sorted_places = packed >> 32
    lengths = ends[sorted_places + size] - ends[sorted_places]
    until = sorted_places + size
    until[:-1] = np.minimum(until[:-1], sorted_places[1:])  # each word once
    scores[f"duplicate_{n}gram"] = _share(int((ends[until] - ends[sorted_places]).sum()), repeats.total)
    seen: set[int] = set()
    free = repeated = 0
    for place, run, length in zip(sorted_places.tolist(), (packed & 0xFFFFFFFF).tolist(), lengths.tolist(), strict=True):
        if place < free:
            continue
        if run in seen:
            repeated += length
            free = place + size
        else:
            seen.add(run)
    scores[f"duplicate_{n}gram_datatrove"] = _share(repeated, repeats.characters)
