"""The body of a stored HTTP response as the page it carries: transfer and content encodings undone, within a limit.

Crawlers differ in what they store: the bytes of the wire (wget), or the decoded page under the headers of the wire. A body that
does not look like its header says is taken as it is.
"""

import io
import zlib
from typing import Any

_GZIP = b"\x1f\x8b"


class BadBody(Exception):
    """A body that is not whole, or too long: (rule, detail)."""

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(detail)
        self.rule, self.detail = rule, detail


def decoded_body(body: bytes, transfer: str, content: str, most: int) -> bytes:
    """Undo ``Transfer-Encoding`` and ``Content-Encoding``.

    Args:
        body: as stored.
        transfer, content: the values of the two headers, "" when absent.
        most: bytes that the page may have unpacked.

    Raises:
        BadBody: cut off, longer than ``most``, or in an encoding that cannot be undone.
    """
    if "chunked" in transfer.lower():
        body = _unchunked(body)
    for encoding in reversed([part.strip().lower() for part in content.split(",") if part.strip()]):
        if encoding in ("gzip", "x-gzip"):
            body = _inflated(body, 31, most) if body.startswith(_GZIP) else body
        elif encoding == "deflate":
            body = _deflated(body, most)
        elif encoding in ("br", "zstd"):
            body = _streamed(body, encoding, most)
        elif encoding != "identity":
            raise BadBody("unknown_encoding", f"Content-Encoding: {encoding[:40]}")
    return body


def _unchunked(body: bytes) -> bytes:
    parts: list[bytes] = []
    at = 0
    while True:
        end = body.find(b"\n", at)
        size = body[at:end].split(b";")[0].strip() if end >= 0 else b""
        try:
            length = int(size, 16)
        except ValueError:
            length = -1
        if length < 0 or not size.isalnum():
            if at == 0:
                return body  # stored without its chunks
            raise BadBody("truncated_page", "the last chunk of the response is missing")
        if length == 0:
            return b"".join(parts)
        parts.append(body[end + 1 : end + 1 + length])
        at = end + 1 + length
        if at > len(body):
            raise BadBody("truncated_page", "a chunk of the response is cut off")
        at += 2 if body[at : at + 2] == b"\r\n" else 1


def _inflated(body: bytes, window: int, most: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while body:
        unpacker = zlib.decompressobj(window)
        try:
            part = unpacker.decompress(body, most + 1 - size)
        except zlib.error as error:
            raise BadBody("damaged_page", f"the packed response is damaged ({error})") from error
        parts.append(part)
        size += len(part)
        if size > most:
            raise BadBody("too_long", f"the page is longer than source.max_record_bytes = {most:,}")
        if not unpacker.eof:
            raise BadBody("truncated_page", "the packed response is cut off")
        body = unpacker.unused_data if unpacker.unused_data.startswith(_GZIP) and window == 31 else b""
    return b"".join(parts)


def _deflated(body: bytes, most: int) -> bytes:
    """zlib's format as the standard says, or bare deflate as some servers send, or a page stored unpacked."""
    for window in (15, -15):
        try:
            return _inflated(body, window, most)
        except BadBody as problem:
            if problem.rule != "damaged_page":
                raise
    return body


def _streamed(body: bytes, encoding: str, most: int) -> bytes:
    from fastwarc import stream_io

    reader: Any = (stream_io.BrotliReader if encoding == "br" else stream_io.ZstdReader)(io.BytesIO(body))
    try:
        page = bytes(reader.read(most + 1))
        while len(page) <= most and (more := reader.read(most + 1 - len(page))):
            page += more
    except OSError as error:
        if body.lstrip()[:1] == b"<":
            return body  # stored unpacked
        raise BadBody("damaged_page", f"the packed response is damaged ({str(error)[:80]})") from error
    if len(page) > most:
        raise BadBody("too_long", f"the page is longer than source.max_record_bytes = {most:,}")
    return page
