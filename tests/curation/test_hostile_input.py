"""What curation was broken with: runs that make patterns quadratic, wrong encodings, cells, dates, addresses, archives."""

import datetime
import gzip
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from herd.curation.blocklists import load_blocklists
from herd.curation.config import ExtractionConfig, SourceConfig
from herd.curation.dates import canonical, microseconds, moment
from herd.curation.documents import Record
from herd.curation.extraction import Refusal, cost, decode, extract_html
from herd.curation.extraction.blocks import split_blocks
from herd.curation.extraction.extract import without_scripts
from herd.curation.extraction.formulas import mathml
from herd.curation.language_id import sample
from herd.curation.ledger import LedgerRow
from herd.curation.pipeline.extract import prepare
from herd.curation.sources import Context, content_hashes, list_shards, read_shard
from herd.curation.text import tidy
from herd.curation.urls import normalise_url

CONFIG = ExtractionConfig()
RUSSIAN = "<p>Привет мир, это текст страницы о погоде и о реках.</p>"


def read(folder: Path, kind: str, **settings) -> tuple[list[Record], list[LedgerRow]]:
    config, context = SourceConfig(kind=kind, path=str(folder), **settings), Context(0, 1, folder)
    found = [item for shard in list_shards(config, context) for item in read_shard(shard, config, context)]
    return [i for i in found if isinstance(i, Record)], [i for i in found if isinstance(i, LedgerRow)]


# --- time: each of these took minutes; a test that hangs is red by its time limit ---


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "work",
    [
        lambda n: tidy("a" + " " * n + "b"),
        lambda n: tidy("a" + "\t " * n + "b\n"),
        lambda n: without_scripts("<style></STYLE>" * n),
        lambda n: without_scripts("<script></scripT>" * n),
        lambda n: mathml("<annotation " * n),
        lambda n: mathml('<annotation encoding="application/x-tex">' * n),
        lambda n: mathml("<annotation>" * n),
        lambda n: mathml("<a" * n),
        lambda n: mathml("<" + "a" * n),
        lambda n: mathml("", "{\\displaystyle " + " " * n),
        lambda n: split_blocks('<td class="blob-code">' * n),
        lambda n: split_blocks("<p>" + "<td blob-code " * n + "</p>"),
        lambda n: sample("a@" * n),
    ],
)
def test_time_is_linear_in_a_run(work):
    work(300_000)


def test_trailing_blanks_go_and_others_stay():
    assert tidy("a  b \t\n  c\t \n \n\n\n d ") == "a  b\n  c\n\n d\n"


def test_the_nearest_end_counts_whatever_its_case():
    assert without_scripts("a<style>x</STYLE>b<script>y</ScRiPt >c<style>z</style>d") == "abcd"


def test_a_page_of_a_million_paragraphs_is_refused_by_count():
    refused = extract_html("<html><body>" + "<p>x" * 1_000_000 + "</body></html>", CONFIG)
    assert isinstance(refused, Refusal)
    assert (refused.rule, refused.score > refused.threshold) == ("too_slow", True)
    assert cost("<p>x" * 100, 10, 10**9).work == 100 * 215
    assert isinstance(extract_html("<html><body>" + "<p>A short line.</p>" * 20_000 + "</body></html>", CONFIG), str)


# --- encodings ---


@pytest.mark.parametrize(
    ("page", "charset", "rule"),
    [
        (RUSSIAN.encode("cp1251"), "utf-8", "undecodable"),
        (b'<meta charset="utf-8">' + RUSSIAN.encode("cp1251"), "", "undecodable"),
        (RUSSIAN.encode("cp1251"), "", "undecodable"),
        ("<p>Żółta gęś ścięła łąkę, co ją źle koszono.</p>".encode("cp1250"), "", "undecodable"),
        ("<p>Şişli'de ığdır ağacı, çöğür ve güneş.</p>".encode("cp1254"), "", "undecodable"),
        ("<p>日本語の文章です。</p>".encode("cp932"), "", "undecodable"),
        (b"<p>caf\xe9</p>", "no-such-charset", "unknown_encoding"),
    ],
)
def test_what_no_declared_encoding_fits_is_refused(page, charset, rule):
    found = decode(page, 0.01, charset=charset)
    assert isinstance(found, Refusal)
    assert found.rule == rule


@pytest.mark.parametrize(
    ("page", "charset", "text"),
    [
        (RUSSIAN.encode("cp1251"), "windows-1251", RUSSIAN),
        (b'<meta charset="windows-1251">' + RUSSIAN.encode("cp1251"), "utf-8", RUSSIAN),  # what it says itself still fits
        (RUSSIAN.encode(), "iso-8859-1", RUSSIAN),  # valid UTF-8 is UTF-8
        (b'<meta charset="utf-16">' + RUSSIAN.encode(), "", RUSSIAN),  # it was read as ASCII, so it is none
        (RUSSIAN.encode("utf-16-le"), "utf-16", RUSSIAN),
        ("日本語".encode("iso-2022-jp"), "iso-2022-jp", "日本語"),
        (b'<meta charset="gb2312">' + "这是网页镕".encode("gbk"), "", "这是网页镕"),
        ("“Ça va, garçon?” – l’été à Noël".encode("cp1252"), "", "“Ça va, garçon?” – l’été à Noël"),
        ("Ünïcode".encode("cp1252"), "ISO-8859-1", "Ünïcode"),
    ],
)
def test_what_is_declared_or_beyond_doubt_is_decoded(page, charset, text):
    assert decode(page, 0.01, charset=charset).endswith(text)


# --- URLs ---


def test_addresses_that_differ_in_a_byte_stay_apart():
    assert len({normalise_url(f"http://a/?l=%{byte:02X}") for byte in range(256)} - {"http://a"}) == 256
    assert normalise_url("http://x/a%2fb") == "http://x/a%2Fb" != normalise_url("http://x/a/b")
    assert normalise_url("http://例え.jp/ü?q=ü b") == normalise_url("https://xn--r8jz45g.jp/%C3%BC?q=%c3%bc+b")
    assert normalise_url("http://[2001:DB8::1]:80/x") == "http://[2001:db8::1]/x"


@given(
    st.sampled_from(["http://", "HTTPS://www.", "ftp://u@", "x-y://", ""]),
    st.text(max_size=12),
    st.text(
        st.one_of(st.characters(), st.sampled_from("/?%&=+;#2Ff\ud800\udce9")),
        max_size=30,
    ),
)
@example("http://", "www.www", "/\ud800?q=\udcff%zz%%34%31")
@example("http://", "a\u3002b\uff0ewww.", "//%2F/%25%2")
@example("http://", "xn--a", "/")
def test_normalising_any_address_twice_changes_nothing(scheme, host, rest):
    once = normalise_url(f"{scheme}{host}{rest}")
    assert normalise_url(once) == once


# --- cells of Parquet ---


def test_a_value_that_is_not_utf8_costs_its_own_row(tmp_path):
    values = [b"text %d" % i for i in range(1000)]
    values[256] = b"\xff\xfe bad"
    text = pa.array(values, pa.binary()).cast(pa.large_binary()).view(pa.large_string())
    pq.write_table(pa.table({"text": text, "date": pa.array([0] * 1000, pa.timestamp("ns"))}), tmp_path / "x.parquet")
    records, problems = read(tmp_path, "parquet")
    assert [r.content for r in records] == [v.decode() for v in values if b"bad" not in v]
    assert [(p.id, p.rule) for p in problems] == [("x.parquet:257", "not_utf8")]


def test_moments_that_python_does_not_know_are_read_or_named(tmp_path, configure):
    odd = pa.array([1_714_979_289_123_456_789, None], pa.timestamp("ns"))
    pq.write_table(pa.table({"text": ["one", "two"], "date": odd}), tmp_path / "a.parquet")
    far = pa.array([10**16, -(10**16)], pa.timestamp("ms"))
    pq.write_table(pa.table({"text": ["three", "four"], "date": far}), tmp_path / "b.parquet")
    records, problems = read(tmp_path, "parquet", date_column="date")
    assert not problems
    assert [r.date for r in records][:2] == ["2024-05-06T07:08:09.123456Z", ""]
    config = configure()
    outcome = [prepare(r, config, load_blocklists(config.blocklists)) for r in records]
    assert [[d["rule"] for d in o.decisions if d["rule"] == "unknown_date"] for o in outcome] == [[], [], *[["unknown_date"]] * 2]


# --- dates ---


@pytest.mark.parametrize(
    "written",
    [
        "2024-05-06T07:08:09Z", "2024-05-06T09:08:09+02:00", "2024-05-06 07:08:09", "2024-05-06 07:08:09 UTC", "20240506T070809Z",
        "1714979289", "1714979289.0", "1714979289000", "1714979289000000000", "20240506070809",
        "Mon, 06 May 2024 09:08:09 +0200", "Mon, 06 May 2024 07:08:09 GMT", "2024-05-06T07:08:09.000000000Z",
    ],
)  # fmt: skip
def test_one_moment_has_one_form(written):
    assert canonical(written) == "2024-05-06T07:08:09Z"


@pytest.mark.parametrize(
    "written", ["", "yesterday", "2024-13-01", "Mon, 40 Foo 2024", "12345", "9" * 18 + " s", "0001-01-01T00:00+05:00"]
)
def test_what_is_no_date_is_unknown(written):
    assert canonical(written) == ""


@given(st.datetimes(timezones=st.just(datetime.UTC)), st.datetimes(timezones=st.just(datetime.UTC)))
def test_dates_compare_as_moments(one, other):
    forms = [canonical(date.isoformat()) for date in (one, other)]
    assert [canonical(form) for form in forms] == forms
    assert np.sign(microseconds(forms[0]) - microseconds(forms[1])) == (one > other) - (one < other)
    assert microseconds("") < microseconds(forms[0])
    assert canonical(moment(microseconds(forms[0]), "us")) == forms[0]


@given(st.text(max_size=30))
def test_no_text_breaks_the_reading_of_dates(written):
    assert canonical(canonical(written)) == canonical(written)


# --- files ---


def test_a_name_that_is_not_utf8_is_fingerprinted(tmp_path):
    (tmp_path / os.fsdecode(b"p_\xff.jsonl")).write_text("{}")
    assert list(content_hashes(tmp_path)) == ["p_\\xff.jsonl"]


def test_reading_goes_on_behind_a_damaged_gzip_member(tmp_path):
    rng = np.random.default_rng(0)
    bodies = [b"".join(b'{"text": "%s"}\n' % rng.bytes(300).hex().encode() for _ in range(50)) for _ in range(5)]
    members = [bytearray(gzip.compress(body, mtime=0)) for body in bodies]
    members[1][len(members[1]) // 2] ^= 0xFF
    members[3] = members[3][: len(members[3]) // 2]  # cut off
    (tmp_path / "x.jsonl.gz").write_bytes(b"".join(members))
    records, problems = read(tmp_path, "jsonl")
    texts = {r.content for r in records}
    for whole in (0, 2, 4):
        assert all(line[10:-2].decode() in texts for line in bodies[whole].splitlines())
    damaged = [p for p in problems if p.rule == "damaged_file"]
    assert len(damaged) == 2
    assert len({p.id for p in problems}) == len(problems)


@pytest.mark.parametrize("together", [True, False])
def test_zeros_behind_the_last_packed_record_are_padding(tmp_path, together):
    body = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html><p>A page.</p></html>"
    head = b"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://a/%d\r\n"
    head += b"Content-Type: application/http; msgtype=response\r\nContent-Length: %d\r\n\r\n"
    records = [head % (i, len(body)) + body + b"\r\n\r\n" for i in range(3)]
    packed = gzip.compress(b"".join(records)) if together else b"".join(map(gzip.compress, records))
    (tmp_path / "x.warc.gz").write_bytes(packed + b"\0" * 512)
    found, problems = read(tmp_path, "warc")
    assert (len(found), problems) == (3, [])
