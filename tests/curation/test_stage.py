"""The whole stage: artifact layout, accounting, determinism for any number of workers, no leak between the splits."""

import json
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from herd.config.errors import UserError
from herd.config.loader import compose, load
from herd.curation.config import CurateConfig
from herd.curation.stage import STAGE, fingerprint
from herd.curation.text import ngram_hashes, word_hashes, words
from herd.runs.manifest import hash_outputs
from herd.runs.seeds import stream
from herd.runs.stage import Inputs, StageRun


def config_of(*overrides: str) -> CurateConfig:
    from omegaconf import OmegaConf

    tree = OmegaConf.to_container(compose("curate", overrides), resolve=True)
    return load(CurateConfig, {name: tree[name] for name in tree if name not in ("run", "inputs")})


def run_stage(config: CurateConfig, folder: Path) -> dict:
    return STAGE.run(config, Inputs({}, {}), StageRun(folder, seed=config.seed))


def table(folder: Path, name: str) -> list[dict]:
    return pq.read_table(folder / name).to_pylist()


VOWELS, CONSONANTS = "aeiou", "bcdfghklmnprst"


def sentence(rng) -> str:
    """A dozen made-up words between two English ones."""
    middle = ["".join(rng.choice(list(pair)) for pair in (CONSONANTS, VOWELS, CONSONANTS, VOWELS)) for _ in range(12)]
    return "The " + " ".join(middle) + " of that.\n"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """200 rows of four domains, with every kind of trouble in them."""
    rng = stream(0, "stage-test")
    rows: list[dict] = []
    for i in range(190):
        domain = ("general", "maths", "code", "multilingual")[i % 4]
        language = "de" if domain == "multilingual" and i % 8 == 3 else "en"
        body = "".join(sentence(rng) for _ in range(12)) + ("Sign in to read more stories here\n" if i % 4 == 0 else "")
        rows.append({"text": body, "url": f"https://site.org/{i}", "date": "2024-01-01", "domain": domain, "lang": language})
    rows.append(rows[0] | {"date": "2020-01-01", "text": "An older version of the page.\n"})  # the same URL
    rows.append(rows[4] | {"url": "https://mirror.org/4", "date": "2023"})  # a copy elsewhere
    rows.append(rows[8] | {"url": "https://x.org/1", "text": "too short\n"})
    rows.append(rows[8] | {"url": "https://x.org/2", "text": "lorem ipsum dolor " * 40})
    rows.append(rows[8] | {"url": "https://x.org/3", "text": "word " * 300_000})  # absurdly long
    rows.append(rows[8] | {"url": "https://x.org/4", "text": "and that is the end, " * 60})
    passage = "".join(sentence(rng) for _ in range(3))
    for i in range(12, 100, 4):  # one passage in many documents, six copies a line at most are left by the line rule
        if i < 36:
            rows[i]["text"] += passage
    path = tmp_path_factory.mktemp("corpus") / "rows.jsonl"
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(text.encode("utf-8") + b'{"text": "caf\xe9"}\n{"text": "cut')
    return path


def overrides(corpus: Path) -> list[str]:
    columns = ["source.domain_column=domain", "source.language_column=lang"]
    return ["source=jsonl", f"source.path={corpus}", *columns, "classifier.max_chunks=100", "classifier.features=4096"]


@pytest.fixture(scope="module")
def made(corpus, tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("made")
    return folder, run_stage(config_of(*overrides(corpus), "workers=1"), folder)


def test_layout(made):
    folder, metrics = made
    documents = {split: pq.read_table(folder / "documents" / f"{split}.parquet") for split in ("train", "heldout")}
    for part in documents.values():
        assert part.schema.names == ["id", "url", "date", "language", "domain", "source", "text", "quality"]
        assert str(part.schema.field("quality").type) == "float"
        ids = part["id"].to_pylist()
        assert ids == sorted(ids)
    assert metrics["documents_out"] == sum(part.num_rows for part in documents.values())
    assert metrics["characters_out"] == sum(len(t) for part in documents.values() for t in part["text"].to_pylist())
    assert set(documents["heldout"]["domain"].to_pylist()) == {"general", "maths", "code", "multilingual"}
    assert documents["train"].num_rows > 5 * documents["heldout"].num_rows
    entries = pq.read_table(folder / "entries.parquet").schema.names
    assert entries == ["id", "document_id", "split", "package", "name", "signature", "summary", "description", "parameters"]
    ledger = pq.read_table(folder / "ledger.parquet").schema.names
    assert ledger == ["id", "stage", "action", "rule", "score", "threshold", "duplicate_of", "detail"]
    quality = [d["quality"] for d in table(folder, "documents/train.parquet") if d["domain"] == "general"]
    assert all(0 <= q <= 1 for q in quality)
    assert 0.5 < metrics["classifier"]["auc"] <= 1


def test_every_document_that_came_in_is_kept_once_or_dropped_once(made):
    folder, metrics = made
    rows = table(folder, "ledger.parquet")
    final = [
        r for r in rows if r["action"] in ("kept", "dropped") and r["stage"] != "collect" and not r["id"].startswith("line:")
    ]
    assert len(final) == len({r["id"] for r in final}) == metrics["documents_in"]
    kept = {r["id"] for r in final if r["action"] == "kept"}
    out = {d["id"] for split in ("train", "heldout") for d in table(folder, f"documents/{split}.parquet")}
    assert kept == out
    assert all(r["rule"] for r in rows)
    assert {r["rule"] for r in rows if r["stage"] == "collect"} == {"not_utf8", "not_json"}


def test_each_trouble_has_its_rule(made):
    folder, _ = made
    rules = {r["rule"] for r in table(folder, "ledger.parquet") if r["action"] == "dropped"}
    expected = {"duplicate_url", "near_duplicate", "min_characters", "max_placeholders", "text_too_long", "repeated_line"}
    assert expected <= rules
    duplicate = next(r for r in table(folder, "ledger.parquet") if r["rule"] == "near_duplicate")
    assert duplicate["duplicate_of"] in {d["id"] for d in table(folder, "documents/train.parquet")} | {
        d["id"] for d in table(folder, "documents/heldout.parquet")
    }
    texts = "".join(d["text"] for d in table(folder, "documents/train.parquet"))
    assert "Sign in to read more" not in texts


def test_funnel_only_narrows_and_agrees_with_the_ledger(made):
    folder, metrics = made
    funnel = json.loads((folder / "funnel.json").read_text(encoding="utf-8"))
    steps = [row["step"] for row in funnel]
    assert steps == ["collected", "url", "extract", "document", "line", "quality", "classifier", "split"]
    for before, after in pairwise(funnel):
        lost = sum(n for rule, n in after["dropped"].items() if rule not in ("not_utf8", "not_json"))
        assert before["documents"] - after["documents"] == lost
    assert funnel[0]["documents"] == metrics["documents_in"]
    assert funnel[-1]["documents"] == metrics["documents_out"]


def test_same_bytes_for_one_worker_and_for_two(corpus, made, tmp_path):
    folder, metrics = made
    assert run_stage(config_of(*overrides(corpus), "workers=2"), tmp_path) == metrics

    def hashes(path: Path) -> dict:
        return {name: digest for name, digest in hash_outputs(path).items() if ".scratch" not in name}

    assert hashes(folder) == hashes(tmp_path)


def test_a_restarted_stage_overwrites_what_a_killed_one_left(corpus, made, tmp_path):
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "train.parquet").write_bytes(b"half a file")
    run_stage(config_of(*overrides(corpus), "workers=1"), tmp_path)
    assert (tmp_path / "documents" / "train.parquet").read_bytes() == (made[0] / "documents" / "train.parquet").read_bytes()


def assert_no_leak(folder: Path, run_words: int = 25) -> None:
    train, heldout = (table(folder, f"documents/{split}.parquet") for split in ("train", "heldout"))
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


def test_groups_stay_on_one_side(corpus, tmp_path):
    rows = [json.loads(line) for line in corpus.read_bytes().decode("utf-8", "replace").splitlines()[:190]]
    grouped = tmp_path / "grouped.jsonl"
    text = "".join(json.dumps(row | {"site": f"s{i // 7}"}) + "\n" for i, row in enumerate(rows))
    grouped.write_text(text, encoding="utf-8")
    shares = [f"split.share.{d}=0.2" for d in ("general", "maths", "code", "multilingual")]
    run_stage(config_of(*overrides(grouped), *shares, "source.group_column=site", "workers=1"), tmp_path / "out")
    sites = {f"https://site.org/{i}": f"s{i // 7}" for i in range(190)}
    sides = [{sites[d["url"]] for d in table(tmp_path / "out", f"documents/{s}.parquet")} for s in ("train", "heldout")]
    assert sides[1]
    assert not sides[0] & sides[1]


def test_nothing_left_is_said_in_one_line(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"text": "short"}) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="No document is left"):
        run_stage(config_of("source=jsonl", f"source.path={path}", "workers=1", "classifier.enabled=false"), tmp_path / "out")
    config = config_of("source=jsonl", f"source.path={path}")
    config = replace(config, source=replace(config.source, kind="jsonls"))
    with pytest.raises(UserError, match=r"Unknown source 'jsonls'.*Did you mean 'jsonl'"):
        run_stage(config, tmp_path / "out")


def test_fingerprint_follows_the_users_file(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "one"}\n', encoding="utf-8")
    config = config_of("source=jsonl", f"source.path={path}")
    first = fingerprint(config)
    assert fingerprint(config) == first
    path.write_text('{"text": "two"}\n', encoding="utf-8")
    assert fingerprint(config) != first
    assert set(fingerprint(config_of())) >= {"python", "numpy", "scipy", "sympy"}


# --- the default source, in small ---

SMALL = (
    "source.maths_packages=[numpy]", "source.general_packages=[]", "source.limit_documents.general=50",
    "source.limit_documents.maths=400", "source.limit_documents.code=60", "split.share.maths=0.3", "classifier.max_chunks=200",
)  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("small")
    return folder, run_stage(config_of(*SMALL, "workers=2"), folder)


def test_python_source_gives_four_domains_and_entries(small):
    _, metrics = small
    assert all(n > 0 for n in metrics["characters_by_domain"].values())
    assert all(metrics["heldout_documents_by_domain"][d] > 0 for d in ("general", "maths", "code", "multilingual"))
    assert metrics["entries"]["heldout"] >= 60
    assert metrics["classifier"]["auc"] > 0.9


def test_python_source_shows_no_path_of_this_machine(small):
    for split in ("train", "heldout"):
        for document in table(small[0], f"documents/{split}.parquet"):
            assert sys.prefix not in document["text"], document["url"]
            assert sys.base_prefix == "/usr" or sys.base_prefix not in document["text"], document["url"]


def test_python_source_splits_share_no_passage(small):
    assert_no_leak(small[0])


def test_library_pages_and_their_sources_are_on_one_side(small):
    sides: dict[str, set[str]] = {}
    for split in ("train", "heldout"):
        for document in table(small[0], f"documents/{split}.parquet"):
            kind, _, name = document["url"].partition("://")
            if kind in ("pydoc", "source"):
                top = name.replace("/", ".").removesuffix(".py").split(".")[0]
                sides.setdefault(top.lstrip("_"), set()).add(split)
    assert {"train", "heldout"} == set().union(*sides.values())
    assert all(len(side) == 1 for side in sides.values())


def test_entries_point_at_their_documents_and_do_not_leak(small):
    folder, metrics = small
    home = {d["id"]: split for split in ("train", "heldout") for d in table(folder, f"documents/{split}.parquet")}
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
