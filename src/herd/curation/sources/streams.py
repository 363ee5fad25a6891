"""Files read as a stream, whatever they are packed with, and cut into lines in bounded memory."""

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from herd.config.errors import UserError
from herd.curation.ledger import LedgerRow
from herd.curation.sources.config import SourceConfig

_BLOCK = 1 << 20  # bytes
_MEMBER = b"\x1f\x8b\x08"  # how a gzip member begins
_SMALL_BLOCK = 1 << 16  # bytes; what is lost before the damage of a file that is unpacked by others


class Damaged(Exception):
    """A file that cannot be read any further.

    Args:
        rule: the ledger's name for it: ``truncated_file``, ``damaged_file``, ``unreadable_file``, ``empty_file``.
        detail: a sentence for the reader.
    """

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(detail)
        self.rule, self.detail = rule, detail


def input_files(config: SourceConfig, suffixes: tuple[str, ...]) -> list[tuple[str, Path]]:
    """(name relative to ``source.path``, path) of the file, or of the folder's files that end in ``suffixes``, sorted by name.

    Raises:
        UserError: no path given, nothing there, no such file in the folder, or one file that is empty.
    """
    if not config.path:
        raise UserError(f"source.path: name the file or folder to read, e.g. source.path=data/pages{suffixes[0]}.")
    root = Path(config.path)
    if not root.exists():
        raise UserError(f"source.path: {config.path} does not exist.")
    if not root.is_dir():
        if not root.stat().st_size:
            raise UserError(f"source.path: {config.path} is empty.")
        return [(root.name, root)]
    files = sorted(p for p in root.rglob("*") if p.name.lower().endswith(suffixes) and p.is_file())
    if not files:
        raise UserError(f"source.path: {config.path} holds no file ending in {', '.join(suffixes)}.")
    return [(file.relative_to(root).as_posix(), file) for file in files]


def path_of(name: str, config: SourceConfig) -> Path:
    """Where the file lies that :func:`input_files` calls ``name``."""
    root = Path(config.path)
    return root / name if root.is_dir() else root


def printable(name: str) -> str:
    """A file name as valid Unicode: bytes that are not UTF-8 are written as ``\\xNN``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def named_or_refused(config: SourceConfig, where: str, problem: Damaged) -> LedgerRow:
    """A damaged file of a folder is a row, and the others are read; the one file that the user named ends the run.

    Raises:
        UserError: ``source.path`` is that file.
    """
    if not Path(config.path).is_dir():
        raise UserError(f"source.path: {config.path}: {problem.detail} (at {where}): fetch it again.") from problem
    return LedgerRow(where, "collect", "dropped", problem.rule, detail=problem.detail)


def blocks(path: Path, start: int = 0, stop: int = -1) -> Iterator[bytes]:
    """Content in blocks of a megabyte, unpacked when the name ends in `.gz` or `.zst`; see :func:`stretches`.

    Raises:
        Damaged: unreadable, empty, or a broken archive; what stands before the damage has been handed out.
    """
    for block in stretches(path, start, stop):
        if isinstance(block, Damaged):
            raise block
        yield block


def stretches(path: Path, start: int = 0, stop: int = -1) -> Iterator[bytes | Damaged]:
    """Blocks of the content, and each damage that reading goes on behind: of a gzip file, at the next member.

    Args:
        path: the file.
        start, stop: range of bytes of a file that is not packed; -1 = to its end.

    Raises:
        Damaged: unreadable, empty, or a broken archive of another kind.
    """
    try:
        if not path.stat().st_size:
            raise Damaged("empty_file", "the file is empty")
        with path.open("rb") as raw:
            if path.name.lower().endswith(".gz"):
                yield from _gzip(raw)
            elif path.name.lower().endswith(".zst"):
                yield from _zstd(path)
            else:
                raw.seek(start)
                left = stop - start if stop >= 0 else path.stat().st_size - start
                while left > 0 and (block := raw.read(min(_BLOCK, left))):
                    left -= len(block)
                    yield block
    except OSError as error:
        raise Damaged("unreadable_file", f"it cannot be read ({error.strerror or error})") from error


def _gzip(raw: BinaryIO) -> Iterator[bytes | Damaged]:
    """One member after the other. Not Python's `gzip`, which keeps to itself what it had unpacked when it meets the damage."""
    start: int | None = 0
    while start is not None:
        begun = start  # of the member that is read
        try:
            for part in _members(raw, start):
                if isinstance(part, int):
                    begun = part
                else:
                    yield part
            return
        except zlib.error as error:
            problem = Damaged("damaged_file", f"the archive is truncated or damaged ({error})")
        except EOFError:
            problem = Damaged("truncated_file", "the archive is truncated: it ends in the middle")
        yield problem
        start = _next_member(raw, begun + 1)


def _members(raw: BinaryIO, start: int) -> Iterator[bytes | int]:
    """Content of the gzip members from byte ``start`` on, before that of each where it begins.

    Raises:
        zlib.error: damaged.
        EOFError: the last one is cut off.
    """
    raw.seek(start)
    yield start
    unpacker = zlib.decompressobj(31)
    while packed := raw.read(_BLOCK):
        while packed:
            if unpacker.eof:
                packed = packed.lstrip(b"\0")
                if not packed:  # padding
                    break
                yield raw.tell() - len(packed)
                unpacker = zlib.decompressobj(31)
            if part := unpacker.decompress(packed, _BLOCK):
                yield part
            packed = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail
    while part := unpacker.decompress(b"", _BLOCK):
        yield part
    if not unpacker.eof:
        raise EOFError


def _next_member(raw: BinaryIO, start: int) -> int | None:
    """Where a gzip member begins at or after ``start``: its mark, and behind it what unpacks."""
    raw.seek(start)
    window = raw.read(_BLOCK)
    while window:
        more = raw.read(_BLOCK)
        joined, at = window + more, -1
        while 0 <= (at := joined.find(_MEMBER, at + 1)) < len(window):
            try:
                if zlib.decompressobj(31).decompress(joined[at : at + _SMALL_BLOCK], _SMALL_BLOCK):
                    return start + at
            except zlib.error:
                continue
        start, window = start + len(window), more
    return None


def _zstd(path: Path) -> Iterator[bytes]:
    import pyarrow as pa

    try:
        with pa.CompressedInputStream(pa.OSFile(str(path)), "zstd") as stream:
            while block := stream.read(_SMALL_BLOCK):
                yield block
    except (OSError, pa.ArrowException) as error:
        reason = str(error).split("\n")[0][:160]
        raise Damaged("truncated_file", f"the archive is truncated or damaged ({reason})") from error


def lines(content: Iterator[bytes | Damaged], most: int) -> Iterator[bytes | int | Damaged]:
    """Lines without their line feed; of one longer than ``most`` bytes, which is never held, its length.

    A damage stands for the line that it broke off, of which nothing is given.
    """
    pending: list[bytes] = []
    size = 0
    for block in content:
        if isinstance(block, Damaged):
            yield block
            pending, size = [], 0
            continue
        *whole, rest = block.split(b"\n")
        if whole:
            size += len(whole[0])
            yield size if size > most else b"".join([*pending, whole[0]])
            for line in whole[1:]:
                yield len(line) if len(line) > most else line
            pending, size = [], 0
        size += len(rest)
        if size > most:
            pending = []
        elif rest:
            pending.append(rest)
    if size:
        yield size if size > most else b"".join(pending)


def line_ranges(path: Path, shard_bytes: int) -> list[tuple[int, int, int]]:
    """Cut a file of lines into ranges of at least ``shard_bytes``, each from the start of a line to that of another.

    Returns:
        (first byte, one past the last byte, number of the first line) of each range; one pass over the file.
    """
    size = path.stat().st_size
    ranges: list[tuple[int, int, int]] = []
    start, first, line, position = 0, 1, 1, 0
    for block in blocks(path) if size > shard_bytes else ():
        at = 0  # lines are counted up to here
        while (end := block.find(b"\n", max(at, start + shard_bytes - 1 - position)) + 1) and position + end < size:
            line += block.count(b"\n", at, end)
            ranges.append((start, position + end, first))
            start, first, at = position + end, line, end
        line += block.count(b"\n", at)
        position += len(block)
    return [*ranges, (start, size, first)]
