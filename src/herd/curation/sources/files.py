"""Sources `jsonl` and `parquet`: rows of a user's own data, with configurable column names."""

import datetime
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from herd.config.errors import UserError, nearest
from herd.curation.dates import moment
from herd.curation.documents import DOMAINS, Record
from herd.curation.ledger import LedgerRow
from herd.curation.sources import SOURCES, Context, Found, Shard, Source, file_fingerprint
from herd.curation.sources.config import SourceConfig
from herd.curation.sources.streams import (
    Damaged,
    input_files,
    line_ranges,
    lines,
    named_or_refused,
    path_of,
    printable,
    stretches,
)

_JSONL = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz", ".json.gz", ".jsonl.zst", ".ndjson.zst")
_PACKED = (".gz", ".zst")
_ROWS = 256  # of Parquet, decoded at once
_BOM = b"\xef\xbb\xbf"


def jsonl_shards(config: SourceConfig, context: Context) -> list[Shard]:
    """Files of JSON lines; a big one that is not packed is cut at line starts into ranges of ``source.shard_bytes``."""
    shards = []
    for name, path in input_files(config, _JSONL):
        if path.name.lower().endswith(_PACKED):
            shards.append(Shard(printable(name), name))
            continue
        try:
            ranges = line_ranges(path, config.shard_bytes)
        except Damaged:  # reading it will say so
            ranges = [(0, -1, 1)]
        for start, stop, first in ranges:
            shards.append(Shard(printable(name) if len(ranges) == 1 else f"{printable(name)}@{start}", name, start, stop, first))
    return shards


def read_jsonl(shard: Shard, config: SourceConfig, context: Context) -> Iterator[Found]:
    """A line that is too long, not UTF-8 or not JSON loses that line alone; damage, what stands before the next gzip member."""
    file, number = printable(shard.name), shard.first - 1
    try:
        for line in lines(stretches(path_of(shard.name, config), shard.start, shard.stop), config.max_record_bytes):
            number += 1
            if isinstance(line, Damaged):
                yield named_or_refused(config, f"{file}:{number}", line)
                continue
            if isinstance(line, int):
                detail = f"the line has {line:,} bytes, source.max_record_bytes = {config.max_record_bytes:,}"
                limit = float(config.max_record_bytes)
                yield LedgerRow(f"{file}:{number}", "collect", "dropped", "too_long", float(line), limit, detail=detail)
                continue
            line = line.removeprefix(_BOM) if number == 1 else line
            if line.strip():
                yield found(_parsed(line), config, file, number)
    except Damaged as problem:
        yield named_or_refused(config, f"{file}:{number + 1}", problem)


def _parsed(line: bytes) -> dict[str, Any] | str:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return "not_utf8"
    except (ValueError, RecursionError):  # ValueError: no JSON, or a number of more digits than Python converts
        return "not_json"
    return row if isinstance(row, dict) else "not_an_object"


def parquet_shards(config: SourceConfig, context: Context) -> list[Shard]:
    """Parquet files; a big one is cut between row groups into parts of about ``source.shard_bytes`` (uncompressed).

    Raises:
        UserError: a file has no text column.
    """
    shards: list[Shard] = []
    for name, path in input_files(config, (".parquet",)):
        try:
            with _opened(path) as file:
                metadata, names = file.metadata, file.schema_arrow.names
        except Damaged:  # reading it will say so
            shards.append(Shard(printable(name), name))
            continue
        if config.text_column not in names:
            raise UserError(f"{path}: no column '{config.text_column}' (source.text_column).{nearest(config.text_column, names)}")
        parts = _row_group_parts(metadata, config.shard_bytes)
        for start, stop, first in parts:
            key = printable(name) if len(parts) == 1 else f"{printable(name)}@{start}"
            shards.append(Shard(key, name, start, stop, first))
    return shards


def _row_group_parts(metadata: Any, shard_bytes: int) -> list[tuple[int, int, int]]:
    """(first row group, one past the last, number of the first row) of each part; one part for a file without rows."""
    parts, start, first, row, size = [], 0, 1, 1, 0
    for group in range(metadata.num_row_groups):
        row, size = row + metadata.row_group(group).num_rows, size + metadata.row_group(group).total_byte_size
        if size >= shard_bytes or group == metadata.num_row_groups - 1:
            parts.append((start, group + 1, first))
            start, first, size = group + 1, row, 0
    return parts or [(0, 0, 1)]


def _opened(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if not path.stat().st_size:
            raise Damaged("empty_file", "the file is empty")
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise Damaged("damaged_file", f"not a whole Parquet file ({str(error).splitlines()[0][:160]})") from error


def read_parquet(shard: Shard, config: SourceConfig, context: Context) -> Iterator[Found]:
    """Rows of some row groups, named columns only; a page that cannot be decoded loses the rest of its row group."""
    import pyarrow as pa

    file, number = printable(shard.name), shard.first - 1
    try:
        with _opened(path_of(shard.name, config)) as table:
            names = table.schema_arrow.names
            columns = [column for column in _columns(config) if column in names]
            groups = range(shard.start, table.num_row_groups if shard.stop < 0 else shard.stop)
            if not table.metadata.num_rows:
                raise Damaged("empty_file", "the file has no rows")
            for group in groups:  # one at a time: over several, pyarrow keeps what it has read
                end = number + table.metadata.row_group(group).num_rows
                try:
                    for batch in table.iter_batches(_ROWS, row_groups=[group], columns=columns):
                        for row in _rows(batch):
                            number += 1
                            yield found(row, config, file, number)
                except (pa.ArrowException, OSError) as error:
                    reason = str(error).splitlines()[0][:160]
                    problem = Damaged("damaged_file", f"rows {number + 1} to {end} cannot be read ({reason})")
                    yield named_or_refused(config, f"{file}:{number + 1}", problem)
                number = end
    except Damaged as problem:
        yield named_or_refused(config, f"{file}:{number + 1}", problem)


def _rows(batch: Any) -> Iterator[dict[str, Any] | str]:
    """Rows of a batch as Python values, or why one is none: a value that Python cannot hold loses its own row alone."""
    columns = [_values(column) for column in batch.columns]
    for row in zip(*columns, strict=True) if columns else ():
        bad = next((value for value in row if isinstance(value, _Bad)), None)
        yield dict(zip(batch.schema.names, row, strict=True)) if bad is None else "not_utf8"


class _Bad:
    """A value that cannot be converted."""


def _values(column: Any) -> list[Any]:
    """One value a row. A moment becomes text: Python's own type knows neither nanoseconds nor years beyond 9999."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_timestamp(kind):
        return [None if value is None else moment(value, kind.unit) for value in column.cast(pa.int64()).to_pylist()]
    if pa.types.is_date(kind):
        unit = "D" if pa.types.is_date32(kind) else "ms"
        values = column.cast(pa.int32() if unit == "D" else pa.int64()).to_pylist()
        return [None if value is None else moment(value, unit) for value in values]
    try:
        return column.to_pylist()
    except (ValueError, OverflowError, pa.ArrowException):  # UnicodeDecodeError is a ValueError
        return [_value(scalar) for scalar in column]


def _value(scalar: Any) -> Any:
    import pyarrow as pa

    try:
        return scalar.as_py()
    except (ValueError, OverflowError, pa.ArrowException):
        return _Bad()


def _columns(config: SourceConfig) -> list[str]:
    names = (config.text_column, config.url_column, config.date_column, config.language_column)
    return [name for name in (*names, config.domain_column, config.group_column) if name]


_EXPLAINED = {
    "not_utf8": "the line, or a value of the row, is not UTF-8",
    "not_json": "the line is not JSON (cut off, or not JSON lines)",
    "not_an_object": "the line is JSON, but no object",
    "no_text": "the text column is missing or no string (source.text_column)",
    "empty_text": "the text is empty",
    "too_long": "the text is longer than source.max_record_bytes",
    "unknown_domain": f"the domain column holds none of {', '.join(DOMAINS)} (source.domain_column)",
}


def found(row: Mapping[str, Any] | str, config: SourceConfig, file: str, number: int) -> Found:
    """A row as a record, or why it is none (``row`` may already be the reason)."""
    record = row if isinstance(row, str) else _record(row, config, file, number)
    if isinstance(record, str):
        return LedgerRow(f"{file}:{number}", "collect", "dropped", record, detail=_EXPLAINED[record])
    return record


def _record(row: Mapping[str, Any], config: SourceConfig, file: str, number: int) -> Record | str:
    text = row.get(config.text_column)
    if not isinstance(text, str | bytes):
        return "no_text"
    if not text.strip():
        return "empty_text"
    if len(text) > config.max_record_bytes:
        return "too_long"
    domain = _text(row, config.domain_column) or config.domain
    if domain not in DOMAINS:
        return "unknown_domain"
    language = _text(row, config.language_column) or config.language
    url, date, group = (_text(row, c) for c in (config.url_column, config.date_column, config.group_column))
    return Record(url, date, language, domain, config.kind, group and f"row:{group}", config.media, text, file, number)


def _text(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column) if column else None
    if isinstance(value, datetime.date | datetime.datetime):  # of the hub
        return value.isoformat()
    # Lone surrogates, which JSON escapes can hold, have no place in a file.
    return "" if value is None else str(value).encode("utf-8", "replace").decode("utf-8")


SOURCES.register("jsonl")(Source(jsonl_shards, read_jsonl, file_fingerprint))
SOURCES.register("parquet")(Source(parquet_shards, read_parquet, file_fingerprint))
