"""Fit the weights of the block classifier (src/herd/curation/extraction/weights.json) on the tuning half of the pages.

Blocks are labelled by aligning a page's words with its gold text. Pages weigh the same within a type and types weigh the
same. Rendered pydoc pages of the standard library join the documentation: all of their text is content. Before the weights
are written, the same fit is cross-validated by page and its F1 printed. Run:
``python benchmarks/curation/extraction_fit.py [--strength C] [--check]`` with HERD_REFERENCE_DATA pointing at the data.
"""

import argparse
import difflib
import importlib
import json
import pydoc
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from extraction_pages import WORD, Page, mean_over_types, overlap, read_pages
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

from herd.curation.extraction import Refusal, decode, score
from herd.curation.extraction.blocks import Block, Elements
from herd.curation.extraction.evidence import NUMBERS, Evidence, collect, page_kind
from herd.curation.extraction.extract import read_blocks, without_scripts
from herd.curation.extraction.names import BITS
from herd.curation.text import word_set

BY_KIND_NAMES = sorted(
    word_set("comment review message list product related user date meta price title describe quote <blockquote>")
)
BY_KIND_NUMBERS = ("link share", "in the prose", "words 26-50", "words 51-", "under a heading of the margin", "after the prose")
PYDOC = sorted(word_set("bisect csv decimal difflib fractions functools heapq itertools math random textwrap uuid"))
NOT_FORUM = ("comment", "message", "user", "date")


def label(blocks: list[Block], gold: str) -> tuple[np.ndarray, np.ndarray]:
    """(share of each block's words that the gold text has in this order, number of its words)."""
    target = WORD.findall(gold.lower())
    page: list[str] = []
    owner: list[int] = []
    for i, block in enumerate(blocks):
        found = WORD.findall(block.text.lower())
        page += found
        owner += [i] * len(found)
    sizes = np.bincount(owner, minlength=len(blocks)) if owner else np.zeros(len(blocks), int)
    hits = np.zeros(len(blocks))
    used = [False] * len(target)
    for a, b, size in difflib.SequenceMatcher(None, page, target, autojunk=False).get_matching_blocks():
        for j in range(size):
            hits[owner[a + j]] += 1
            used[b + j] = True
    joined = f" {' '.join(target)} "  # blocks that the gold text has in another place
    left = Counter(word for word, gone in zip(target, used, strict=True) if not gone)
    for i, block in enumerate(blocks):
        if sizes[i] and hits[i] < 0.5 * sizes[i]:
            found = WORD.findall(block.text.lower())
            count = Counter(found)
            if f" {' '.join(found)} " in joined and (count & left).total() >= 0.9 * sizes[i]:
                hits[i] = sizes[i]
                left -= count
    return hits / np.maximum(sizes, 1), sizes


def features(evidence: Evidence) -> list[dict[tuple[str, str], float]]:
    """(part, feature) -> value of each block, as :mod:`herd.curation.extraction.score` adds them up."""
    parts = score.parts_of(evidence.kind)
    rows = []
    for values, near, own in zip(evidence.numbers, evidence.near, evidence.own, strict=True):
        row = {("any", name): float(value) for name, value in zip(NUMBERS, values, strict=True) if value}
        for name, bit in BITS.items():
            if near & bit:
                row["any", f"near {name}"] = 1.0
            if own & bit:
                row["any", f"own {name}"] = 1.0
        for part in parts[1:]:
            if part == "not forum":
                row |= {(part, f"near {name}"): 1.0 for name in NOT_FORUM if near & BITS[name]}
                continue
            row[part, ""] = 1.0
            row |= {(part, f"near {name}"): 1.0 for name in BY_KIND_NAMES if near & BITS[name]}
            row |= {(part, name): float(values[NUMBERS.index(name)]) for name in BY_KIND_NUMBERS}
        rows.append(row)
    return rows


def pydoc_pages() -> list[Page]:
    """Pages without class names that mean anything, as much of the old web is."""
    pages = []
    for name in PYDOC:
        raw = pydoc.html.page(name, pydoc.html.document(importlib.import_module(name), name)).encode()
        blocks, _ = read_blocks(raw.decode())
        pages.append(Page(name, "documentation", "tune", name, raw, "\n".join(block.text for block in blocks)))
    return pages


def prepare(page: Page) -> tuple[list[Block], Elements, Evidence]:
    """Blocks and evidence of a page, as the extractor sees them."""
    text = decode(page.raw, 1.0)
    assert not isinstance(text, Refusal)
    text = text.replace("\x00", "")
    blocks, elements = read_blocks(without_scripts(text))
    return blocks, elements, collect(blocks, elements, page_kind(text))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--strength", type=float, default=0.01, help="inverse of the L2 penalty")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--check", action="store_true", help="cross-validate only")
    options = parser.parse_args()
    pages = [*(page for page in read_pages() if page.half == "tune"), *pydoc_pages()]
    prepared = [prepare(page) for page in pages]
    labels = [label(blocks, page.gold) for page, (blocks, _, _) in zip(pages, prepared, strict=True)]
    columns: dict[tuple[str, str], int] = {}
    entries: list[tuple[int, int, float]] = []
    row = 0
    for _, _, evidence in prepared:
        for found in features(evidence):
            entries += [(row, columns.setdefault(name, len(columns)), value) for name, value in found.items()]
            row += 1
    rows, cols, values = (np.array(column) for column in zip(*entries, strict=True))
    matrix = csr_matrix((values, (rows, cols)), shape=(row, len(columns)))
    owner = np.concatenate([np.full(len(share), i) for i, (share, _) in enumerate(labels)])
    sizes = np.concatenate([size for _, size in labels]).astype(float)
    target = np.concatenate([share for share, _ in labels]) >= 0.5
    types = Counter(page.type for page in pages)
    weight = np.array([sizes[i] / max(sizes[owner == owner[i]].sum(), 50) / types[pages[owner[i]].type] for i in range(row)])
    weight *= row / weight.sum()

    def fit(which: np.ndarray) -> LogisticRegression:
        return LogisticRegression(C=options.strength, max_iter=300).fit(matrix[which], target[which], sample_weight=weight[which])

    odds = np.zeros(row)
    fold = np.argsort(np.argsort([page.order for page in pages])) % options.folds
    for k in range(options.folds):
        held = fold[owner] == k
        odds[held] = fit(~held).decision_function(matrix[held])
    scores: dict[str, list[float]] = {}
    for i, (page, (blocks, _, _)) in enumerate(zip(pages, prepared, strict=True)):
        keep = score.best_cut(1 / (1 + np.exp(-odds[owner == i])), sizes[owner == i])
        text = "\n".join(block.text for block, kept in zip(blocks, keep, strict=True) if kept)
        scores.setdefault("pydoc" if page.id in PYDOC else page.type, []).append(overlap(text, page.gold)[2])
    print({kind: round(float(np.mean(values)), 3) for kind, values in sorted(scores.items())})
    scores.pop("pydoc")
    print(f"cross-validated by page, mean over types: {mean_over_types(scores):.4f}")
    if options.check:
        return
    model = fit(np.ones(row, bool))
    weights: dict[str, dict[str, float]] = {"any": {"": round(float(model.intercept_[0]), 3)}}
    for (part, name), column in sorted(columns.items()):
        value = round(float(model.coef_[0][column]), 3)
        if value:
            weights.setdefault(part, {})[name] = value
    about: dict[str, Any] = {
        "about": "log-odds of a block to be content; fitted by benchmarks/curation/extraction_fit.py",
        "strength": options.strength,
        "cross_validated_f1": round(mean_over_types(scores), 4),
        "weights": weights,
    }
    path = Path(score.__file__).with_name("weights.json")
    path.write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{sum(map(len, weights.values()))} weights in {path.name}")


if __name__ == "__main__":
    main()
