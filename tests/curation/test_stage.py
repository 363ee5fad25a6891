"""The whole stage: artifact layout, accounting, no leak between the splits, deciding again, the default source."""

import json
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from herd.config.errors import UserError
from herd.curation.config import CurateConfig
from herd.curation.stage import STAGE, _difference, fingerprint
from herd.curation.text import ngram_hashes, word_hashes, words
from herd.runs.seeds import stream
from herd.runs.stage import Artifact, Inputs, StageRun, execute
from herd.runs.tables import shard_files

DOMAINS = ("general", "maths", "code", "multilingual")
COLUMNS = ["id", "url", "date", "language", "domain", "source", "file", "position", "text", "quality", "category"]


def run_stage(config: CurateConfig, folder: Path) -> dict:
    return STAGE.run(config, Inputs({}, {}), StageRun(folder, seed=config.seed))


def table(folder: Path, name: str) -> list[dict]:
    """All rows of a table in shards (`documents/train`) or in one file."""
    paths = [folder / name] if name.endswith(".parquet") else shard_files((folder / name).parent, Path(name).name)
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def out_of(folder: Path) -> list[dict]:
    return [row for split in ("train", "heldout") for row in table(folder, f"documents/{split}")]


VOWELS, CONSONANTS = "aeiou", "bcdfghklmnprst"


def sentence(rng) -> str:
    """A dozen made-up words between two English ones."""
    middle = ["".join(rng.choice(list(pair)) for pair in (CONSONANTS, VOWELS, CONSONANTS, VOWELS)) for _ in range(12)]
    return "The " + " ".join(middle) + " of that.\n"


def make_rows() -> list[dict]:
    """200 rows of four domains, with every kind of trouble in them."""
    rng = stream(0, "stage-test")
    rows: list[dict] = []
    for i in range(190):
        domain = DOMAINS[i % 4]
        language = "de" if domain == "multilingual" and i % 8 == 3 else "en"
        body = "".join(sentence(rng) for _ in range(12)) + ("Sign in to read more stories here\n" if i % 4 == 0 else "")
        rows.append({"text": body, "url": f"https://site.org/{i}", "date": "2024-01-01", "domain": domain, "lang": language})
    rows.append(rows[0] | {"date": "2020-01-01", "text": "An older version of the page.\n"})  # the same URL
    rows.append(rows[4] | {"url": "https://mirror.org/4", "date": "2023"})  # a copy elsewhere
    rows.append(rows[8] | {"url": "https://x.org/1", "text": "too short\n"})
    rows.append(rows[8] | {"url": "https://x.org/2", "text": "lorem ipsum dolor " * 40})
    rows.append(rows[8] | {"url": "https://x.org/3", "text": "word " * 300_000})  # absurdly long
    rows.append(rows[8] | {"url": "https://x.org/4", "text": "and that is the end, " * 60})
    rows.append(rows[8])  # the same record twice
    rows.append(rows[5] | {"url": "", "text": rows[5]["text"] + "Write to someone.real@company.org today.\n"})
    rows.append(rows[13] | {"url": "", "domain": "maths", "text": "".join(f"Own {sentence(rng)}" for _ in range(8))})
    passage = "".join(sentence(rng) for _ in range(3))
    for i in range(12, 36, 4):  # one passage in six documents: the line rule leaves six copies
        rows[i]["text"] += passage
    return rows


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """The rows in a file that ends in a line that is not UTF-8 and one that was cut off."""
    path = tmp_path_factory.mktemp("corpus") / "rows.jsonl"
    text = "".join(json.dumps(row) + "\n" for row in make_rows())
    path.write_bytes(text.encode("utf-8") + b'{"text": "caf\xe9"}\n{"text": "cut')
    return path


def overrides(corpus: Path, *more: str) -> list[str]:
    columns = ["source.domain_column=domain", "source.language_column=lang", "language.enabled=false", "partitions=3"]
    small = ["classifier.max_chunks=100", "classifier.features=4096", "kl.min_words=1000", "workers=1"]
    return ["source=jsonl", f"source.path={corpus}", *columns, *small, *more]


@pytest.fixture(scope="module")
def made(corpus, configure, tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("made")
    return folder, run_stage(configure(*overrides(corpus)), folder)


def test_layout(made):
    folder, metrics = made
    names = sorted(path.name for path in (folder / "documents").iterdir())
    assert names == [f"{split}-0000{i}-of-00003.parquet" for split in ("heldout", "train") for i in range(3)]
    for split in ("train", "heldout"):
        rows = table(folder, f"documents/{split}")
        assert pq.read_schema(folder / "documents" / f"{split}-00000-of-00003.parquet").names == COLUMNS
        assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)  # over all shards
        assert {row["domain"] for row in rows} == set(DOMAINS)
    out = out_of(folder)
    assert metrics["documents_out"] == len(out)
    assert metrics["characters_out"] == sum(len(row["text"]) for row in out)
    assert len(table(folder, "documents/train")) > 5 * len(table(folder, "documents/heldout"))
    entries = pq.read_table(folder / "entries.parquet").schema.names
    assert entries == ["id", "document_id", "split", "package", "name", "signature", "summary", "description", "parameters"]
    assert all(0 <= row["quality"] <= 1 for row in out if row["domain"] == "general")
    assert all(row["quality"] is None for row in out if row["domain"] == "maths")
    assert {row["file"] for row in out} == {"rows.jsonl"}
    assert 0.5 < metrics["classifier"]["auc"] <= 1


def test_every_document_that_came_in_is_kept_once_or_dropped_once(made):
    folder, metrics = made
    rows = table(folder, "ledger/ledger")
    final = [row for row in rows if row["action"] in ("kept", "dropped")]
    assert len(final) == len({row["id"] for row in final}) == metrics["documents_in"] == 199
    assert {row["id"] for row in final if row["action"] == "kept"} == {row["id"] for row in out_of(folder)}
    assert all(row["rule"] for row in rows)
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    problems = table(folder, "ledger/problems.parquet")
    assert sorted((row["id"], row["rule"]) for row in problems) == [
        ("rows.jsonl:200", "not_utf8"),
        ("rows.jsonl:201", "not_json"),
    ]


def test_each_trouble_has_its_rule(made):
    folder, _ = made
    rows = table(folder, "ledger/ledger")
    rules = {row["rule"] for row in rows if row["action"] == "dropped"}
    assert {"duplicate_url", "near_duplicate", "min_characters", "text_too_long"} <= rules
    assert {"repeated_line", "pii"} <= {row["rule"] for row in rows if row["action"] == "edited"}
    out = {row["id"]: row for row in out_of(folder)}
    duplicates = [row for row in rows if row["rule"] in ("near_duplicate", "duplicate_url")]
    assert {row["duplicate_of"] for row in duplicates} <= {row["id"] for row in rows if row["action"] == "kept"}
    texts = "".join(row["text"] for row in out.values())
    assert "Sign in to read more" not in texts
    assert "company.org" not in texts
    twice = next(row["id"] for row in rows if row["id"].endswith(".000002"))
    assert [row["rule"] for row in rows if row["id"] == twice] == ["duplicate_url"]


def test_removed_lines_are_reported_with_their_text(made):
    folder, metrics = made
    lines = table(folder, "removed_lines.parquet")
    top = lines[0]
    assert (top["text"], top["copies"]) == ("Sign in to read more stories here", 48)
    assert [row["copies"] for row in lines] == sorted((row["copies"] for row in lines), reverse=True)
    edited = [row for row in table(folder, "ledger/ledger") if row["rule"] == "repeated_line"]
    assert sum(top["line"] in row["lines"] for row in edited) == 48
    assert metrics["lines_removed"] >= 48


def test_scores_hold_every_statistic_of_every_measured_document(made):
    folder, _ = made
    scores = table(folder, "scores/scores")
    measured = table(folder, "measured/documents")
    assert [row["id"] for row in scores] == [row["id"] for row in measured]
    assert len(scores) > len(out_of(folder))
    from herd.curation.measures import STATISTICS

    assert {*STATISTICS, "quality"} <= set(scores[0])
    assert any(row["kl"] > 0 for row in scores)
    for row, document in zip(scores, measured, strict=True):
        assert row["characters"] == len(document["text"])


def test_funnel_only_narrows_and_agrees_with_the_ledger(made):
    folder, metrics = made
    funnel = json.loads((folder / "funnel.json").read_text(encoding="utf-8"))
    steps = [row["step"] for row in funnel]
    assert steps == ["collected", "extract", "url", "document", "line", "quality", "classifier", "split"]
    for before, after in pairwise(funnel):
        assert before["documents"] - after["documents"] == sum(after["dropped"].values())
    assert funnel[0]["documents"] == metrics["documents_in"]
    assert funnel[-1]["documents"] == metrics["documents_out"]


def assert_no_leak(folder: Path, run_words: int = 25) -> None:
    train, heldout = (table(folder, f"documents/{split}") for split in ("train", "heldout"))
    assert heldout
    assert not {d["id"] for d in train} & {d["id"] for d in heldout}
    seen: set[int] = set()
    for document in train:
        seen.update(ngram_hashes(word_hashes(words(document["text"], document["language"])), run_words).tolist())
    for document in heldout:
        runs = ngram_hashes(word_hashes(words(document["text"], document["language"])), run_words)
        assert seen.isdisjoint(runs.tolist()), document["url"]


def test_splits_share_no_passage(made):
    assert_no_leak(made[0])


def test_groups_stay_on_one_side(configure, tmp_path):
    grouped = tmp_path / "grouped.jsonl"
    rows = make_rows()[:190]
    text = "".join(json.dumps(row | {"site": f"s{i // 7}"}) + "\n" for i, row in enumerate(rows))
    grouped.write_text(text, encoding="utf-8")
    shares = [f"split.share.{d}=0.2" for d in DOMAINS]
    run_stage(configure(*overrides(grouped, *shares, "source.group_column=site")), tmp_path / "out")
    sites = {f"https://site.org/{i}": f"s{i // 7}" for i in range(190)}
    sides = [{sites[d["url"]] for d in table(tmp_path / "out", f"documents/{s}")} for s in ("train", "heldout")]
    assert sides[1]
    assert not sides[0] & sides[1]


def test_nothing_left_is_said_in_one_line(configure, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"text": "short"}) + "\n", encoding="utf-8")
    config = configure("source=jsonl", f"source.path={path}", "workers=1", "classifier.enabled=false")
    with pytest.raises(UserError, match="No document is left"):
        run_stage(config, tmp_path / "out")
    config = replace(config, source=replace(config.source, kind="jsonls"))
    with pytest.raises(UserError, match=r"Unknown source 'jsonls'.*Did you mean 'jsonl'"):
        run_stage(config, tmp_path / "other")
    path.write_bytes(b"\xff\xfe\xff\n")
    with pytest.raises(UserError, match=r"gives no document; first problem at x\.jsonl:1"):
        run_stage(configure("source=jsonl", f"source.path={path}", "workers=1"), tmp_path / "third")


def test_fingerprint_follows_the_users_files(configure, tmp_path):
    path, blocked = tmp_path / "x.jsonl", tmp_path / "adult.txt"
    path.write_text('{"text": "one"}\n', encoding="utf-8")
    blocked.write_text("example.com\n", encoding="utf-8")
    config = configure("source=jsonl", f"source.path={path}", f"blocklists.adult=[{blocked}]")
    seen = [fingerprint(config)]
    for file, content in ((path, '{"text": "two"}\n'), (blocked, "example.org\n")):
        file.write_text(content, encoding="utf-8")
        seen.append(fingerprint(config))
    assert len({json.dumps(f, sort_keys=True) for f in seen}) == 3
    assert set(fingerprint(configure())) >= {"python", "numpy", "scipy", "sympy"}


def test_safety_language_routing_and_downsampling(configure, tmp_path):
    rows = make_rows()[:120]
    german = "Der Himmel über der Stadt war grau, und die Leute gingen schnell nach Hause, weil es bald regnen sollte. "
    rows.append({"text": german * 3, "url": "https://de.org/1", "date": "", "domain": "general", "lang": "en"})
    rows.append({"text": "x", "url": "https://adult.org/page", "date": "", "domain": "general", "lang": "en"})
    path, blocked, labels = tmp_path / "rows.jsonl", tmp_path / "adult.txt", tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    blocked.write_text("adult.org\n", encoding="utf-8")
    rng = stream(0, "labels")
    examples = [
        {"text": sentence(rng) * 3 + f"{kind} " * 20, "label": kind} for kind in ("art", "science", "sport") for _ in range(12)
    ]
    labels.write_text("".join(json.dumps(row) + "\n" for row in examples), encoding="utf-8")
    settings = ["language.enabled=true", f"blocklists.adult=[{blocked}]", f"classifiers.knowledge.examples={labels}"]
    settings += ["++downsampling.caps={art: 0.4, science: 0.4, sport: 0.4}", "downsampling.unit=documents", "rules=gopher"]
    metrics = run_stage(configure(*overrides(path, *settings, "classifier.enabled=false")), tmp_path / "out")
    ledger = table(tmp_path / "out", "ledger/ledger")
    by_url = {row["url"]: row["rule"] for row in ledger if row["action"] == "dropped"}
    assert by_url["https://adult.org/page"] == "blocked_adult"
    assert next(r["rule"] for r in ledger if r["url"] == "https://de.org/1") == "language"
    scores = {row["url"]: row for row in table(tmp_path / "out", "scores/scores")}
    assert (scores["https://de.org/1"]["language"], scores["https://de.org/1"]["domain"]) == ("de", "multilingual")
    assert {row["knowledge_class"] for row in scores.values()} <= {"art", "science", "sport", None}
    assert metrics["downsampling"]["unit"] == "documents"
    assert metrics["mix"]["weights"]
    assert metrics["classifiers"]["knowledge"]["classes"] == ["art", "science", "sport"]


# --- deciding again ---


@pytest.fixture(scope="module")
def stored(corpus, configure, tmp_path_factory) -> tuple[Path, Artifact]:
    root = tmp_path_factory.mktemp("runs")
    return root, execute(STAGE, configure(*overrides(corpus)), {}, root, "test")


def test_rethreshold_equals_a_whole_run_with_the_new_limits(stored, corpus, configure, tmp_path, monkeypatch):
    root, first = stored
    new = ["rules.general.min_characters=1100", "rules.maths.max_words=1000", "split.share.code=0.2", "classifier.drop_share=0.2"]
    whole = execute(STAGE, configure(*overrides(corpus, *new)), {}, tmp_path, "whole")

    def forbidden(*_: object) -> None:
        raise AssertionError("the text was read again")

    monkeypatch.setattr("herd.curation.pipeline.measure.measure", forbidden)
    monkeypatch.setattr("herd.curation.pipeline.extract.prepare", forbidden)
    again = execute(STAGE, configure(*overrides(corpus, *new, "rethreshold=true")), {"documents": first.path}, root, "again")
    assert again.metrics == whole.metrics
    for name in ("documents/train", "documents/heldout", "ledger/ledger", "scores/scores", "removed_lines.parquet"):
        assert table(again.path, name) == table(whole.path, name)
    assert len(out_of(again.path)) < len(out_of(first.path))
    assert not (again.path / "measured").exists()
    third = configure(*overrides(corpus, "rules.general.min_characters=1", "rethreshold=true"))
    with pytest.raises(UserError, match="it was itself decided from"):
        execute(STAGE, third, {"documents": again.path}, root, "third")


def test_rethreshold_refuses_what_the_scores_depend_on(stored, corpus, configure):
    root, first = stored
    for extra, message in (
        (["dedup.threshold=0.8", "rethreshold=true"], r"depend on 'dedup\.threshold'"),
        (["rules.line_rules=none", "rethreshold=true"], r"depend on 'rules\.line_rules'"),
        ([], "is for rethreshold=true"),
    ):
        with pytest.raises(UserError, match=message):
            execute(STAGE, configure(*overrides(corpus, *extra)), {"documents": first.path}, root, "x")
    with pytest.raises(UserError, match=r"needs inputs\.documents"):
        execute(STAGE, configure(*overrides(corpus, "rethreshold=true")), {}, root, "x")


def test_rethreshold_needs_no_source(stored, corpus, configure):
    """Nothing of it is read: the default source will do, whatever the documents came from."""
    root, first = stored
    plain = [setting for setting in overrides(corpus) if not setting.startswith("source")]
    again = execute(STAGE, configure("source=python", *plain, "rethreshold=true"), {"documents": first.path}, root, "plain")
    assert table(again.path, "documents/train") == table(first.path, "documents/train")


def test_values_of_what_is_off_do_not_matter_to_the_scores():
    off, on = {"enabled": False, "copies": 4}, {"enabled": True, "copies": 4}
    assert _difference({"coverage": off}, {"coverage": off | {"copies": 8}}, "") == ""
    assert _difference({"coverage": on}, {"coverage": on | {"copies": 8}}, "") == "coverage.copies"
    assert _difference({"coverage": off}, {"coverage": on}, "") == "coverage.enabled"


# --- the default source, in small ---

SMALL = (
    "source.maths_packages=[numpy]", "source.general_packages=[]", "source.limit_documents.general=50",
    "source.limit_documents.maths=400", "source.limit_documents.code=60", "split.share.maths=0.3", "classifier.max_chunks=200",
)  # fmt: skip


@pytest.fixture(scope="module")
def small(configure, tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("small")
    return folder, run_stage(configure(*SMALL, "workers=2"), folder)


def test_python_source_gives_four_domains_and_entries(small):
    _, metrics = small
    assert all(n > 0 for n in metrics["characters_by_domain"].values())
    assert all(metrics["heldout_documents_by_domain"][d] > 0 for d in DOMAINS)
    assert metrics["entries"]["heldout"] >= 60
    assert metrics["classifier"]["auc"] > 0.9


def test_python_source_shows_no_path_of_this_machine(small):
    for document in out_of(small[0]):
        assert sys.prefix not in document["text"], document["url"]
        assert sys.base_prefix == "/usr" or sys.base_prefix not in document["text"], document["url"]


def test_python_source_splits_share_no_passage(small):
    assert_no_leak(small[0])


def test_library_pages_and_their_sources_are_on_one_side(small):
    sides: dict[str, set[str]] = {}
    for split in ("train", "heldout"):
        for document in table(small[0], f"documents/{split}"):
            kind, _, name = document["url"].partition("://")
            if kind in ("pydoc", "source"):
                top = name.replace("/", ".").removesuffix(".py").split(".")[0]
                sides.setdefault(top.lstrip("_"), set()).add(split)
    assert {"train", "heldout"} == set().union(*sides.values())
    assert all(len(side) == 1 for side in sides.values())


def test_entries_point_at_their_documents_and_do_not_leak(small):
    folder, metrics = small
    home = {d["id"]: split for split in ("train", "heldout") for d in table(folder, f"documents/{split}")}
    entries = table(folder, "entries.parquet")
    assert len(entries) == sum(metrics["entries"].values())
    assert [e["id"] for e in entries] == sorted({e["id"] for e in entries})
    by_split: dict[str, list[dict]] = {"train": [], "heldout": []}
    for entry in entries:
        assert home[entry["document_id"]] == entry["split"]
        assert isinstance(json.loads(entry["parameters"]), list)
        by_split[entry["split"]].append(entry)
    for key in ("summary", "name"):
        assert not {e[key] for e in by_split["train"]} & {e[key] for e in by_split["heldout"]}
