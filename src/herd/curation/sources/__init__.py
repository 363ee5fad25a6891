"""Where raw records come from: a closed registry of sources.

Add one: `SOURCES.register("name")(Source(collect, fingerprint))` in a module of this folder that `load_sources` imports, and
its keys in conf/source/name.yaml.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from herd.config.registry import Registry
from herd.curation.config import SourceConfig
from herd.curation.documents import RawEntry, Record
from herd.curation.ledger import LedgerRow
from herd.runs.atomic import sha256_file


@dataclass(frozen=True)
class Context:
    """What a source may use."""

    seed: int  # names the random streams
    workers: int  # processes it may start
    scratch: Path  # an empty folder of its own


@dataclass
class Collected:
    """What a source found."""

    records: list[Record] = field(default_factory=list)
    entries: list[RawEntry] = field(default_factory=list)  # documented functions, if the source knows any
    problems: list[LedgerRow] = field(default_factory=list)  # what could not be read, and why


@dataclass(frozen=True)
class Source:
    """One kind of source."""

    collect: Callable[[SourceConfig, Context], Collected]  # reads everything that the configuration names
    fingerprint: Callable[[SourceConfig], dict[str, Any]]  # what the result depends on besides the configuration


SOURCES: Registry[Source] = Registry("source")


def load_sources() -> Registry[Source]:
    """The registry with every source in it (imports them; each keeps heavy libraries for when it runs)."""
    from herd.curation.sources import files, pages, python

    assert files and pages and python
    return SOURCES


def content_hashes(path: Path) -> dict[str, str]:
    """SHA-256 of a file, or of each file of a folder, by relative name; empty when there is none (reading it will say so)."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path] if path.is_file() else []
    return {p.relative_to(path).as_posix(): sha256_file(p) for p in files}


def file_fingerprint(config: SourceConfig) -> dict[str, Any]:
    """Fingerprint of a source that reads ``config.path``."""
    return content_hashes(Path(config.path)) if config.path else {}


class Limits:
    """Counts what has been taken of each domain and says when a limit is reached."""

    def __init__(self, config: SourceConfig) -> None:
        self._documents, self._characters = config.limit_documents, config.limit_characters
        self._taken: dict[str, tuple[int, int]] = {}

    def full(self, domain: str) -> bool:
        """Whether ``domain`` has reached one of its limits (0 = none)."""
        documents, characters = self._taken.get(domain, (0, 0))
        most_documents, most_characters = self._documents.get(domain, 0), self._characters.get(domain, 0)
        return 0 < most_documents <= documents or 0 < most_characters <= characters

    def take(self, record: Record) -> None:
        """Count one record."""
        documents, characters = self._taken.get(record.domain, (0, 0))
        self._taken[record.domain] = (documents + 1, characters + len(record.content))
