"""Documented functions as data: what a function is called, how it is called, and what it does in a sentence.

Dialogs and the multiple-choice task are made of these, so the two splits must not share an answer.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from herd.curation.documents import RawEntry
from herd.curation.text import ngram_hashes, paragraph_key, paragraphs, word_hashes, words

_SENTENCE_END = re.compile(r"(?<!\be\.g)(?<!\bi\.e)(?<!\betc)(?<!\bcf)(?<!\bvs)(?<!\bal)[.!?](?=\s|$)")
_UNDERLINE = re.compile(r"^[=\-~^\"'`*#+]{3,}$")
_MARKUP_LINE = re.compile(r"^(\.\. |:\w+|>>>|@\w|\* |- |[=\-~]{3,})")
_CALL = re.compile(r"([\w.]+)\s*\(")
_MIN_SUMMARY, _MAX_SUMMARY = 3, 60  # words
_QUOTED_WORDS = 12
_HEAD = 4_000  # characters of a docstring in which its summary must stand


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of entries.parquet."""

    id: str
    document_id: str
    split: str
    package: str
    name: str
    signature: str
    summary: str
    description: str
    parameters: tuple[str, ...]


def parameter_names(signature: str) -> tuple[str, ...]:
    """`f(a, /, b=(1, 2), *args, key: int = 0, **rest)` -> ('a', 'b', 'args', 'key', 'rest'); no `self`, no `cls`."""
    start = signature.find("(")
    if start < 0:
        return ()
    parts, depth, current, quote = [], 0, "", ""
    for char in signature[start + 1 :]:
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            if depth == 0:
                break
            depth -= 1
        elif char == "," and depth == 0:
            parts.append(current)
            current = ""
            continue
        current += char
    names = [re.match(r"\s*\[?\*{0,2}\s*([^\W\d]\w*)", part) for part in [*parts, current]]
    return tuple(m.group(1) for m in names if m and m.group(1) not in ("self", "cls"))


def summary_and_description(doc: str, name: str) -> tuple[str, str]:
    """First sentence of a docstring, and its next paragraph of prose ("" when a section, a directive or code follows).

    A first line that only repeats the signature (numpy's ufuncs, built-in functions) is skipped.
    """
    last = name.rpartition(".")[2]
    blocks = paragraphs(doc[:_HEAD])
    if blocks and _calls(blocks[0], last):
        # The signature may be a block of its own, or stand on the lines above the prose.
        lines = blocks[0].split("\n")
        depth, index = 0, 0
        for index, line in enumerate(lines):
            depth += sum(line.count(c) for c in "([{") - sum(line.count(c) for c in ")]}")
            following = lines[index + 1].strip() if index + 1 < len(lines) else ""
            if depth <= 0 and not _calls(following, last):
                break
        rest = "\n".join(lines[index + 1 :])
        blocks = [rest, *blocks[1:]] if rest.strip() else blocks[1:]
    while blocks and (_heading(blocks[0]) or blocks[0].lstrip().startswith("..")):
        blocks = blocks[1:]
    if not blocks or _MARKUP_LINE.match(blocks[0].strip()):
        return "", ""
    first = " ".join(blocks[0].split())
    end = _SENTENCE_END.search(first)
    summary = first[: end.end()] if end else first
    description = ""
    if len(blocks) > 1 and not _heading(blocks[1]) and not _MARKUP_LINE.match(blocks[1].strip()):
        description = " ".join(blocks[1].split())
    return summary.strip(), description


def _calls(text: str, name: str) -> bool:
    """Whether a text begins with `name(` or `module.name(`."""
    found = _CALL.match(text)
    return found is not None and found.group(1).rpartition(".")[2] == name


def _heading(block: str) -> bool:
    """`Parameters` over a row of dashes."""
    lines = block.strip().split("\n")
    return len(lines) > 1 and bool(_UNDERLINE.match(lines[1].strip()))


@dataclass(frozen=True, slots=True)
class Documented:
    """What a source's documented function says, before it is known where its document went."""

    url: str
    package: str
    name: str
    signature: str
    summary: str
    description: str
    parameters: tuple[str, ...]


def documented(raw: RawEntry) -> Documented:
    """Summary, description and parameters of a documented function."""
    summary, description = summary_and_description(raw.doc, raw.name)
    return Documented(raw.url, raw.package, raw.name, raw.signature, summary, description, parameter_names(raw.signature))


def build_entries(
    raw: Iterable[Documented],
    home: Mapping[str, tuple[str, str]],
    present: Callable[[int, np.ndarray], np.ndarray],
) -> tuple[list[Entry], dict[str, int]]:
    """Entries whose document survived, each summary once, nothing shared between the splits.

    A held-out entry goes when its name or summary is also a train entry's, or when its summary stands word for word in a
    train document.

    Args:
        raw: what the source found.
        home: URL -> (id, split) of the documents that survived.
        present: (n, runs of n words as hashes, sorted) -> which of them stand in a train document, bool.

    Returns:
        Entries sorted by id, and how many were left out for each reason.
    """
    out: Counter[str] = Counter()
    found: list[Entry] = []
    for item in raw:
        if item.url not in home:
            out["document_dropped"] += 1
            continue
        document_id, split = home[item.url]
        if not item.signature:
            out["no_signature"] += 1
        elif not _MIN_SUMMARY <= len(item.summary.split()) <= _MAX_SUMMARY:
            out["no_summary"] += 1
        else:
            facts = (item.package, item.name, item.signature, item.summary, item.description, item.parameters)
            found.append(Entry(f"{item.package}:{item.name}", document_id, split, *facts))
    # Train first: what both splits have stays in train. Then by name, so that the choice among equals is fixed.
    found.sort(key=lambda e: (e.split != "train", e.name, e.document_id, e.signature, e.summary))
    names_seen: set[str] = set()
    summaries_seen: set[str] = set()
    unique: list[Entry] = []
    for entry in found:
        key = paragraph_key(entry.summary)
        if entry.name in names_seen or key in summaries_seen:
            out["repeated"] += 1
            continue
        names_seen.add(entry.name)
        summaries_seen.add(key)
        unique.append(entry)
    leaked = _quoted([e for e in unique if e.split == "heldout"], present)
    out["summary_in_train"] += len(leaked)
    return sorted((e for e in unique if e.id not in leaked), key=lambda e: e.id), dict(sorted(out.items()))


def _quoted(entries: Sequence[Entry], present: Callable[[int, np.ndarray], np.ndarray]) -> set[str]:
    """Ids of entries whose summary stands word for word in train (of a long one its first twelve words)."""
    by_length: dict[int, dict[int, list[str]]] = {}
    for entry in entries:
        ids = word_hashes(words(entry.summary)[:_QUOTED_WORDS])
        if len(ids):
            by_length.setdefault(len(ids), {}).setdefault(int(ngram_hashes(ids, len(ids))[0]), []).append(entry.id)
    leaked: set[str] = set()
    for n, entries_of in sorted(by_length.items()):
        wanted = np.array(sorted(entries_of), np.uint64)
        for value in wanted[present(n, wanted)]:
            leaked.update(entries_of[int(value)])
    return leaked
