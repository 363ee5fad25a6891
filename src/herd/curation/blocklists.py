"""Block lists of domains: pages that are out by their address (paper, section 3.1.1: ranked harmful, rich in PII, known adult).

The lists are the user's: text files with one entry a line, "#" begins a comment. An entry is a domain ("example.com", its
subdomains included), a path of one ("example.com/forum", everything below it included), an address ("https://example.com/a")
or a line of a hosts file ("0.0.0.0 example.com"). None is part of this package.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from herd.config.errors import UserError
from herd.curation.dirty_words import read_list
from herd.curation.text import key_hash

KINDS = ("harmful", "adult", "pii")
_HOSTS_LINE = re.compile(r"(?:0\.0\.0\.0|127\.0\.0\.1|::1?)\s+(\S+)")


@dataclass(frozen=True)
class BlockListsConfig:
    """Files by the reason for which their domains are out; the reason is the rule in the ledger."""

    harmful: list[str] = field(default_factory=list)  # domains ranked harmful by safety standards
    adult: list[str] = field(default_factory=list)  # domains known for adult content
    pii: list[str] = field(default_factory=list)  # domains with much personal data


@dataclass(frozen=True)
class Blocked:
    """Why an address is out."""

    kind: str  # one of KINDS
    entry: str  # the entry that it falls under


class BlockLists:
    """Entries of all lists, kept as sorted 64-bit hashes: 8 bytes an entry, so millions of domains fit in every worker."""

    def __init__(self, entries: Mapping[str, Iterable[str]]) -> None:
        self._hashes = {
            kind: np.unique(np.fromiter((key_hash(e) for e in map(_normal, entries[kind]) if e), np.uint64))
            for kind in KINDS
            if kind in entries
        }

    def __len__(self) -> int:
        return sum(map(len, self._hashes.values()))

    def find(self, url: str) -> Blocked | None:
        """The first kind (in the order of KINDS) that lists the address, its domain or anything above either."""
        if not len(self):
            return None
        candidates = list(_above(_normal(url)))
        keys = np.array([key_hash(c) for c in candidates], np.uint64)
        for kind, hashes in self._hashes.items():
            if len(keys) and len(hashes):
                at = np.minimum(np.searchsorted(hashes, keys), len(hashes) - 1)
                hits = np.flatnonzero(hashes[at] == keys)
                if len(hits):
                    return Blocked(kind, candidates[hits[0]])
        return None


def _normal(entry: str) -> str:
    """ "https://WWW.Example.com:80/a/?q" -> "example.com/a"; "" for what has no domain."""
    entry = entry.split(" #")[0].strip()
    hosts = _HOSTS_LINE.fullmatch(entry)
    entry = hosts.group(1) if hosts else entry
    entry = entry.removeprefix("||").removesuffix("^").removeprefix("*.").removeprefix(".")  # other spellings of "and below"
    try:
        parts = urlsplit(entry if "://" in entry else f"//{entry}")
        host = parts.hostname or ""
    except ValueError:
        return ""
    try:
        host = host.encode("idna").decode("ascii") if not host.isascii() else host
    except UnicodeError:
        return ""
    host = host.lower().rstrip(".").removeprefix("www.")
    return host + parts.path.rstrip("/") if host else ""


def _above(address: str) -> Iterator[str]:
    """ "a.b.com/c/d" -> b.com, a.b.com, a.b.com/c ... : the widest first. A single label ("com") is never looked up alone."""
    host, _, path = address.partition("/")
    labels = host.split(".")
    for i in range(max(len(labels) - 2, 0), -1, -1):
        name = ".".join(labels[i:])
        if name:
            yield name
            below = name
            for step in path.split("/") if path else ():
                below = f"{below}/{step}"
                yield below


def load_blocklists(config: BlockListsConfig) -> BlockLists:
    """Read the user's files.

    Raises:
        UserError: a file cannot be read, or holds no entry.
    """
    entries: dict[str, list[str]] = {}
    for kind in KINDS:
        for name in getattr(config, kind):
            found = read_list(Path(name), f"blocklists.{kind}")
            if not found:
                raise UserError(f"blocklists.{kind}: '{name}' holds no domain.")
            entries.setdefault(kind, []).extend(found)
    return BlockLists(entries)
