"""Where raw records come from: a closed registry of sources, each a list of shards and a way to read one.

A shard is a small value that names a part of the input: a file, a range of a big one, a group of small ones. What the shards
are is decided by the data and the configuration alone, never by the number of workers; reading one is a pure function of it,
streaming, in memory that does not grow with the file.

Add a source: ``SOURCES.register("name")(Source(shards, read, fingerprint))`` in a module of this folder that
:func:`load_sources` imports, and its keys in conf/source/name.yaml.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from herd.config.errors import UserError
from herd.config.registry import Registry
from herd.curation.documents import DOMAINS, RawEntry, Record
from herd.curation.ledger import LedgerRow
from herd.curation.sources.config import SourceConfig
from herd.curation.sources.streams import printable
from herd.runs.atomic import sha256_file
from herd.runs.progress import progress

Found = Record | LedgerRow  # a record, or the reason why a part of the input became none


@dataclass(frozen=True)
class Context:
    """What a source may use; the same scratch folder for listing and for every reader."""

    seed: int  # names the random streams
    workers: int  # processes it may start
    scratch: Path  # an existing folder of its own, which outlives the reading


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of the input that one task reads. Picklable; the meaning of ``start`` to ``first`` is the source's own."""

    key: str  # unique and stable: a relative file name and a range, the same for any number of workers
    name: str = ""  # the file, relative to source.path
    start: int = 0  # jsonl: first byte; parquet: first row group; hub: which of the data set's shards
    stop: int = -1  # one past the last; -1 = to the end
    first: int = 1  # number of the first line or row within the file
    members: tuple[str, ...] = ()  # html: the pages of this group
    take: tuple[tuple[str, int], ...] | None = None  # set by list_shards: documents to take of each domain whose limit is reached


@dataclass(frozen=True)
class Source:
    """One kind of source. Use it through :func:`list_shards` and :func:`read_shard`, which apply the limits."""

    shards: Callable[[SourceConfig, Context], list[Shard]]  # what there is to read; refuses missing and empty input
    read: Callable[[Shard, SourceConfig, Context], Iterator[Found]]  # one shard, streamed, in a fixed order
    fingerprint: Callable[[SourceConfig], dict[str, Any]]  # what the result depends on besides the configuration
    entries: Callable[[Shard, SourceConfig, Context], Iterator[RawEntry]] | None = None  # documented functions, if it knows any


SOURCES: Registry[Source] = Registry("source")


def load_sources() -> Registry[Source]:
    """The registry with every source in it (imports them; each keeps heavy libraries for when it runs)."""
    from herd.curation.sources import files, hub, pages, python, warc

    assert files and hub and pages and python and warc
    return SOURCES


def list_shards(config: SourceConfig, context: Context) -> list[Shard]:
    """What there is to read, in the order that limits count in.

    A limit takes the first documents in this order, as one reader would. Where several shards share it, they are first read once
    without any other work, only as far as the limits reach, to learn how many documents of each domain each may contribute; so
    the result does not depend on who reads what, and nothing behind the limit is extracted.

    Raises:
        UserError: missing or empty input, an absent library, no network.
    """
    source = load_sources().get(config.kind)
    shards = source.shards(config, context)
    assert len({shard.key for shard in shards}) == len(shards), "two shards have one key"
    limits = Limits(config)
    if len(shards) < 2 or not limits.any:
        return shards
    planned = []
    with progress("applying source limits", len(shards), "shards") as bar:
        for shard in shards:
            before = limits.documents()
            for _ in limits.cut(source.read(shard, config, context)):
                pass
            taken = {domain: documents - before[domain] for domain, documents in limits.documents().items()}
            planned.append(replace(shard, take=tuple((d, n) for d, n in taken.items() if limits.full(d))))
            bar.advance(1)
            if limits.done():
                break
    return planned


def read_shard(shard: Shard, config: SourceConfig, context: Context) -> Iterator[Found]:
    """Records of one shard, and a row for each part of it that is no record; what lies behind a limit is neither.

    Raises:
        UserError: the one file that ``source.path`` names is damaged (in a folder, a damaged file is a row).
    """
    return Limits(config, shard.take).cut(load_sources().get(config.kind).read(shard, config, context))


def nothing_found(config: SourceConfig, problem: LedgerRow | None) -> UserError:
    """The refusal when no shard gives a document, with the first problem met."""
    where = config.path or f"source '{config.kind}'"
    if problem is None:
        return UserError(f"source.path: {where} gives no document: it has no rows.")
    return UserError(f"source.path: {where} gives no document; first problem at {problem.id}: {problem.detail}.")


def content_hashes(path: Path) -> dict[str, str]:
    """SHA-256 of a file, or of each file of a folder, by relative name; empty when there is none (reading it will say so)."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path] if path.is_file() else []
    return {printable(p.relative_to(path).as_posix()): sha256_file(p) for p in files}


def file_fingerprint(config: SourceConfig) -> dict[str, Any]:
    """Fingerprint of a source that reads ``config.path``."""
    return content_hashes(Path(config.path)) if config.path else {}


class Limits:
    """Counts what has been taken of each domain and says when a limit is reached.

    Args:
        config: its limits count, unless ``take`` is given.
        take: documents to take of the domains it names; of the others, all.
    """

    def __init__(self, config: SourceConfig, take: tuple[tuple[str, int], ...] | None = None) -> None:
        self._left = None if take is None else dict(take)
        self._most = {d: (config.limit_documents.get(d, 0), config.limit_characters.get(d, 0)) for d in DOMAINS}
        # Domains that can still come: of a source without a domain column it is the one, and reading ends when it is full.
        self._possible = DOMAINS if config.domain_column or config.kind == "python" else (config.domain,)
        self._taken: dict[str, tuple[int, int]] = {}

    @property
    def any(self) -> bool:
        """Whether some domain has a limit."""
        return any(limit for domain in self._possible for limit in self._most[domain])

    def full(self, domain: str) -> bool:
        """Whether ``domain`` has reached one of its limits."""
        documents, characters = self._taken.get(domain, (0, 0))
        if self._left is not None:
            return domain in self._left and documents >= self._left[domain]
        most_documents, most_characters = self._most[domain]
        return 0 < most_documents <= documents or 0 < most_characters <= characters

    def done(self) -> bool:
        """Whether nothing more can be taken."""
        return all(self.full(domain) for domain in self._possible)

    def documents(self) -> dict[str, int]:
        """Documents taken of each domain."""
        return {domain: self._taken.get(domain, (0, 0))[0] for domain in DOMAINS}

    def cut(self, items: Iterator[Found]) -> Iterator[Found]:
        """What may be taken of ``items``, which are read no further than that."""
        if self.done():
            return
        for item in items:
            if isinstance(item, LedgerRow):
                yield item
            elif not self.full(item.domain):
                documents, characters = self._taken.get(item.domain, (0, 0))
                self._taken[item.domain] = (documents + 1, characters + len(item.content))
                yield item
                if self.done():
                    return
