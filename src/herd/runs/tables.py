"""Parquet tables in numbered shards, `train-00003-of-00008.parquet`, each whole or not there."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from herd.config.errors import UserError
from herd.runs.atomic import fsync_folder

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_GROUP_BYTES = 16_000_000
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.parquet$")


def shard_path(folder: Path, name: str, index: int, count: int) -> Path:
    """Where shard ``index`` of ``count`` of a table lies."""
    return folder / f"{name}-{index:05d}-of-{count:05d}.parquet"


def shard_files(folder: Path, name: str) -> list[Path]:
    """The shards of the table ``name`` in order; their rows, one file after the other, are the table.

    Raises:
        UserError: there is none, one is missing, or two sets are mixed.
    """
    found = {path: _SHARD.search(path.name) for path in sorted(folder.glob(f"{name}-*-of-*.parquet"))}
    numbers = [(int(match[1]), int(match[2])) for match in found.values() if match]
    if not numbers:
        raise UserError(f"'{folder}' has no '{name}-00000-of-....parquet': is it the input you meant?")
    count = numbers[0][1]
    if numbers != [(i, count) for i in range(count)]:
        missing = sorted(set(range(count)) - {i for i, _ in numbers})
        reason = f"shard {missing[0]} of {count} is missing" if missing else "two sets of shards are mixed"
        raise UserError(f"'{folder}/{name}-*.parquet' is no whole table: {reason}.")
    return list(found)


def open_table(path: Path) -> "pq.ParquetFile":
    """Open one file; UserError unless it is a whole Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"'{path}' is no parquet file ({str(error).splitlines()[0]}).") from error


def iterate_rows(path: Path, columns: list[str] | None = None, batch: int = 256) -> Iterator[dict[str, Any]]:
    """The rows of one file as dictionaries, ``batch`` at a time in memory."""
    for part in open_table(path).iter_batches(batch_size=batch, columns=columns):
        yield from part.to_pylist()


class Replacing:
    """Context manager: a binary file that takes its name when everything is written, and never appears otherwise."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")

    def __enter__(self) -> BinaryIO:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self._temporary, "wb")
        return self._file

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())
            self._file.close()
            if kind is None:
                os.replace(self._temporary, self.path)
                fsync_folder(self.path.parent)
        finally:
            self._temporary.unlink(missing_ok=True)


class TableWriter:
    """Context manager: one Parquet file (zstd), written group by group; a crash leaves the old file or the new one.

    Args:
        path: the file.
        schema: its columns.
        group_rows: rows that a row group should have: what is written waits until there are as many, or 16 MB. Small groups cost
            memory when the file is read, since each has a description of every column. 0 = each write makes a group.
    """

    def __init__(self, path: Path, schema: "pa.Schema", group_rows: int = 0) -> None:
        self.schema = schema
        self._replacing = Replacing(path)
        self._group_rows = group_rows
        self._waiting: list[pa.Table] = []

    def __enter__(self) -> "TableWriter":
        import pyarrow.parquet as pq

        self._writer = pq.ParquetWriter(self._replacing.__enter__(), self.schema, compression="zstd")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self._flush()
            self._writer.close()
        except BaseException as failed:
            self._replacing.__exit__(type(failed), failed, failed.__traceback__)
            raise
        self._replacing.__exit__(kind, error, trace)

    def write(self, table: "pa.Table") -> None:
        """Append a table."""
        self._waiting.append(table)
        rows, size = (sum(getattr(t, name) for t in self._waiting) for name in ("num_rows", "nbytes"))
        if rows >= self._group_rows or size >= _GROUP_BYTES:
            self._flush()

    def write_rows(self, rows: list[dict[str, Any]]) -> None:
        """Append rows."""
        import pyarrow as pa

        self.write(pa.Table.from_pylist(rows, schema=self.schema))

    def _flush(self) -> None:
        import pyarrow as pa

        waiting, self._waiting = [table for table in self._waiting if table.num_rows], []
        if waiting:
            table = pa.concat_tables(waiting)
            self._writer.write_table(table, row_group_size=table.num_rows)


def write_table(path: Path, table: "pa.Table") -> None:
    """A whole table in one file."""
    with TableWriter(path, table.schema) as writer:
        writer.write(table)
