"""Held-out split by document: which documents no later stage but evaluation may see, and no trace of them in train.

Three guards, each for another kind of leak:
- whole groups: documents with the same group key (a library module's page and its source) or at least
  ``link_threshold`` similar stay on one side;
- shared passages: a run of ``overlap_words`` words that also stands in train is cut out of the held-out document, line by line;
- mostly shared: a held-out document that loses too much that way is dropped.

Groups are taken in the order of a seeded hash, so the choice follows no alphabet, date or size.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from herd.curation.config import SplitConfig
from herd.curation.text import tidy, words


@dataclass(frozen=True)
class Facts:
    """What the choice needs to know of each document: 28 bytes of columns."""

    stratum: np.ndarray  # int32, index in ``strata``
    characters: np.ndarray  # int64
    group: np.ndarray  # uint64 by :func:`group_hash`, 0 = the document stands alone
    order: np.ndarray  # uint64 by :func:`order_hash`
    strata: Sequence[tuple[str, str]]  # (domain, language) in order


def group_hash(group: str) -> int:
    """64 bits of a group's key; 0 for none."""
    return max(_hash(group), 1) if group else 0


def order_hash(seed: int, name: str) -> int:
    """Where a document stands in the seeded order; of a group the first counts.

    Args:
        seed: of the split.
        name: its group's key, else its URL, else its id: what does not change when its text does.
    """
    return _hash(f"{seed}\x1f{name}")


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def choose_heldout(facts: Facts, links: np.ndarray, config: SplitConfig) -> np.ndarray:
    """Which documents are held out: (documents,) bool.

    A group is taken while one of its strata (domain, language) is below its share of characters and none would exceed it
    by more than a tenth; groups too large for that stay in train. Then each stratum is brought up to ``min_documents``
    where it has four times as many.

    Args:
        facts: of all documents.
        links: (pairs, 2) numbers of documents that must stay on one side.
        config: shares and the least number of documents.
    """
    n, strata = len(facts.stratum), len(facts.strata)
    chosen = np.zeros(n, bool)
    if not n:
        return chosen
    component = _components(facts.group, links)
    share = [config.share.get(domain, 0.0) for domain, _ in facts.strata]
    target = share * np.bincount(facts.stratum, facts.characters, strata)
    count = np.bincount(facts.stratum, minlength=strata)

    # Sizes of each (component, stratum) that occurs, components in the order of their smallest hash.
    first = np.full(component.max() + 1, 2**64 - 1, np.uint64)
    np.minimum.at(first, component, facts.order)
    place = np.empty(len(first), np.int64)
    place[np.argsort(first, kind="stable")] = np.arange(len(first))
    key = place[component] * strata + facts.stratum
    pairs, inverse = np.unique(key, return_inverse=True)
    characters = np.bincount(inverse, facts.characters)
    members = np.bincount(inverse)
    ranked, stratum_of = np.divmod(pairs, strata)
    starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]])).tolist()
    groups = [slice(a, b) for a, b in zip(starts, [*starts[1:], len(pairs)], strict=True)]

    held, held_count = np.zeros(strata), np.zeros(strata, np.int64)
    taken = np.zeros(len(groups), bool)

    def take(i: int) -> None:
        taken[i] = True
        held[stratum_of[groups[i]]] += characters[groups[i]]
        held_count[stratum_of[groups[i]]] += members[groups[i]]

    for i, part in enumerate(groups):
        own = stratum_of[part]
        if (held[own] < target[own]).any() and (held[own] + characters[part] <= 1.1 * target[own]).all():
            take(i)
            if not (held < target).any():
                break
    for stratum in range(strata):
        if held_count[stratum] >= config.min_documents or count[stratum] < 4 * config.min_documents:
            continue
        for i in ranked[stratum_of == stratum].tolist():
            if held_count[stratum] >= config.min_documents:
                break
            own = stratum_of[groups[i]]
            fits = all(share[s] > 0 for s in own) and (held_count[own] + members[groups[i]] <= count[own] / 2).all()
            if fits and not taken[i]:
                take(i)
    return np.asarray(taken[place[component]])


def _components(group: np.ndarray, links: np.ndarray) -> np.ndarray:
    """(documents,) number of the component of each: documents joined by a common group key or by a link."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(group)
    grouped = np.flatnonzero(group)
    by = grouped[np.argsort(group[grouped], kind="stable")]
    same = group[by[1:]] == group[by[:-1]]
    a = np.concatenate([by[:-1][same], links[:, 0]])
    b = np.concatenate([by[1:][same], links[:, 1]])
    graph = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(n, n))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def cut_lines(text: str, language: str, media: str, starts: np.ndarray, n: int) -> tuple[str, int, float]:
    """Remove the lines touched by runs of ``n`` words that begin at the words ``starts``.

    Returns:
        The text that is left, the number of lines removed, the share of words that lay in the runs.
    """
    lines = text.split("\n")
    line_of = np.repeat(np.arange(len(lines)), [len(words(line, language)) for line in lines])
    covered = np.zeros(len(line_of) + 1, np.int64)
    np.add.at(covered, starts, 1)
    np.add.at(covered, starts + n, -1)
    inside = np.cumsum(covered[:-1]) > 0
    touched = {int(i) for i in np.unique(line_of[inside])}
    rest = "\n".join(line for i, line in enumerate(lines) if i not in touched)
    kept = rest.strip("\n") + "\n" if media == "code" and rest.strip() else tidy(rest)
    return kept, len(touched), float(inside.mean())
