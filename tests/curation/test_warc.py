"""Source `warc`: every whole page is read, every damage named, whatever the archive went through. Archives are written here."""

import gzip
import zlib
from pathlib import Path

import pytest

from herd.config.errors import UserError
from herd.curation.documents import Record
from herd.curation.ledger import LedgerRow
from herd.curation.sources import Context, list_shards, read_shard
from herd.curation.sources.config import SourceConfig

PAGE = b"<html><body><p>A page about rivers.</p></body></html>"


def record(kind: str, url: str, block: bytes, extra: str = "", length: int | str | None = None) -> bytes:
    """One WARC record with the block given."""
    head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2024-05-06T07:08:09Z\r\n{extra}"
    head += f"Content-Length: {len(block) if length is None else length}\r\n\r\n"
    return head.encode() + block + b"\r\n\r\n"


def response(url: str, body: bytes = PAGE, *, status: str = "200 OK", http: str = "Content-Type: text/html\r\n", **more) -> bytes:
    """One stored HTTP response."""
    more["extra"] = "Content-Type: application/http; msgtype=response\r\n" + more.get("extra", "")
    return record("response", url, f"HTTP/1.1 {status}\r\n{http}\r\n".encode() + body, **more)


def pages(count: int, first: int = 0) -> list[bytes]:
    return [response(f"http://site.org/{i}", PAGE + b"<!-- %d -->" % i * 40) for i in range(first, first + count)]


def read(tmp_path: Path, content: bytes, name: str = "x.warc", **settings) -> tuple[list[Record], list[LedgerRow]]:
    """What a folder with this one file gives."""
    for earlier in tmp_path.glob("x.*"):
        earlier.unlink()
    (tmp_path / name).write_bytes(content)
    return read_path(tmp_path, tmp_path, **settings)


def read_path(path: Path, scratch: Path, **settings) -> tuple[list[Record], list[LedgerRow]]:
    """What a file or folder gives."""
    config, context = SourceConfig(kind="warc", path=str(path), **settings), Context(0, 1, scratch)
    found = [item for shard in list_shards(config, context) for item in read_shard(shard, config, context)]
    return [i for i in found if isinstance(i, Record)], [i for i in found if isinstance(i, LedgerRow)]


def urls(records: list[Record]) -> list[str]:
    return [r.url.removeprefix("http://site.org/") for r in records]


def packed(*records: bytes) -> bytes:
    return b"".join(map(gzip.compress, records))


@pytest.mark.parametrize("pack", [lambda *r: b"".join(r), packed, lambda *r: gzip.compress(b"".join(r))])
def test_pages_of_plain_and_packed_archives(tmp_path, pack):
    info = record("warcinfo", "", b"software: a test\r\n")
    request = record("request", "http://site.org/0", b"GET / HTTP/1.1\r\n\r\n")
    records, rows = read(tmp_path, pack(info, request, *pages(3)))
    assert urls(records) == ["0", "1", "2"]
    assert rows == []
    first = records[0]
    assert (first.date, first.media, first.file) == ("2024-05-06T07:08:09Z", "html", "x.warc")
    assert first.content == PAGE + b"<!-- 0 -->" * 40


def test_position_is_the_offset_that_an_index_would_give(tmp_path):
    parts = [gzip.compress(part, mtime=0) for part in pages(3)]
    records, _ = read(tmp_path, b"".join(parts), "x.warc.gz")
    assert [r.position - 1 for r in records] == [0, len(parts[0]), len(parts[0]) + len(parts[1])]


def test_what_is_no_page_is_named_with_its_reason(tmp_path):
    archive = [
        response("http://site.org/moved", status="301 Moved"),
        response("http://site.org/image", http="Content-Type: image/png\r\n"),
        response("http://site.org/cut", extra="WARC-Truncated: length\r\n"),
        response("http://site.org/empty", b" \n"),
        response("http://site.org/big", b"x" * 5000),
        record("response", "http://site.org/nothing", b"no HTTP at all"),
        response("http://site.org/good"),
    ]
    records, rows = read(tmp_path, b"".join(archive), max_record_bytes=4000)
    assert urls(records) == ["good"]
    assert [r.rule for r in rows] == ["http_status", "not_text", "truncated_page", "empty_text", "too_long", "http_status"]
    assert (rows[0].score, rows[4].threshold) == (301.0, 4000.0)
    assert all(row.stage == "collect" and row.action == "dropped" and row.id.startswith("x.warc@") for row in rows)


def test_derived_text_is_read_as_text(tmp_path):
    text = record("conversion", "http://site.org/t", b"Plain words.", extra="Content-Type: text/plain\r\n")
    (found,), rows = read(tmp_path, packed(text), "x.wet.gz")
    assert (found.media, found.content, rows) == ("text", b"Plain words.", [])


# --- bodies ---


def body_of(tmp_path: Path, body: bytes, http: str, **settings) -> tuple[list, list]:
    records, rows = read(tmp_path, response("http://site.org/a", body, http=f"Content-Type: text/html\r\n{http}"), **settings)
    return [r.content for r in records], [r.rule for r in rows]


CHUNKED, GZIP, DEFLATE = "Transfer-Encoding: chunked\r\n", "Content-Encoding: gzip\r\n", "Content-Encoding: deflate\r\n"
CHUNKS = b"A\r\n0123456789\r\n5;x=y\r\nabcde\r\n0\r\n\r\n"
RAW_DEFLATE = zlib.compressobj(wbits=-15)
BARE = RAW_DEFLATE.compress(PAGE) + RAW_DEFLATE.flush()


@pytest.mark.parametrize(
    ("body", "http", "page"),
    [
        (CHUNKS, CHUNKED, b"0123456789abcde"),
        (PAGE, CHUNKED, PAGE),  # stored without its chunks
        (gzip.compress(PAGE, mtime=0), GZIP, PAGE),
        (gzip.compress(PAGE, mtime=0) + gzip.compress(PAGE, mtime=0), GZIP, PAGE * 2),
        (PAGE, GZIP, PAGE),  # stored unpacked
        (zlib.compress(PAGE), DEFLATE, PAGE),
        (BARE, DEFLATE, PAGE),
        (PAGE, DEFLATE, PAGE),
        (b"%x\r\n%s\r\n0\r\n\r\n" % (len(gzip.compress(PAGE, mtime=0)), gzip.compress(PAGE, mtime=0)), CHUNKED + GZIP, PAGE),
        (PAGE, "Content-Encoding: identity\r\n", PAGE),
    ],
)
def test_bodies_are_unpacked(tmp_path, body, http, page):
    assert body_of(tmp_path, body, http) == ([page], [])


@pytest.mark.parametrize(
    ("body", "http", "rule"),
    [
        (CHUNKS[:12], CHUNKED, "truncated_page"),
        (CHUNKS[:-5], CHUNKED, "truncated_page"),
        (gzip.compress(PAGE * 50, mtime=0)[:-20], GZIP, "truncated_page"),
        (gzip.compress(PAGE, mtime=0)[:-8] + bytes(8), GZIP, "damaged_page"),
        (gzip.compress(bytes(10_000_000), mtime=0), GZIP, "too_long"),
        (PAGE, "Content-Encoding: rot13\r\n", "unknown_encoding"),
    ],
)
def test_bodies_that_are_not_whole_are_named(tmp_path, body, http, rule):
    assert body_of(tmp_path, body, http, max_record_bytes=1_000_000) == ([], [rule])


def test_the_header_names_the_encoding_of_a_page(tmp_path):
    def charset(declared: str) -> str:
        return read(tmp_path, response("http://a", b"\xff", http=f"Content-Type: text/html; charset={declared}\r\n"))[0][
            0
        ].charset

    assert [charset(c) for c in ("ISO-8859-1", '"koi8-r"', "utf-8; x=y")] == ["iso-8859-1", "koi8-r", "utf-8"]


# --- damage ---


def damaged(tmp_path: Path, content: bytes, name: str) -> tuple[list[str], list[str]]:
    records, rows = read(tmp_path, content, name)
    assert all(row.detail for row in rows)
    return urls(records), [row.rule for row in rows]


def test_half_a_record_at_the_end(tmp_path):
    whole, last = pages(3), pages(1, first=3)[0]
    for cut in (5, 40, 150, len(last) - 100, len(last) - 5):
        found, rules = damaged(tmp_path, b"".join(whole) + last[:cut], "x.warc")
        assert (found, len(rules)) == (["0", "1", "2"], 1), cut
    last = gzip.compress(last, mtime=0)
    for cut in (1, 3, 9, 15, 60, len(last) - 20, len(last) - 1):
        found, rules = damaged(tmp_path, packed(*whole) + last[:cut], "x.warc")
        assert (found, len(rules)) == (["0", "1", "2"], 1), cut


def test_a_member_that_does_not_unpack_costs_its_record_alone(tmp_path):
    parts = [gzip.compress(part, mtime=0) for part in pages(5)]
    for at in (2, 12, 50, len(parts[2]) - 6):  # magic, deflate data, checksum
        broken = bytearray(parts[2])
        broken[at] ^= 0xFF
        broken[at + 1] ^= 0x55
        found, rules = damaged(tmp_path, b"".join([*parts[:2], bytes(broken), *parts[3:]]), "x.warc.gz")
        assert found == ["0", "1", "3", "4"], at
        assert rules == ["damaged_record"]


@pytest.mark.parametrize("junk", [b"junk\r\n\r\n" * 50, bytes(5000), b"\x1f\x8b\x08" * 100, b"WARC/1.0 is a format\r\n"])
def test_garbage_between_records_costs_none(tmp_path, junk):
    parts = pages(4)
    found, rules = damaged(tmp_path, b"".join([*parts[:2], junk, *parts[2:]]), "x.warc")
    assert (found, rules) == (["0", "1", "2", "3"], ["damaged_record"])
    found, rules = damaged(tmp_path, packed(*parts[:2]) + junk + packed(*parts[2:]), "x.warc.gz")
    assert found == ["0", "1", "2", "3"]
    assert len(rules) == 1


@pytest.mark.parametrize("length", [41, 60, 10**5, 10**9, 10**15, -5, "many", ""])
def test_a_wrong_length_costs_its_record_alone(tmp_path, length):
    wrong = response("http://site.org/wrong", length=length)
    parts = pages(4)
    for pack in (lambda *r: b"".join(r), packed):
        for archive in (pack(*parts[:2], wrong, *parts[2:]), pack(*parts, wrong)):
            found, rules = damaged(tmp_path, archive, "x.warc")
            assert (found, len(rules)) == (["0", "1", "2", "3"], 1), rules


def test_a_header_without_end_costs_its_record_alone(tmp_path):
    parts = pages(2)
    endless = response("http://site.org/" + "a" * 300_000)
    assert damaged(tmp_path, parts[0] + endless + parts[1], "x.warc")[0] == ["0", "1"]


def test_a_folder_reads_on_where_one_file_is_no_archive(tmp_path):
    (tmp_path / "a.warc.gz").write_bytes(b"<html>no archive</html>")
    (tmp_path / "b.warc").write_bytes(b"")
    (tmp_path / "c.warc.gz").write_bytes(bytes(10_000))
    records, rows = read(tmp_path, b"".join(pages(2)), "d.warc")
    assert urls(records) == ["0", "1"]
    assert [(row.id.partition("@")[0], row.rule) for row in rows] == [
        ("a.warc.gz", "damaged_record"), ("b.warc", "empty_file"), ("c.warc.gz", "damaged_record"),
    ]  # fmt: skip


def test_one_file_by_name_that_is_no_archive_is_refused(tmp_path):
    path = tmp_path / "x.warc"
    path.write_bytes(b"<html>no archive</html>")
    with pytest.raises(UserError, match="is it a whole WARC file"):
        read_path(path, tmp_path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="is empty"):
        read_path(path, tmp_path)
    path.write_bytes(pages(1)[0] + b"junk")
    records, rows = read_path(path, tmp_path)
    assert (len(records), len(rows)) == (1, 1)


def test_any_cut_and_any_flipped_byte_ends_with_pages_and_rows(tmp_path):
    """No exception and no hang, and at most the damaged record and its neighbour are lost."""
    parts = [packed(page) for page in pages(4)]
    archive = b"".join(parts)
    for at in range(3, len(archive), 7):
        flipped = bytearray(archive)
        flipped[at] ^= 0x41
        records, rows = read(tmp_path, bytes(flipped), "x.warc.gz")
        assert urls(records) == sorted(urls(records))
        assert len(records) == 4 or (len(records) == 3 and len(rows) == 1)
        records, rows = read(tmp_path, archive[:at], "x.warc.gz")
        whole = sum(at >= sum(map(len, parts[: i + 1])) for i in range(4))
        assert urls(records) == ["0", "1", "2", "3"][:whole]
        assert len(rows) == 1
