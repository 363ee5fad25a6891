"""Source `html`: a folder of pages, read recursively, `.html` or `.htm`, also compressed with gzip."""

import datetime
import gzip
import zlib
from pathlib import Path

from herd.config.errors import UserError
from herd.curation.config import SourceConfig
from herd.curation.documents import Record
from herd.curation.ledger import LedgerRow
from herd.curation.sources import SOURCES, Collected, Context, Limits, Source, file_fingerprint
from herd.runs.progress import progress

_SUFFIXES = (".html", ".htm", ".html.gz", ".htm.gz")
_MOST_BYTES = 100_000_000  # of one unpacked page: protects against archives that unpack to terabytes


def collect_html(config: SourceConfig, context: Context) -> Collected:
    """One record a file; the URL is the path inside the folder, the date that of the file's last change.

    Raises:
        UserError: no such folder, or no page in it.
    """
    if not config.path:
        raise UserError("source.path: name the folder of pages to read, e.g. source.path=pages/.")
    root = Path(config.path)
    if not root.exists():
        raise UserError(f"source.path: {root} does not exist.")
    files = sorted(p for p in root.rglob("*") if p.name.lower().endswith(_SUFFIXES)) if root.is_dir() else [root]
    if not files:
        raise UserError(f"source.path: {root} holds no page ({', '.join(_SUFFIXES)}).")
    found, limits = Collected(), Limits(config)
    with progress("reading pages", len(files), "pages") as bar:
        for file in files:
            if limits.full(config.domain):
                break
            bar.advance(1)
            name = file.relative_to(root).as_posix() if root.is_dir() else file.name
            try:
                content = _read(file)
            except (OSError, EOFError, zlib.error) as error:
                rule = "truncated_file" if isinstance(error, EOFError) else "unreadable_file"
                found.problems.append(LedgerRow(name, "collect", "dropped", rule, detail=str(error).split("\n")[0][:200]))
                continue
            if not content.strip():
                found.problems.append(LedgerRow(name, "collect", "dropped", "empty_file", detail="the file is empty"))
                continue
            date = datetime.datetime.fromtimestamp(file.stat().st_mtime, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            record = Record(f"file:///{name}", date, config.language, config.domain, "html", "", "html", content)
            limits.take(record)
            found.records.append(record)
    if not found.records:
        raise UserError(f"source.path: none of the {len(files)} pages under {root} could be read: {found.problems[0].detail}.")
    return found


def _read(file: Path) -> bytes:
    if file.suffix != ".gz":
        return file.read_bytes()
    with gzip.open(file) as stream:
        return stream.read(_MOST_BYTES)


SOURCES.register("html")(Source(collect_html, file_fingerprint))
