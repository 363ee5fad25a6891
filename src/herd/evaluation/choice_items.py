"""Four-way questions from held-out documentation: which text documents this function?

The question is a function's name and signature (or these and its first sentence); the answers are its own summary (or
the paragraph that follows) and three others of similar length, of the same package or of any. Only held-out entries take
part, and no answer may occur anywhere in the training documents, so neither right nor wrong answers are familiar.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from herd.evaluation.overlap import occurring
from herd.runs.seeds import stream

CHOICES = 4
_LETTERS = re.compile(r"[^\W\d_]+")
_NEAREST = 12  # the three wrong answers are drawn from this many of the nearest lengths


@dataclass(frozen=True)
class ChoiceItem:
    """One question."""

    id: str
    kind: str  # summary | description
    package: str
    context: str
    choices: tuple[str, ...]
    answer: int  # index of the true choice


@dataclass(frozen=True)
class ItemLimits:
    """Which texts make good answers."""

    min_characters: int  # shorter answers say too little
    max_characters: int
    max_length_ratio: float  # longest over shortest text that may stand side by side
    rivals: str = "package"  # wrong answers are of the same package (harder), or of any


@dataclass(frozen=True)
class Candidate:
    """A held-out text with the question that it answers."""

    id: str
    kind: str
    package: str
    context: str
    text: str

    @property
    def entry(self) -> str:
        """The documented function that it is about."""
        return self.id.removesuffix(f":{self.kind}")


def candidates(
    entries: Iterable[Mapping[str, Any]], kinds: Sequence[str], limits: ItemLimits, counts: dict[str, int]
) -> list[Candidate]:
    """Questions without their wrong answers, in order of id; what is left out is counted by reason."""
    found: list[Candidate] = []
    taken: set[tuple[str, str]] = set()
    for entry in sorted(entries, key=lambda e: str(e["id"])):
        # As the documents write it: the qualified name with its arguments, a blank line, the text.
        signature = str(entry["signature"] or "")
        header = str(entry["name"]) + (signature[signature.index("(") :] if "(" in signature else "")
        summary, description = _clean(entry["summary"]), _clean(entry["description"])
        questions = {"summary": (f"{header}\n\n", summary), "description": (f"{header}\n\n{summary}\n\n", description)}
        for kind in kinds:
            context, text = questions[kind]
            if not limits.min_characters <= len(text) <= limits.max_characters:
                _count(counts, f"{kind}_length")
            elif (kind, text.casefold()) in taken:
                _count(counts, "same_text_twice")
            else:
                taken.add((kind, text.casefold()))
                found.append(Candidate(f"{entry['id']}:{kind}", kind, str(entry["package"]), context, text))
    return found


def drop_known(found: Sequence[Candidate], training_texts: Iterable[str], counts: dict[str, int]) -> list[Candidate]:
    """The candidates whose text occurs in no training document, whatever its blanks and line breaks; the others are counted."""
    known = occurring([candidate.text for candidate in found], map(_clean, training_texts))
    for _ in range(int(known.sum())):
        _count(counts, "text_in_training")
    return [candidate for candidate, seen in zip(found, known, strict=True) if not seen]


def make_items(found: Sequence[Candidate], limits: ItemLimits, limit: int, seed: int, counts: dict[str, int]) -> list[ChoiceItem]:
    """Questions with four choices each, ``limit`` at most (0: all), the true one equally often in each place.

    One question a documented function, of a kind drawn by chance: two about the same one would not be independent.
    """
    groups: dict[tuple[str, str], list[Candidate]] = defaultdict(list)
    for candidate in found:
        groups[_group(candidate, limits)].append(candidate)
    drafts: list[tuple[Candidate, list[str]]] = []
    for candidate in found:
        rivals = _rivals(candidate, groups[_group(candidate, limits)], limits)
        if len(rivals) < CHOICES - 1:
            _count(counts, "too_few_rivals")
            continue
        picked = stream(seed, "choice items", candidate.id).choice(len(rivals), size=CHOICES - 1, replace=False)
        drafts.append((candidate, [rivals[i] for i in picked]))
    order = stream(seed, "choice items", "order").permutation(len(drafts))
    firsts = {drafts[i][0].entry: i for i in reversed(order)}  # of each entry the question that comes first in the order
    chosen = [i for i in order if firsts[drafts[i][0].entry] == i]
    for _ in range(len(order) - len(chosen)):
        _count(counts, "another_question_of_its_entry")
    chosen = chosen[:limit] if limit else chosen
    places = stream(seed, "choice items", "places").permutation(np.arange(len(chosen)) % CHOICES)
    items = []
    for i, place in zip(chosen, places, strict=True):
        candidate, wrong = drafts[i]
        choices = (*wrong[:place], candidate.text, *wrong[place:])
        items.append(ChoiceItem(candidate.id, candidate.kind, candidate.package, candidate.context, choices, int(place)))
    return items


def lexical_overlap(items: Sequence[ChoiceItem]) -> np.ndarray:
    """What a reader of words alone would reach: chance of picking the true choice by the share of its words in the question.

    Words are runs of letters, so that ``read_csv`` holds ``read``; equal shares are drawn among. (items,) in [0, 1].
    """
    chances = []
    for item in items:
        asked = set(_LETTERS.findall(item.context.lower()))
        words = [_LETTERS.findall(choice.lower()) for choice in item.choices]
        shares = [sum(word in asked for word in own) / max(len(own), 1) for own in words]
        best = max(shares)
        chances.append((shares[item.answer] == best) / shares.count(best))
    return np.array(chances)


def _group(candidate: Candidate, limits: ItemLimits) -> tuple[str, str]:
    """The candidates among which wrong answers are sought carry the same key."""
    return candidate.kind, candidate.package if limits.rivals == "package" else ""


def _rivals(candidate: Candidate, group: Sequence[Candidate], limits: ItemLimits) -> list[str]:
    length = len(candidate.text)

    def alike(other: Candidate) -> bool:
        longest, shortest = max(length, len(other.text)), min(length, len(other.text))
        return other.id != candidate.id and longest <= limits.max_length_ratio * shortest

    near = sorted((o for o in group if alike(o)), key=lambda o: (abs(len(o.text) - length), o.id))
    return [other.text for other in near[:_NEAREST]]


def _clean(text: Any) -> str:
    return " ".join(str(text or "").split())


def _count(counts: dict[str, int], reason: str) -> None:
    counts[reason] = counts.get(reason, 0) + 1
