"""Source `html`: a folder of pages, read recursively, `.html` or `.htm`, also packed with gzip or zstd."""

from collections.abc import Iterator

from herd.curation.documents import Record
from herd.curation.ledger import LedgerRow
from herd.curation.sources import SOURCES, Context, Found, Shard, Source, file_fingerprint
from herd.curation.sources.config import SourceConfig
from herd.curation.sources.streams import Damaged, blocks, input_files, named_or_refused, path_of, printable

_SUFFIXES = (".html", ".htm", ".html.gz", ".htm.gz", ".html.zst", ".htm.zst")
_GROUP = 1_000  # pages a shard at most


def html_shards(config: SourceConfig, context: Context) -> list[Shard]:
    """Neighbours in the order of names, up to 1,000 pages or ``source.shard_bytes`` together."""
    shards: list[Shard] = []
    group: list[str] = []
    size = 0
    for name, path in input_files(config, _SUFFIXES):
        if group and (len(group) == _GROUP or size >= config.shard_bytes):
            shards.append(_shard(group))
            group, size = [], 0
        group.append(name)
        size += path.stat().st_size
    return [*shards, _shard(group)]


def _shard(group: list[str]) -> Shard:
    return Shard(f"{printable(group[0])}+{len(group)}", members=tuple(group))


def read_html(shard: Shard, config: SourceConfig, context: Context) -> Iterator[Found]:
    """One record a file; the URL is the path inside the folder.

    It has no date: when a file was last changed says when it was copied, and would make its id differ from machine to machine.
    """
    for member in shard.members:
        name = printable(member)
        parts, size = [], 0
        try:
            # Never unpacked further than the limit: a small archive can hold terabytes.
            for block in blocks(path_of(member, config)):
                parts.append(block)
                size += len(block)
                if size > config.max_record_bytes:
                    break
        except Damaged as problem:
            yield named_or_refused(config, name, problem)
            continue
        content = b"".join(parts)
        if size > config.max_record_bytes:
            limit = float(config.max_record_bytes)
            detail = f"the page is longer than source.max_record_bytes = {config.max_record_bytes:,}"
            yield LedgerRow(name, "collect", "dropped", "too_long", float(size), limit, detail=detail)
        elif not content.strip():
            yield LedgerRow(name, "collect", "dropped", "empty_file", detail="the file is empty")
        else:
            yield Record(f"file:///{name}", "", config.language, config.domain, "html", "", "html", content, name)


SOURCES.register("html")(Source(html_shards, read_html, file_fingerprint))
