"""Sources: the python source shows no trace of this machine; users' files are read, and bad ones named."""

import gzip
import json
import os
import pickle
import re
import subprocess
import sys
import types
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from herd.config.errors import UserError
from herd.config.loader import compose, load
from herd.curation.config import CurateConfig, SourceConfig
from herd.curation.documents import Record
from herd.curation.ledger import LedgerRow
from herd.curation.sources import Context, list_shards, load_sources, read_shard
from herd.curation.sources import python as python_source
from herd.curation.sources.hub import commit_of
from herd.curation.sources.streams import line_ranges, lines


@dataclass
class Collected:
    """Everything that a source gives."""

    records: list[Record]
    problems: list[LedgerRow]


def collect(config: SourceConfig, scratch: Path) -> Collected:
    """All shards in order."""
    context = Context(0, 1, scratch)
    found = [item for shard in list_shards(config, context) for item in read_shard(shard, config, context)]
    return Collected([i for i in found if isinstance(i, Record)], [i for i in found if isinstance(i, LedgerRow)])


# --- python ---


def introspect(tmp_path: Path, modules: list[str], config: SourceConfig | None = None) -> list[dict]:
    job = python_source._job("pages", "some", "", modules)
    python_source._introspect([job], config or SourceConfig(), Context(0, 1, tmp_path))
    return list(python_source._rows(tmp_path / python_source._file_name(job)))


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    return introspect(tmp_path_factory.mktemp("pages"), ["json", "http.client", "cgi" if sys.version_info < (3, 13) else "os"])


def test_pages_hold_documentation_but_nothing_of_this_machine(pages):
    html = "".join(row["html"] for row in pages if row["type"] == "page")
    assert "Serialize&nbsp;``obj``" in html
    assert not re.search(r"0x[0-9a-f]{6,}", html)
    for secret in (sys.base_prefix, str(Path.home()), "PYTHONHASHSEED"):
        assert secret == "/" or secret not in html


def test_pages_are_the_same_in_another_process_and_company(pages, tmp_path):
    again = introspect(tmp_path, ["http.client"])
    assert [r for r in again if r["module"] == "http.client"] == [r for r in pages if r["module"] == "http.client"]


def test_objects_carry_names_signatures_and_docs(pages):
    objects = {f"{r['module']}.{r['name']}": r for r in pages if r["type"] == "object"}
    assert objects["json.dumps"]["signature"].startswith("(obj, *, skipkeys=False")
    assert objects["http.client.HTTPConnection.request"]["signature"].startswith("(method, url")  # without self
    assert objects["json.loads"]["doc"].startswith("Deserialize")


def test_a_module_that_cannot_be_imported_is_a_problem_with_a_reason(tmp_path):
    rows = introspect(tmp_path, ["json", "no_such_module_anywhere"])
    problems = [r for r in rows if r["type"] == "problem"]
    assert [(p["module"], p["rule"]) for p in problems] == [("no_such_module_anywhere", "import_failed")]
    assert "ModuleNotFoundError" in problems[0]["detail"]


@pytest.mark.parametrize(
    ("code", "rule"),
    [("import os; os._exit(3)", "introspection_failed"), ("raise SystemExit(1)", "import_failed"), ("1/0", "import_failed")],
)
def test_a_package_that_dies_leaves_the_others(tmp_path, monkeypatch, code, rule):
    (tmp_path / "hostile_module.py").write_text(code, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    rows = introspect(tmp_path, ["json", "hostile_module"])
    assert [r["module"] for r in rows if r["type"] == "page"] == ["json"]
    assert [r["rule"] for r in rows if r["type"] == "problem"] == [rule]


def test_a_package_that_hangs_is_given_up(tmp_path, monkeypatch):
    (tmp_path / "hanging_module.py").write_text("import time\nprint('noise')\ntime.sleep(60)", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    rows = introspect(tmp_path, ["hanging_module"], SourceConfig(timeout_seconds=2))
    assert [r["rule"] for r in rows] == ["introspection_failed"]
    assert "timeout_seconds = 2" in rows[0]["detail"]


def test_docstring_documents_name_the_function_once():
    row = {"module": "numpy", "name": "absolute", "owner": "absolute", "signature": "", "doc": "absolute(x, /)\n\nValue."}
    assert python_source.docstring_record(row).content == "numpy.absolute(x, /)\n\nValue.\n"
    row |= {"signature": "(x)", "doc": "Value."}
    assert python_source.docstring_record(row).content == "numpy.absolute(x)\n\nValue.\n"


def test_standard_modules_leave_out_what_acts_or_tests():
    names = python_source.standard_modules()
    assert {"json", "json.decoder", "sys", "xml.etree.ElementTree"} <= set(names)
    for name in names:
        parts = name.split(".")
        assert not {"antigravity", "this", "idlelib", "test", "tests", "turtledemo", "__main__"}.intersection(parts)


def test_multilingual_sample_has_eight_languages_with_several_documents():
    records = list(python_source._multilingual())
    by_language: dict[str, list[str]] = {}
    for record in records:
        by_language.setdefault(record.language, []).append(record.content)
    assert sorted(by_language) == ["de", "en", "es", "fr", "hi", "it", "pt", "th"]
    for texts in by_language.values():
        assert len(texts) >= 6
        assert len("".join(texts).encode("utf-8")) > 4000
        assert len(set(texts)) == len(texts)
    assert len("".join(r.content for r in records).encode("utf-8")) > 40_000


# --- files ---


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_jsonl_with_own_column_names(tmp_path):
    rows = [
        {"body": "eins", "link": "http://a", "when": "2024", "lang": "de", "topic": "multilingual", "site": "s1"},
        {"body": "two", "link": None, "topic": "code"},
    ]
    config = SourceConfig(
        kind="jsonl", path=str(write_jsonl(tmp_path / "x.jsonl", rows)), text_column="body", url_column="link",
        date_column="when", language_column="lang", domain_column="topic", group_column="site", media="code",
    )  # fmt: skip
    first, second = collect(config, tmp_path).records
    assert (first.content, first.url, first.date, first.language) == ("eins", "http://a", "2024", "de")
    assert (first.domain, first.group, first.media) == ("multilingual", "row:s1", "code")
    assert (second.url, second.language, second.domain, second.group) == ("", "en", "code", "")


def test_gzip_of_several_members_and_padding(tmp_path):
    rows = [json.dumps({"text": f"row {i} " + "x" * (i % 5000)}).encode() + b"\n" for i in range(700)]
    content = b"".join(gzip.compress(b"".join(rows[i : i + 100])) for i in range(0, 700, 100)) + bytes(2_000_000)
    (tmp_path / "x.jsonl.gz").write_bytes(content)
    found = collect(SourceConfig(kind="jsonl", path=str(tmp_path)), tmp_path)
    assert [json.dumps({"text": r.content}).encode() + b"\n" for r in found.records] == rows
    assert found.problems == []


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_compressed_jsonl_and_folders(tmp_path, suffix):
    raw = b'{"text": "one"}\n{"text": "two"}\n'
    if suffix.endswith("gz"):
        raw = gzip.compress(raw)
    elif suffix.endswith("zst"):
        raw = pa.Codec("zstd").compress(raw, asbytes=True)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / f"part{suffix}").write_bytes(raw)
    found = collect(SourceConfig(kind="jsonl", path=str(tmp_path)), tmp_path)
    assert [r.content for r in found.records] == ["one", "two"]


def test_one_bad_line_costs_one_document(tmp_path):
    good = json.dumps({"text": "good"}).encode()
    lines = [
        good,
        b'{"text": "caf\xe9"}',
        b"[1]",
        b'{"text": ""}',
        b'{"other": 1}',
        b'{"text": "t", "d": "art"}',
        b'{"text": "cut o',
    ]
    (tmp_path / "x.jsonl").write_bytes(b"\n".join(lines))
    found = collect(SourceConfig(kind="jsonl", path=str(tmp_path / "x.jsonl"), domain_column="d"), tmp_path)
    assert [r.content for r in found.records] == ["good"]
    assert [(p.id, p.rule) for p in found.problems] == [
        ("x.jsonl:2", "not_utf8"), ("x.jsonl:3", "not_an_object"), ("x.jsonl:4", "empty_text"),
        ("x.jsonl:5", "no_text"), ("x.jsonl:6", "unknown_domain"), ("x.jsonl:7", "not_json"),
    ]  # fmt: skip
    assert all(p.action == "dropped" and p.detail for p in found.problems)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "html", "warc"])
def test_missing_and_empty_inputs_end_with_one_line(tmp_path, kind):
    with pytest.raises(UserError, match=r"source\.path: name the"):
        collect(SourceConfig(kind=kind), tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        collect(SourceConfig(kind=kind, path=str(tmp_path / "absent")), tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="holds no"):
        collect(SourceConfig(kind=kind, path=str(tmp_path / "folder")), tmp_path)
    empty = tmp_path / f"empty.{kind}"
    empty.write_bytes(b"")
    with pytest.raises(UserError, match="empty"):
        collect(SourceConfig(kind=kind, path=str(empty)), tmp_path)


def broken_files(folder: Path) -> None:
    """One truncated archive of each kind that sources read."""
    packed = gzip.compress(b"".join(b'{"text": "one %d"}\n' % i for i in range(30_000)))
    (folder / "x.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    packed = pa.Codec("zstd").compress(b"".join(b'{"text": "%d"}\n' % i for i in range(9999)), asbytes=True)
    (folder / "y.jsonl.zst").write_bytes(packed[: len(packed) // 2])
    pq.write_table(pa.table({"text": ["one", "two"]}), folder / "x.parquet")
    (folder / "x.parquet").write_bytes((folder / "x.parquet").read_bytes()[:-20])


def test_one_truncated_file_by_name_ends_with_one_line(tmp_path):
    broken_files(tmp_path)
    for name in ("x.jsonl.gz", "y.jsonl.zst"):
        with pytest.raises(UserError, match="archive is truncated"):
            collect(SourceConfig(kind="jsonl", path=str(tmp_path / name)), tmp_path)
    with pytest.raises(UserError, match="not a whole Parquet file"):
        collect(SourceConfig(kind="parquet", path=str(tmp_path / "x.parquet")), tmp_path)


def test_truncated_files_of_a_folder_are_rows_and_the_others_are_read(tmp_path):
    broken_files(tmp_path)
    write_jsonl(tmp_path / "z.jsonl", [{"text": "whole"}])
    (tmp_path / "empty.jsonl").write_bytes(b"")
    (tmp_path / "folder.jsonl").mkdir()
    found = collect(SourceConfig(kind="jsonl", path=str(tmp_path)), tmp_path)
    texts = [r.content for r in found.records]
    before = texts.index("whole")
    assert before > 1000
    assert texts[:before] == [f"one {i}" for i in range(before)]  # what stands before the damage is kept
    assert [(p.id, p.rule) for p in found.problems] == [
        ("empty.jsonl:1", "empty_file"), (f"x.jsonl.gz:{before + 1}", "truncated_file"), ("y.jsonl.zst:1", "truncated_file"),
    ]  # fmt: skip
    pq.write_table(pa.table({"text": ["whole"]}), tmp_path / "z.parquet")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "y.parquet")
    found = collect(SourceConfig(kind="parquet", path=str(tmp_path)), tmp_path)
    assert [r.content for r in found.records] == ["whole"]
    assert [(p.id, p.rule) for p in found.problems] == [("x.parquet:1", "damaged_file"), ("y.parquet:1", "empty_file")]


def test_gzip_with_a_flipped_byte_keeps_what_stands_before(tmp_path):
    rng = np.random.default_rng(0)
    packed = bytearray(gzip.compress(b"".join(b'{"text": "%d"}\n' % i for i in rng.integers(0, 2**60, 40_000))))
    packed[len(packed) // 2] ^= 0xFF
    (tmp_path / "x.jsonl.gz").write_bytes(packed)
    found = collect(SourceConfig(kind="jsonl", path=str(tmp_path)), tmp_path)
    assert len(found.records) > 10_000
    assert found.problems[-1].rule in ("damaged_file", "truncated_file")


# --- shards ---


def whole(config: SourceConfig, scratch: Path) -> list:
    """Records and rows of all shards, read in reverse order of the shards, then put in order: no shard depends on another."""
    context = Context(0, 1, scratch)
    parts = {shard.key: list(read_shard(shard, config, context)) for shard in reversed(list_shards(config, context))}
    return [item for key in reversed(parts) for item in parts[key]]


def mixed_rows(count: int) -> list[dict]:
    rng = np.random.default_rng(1)
    domains = ("general", "code", "maths")
    return [{"text": f"row {i} " + "x" * int(rng.integers(0, 200)), "d": domains[i % 3]} for i in range(count)]


@pytest.mark.parametrize("limits", [{}, {"limit_documents": {"code": 7, "maths": 70}}, {"limit_characters": {"general": 5_000}}])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_how_a_file_is_cut_changes_nothing(tmp_path, kind, limits):
    rows = mixed_rows(300)
    for half in range(2):
        part = rows[half * 150 : half * 150 + 150]
        if kind == "jsonl":
            lines = [json.dumps(row).encode() + b"\n" for row in part]
            lines.insert(40, b"not json\n\n")
            (tmp_path / f"{half}.jsonl").write_bytes(b"".join(lines)[:-1])  # no line feed at the end
        else:
            pq.write_table(pa.Table.from_pylist(part), tmp_path / f"{half}.parquet", row_group_size=20)
    read = {}
    for size in (1, 100, 1_000, 7_777, 10**9):
        config = SourceConfig(kind=kind, path=str(tmp_path), domain_column="d", shard_bytes=size, **limits)
        read[size] = whole(config, tmp_path)
        shards = list_shards(config, Context(0, 1, tmp_path))
        assert pickle.loads(pickle.dumps(shards)) == shards
        assert len(shards) == 2 or size < 10**9
    assert all(items == read[1] for items in read.values())
    records = [item for item in read[1] if not isinstance(item, LedgerRow)]
    assert [r.position for r in records if r.file.startswith("0")] == sorted(
        r.position for r in records if r.file.startswith("0")
    )
    if not limits:
        assert [r.content for r in records] == [row["text"] for row in rows]
    if "limit_documents" in limits:
        assert Counter(r.domain for r in records) == {"general": 100, "code": 7, "maths": 70}


def test_a_file_is_cut_at_line_starts(tmp_path):
    content = b"".join(b"%0*d\n" % (n % 37 + 1, n) for n in range(500))
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    for size in (1, 10, 333, 5_000, 10**6):
        ranges = line_ranges(path, size)
        assert b"".join(content[start:stop] for start, stop, _ in ranges) == content
        assert all(start == 0 or content[start - 1 : start] == b"\n" for start, _, _ in ranges)
        assert [first for _, _, first in ranges] == [content[:start].count(b"\n") + 1 for start, _, _ in ranges]
        assert all(stop - start >= size for start, stop, _ in ranges[:-1])


def test_lines_are_cut_in_bounded_memory():
    rng = np.random.default_rng(2)
    for _ in range(200):
        content = bytes(rng.choice(list(b"ab\n"), int(rng.integers(0, 60))).tolist())
        at = sorted(rng.integers(0, len(content) + 1, 5).tolist())
        blocks = [content[a:b] for a, b in pairwise([0, *at, len(content)])]
        wanted = [len(line) if len(line) > 6 else line for line in content.split(b"\n")]
        if content.endswith(b"\n") or not content:
            wanted.pop()
        assert list(lines(iter(blocks), 6)) == wanted


def test_one_line_of_200_megabytes_costs_itself_and_no_memory(tmp_path):
    path = tmp_path / "x.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "before"}\n{"text": "')
        for _ in range(200):
            file.write(b"a" * 1_000_000)
        file.write(b'"}\n{"text": "after"}\n')
    code = (
        "import resource, sys\nfrom pathlib import Path\n"
        "from herd.curation.sources import Context, SourceConfig, list_shards, read_shard\n"
        "config = SourceConfig(kind='jsonl', path=sys.argv[1])\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "context = Context(0, 1, Path('.'))\n"
        "found = [i for shard in list_shards(config, context) for i in read_shard(shard, config, context)]\n"
        "print([i.content if hasattr(i, 'content') else (i.id, i.rule, i.score) for i in found])\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=120, check=True)
    found, grown = run.stdout.splitlines()
    assert found == "['before', ('x.jsonl:2', 'too_long', 200000012.0), 'after']"
    assert int(grown) < 120  # MB: the longest line that is kept has 50


def test_nuls_and_other_encodings_are_named(tmp_path):
    lines = [
        b'\xef\xbb\xbf{"text": "byte-order mark"}', bytes(100), '{"text": "utf-16"}'.encode("utf-16"), b'{"text": "nul \\u0000"}',
        b'{"text": 1' + b"0" * 10_000 + b"}", b"[" * 100_000, b'{"text": "\\ud800", "url": "http://a/\\udfff"}',
    ]  # fmt: skip
    (tmp_path / "x.jsonl").write_bytes(b"\n".join(lines))
    found = collect(SourceConfig(kind="jsonl", path=str(tmp_path)), tmp_path)
    assert [r.content for r in found.records] == ["byte-order mark", "nul \x00", "\ud800"]
    assert found.records[2].url == "http://a/?"
    assert [p.rule for p in found.problems] == ["not_json", "not_utf8", "not_json", "not_json"]


def test_names_that_are_not_utf8_can_be_written_to_the_ledger(tmp_path):
    folder = os.fsencode(tmp_path)
    with open(folder + b"/caf\xe9.html", "wb") as file:
        file.write(b"<p>a</p>")
    (record,) = collect(SourceConfig(kind="html", path=str(tmp_path)), tmp_path).records
    assert (record.file, record.url) == ("caf\\xe9.html", "file:///caf\\xe9.html")


def test_pages_are_grouped_and_packed_ones_unpacked_no_further_than_the_limit(tmp_path):
    for i in range(2_100):
        (tmp_path / f"{i:04d}.html").write_text(f"<p>{i}</p>", encoding="utf-8")
    (tmp_path / "zz.html.gz").write_bytes(gzip.compress(bytes(100_000_000), 1))
    config = SourceConfig(kind="html", path=str(tmp_path), max_record_bytes=1_000_000)
    shards = list_shards(config, Context(0, 1, tmp_path))
    assert [len(shard.members) for shard in shards] == [1000, 1000, 101]
    found = whole(config, tmp_path)
    assert [r.content for r in found[:-1]] == [b"<p>%d</p>" % i for i in range(2_100)]
    assert (found[-1].id, found[-1].rule) == ("zz.html.gz", "too_long")


def test_parquet_reads_named_columns_and_names_the_nearest(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"content": ["one", None], "url": ["http://a", "http://b"]}), path)
    found = collect(SourceConfig(kind="parquet", path=str(path), text_column="content"), tmp_path)
    assert [(r.content, r.url) for r in found.records] == [("one", "http://a")]
    assert [p.rule for p in found.problems] == ["no_text"]
    with pytest.raises(UserError, match="Did you mean 'content'"):
        collect(SourceConfig(kind="parquet", path=str(path), text_column="contents"), tmp_path)


def test_html_folder_reads_pages_and_names_damaged_ones(tmp_path):
    (tmp_path / "a.html").write_text("<p>a</p>", encoding="utf-8")
    (tmp_path / "b.html.gz").write_bytes(gzip.compress(b"<p>b</p>" * 1000)[:30])
    (tmp_path / "c.HTM").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no page", encoding="utf-8")
    found = collect(SourceConfig(kind="html", path=str(tmp_path)), tmp_path)
    assert [(r.url, r.content, r.media) for r in found.records] == [("file:///a.html", b"<p>a</p>", "html")]
    assert [(p.id, p.rule) for p in found.problems] == [("b.html.gz", "truncated_file"), ("c.HTM", "empty_file")]


def test_limits_count_documents_and_characters_per_domain(tmp_path):
    rows = [{"text": "x" * 10, "d": "code"}] * 5 + [{"text": "y" * 10, "d": "maths"}] * 5
    path = str(write_jsonl(tmp_path / "x.jsonl", rows))
    limits = {"limit_documents": {"code": 2}, "limit_characters": {"maths": 25}}
    found = collect(SourceConfig(kind="jsonl", path=path, domain_column="d", **limits), tmp_path)
    assert [r.domain for r in found.records] == ["code"] * 2 + ["maths"] * 3


COMMIT = "0123456789abcdef" * 2 + "01234567"


def test_hub_without_its_extra_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"herd\[hub\]"):
        collect(SourceConfig(kind="hub", path="someone/something"), tmp_path)


def test_hub_needs_a_commit_and_says_how_to_pin_one(monkeypatch):
    asked = []

    class HfApi:
        def dataset_info(self, path, revision):
            asked.append((path, revision))
            if path == "a/absent":
                raise OSError("404 Client Error.\nRepository Not Found")
            return types.SimpleNamespace(sha=COMMIT)

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(HfApi=HfApi))
    commit_of.cache_clear()
    fingerprint = load_sources().get("hub").fingerprint
    assert fingerprint(SourceConfig(kind="hub", path="a/b", revision=COMMIT[::-1])) == {"commit": COMMIT[::-1]}
    assert asked == []  # a pinned commit needs no network
    assert fingerprint(SourceConfig(kind="hub", path="a/b", revision="main")) == {"commit": COMMIT}
    with pytest.raises(UserError, match=r"404 Client Error.*source\.revision=<40 hex digits>"):
        fingerprint(SourceConfig(kind="hub", path="a/absent"))
    commit_of.cache_clear()


def test_hub_reads_a_data_set_of_several_files_shard_by_shard(tmp_path):
    pytest.importorskip("datasets", reason="the extra `hub` is not installed")
    folder = tmp_path / "data"
    folder.mkdir()
    for i in range(3):
        write_jsonl(folder / f"part-{i}.jsonl", [{"text": f"{i} {j}"} for j in range(4)])
    config = SourceConfig(kind="hub", path=str(folder))
    assert len(list_shards(config, Context(0, 1, tmp_path))) == 3
    assert [r.content for r in whole(config, tmp_path)] == [f"{i} {j}" for i in range(3) for j in range(4)]
    config = SourceConfig(kind="hub", path=str(folder), limit_documents={"general": 6})
    assert [r.content for r in whole(config, tmp_path)] == ["0 0", "0 1", "0 2", "0 3", "1 0", "1 1"]


def test_hub_rows_are_streamed(tmp_path, monkeypatch):
    def load_dataset(path, subset, split, streaming, revision):
        assert (path, subset, split, streaming, revision) == ("a/b", None, "train", True, COMMIT)
        return ({"text": f"row {i}"} for i in range(10**9))

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    found = collect(SourceConfig(kind="hub", path="a/b", revision=COMMIT, limit_documents={"general": 3}), tmp_path)
    assert [r.content for r in found.records] == ["row 0", "row 1", "row 2"]


# --- configuration ---


@pytest.mark.parametrize("kind", ["python", "jsonl", "parquet", "html", "warc", "hub"])
def test_source_presets_compose(kind):
    from omegaconf import OmegaConf

    overrides = [f"source={kind}"] + ([] if kind == "python" else ["source.path=x"])
    tree = OmegaConf.to_container(compose("curate", overrides), resolve=True)
    schema = {name: tree[name] for name in tree if name not in ("run", "inputs")}
    config = load(CurateConfig, schema)
    assert config.source.kind == kind
    assert load_sources().get(kind)
    assert set(schema) == set(CurateConfig.__dataclass_fields__)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("split.share.general=0.7", "must lie in"),
        ("workers=0", "at least 1"),
        ("dedup.bands=60", "exceeds permutations"),
        ("dedup.line_domains=[poems]", "no domain"),
        ("classifier.drop_share=1.5", "must lie in"),
    ],
)
def test_impossible_values_are_refused(override, message):
    from omegaconf import OmegaConf

    tree = OmegaConf.to_container(compose("curate", [override]), resolve=True)
    with pytest.raises(UserError, match=message):
        load(CurateConfig, {name: tree[name] for name in tree if name not in ("run", "inputs")})
