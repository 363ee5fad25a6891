"""What a page must not be: too long, too deep, too costly to parse, or text in no known encoding."""

import itertools
import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

from herd.curation.extraction.blocks import BLOCKS
from herd.curation.text import word_set

# Elements that never stay open (void) or that the next one of their kind closes are left out: they cannot nest by themselves.
_FLAT = word_set(
    "area base br col embed hr img input link meta source track wbr p li td th tr dt dd option optgroup thead tbody "
    "tfoot colgroup rt rp "
    "html head body"
)
_FLAT_TAGS = frozenset(f"<{slash}{name}" for name in _FLAT for slash in ("", "/"))
_TAG = re.compile(r"</?[a-zA-Z][^ \n\t\r\f/>]*+")
_FORMATTING = frozenset(
    f"<{name}" for name in word_set("a b big code em font i nobr s small strike strong tt u")
)  # reopened in every block until they are closed
# Steps that a tag costs behind the parser, in units of Cost.work: every one is cut out and read; one of a block also is an
# element that is measured (about 25 and 2 microseconds where a step of the parser takes a tenth of one).
_STEPS, _BLOCK_STEPS = 15, 200
LONG = 4000  # characters; a shorter tag holds too few attributes to matter
_LONG_TAG = re.compile(rf"<[a-zA-Z][^<>]{{{LONG},}}+")
_QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'")


@dataclass(frozen=True, slots=True)
class Cost:
    """What parsing a page would take, from its tags alone."""

    depth: int  # elements open at a time, upper estimate
    work: int  # steps on the stack of open elements, and those of reading what the parser made of it
    unclosed: int = 0  # elements that need an end tag and still have none at the end of the page
    names: frozenset[str] = frozenset()  # of the page's tags, in lower case; maybe more, never less


def cost(html: str, max_depth: int, max_work: int) -> Cost:
    """Estimate of the parser's cost. Attributes that pass ``max_work`` by themselves end the count.

    An end tag counts only where an element of its name is open, since the parser ignores all others: pages that pair every
    start tag with a wrong end tag are as deep as those without. Each tag may walk the whole stack; an element with n
    attributes takes n^2 / 2 comparisons. A million short paragraphs are no work for the parser, but for the extraction.
    """
    work = 0
    for found in _LONG_TAG.finditer(html) if _has_long_tag(html) else ():
        work += len(_QUOTED.sub("", found.group()).split()) ** 2 // 2
    if work > max_work:
        return Cost(0, work)
    tags = _TAG.findall(html)
    times = Counter(tags)
    spellings = {tag: tag.lower() for tag in times}
    blocks = sum(count for tag, count in times.items() if spellings[tag][1:] in BLOCKS)
    work += _STEPS * len(tags) + _BLOCK_STEPS * blocks
    counted = {tag: name for tag, name in spellings.items() if name not in _FLAT_TAGS}
    names = frozenset(name.lstrip("</") for name in spellings.values())
    if not counted:
        return Cost(0, work, 0, names)
    # An element's name -> its number; start tags are even, end tags odd, formatting elements come first.
    numbers: dict[str, int] = {}
    for name in sorted({name.lstrip("</") for name in counted.values()}, key=lambda name: f"<{name}" not in _FORMATTING):
        numbers[name] = 2 * len(numbers)
    formatting = 2 * sum(f"<{name}" in _FORMATTING for name in numbers)
    codes = {tag: numbers[name.lstrip("</")] + (name[1] == "/") for tag, name in counted.items()}
    sequence = np.array(list(map(codes.get, tags, itertools.repeat(-1))), np.int32)
    sequence = sequence[sequence >= 0]
    step = 1 - 2 * (sequence & 1)
    # Number of open elements of each name by itself: a running sum that never falls below 0.
    order = np.argsort(sequence >> 1, kind="stable")
    grouped, rise = (sequence >> 1)[order], step[order]
    level = np.cumsum(rise) - grouped * np.int64(2 * len(sequence) + 2)  # each name far below the one before it
    first = np.concatenate(([True], grouped[1:] != grouped[:-1]))
    floor = np.minimum.accumulate(np.where(first, level - (rise > 0), level))  # at the start of a name: before its first tag
    real = np.empty(len(sequence), np.int64)
    real[order] = np.where((rise < 0) & (level == floor) & (first | (np.concatenate(([0], floor[:-1])) > level)), 0, rise)
    depth = np.cumsum(real)
    started = step > 0
    steps = np.where(started, depth + 8 * np.cumsum(real * (sequence < formatting)), np.where(real == 0, depth, 0))
    return Cost(int(depth.max()), work + int(steps.sum()), int(depth[-1]), names)


def _has_long_tag(html: str) -> bool:
    """Whether more than LONG characters stand between one ">" and the next."""
    position = 0
    while len(html) - position > LONG:
        found = html.rfind(">", position, position + LONG + 1)
        if found < 0:
            return True
        position = found + 1
    return False
