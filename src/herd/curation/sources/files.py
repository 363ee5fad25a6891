"""Sources `jsonl`, `parquet` and `hub`: rows of a user's own data, with configurable column names."""

import datetime
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from herd.config.errors import UserError, nearest
from herd.curation.config import SourceConfig
from herd.curation.documents import DOMAINS, Record
from herd.curation.ledger import LedgerRow
from herd.curation.sources import SOURCES, Collected, Context, Limits, Source, file_fingerprint
from herd.runs.progress import progress

Row = tuple[str, Mapping[str, Any] | str]  # where it stands, and the row or what is wrong with it


def collect_jsonl(config: SourceConfig, context: Context) -> Collected:
    """Files of JSON lines (`.jsonl`, `.ndjson`, also `.gz` or `.zst`), or a folder of them.

    A line that is not UTF-8 or not JSON loses that line alone; a damaged archive ends the run.

    Raises:
        UserError: missing, empty or damaged input.
    """
    files = _files(config.path, (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz", ".jsonl.zst", ".json.gz"))
    return _collect(config, (row for file in files for row in _json_rows(file)))


def collect_parquet(config: SourceConfig, context: Context) -> Collected:
    """Parquet files or a folder of them; only the named columns are read.

    Raises:
        UserError: missing, empty or damaged input, or no such text column.
    """
    files = _files(config.path, (".parquet",))
    return _collect(config, (row for file in files for row in _parquet_rows(file, config)))


def collect_hub(config: SourceConfig, context: Context) -> Collected:
    """A data set of the Hugging Face hub, streamed, so that a limit reads no more than it needs.

    Raises:
        UserError: extra not installed, unknown data set, no network.
    """
    if not config.path:
        raise UserError("source.path: name the data set, e.g. source.path=HuggingFaceFW/fineweb source.subset=sample-10BT.")
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise UserError("source 'hub' needs the extra `hub`: pip install 'herd[hub]'.") from error
    try:
        rows = iter(load_dataset(config.path, config.subset or None, split=config.split, streaming=True))
        first = next(rows, None)
    except Exception as error:  # the library raises a dozen kinds; each means that nothing can be read
        reason = str(error).strip().split("\n")[0][:300]
        raise UserError(f"source.path: data set '{config.path}' cannot be read: {reason}") from error
    if first is None:
        raise UserError(f"source.path: data set '{config.path}', split '{config.split}', is empty.")

    def numbered() -> Iterator[Row]:
        yield f"{config.path}:1", first
        for number, row in enumerate(rows, start=2):
            yield f"{config.path}:{number}", row

    return _collect(config, numbered())


def _files(path: str, suffixes: tuple[str, ...]) -> list[Path]:
    """The file, or the folder's files with one of ``suffixes``, sorted."""
    if not path:
        raise UserError("source.path: name the file or folder to read, e.g. source.path=data/pages.jsonl.")
    root = Path(path)
    if not root.exists():
        raise UserError(f"source.path: {path} does not exist.")
    files = sorted(p for p in root.rglob("*") if p.name.endswith(suffixes)) if root.is_dir() else [root]
    if not files:
        raise UserError(f"source.path: {path} holds no file ending in {', '.join(suffixes)}.")
    for file in files:
        if not file.stat().st_size:
            raise UserError(f"source.path: {file} is empty.")
    return files


def _json_rows(file: Path) -> Iterator[Row]:
    try:
        for number, line in enumerate(_lines(file), start=1):
            if not line.strip():
                continue
            where = f"{file.name}:{number}"
            try:
                row = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError:
                yield where, "not_utf8"
            except (json.JSONDecodeError, RecursionError):
                yield where, "not_json"
            else:
                yield where, row if isinstance(row, dict) else "not_an_object"
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{file}: the archive is truncated or damaged ({error}): fetch it again.") from error


def _lines(file: Path) -> Iterable[bytes]:
    if file.suffix == ".gz":
        return gzip.open(file)
    if file.suffix == ".zst":
        import pyarrow as pa

        return _zstd_lines(pa.CompressedInputStream(pa.OSFile(str(file)), "zstd"), file)
    return file.open("rb")


def _zstd_lines(stream: Any, file: Path) -> Iterator[bytes]:
    import pyarrow as pa

    rest = b""
    while True:
        try:
            block = stream.read(1 << 20)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{file}: the archive is truncated or damaged ({error}): fetch it again.") from error
        if not block:
            break
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
    yield rest


def _parquet_rows(file: Path, config: SourceConfig) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
        names = table.schema_arrow.names
        if config.text_column not in names:
            raise UserError(f"{file}: no column '{config.text_column}' (source.text_column).{nearest(config.text_column, names)}")
        columns = [c for c in _columns(config) if c in names]
        number = 0
        for batch in table.iter_batches(batch_size=1024, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield f"{file.name}:{number}", row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not a whole Parquet file ({str(error).splitlines()[0][:160]}): fetch it again.") from error


def _columns(config: SourceConfig) -> list[str]:
    names = (config.text_column, config.url_column, config.date_column, config.language_column)
    return [name for name in (*names, config.domain_column, config.group_column) if name]


def _collect(config: SourceConfig, rows: Iterable[Row]) -> Collected:
    """Turn rows into records; each row that cannot become one is a problem with its place."""
    found, limits = Collected(), Limits(config)
    total = 0
    with progress(f"reading {config.kind}", None, "rows") as bar:
        for where, row in rows:
            total += 1
            bar.advance(1)
            record = row if isinstance(row, str) else _record(row, config)
            if isinstance(record, str):
                found.problems.append(LedgerRow(where, "collect", "dropped", record, detail=_EXPLAINED[record]))
            elif not limits.full(record.domain):
                limits.take(record)
                found.records.append(record)
            elif not config.domain_column:
                break
    if not found.records:
        reason = found.problems[0].detail if found.problems else "there are no rows"
        where = found.problems[0].id if found.problems else config.path
        raise UserError(f"source.path: {config.path} gives no document; first problem at {where}: {reason}.")
    return found


_EXPLAINED = {
    "not_utf8": "the line is not UTF-8",
    "not_json": "the line is not JSON (cut off, or not JSON lines)",
    "not_an_object": "the line is JSON, but no object",
    "no_text": "the text column is missing or no string (source.text_column)",
    "empty_text": "the text is empty",
    "unknown_domain": f"the domain column holds none of {', '.join(DOMAINS)} (source.domain_column)",
}


def _record(row: Mapping[str, Any], config: SourceConfig) -> Record | str:
    text = row.get(config.text_column)
    if not isinstance(text, str | bytes):
        return "no_text"
    if not text.strip():
        return "empty_text"
    domain = _text(row, config.domain_column) or config.domain
    if domain not in DOMAINS:
        return "unknown_domain"
    language = _text(row, config.language_column) or config.language
    url, date, group = (_text(row, c) for c in (config.url_column, config.date_column, config.group_column))
    return Record(url, date, language, domain, config.kind, group and f"row:{group}", config.media, text)


def _text(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column) if column else None
    if isinstance(value, datetime.date | datetime.datetime):
        return value.isoformat()
    return "" if value is None else str(value)


SOURCES.register("jsonl")(Source(collect_jsonl, file_fingerprint))
SOURCES.register("parquet")(Source(collect_parquet, file_fingerprint))
SOURCES.register("hub")(Source(collect_hub, lambda config: {}))  # the hub does not say cheaply what a split holds
