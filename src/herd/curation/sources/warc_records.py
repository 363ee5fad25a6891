"""Records of a WARC file, plain or gzip, with whatever is damaged in between named and stepped over.

FastWARC reads fast and stops at the first damage. Here it is started again at the next place where a record begins; and what it
passes over without a word (a length that swallows the following records, half a record at the end) is found in the bytes.
"""

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from herd.config.errors import UserError

_BLOCK = 1 << 18  # bytes
_MAGIC = b"\x1f\x8b\x08"
_START = re.compile(rb"WARC/\d\.\d\r?\n[A-Za-z-]+:")
_MAX_HEADER = 1 << 16  # bytes


@dataclass(frozen=True, slots=True)
class WarcItem:
    """A record whose content was asked for and read."""

    offset: int  # where it begins in the file, bytes, as CDX indexes count
    headers: dict[str, str]  # of the record, names in lower case
    status: int  # of the HTTP response; 0 when there is none
    http: dict[str, str]  # headers of the HTTP response, names in lower case; empty when there is none
    body: bytes  # what follows the headers


@dataclass(frozen=True, slots=True)
class Broken:
    """A place where no whole record could be read."""

    offset: int
    rule: str  # damaged_record, truncated_record, too_long
    detail: str
    size: int = 0  # bytes, of one that is too long


def records(path: Path, kinds: frozenset[str], most: int) -> Iterator[WarcItem | Broken]:
    """Records of the given types, and each place where the file is damaged, in the order of the file.

    A record is handed out once the next one has been found where it should be: one whose length is wrong is not whole.

    Args:
        path: the file; gzip is told by its first bytes or its name.
        kinds: values of ``WARC-Type``.
        most: bytes of content; a longer record is not read.

    Raises:
        UserError: FastWARC is not installed.
        OSError: the file cannot be read.
    """
    with path.open("rb") as raw:
        packed = raw.read(3) == _MAGIC or path.name.lower().endswith(".gz")
    offset: int | None = 0
    somewhere: Broken | None = None  # damage behind a good record; often the next attempt begins right at it, and places it
    while offset is not None:
        last, count = offset, 0
        held: WarcItem | Broken | None = None
        broken: Broken | None = None
        placed = True
        try:
            for found in _run(path, offset, kinds, most):
                if held is not None:
                    yield held
                    held = None
                last, count = found.offset, count + 1
                if isinstance(found, WarcItem) or (isinstance(found, Broken) and found.rule == "too_long"):
                    held = found
                elif isinstance(found, Broken):
                    broken = found
        except OSError as error:
            placed = count == 0
            if placed or not _padded(path, offset, last, packed):
                detail = f"no record can be read {'here' if placed else 'after this one'} ({error})"
                broken = Broken(last, "damaged_record", detail[:200])
        if broken is None and not _file_ends(path, last, packed):
            broken = Broken(last, "truncated_record", "the file ends within a record, or its length leads past others")
        if broken is not None and held is not None and not _whole(path, held.offset, packed):
            broken = Broken(held.offset, "damaged_record", "the record's length does not lead to its end")
            held, placed = None, True
        if held is not None:
            yield held
        if somewhere is not None and (broken is None or broken.offset != offset):
            yield somewhere
        offset = _next_start(path, last + 1, packed) if broken is not None else None
        somewhere = None
        if broken is not None and (placed or offset is None):
            yield broken
        elif broken is not None:
            somewhere = broken


@dataclass(frozen=True, slots=True)
class _Passed:
    """A record of another type."""

    offset: int


def _run(path: Path, offset: int, kinds: frozenset[str], most: int) -> Iterator[WarcItem | Broken | _Passed]:
    """FastWARC from ``offset`` to the first damage."""
    try:
        from fastwarc.warc import ArchiveIterator, WarcRecordType
    except ImportError as error:
        raise UserError("source 'warc' needs fastwarc: pip install 'fastwarc>=2,<3'.") from error
    with path.open("rb") as raw:
        raw.seek(offset)
        archive = ArchiveIterator(raw, record_types=WarcRecordType.any_type, auto_decode="none", max_header_len=_MAX_HEADER)
        for record in archive:
            at = int(record.stream_pos)
            headers = _headers(record.headers)
            length = headers.get("content-length", "").strip()
            if not (length.isascii() and length.isdigit()):
                yield Broken(at, "damaged_record", "the record has no valid Content-Length")
                return
            if headers.get("warc-type", "") not in kinds:
                yield _Passed(at)
            elif int(length) > most:
                detail = f"the record has {int(length):,} bytes, source.max_record_bytes = {most:,}"
                yield Broken(at, "too_long", detail, int(length))
            else:
                body = record.reader.read()
                if len(body) < record.content_length:
                    detail = f"the record ends after {len(body):,} of {record.content_length:,} bytes"
                    yield Broken(at, "truncated_record", detail)
                    return
                http = record.http_headers
                status = (http.status_code or 0) if http is not None else 0
                yield WarcItem(at, headers, status, _headers(http) if http is not None else {}, bytes(body))


def _headers(headers: Any) -> dict[str, str]:
    return {str(name).lower(): str(value) for name, value in headers}


def _content(path: Path, offset: int, packed: bool) -> Iterator[bytes]:
    """Bytes from ``offset`` on; of a packed file those of one gzip member. Stops quietly where that is damaged."""
    with path.open("rb") as raw:
        raw.seek(offset)
        unpacker = zlib.decompressobj(31)
        while block := raw.read(_BLOCK):
            while packed and block and not unpacker.eof:
                try:
                    part = unpacker.decompress(block, _BLOCK)
                except zlib.error:
                    return
                if part:
                    yield part
                block = unpacker.unconsumed_tail
            if packed and unpacker.eof:
                return
            if not packed:
                yield block


def _whole(path: Path, offset: int, packed: bool) -> bool:
    """Whether the record at ``offset`` has a header, a length, and after that many bytes two line ends or the end."""
    content = _content(path, offset, packed)
    head = b""
    for block in content:
        head += block
        if b"\r\n\r\n" in head or len(head) > _MAX_HEADER + _BLOCK:
            break
    header, found, rest = head.partition(b"\r\n\r\n")
    length = re.search(rb"(?im)^content-length:[ \t]*(\d{1,15})[ \t]*\r?$", header)
    if not found or not length or not _START.match(header):
        return False
    left = int(length.group(1))  # bytes of content that begin with `rest`
    while len(rest) < left + 4 and (block := next(content, b"")):
        passed = min(len(rest), left)
        rest, left = rest[passed:] + block, left - passed
    if len(rest) < left or rest[left : left + 4] not in (b"\r\n\r\n", b"\r\n", b""):
        return False
    return not packed or _member_ends(path, offset) is not None


def _file_ends(path: Path, offset: int, packed: bool) -> bool:
    """Whether the file ends with the record at ``offset``, where reading stopped without a word; zeros after it are padding."""
    if not packed:
        return _whole(path, offset, packed)
    zeros = _zeros_behind(path, offset)
    if zeros is not None:
        return zeros >= 0
    with path.open("rb") as raw:
        raw.seek(offset)
        # A record within a member with others has no member of its own: FastWARC has unpacked and checked all of it.
        return raw.read(3) != _MAGIC


def _padded(path: Path, first: int, last: int, packed: bool) -> bool:
    """Whether it was only padding that FastWARC could not read, behind a whole last record or the member that holds all."""
    own = packed and _whole(path, last, packed) and (_zeros_behind(path, last) or 0) > 0
    return own or (packed and first != last and (_zeros_behind(path, first) or 0) > 0)


def _zeros_behind(path: Path, offset: int) -> int | None:
    """How many zeros end the file behind the gzip member at ``offset``; -1 if anything else does, None without a whole member."""
    end = _member_ends(path, offset)
    if end is None:
        return None
    with path.open("rb") as raw:
        raw.seek(end)
        clean = not any(block.strip(b"\0") for block in iter(lambda: raw.read(_BLOCK), b""))
        return raw.tell() - end if clean else -1


def _member_ends(path: Path, offset: int) -> int | None:
    """Offset after the gzip member at ``offset``; None when it does not unpack to its end with the right checksum."""
    with path.open("rb") as raw:
        raw.seek(offset)
        unpacker = zlib.decompressobj(31)
        while block := raw.read(_BLOCK):
            while block and not unpacker.eof:
                try:
                    unpacker.decompress(block, _BLOCK)
                except zlib.error:
                    return None
                block = unpacker.unconsumed_tail
            if unpacker.eof:
                return raw.tell() - len(unpacker.unused_data)
    return None


def _next_start(path: Path, offset: int, packed: bool) -> int | None:
    """Where the next record begins at or after ``offset``: the name of the format, or a gzip member that begins with it."""
    with path.open("rb") as raw:
        raw.seek(offset - 1)
        position, window = offset - 1, raw.read(_BLOCK)
        while window:
            more = raw.read(_BLOCK)
            joined = window + more
            at = 1 if position == offset - 1 else 0
            while True:
                if packed:
                    at = joined.find(_MAGIC, at)
                else:
                    match = _START.search(joined, at)
                    at = match.start() if match else -1
                if at < 0 or at >= len(window):
                    break
                if not packed or _is_record(joined[at : at + 1024]):
                    return position + at
                at += 1
            position, window = position + len(window), more
    return None


def _is_record(member: bytes) -> bool:
    try:
        return zlib.decompressobj(31).decompress(member, 5) == b"WARC/"
    except zlib.error:
        return False
