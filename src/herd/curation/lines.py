"""Line de-duplication: a line that occurs more than k times in a bucket of N documents is removed (paper, section 3.1.1).

Every copy goes, the first included: what is repeated that often is navigation, a notice or an inherited method. A bucket
holds documents of one language. Lines are compared in CCNet's normal form; lines without a letter or digit are never counted.
"""

from collections import Counter
from collections.abc import Sequence

from herd.curation.config import DedupConfig
from herd.curation.documents import Document
from herd.curation.ledger import LedgerRow, dropped, edited
from herd.curation.text import key_hash, line_key, tidy


def deduplicate_lines(documents: Sequence[Document], config: DedupConfig) -> tuple[list[Document], list[LedgerRow]]:
    """Apply the rule to the domains of ``config.line_domains``; texts are edited in place.

    Returns:
        The documents that still have text, in input order; a row per removed line (id ``line:<hash>``, score = copies in its
        bucket), per edited and per emptied document.
    """
    buckets: dict[tuple[str, int], list[Document]] = {}
    ranks: Counter[str] = Counter()
    for document in sorted(documents, key=lambda d: d.id):  # ids are hashes: buckets are random samples, whatever the input order
        if document.domain in config.line_domains:
            buckets.setdefault((document.language, ranks[document.language] // config.line_bucket), []).append(document)
            ranks[document.language] += 1
    rows: list[LedgerRow] = []
    emptied: set[str] = set()
    for (language, number), members in sorted(buckets.items()):
        counts: Counter[str] = Counter()
        keys: dict[str, str] = {}  # lines repeat: normalise each spelling once
        for document in members:
            for line in document.text.split("\n"):
                if line not in keys:
                    keys[line] = line_key(line)
                counts[keys[line]] += 1
        frequent = {key for key, count in counts.items() if key and count > config.line_copies}
        where = f"{language}, bucket {number}"
        for key in sorted(frequent, key=lambda k: (-counts[k], k)):
            detail = f"{where}: {key[:200]}"
            rows.append(_line_row(key, counts[key], config, detail))
        for document in members:
            row = _remove(document, frequent, keys, config)
            if row is not None:
                rows.append(row)
                if row.action == "dropped":
                    emptied.add(document.id)
    return [d for d in documents if d.id not in emptied], rows


def _line_row(key: str, count: int, config: DedupConfig, detail: str) -> LedgerRow:
    name = f"line:{key_hash(key):016x}"
    return LedgerRow(name, "line", "dropped", "repeated_line", float(count), float(config.line_copies), "", detail)


def _remove(document: Document, frequent: set[str], keys: dict[str, str], config: DedupConfig) -> LedgerRow | None:
    lines = document.text.split("\n")
    out = [i for i, line in enumerate(lines) if keys[line] in frequent]
    if not out:
        return None
    removed = set(out)
    document.text = tidy("\n".join(line for i, line in enumerate(lines) if i not in removed))
    facts = {"score": float(len(out)), "threshold": float(config.line_copies)}
    if not document.text:
        return dropped(document, "line", "only_repeated_lines", detail="every line is repeated elsewhere", **facts)
    return edited(document, "line", "repeated_line", detail=f"lines {ranges(out)} removed", **facts)


def ranges(numbers: Sequence[int]) -> str:
    """`[0, 1, 2, 5]` -> ``1-3, 6``: line numbers as people count them, from 1."""
    parts: list[str] = []
    start = previous = None
    for number in [*numbers, None]:
        if previous is not None and number is not None and number == previous + 1:
            previous = number
            continue
        if start is not None and previous is not None:
            parts.append(f"{start + 1}" if start == previous else f"{start + 1}-{previous + 1}")
        start = previous = number
    return ", ".join(parts)
