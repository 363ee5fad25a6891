"""Held-out split by document: which documents no later stage but evaluation may see, and no trace of them in train.

Three guards, each for another kind of leak:
- whole groups: documents with the same group key (a library module's page and its source) or at least
  ``link_threshold`` similar stay on one side;
- shared passages: a run of ``overlap_words`` words that also stands in train is cut out of the held-out document, line by line;
- mostly shared: a held-out document that loses too much that way is dropped.

Groups are taken in the order of a seeded hash, so the choice follows no alphabet, date or size.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from herd.curation.config import SplitConfig
from herd.curation.documents import Document
from herd.curation.ledger import LedgerRow, dropped, edited
from herd.curation.text import ngram_hashes, runs_present, tidy, word_hashes, words


def choose_heldout(documents: Sequence[Document], links: Sequence[tuple[str, str]], config: SplitConfig, seed: int) -> set[str]:
    """Ids of the held-out documents.

    A group is taken while one of its strata (domain, language) is below its share of characters and none would exceed it
    by more than a tenth; groups too large for that stay in train. Then each stratum is brought up to ``min_documents``
    where it has four times as many.
    """
    groups = _components(documents, links)
    total: Counter[tuple[str, str]] = Counter()
    count: Counter[tuple[str, str]] = Counter()
    for document in documents:
        total[document.domain, document.language] += len(document.text)
        count[document.domain, document.language] += 1

    def order(members: list[Document]) -> bytes:
        name = min(d.group or d.url or d.id for d in members)
        return hashlib.sha256(f"{seed}\x1f{name}".encode("utf-8", "surrogatepass")).digest()

    ranked = sorted(groups, key=order)
    held: Counter[tuple[str, str]] = Counter()
    held_count: Counter[tuple[str, str]] = Counter()
    chosen: set[str] = set()

    def target(stratum: tuple[str, str]) -> float:
        return config.share.get(stratum[0], 0.0) * total[stratum]

    def take(members: list[Document]) -> None:
        for document in members:
            chosen.add(document.id)
            held[document.domain, document.language] += len(document.text)
            held_count[document.domain, document.language] += 1

    for members in ranked:
        size: Counter[tuple[str, str]] = Counter()
        for document in members:
            size[document.domain, document.language] += len(document.text)
        wanted = any(held[s] < target(s) for s in size)
        if wanted and all(held[s] + size[s] <= 1.1 * target(s) for s in size):
            take(members)
    for stratum in sorted(total):
        for members in ranked:
            if held_count[stratum] >= config.min_documents or count[stratum] < 4 * config.min_documents:
                break
            size = Counter((d.domain, d.language) for d in members)
            fits = all(config.share.get(s[0], 0.0) > 0 and held_count[s] + n <= count[s] / 2 for s, n in size.items())
            if stratum in size and fits and members[0].id not in chosen:
                take(members)
    return chosen


def _components(documents: Sequence[Document], links: Sequence[tuple[str, str]]) -> list[list[Document]]:
    """Documents joined by a common group key or a link, by union-find."""
    parent = {document.id: document.id for document in documents}

    def find(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    first: dict[str, str] = {}
    pairs = [(d.id, first.setdefault(d.group, d.id)) for d in documents if d.group]
    for a, b in [*pairs, *(link for link in links if link[0] in parent and link[1] in parent)]:
        low, high = sorted((find(a), find(b)))
        parent[high] = low
    members: dict[str, list[Document]] = defaultdict(list)
    for document in documents:
        members[find(document.id)].append(document)
    return list(members.values())


def cut_overlap(train: np.ndarray, heldout: Sequence[Document], config: SplitConfig) -> tuple[list[Document], list[LedgerRow]]:
    """Remove from the held-out documents every line that lies in a run of words which train holds too; edits in place.

    Repeats until nothing is shared, since removing a line joins its neighbours.

    Args:
        train: word hashes of all train documents, by :func:`herd.curation.text.word_stream`.
        heldout: documents, edited in place.
        config: length of a run and the share that a document may lose.

    Returns:
        The held-out documents that stay, and a row per edited or dropped one.
    """
    n = config.overlap_words
    before = {document.id: document.text for document in heldout}
    share: dict[str, float] = {}
    lost: Counter[str] = Counter()
    open_ = list(heldout)
    while open_:
        own = {d.id: ngram_hashes(word_hashes(words(d.text, d.language)), n) for d in open_}
        wanted = np.unique(np.concatenate(list(own.values())))
        shared = wanted[runs_present(train, n, wanted)]
        changed = []
        for document in open_:
            starts = np.flatnonzero(np.isin(own[document.id], shared))
            if not len(starts):
                continue
            removed, covered = _cut(document, starts, n)
            share.setdefault(document.id, covered)
            lost[document.id] += removed
            if document.text:
                changed.append(document)
        open_ = changed
    kept, rows = [], []
    for document in heldout:
        if document.id not in share:
            kept.append(document)
            continue
        facts = {"score": share[document.id], "threshold": config.max_overlap}
        if share[document.id] > config.max_overlap or not document.text:
            document.text = before[document.id]
            rows.append(dropped(document, "split", "overlaps_train", detail=f"runs of {n} words that train holds", **facts))
        else:
            detail = f"{lost[document.id]} lines with runs of {n} words that train holds removed"
            rows.append(edited(document, "split", "overlap_cut", detail=detail, **facts))
            kept.append(document)
    return kept, rows


def _cut(document: Document, starts: np.ndarray, n: int) -> tuple[int, float]:
    """Remove the lines touched by runs of ``n`` words at ``starts``; return (lines removed, share of words in runs)."""
    lines = document.text.split("\n")
    line_of = np.repeat(np.arange(len(lines)), [len(words(line, document.language)) for line in lines])
    covered = np.zeros(len(line_of) + 1, np.int64)
    np.add.at(covered, starts, 1)
    np.add.at(covered, starts + n, -1)
    inside = np.cumsum(covered[:-1]) > 0
    touched = {int(i) for i in np.unique(line_of[inside])}
    rest = "\n".join(line for i, line in enumerate(lines) if i not in touched)
    document.text = rest.strip("\n") + "\n" if document.media == "code" and rest.strip() else tidy(rest)
    return len(touched), float(inside.mean())
