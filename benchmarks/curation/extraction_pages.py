"""The reference pages, their two halves, and word-level F1.

Half of each page type is set aside by a stable rule (order of the SHA-256 of the page's id): nothing is fitted to those pages
or looked up in them. An earlier version of the extractor was tuned by hand while all pages were in sight, so the rule is as old
as the classifier of blocks, not as the first rules.
"""

import gzip
import hashlib
import json
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Page:
    """One page with the text that people kept."""

    id: str
    type: str
    half: str  # tune or set_aside
    order: str  # SHA-256 of the id
    raw: bytes
    gold: str


def folder() -> Path:
    """Where the pages are: HERD_REFERENCE_DATA, or ../shared/data beside the repository."""
    data = os.environ.get("HERD_REFERENCE_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data"
    found = Path(data) / "web" / "wcxb-dev-sample"
    if not found.is_dir():
        raise SystemExit(f"no pages at {found}: set HERD_REFERENCE_DATA to the reference data")
    return found


def read_pages() -> list[Page]:
    """All pages, by type and order."""
    where = folder()
    rows = [json.loads(line) for line in (where / "ground_truth.jsonl").read_text(encoding="utf-8").splitlines()]
    by_type: dict[str, list[tuple[str, dict[str, str]]]] = {}
    for row in rows:
        by_type.setdefault(row["page_type"], []).append((hashlib.sha256(row["id"].encode()).hexdigest(), row))
    pages = []
    for kind, members in sorted(by_type.items()):
        for i, (order, row) in enumerate(sorted(members, key=lambda member: member[0])):
            raw = gzip.decompress((where / f"{row['id']}.html.gz").read_bytes())
            half = "tune" if i < len(members) // 2 else "set_aside"
            pages.append(Page(row["id"], kind, half, order, raw, row["main_content"]))
    return pages


def overlap(text: str, gold: str) -> tuple[float, float, float]:
    """(precision, recall, F1) of the multisets of lower-cased words; nothing found or nothing wanted scores 0."""
    found, wanted = Counter(WORD.findall(text.lower())), Counter(WORD.findall(gold.lower()))
    shared = (found & wanted).total()
    return shared / max(found.total(), 1), shared / max(wanted.total(), 1), 2 * shared / max(found.total() + wanted.total(), 1)


def mean_over_types(scores: dict[str, list[float]]) -> float:
    """Mean of the types' means."""
    return sum(sum(values) / len(values) for values in scores.values()) / len(scores)
