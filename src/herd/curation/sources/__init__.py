"""Where raw records come from. Each source is a function in the closed registry `SOURCES`.

Add a source: a function `(config, context) -> Collected` decorated with `@SOURCES.register("name")` in a module of this folder,
imported in `load_sources`, with its keys in conf/source/<name>.yaml.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from herd.config.registry import Registry
from herd.curation.config import SourceConfig
from herd.curation.documents import RawEntry, Record
from herd.curation.ledger import LedgerRow


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


Source = Callable[[SourceConfig, Context], Collected]

SOURCES: Registry[Source] = Registry("source")


def load_sources() -> Registry[Source]:
    """The registry with every source in it (imports them; each keeps heavy libraries for when it runs)."""
    from herd.curation.sources import files, pages, python

    assert files and pages and python
    return SOURCES


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
