"""Source `warc`: web archives, plain or gzip: whole HTTP responses with status 200, and text derived from pages (WET)."""

import re
from collections.abc import Iterator
from pathlib import Path

from herd.config.errors import UserError
from herd.curation.documents import Record
from herd.curation.ledger import LedgerRow
from herd.curation.sources import SOURCES, Context, Found, Shard, Source, file_fingerprint
from herd.curation.sources.config import SourceConfig
from herd.curation.sources.http_body import BadBody, decoded_body
from herd.curation.sources.streams import Damaged, input_files, named_or_refused, path_of, printable
from herd.curation.sources.warc_records import Broken, WarcItem, records

_SUFFIXES = (".warc", ".warc.gz", ".wet", ".wet.gz")
_KINDS = frozenset({"response", "resource", "conversion"})  # requests, metadata and revisits carry no page of their own
_HTML = ("text/html", "application/xhtml+xml")
_TEXT = ("text/plain", "text/markdown")
_CHARSET = re.compile(r"""charset\s*=\s*["']?([^\s"';,]{1,40})""", re.IGNORECASE)


def warc_shards(config: SourceConfig, context: Context) -> list[Shard]:
    """One shard a file: records of a packed archive can be found from its start alone."""
    return [Shard(printable(name), name) for name, _ in input_files(config, _SUFFIXES)]


def read_warc(shard: Shard, config: SourceConfig, context: Context) -> Iterator[Found]:
    """Pages of one archive; ``position`` is the offset of the record, as CDX indexes count, plus one.

    A row names each response that is no page (its status, its type), not whole (``WARC-Truncated``, cut chunks), or damaged; also
    each place where the archive itself is damaged. Reading goes on behind it.

    Raises:
        UserError: the one file that ``source.path`` names holds no page at all, and is damaged.
    """
    file, read = printable(shard.name), 0
    first: Broken | None = None
    path = path_of(shard.name, config)
    try:
        if not path.stat().st_size:
            raise Damaged("empty_file", "the file is empty")
        for item in records(path, _KINDS, config.max_record_bytes):
            if isinstance(item, WarcItem):
                read += 1
                yield _page(item, config, file)
            else:
                first = first or item
                limit = float(config.max_record_bytes) if item.size else None
                where = f"{file}@{item.offset}"
                yield LedgerRow(where, "collect", "dropped", item.rule, float(item.size) or None, limit, detail=item.detail)
    except OSError as error:
        yield named_or_refused(config, file, Damaged("unreadable_file", f"it cannot be read ({error.strerror or error})"))
    except Damaged as problem:
        yield named_or_refused(config, file, problem)
    if first is not None and not read and not Path(config.path).is_dir():
        raise UserError(f"source.path: no page can be read in {config.path} ({first.detail}): is it a whole WARC file?")


def _page(item: WarcItem, config: SourceConfig, file: str) -> Found:
    url, date = item.headers.get("warc-target-uri", "").strip("<>"), item.headers.get("warc-date", "")
    rule, score, detail = "", None, ""
    body = item.body
    http = item.headers.get("warc-type") == "response"
    declared = item.http.get("content-type", "") if http else item.headers.get("content-type", "")
    media = _media(declared, body)
    if "warc-truncated" in item.headers:
        rule, detail = "truncated_page", f"the crawler stored a part of it ({item.headers['warc-truncated'][:40]})"
    elif http and item.status != 200:
        rule, score, detail = "http_status", float(item.status), f"the response has status {item.status or 'none'}"
    elif not media:
        rule, detail = "not_text", f"the content is {declared[:60] or 'of no declared type'}"
    else:
        try:
            if http:
                encodings = item.http.get("transfer-encoding", ""), item.http.get("content-encoding", "")
                body = decoded_body(body, *encodings, config.max_record_bytes)
            if not body.strip():
                rule, detail = "empty_text", "the response is empty"
        except BadBody as problem:
            rule, detail = problem.rule, problem.detail
    if rule:
        return LedgerRow(f"{file}@{item.offset}", "collect", "dropped", rule, score, detail=f"{url}: {detail}")
    charset, position = _charset(declared), item.offset + 1
    return Record(url, date, config.language, config.domain, "warc", "", media, body, file, position, charset)


def _media(declared: str, body: bytes) -> str:
    """ "html", "text", or "" for neither; a response without a type is looked at."""
    kind = declared.split(";")[0].strip().lower()
    if kind in _HTML or (not kind and body[:1024].lstrip().lower().startswith((b"<!doctype html", b"<html"))):
        return "html"
    return "text" if kind in _TEXT else ""


def _charset(declared: str) -> str:
    """The encoding that a `Content-Type` names, "" for none."""
    found = _CHARSET.search(declared)
    return found.group(1).lower() if found else ""


SOURCES.register("warc")(Source(warc_shards, read_warc, file_fingerprint))
