"""Sources: the python source shows no trace of this machine; users' files are read, and bad ones named."""

import gzip
import json
import re
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from herd.config.errors import UserError
from herd.config.loader import compose, load
from herd.curation.config import CurateConfig, SourceConfig
from herd.curation.sources import Collected, Context, load_sources
from herd.curation.sources import collect as collect_all
from herd.curation.sources import python as python_source


def collect(config: SourceConfig, scratch: Path) -> Collected:
    return collect_all(config, Context(0, 1, scratch))


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


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "html"])
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


def test_truncated_files_end_with_one_line(tmp_path):
    packed = gzip.compress(b'{"text": "one"}\n' * 10_000)
    (tmp_path / "x.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(UserError, match="truncated or damaged"):
        collect(SourceConfig(kind="jsonl", path=str(tmp_path / "x.jsonl.gz")), tmp_path)
    packed = pa.Codec("zstd").compress(b"".join(b'{"text": "%d"}\n' % i for i in range(9999)), asbytes=True)
    (tmp_path / "x.jsonl.zst").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(UserError, match="truncated or damaged"):
        collect(SourceConfig(kind="jsonl", path=str(tmp_path / "x.jsonl.zst")), tmp_path)
    pq.write_table(pa.table({"text": ["one", "two"]}), tmp_path / "x.parquet")
    whole = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "x.parquet").write_bytes(whole[:-20])
    with pytest.raises(UserError, match="not a whole Parquet file"):
        collect(SourceConfig(kind="parquet", path=str(tmp_path / "x.parquet")), tmp_path)


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


def test_hub_rows_are_streamed(tmp_path, monkeypatch):
    import types

    def load_dataset(path, subset, split, streaming, revision):
        assert (path, subset, split, streaming, revision) == ("a/b", None, "train", True, COMMIT)
        return ({"text": f"row {i}"} for i in range(10**9))

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    found = collect(SourceConfig(kind="hub", path="a/b", revision=COMMIT, limit_documents={"general": 3}), tmp_path)
    assert [r.content for r in found.records] == ["row 0", "row 1", "row 2"]


# --- configuration ---


@pytest.mark.parametrize("kind", ["python", "jsonl", "parquet", "html", "hub"])
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
