"""How likely each block is content, and which blocks to keep.

The score is linear: a weight for each number of :mod:`evidence` and for each group of names near the block, plus
corrections by the kind of page. The weights stand in weights.json; benchmarks/curation/extraction_fit.py made them.
"""

import functools
import json
from pathlib import Path

import numpy as np

from herd.curation.extraction.evidence import KINDS, NUMBERS, Evidence
from herd.curation.extraction.names import BITS

# Two rules that the few labelled pages are too few to teach: lines that are nothing but links lose MARGIN of log-odds where the
# names around them say margin, and where several stand in a row outside the prose of a page that is mostly prose.
MARGIN = 3.0
_MARGIN_NAMES = sum(BITS[name] for name in ("navigation", "side", "foot", "social", "related", "modal"))
_ALL_LINKS, _IN_PROSE, _PAGE_PROSE = (NUMBERS.index(name) for name in ("all links", "in the prose", "page prose"))

Weights = dict[str, dict[str, float]]  # page kind ("any" for all) -> feature -> weight; "" is the constant


@functools.cache
def load_weights() -> Weights:
    """The fitted weights."""
    return json.loads(Path(__file__).with_name("weights.json").read_text(encoding="utf-8"))["weights"]


def parts_of(kind: int) -> list[str]:
    """Which parts of the weights count on a page of this kind (bits of KINDS)."""
    named = [name for i, name in enumerate(KINDS) if kind >> i & 1]
    return ["any", *(named or ["other"]), *([] if "forum" in named else ["not forum"])]


@functools.cache
def _numbers(kind: int) -> tuple[float, np.ndarray]:
    """(constant, weight of each number) on pages of a kind."""
    parts = [load_weights().get(part, {}) for part in parts_of(kind)]
    values = [sum(part.get(name, 0.0) for part in parts) for name in NUMBERS]
    return sum(part.get("", 0.0) for part in parts), np.array(values)


@functools.cache
def _name_weights(kind: int, place: str) -> list[tuple[int, float]]:
    """(bit, weight) of the names that count at a place on pages of a kind."""
    parts = [load_weights().get(part, {}) for part in parts_of(kind)]
    return [(bit, part[f"{place} {name}"]) for part in parts for name, bit in BITS.items() if f"{place} {name}" in part]


@functools.lru_cache(maxsize=100_000)
def _names(kind: int, place: str, bits: int) -> float:
    """Weight of the names at a place ("near" or "own") on pages of a kind."""
    return sum(weight for bit, weight in _name_weights(kind, place) if bits & bit)


def log_odds(evidence: Evidence) -> np.ndarray:
    """Of each block to be content: (blocks,) float64."""
    kind = evidence.kind
    constant, weights = _numbers(kind)
    of_names = [_names(kind, "near", n) + _names(kind, "own", o) for n, o in zip(evidence.near, evidence.own, strict=True)]
    links = evidence.numbers[:, _ALL_LINKS] > 0
    margin = np.array([bits & _MARGIN_NAMES > 0 for bits in evidence.near], bool)
    if len(links) and evidence.numbers[0, _PAGE_PROSE] > 0.5:
        row = np.concatenate(([False], links, [False]))
        margin |= (row[:-2] | row[2:]) & (evidence.numbers[:, _IN_PROSE] == 0)
    return evidence.numbers @ weights + constant + np.array(of_names) - MARGIN * (links & margin)


def best_cut(probability: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Which blocks to keep so that the expected word-level F1 of the page is largest: (blocks,) bool.

    With p the probability of a block of n words, keeping the set S gives 2 sum_S p n / (sum_S n + sum p n) words in
    expectation (of a ratio's parts); the best S is a prefix of the blocks ordered by p. So an uncertain page, such as a
    listing, keeps more than one that has a clear main text.
    """
    if not len(probability):
        return np.zeros(0, bool)
    order = np.argsort(-probability, kind="stable")
    hits = np.cumsum((probability * words)[order])
    kept = np.cumsum(words[order])
    best = int(np.argmax(2 * hits / np.maximum(kept + hits[-1], 1e-9)))
    keep = np.zeros(len(probability), bool)
    keep[order[: best + 1]] = True
    return keep
