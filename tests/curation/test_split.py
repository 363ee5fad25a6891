"""The held-out split: sizes, groups, and that nothing of it can be found in train."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.curation.config import SplitConfig
from herd.curation.executors import ProcessExecutor
from herd.curation.pipeline.split import _cut_file, cut_overlaps, cuts, heldout_schema
from herd.curation.split import Facts, choose_heldout, cut_lines, group_hash, order_hash
from herd.curation.text import ngram_hashes, word_hashes, word_stream, words
from herd.runs.seeds import stream
from herd.runs.tables import Replacing, TableWriter

CONFIG = SplitConfig(share={"general": 0.1, "code": 0.1, "maths": 0.1, "multilingual": 0.1})


def text(seed: int, count: int) -> str:
    return " ".join(f"w{i}" for i in stream(0, "text", seed).integers(0, 100_000, count)) + "\n"


def choose(documents: list[dict], links=(), seed: int = 0) -> set[str]:
    """Ids of the held-out ones of some documents, given in the order of their ids as the pipeline does."""
    documents = sorted(documents, key=lambda d: d["id"])
    strata = sorted({(d.get("domain", "general"), d.get("language", "en")) for d in documents})
    number = {d["id"]: i for i, d in enumerate(documents)}
    facts = Facts(
        np.array([strata.index((d.get("domain", "general"), d.get("language", "en"))) for d in documents], np.int32),
        np.array([d.get("size", 300) for d in documents], np.int64),
        np.array([group_hash(d.get("group", "")) for d in documents], np.uint64),
        np.array([order_hash(seed, d.get("group") or d["id"]) for d in documents], np.uint64),
        strata,
    )
    pairs = np.array([(number[a], number[b]) for a, b in links], np.int64).reshape(-1, 2)
    chosen = choose_heldout(facts, pairs, CONFIG)
    return {d["id"] for d, held in zip(documents, chosen, strict=True) if held}


def test_share_of_characters_is_met_in_each_domain():
    documents = [{"id": f"{d}{i:03d}", "domain": d, "size": 200 + i} for d in ("general", "code") for i in range(300)]
    chosen = choose(documents)
    for domain in ("general", "code"):
        total = sum(d["size"] for d in documents if d["domain"] == domain)
        held = sum(d["size"] for d in documents if d["domain"] == domain and d["id"] in chosen)
        assert 0.1 <= held / total <= 0.11


def test_choice_follows_the_seed_alone():
    documents = [{"id": f"{i}"} for i in range(100)]
    assert choose(documents[::-1]) == choose(documents)
    assert choose(documents, seed=1) != choose(documents)


def test_groups_and_links_stay_together():
    documents = [{"id": f"{i:03d}", "group": f"g{i // 3}", "domain": "code" if i % 3 else "general"} for i in range(300)]
    links = [(f"{i:03d}", f"{i + 3:03d}") for i in range(0, 300, 6)]  # joins groups in pairs
    chosen = choose(documents, links)
    assert chosen
    sides: dict[int, set[bool]] = {}
    for document in documents:
        sides.setdefault(int(document["id"]) // 6, set()).add(document["id"] in chosen)
    assert all(len(side) == 1 for side in sides.values())


def test_a_giant_group_stays_in_train_and_small_strata_get_one():
    giant = [{"id": f"g{i:02d}", "group": "giant"} for i in range(60)]
    single = [{"id": f"s{i:02d}"} for i in range(40)]
    thai = [{"id": f"t{i}", "language": "th", "domain": "multilingual"} for i in range(4)]
    three = [{"id": f"h{i}", "language": "hi", "domain": "multilingual"} for i in range(3)]
    chosen = choose([*giant, *single, *thai, *three])
    by_kind = {kind: sum(name[0] == kind for name in chosen) for kind in "gsth"}
    assert by_kind["g"] == 0
    assert by_kind["s"] >= 9
    assert by_kind["t"] == 1  # the fourth part of four documents
    assert by_kind["h"] == 0  # too few to give one away


def test_nothing_to_choose_from():
    assert choose([]) == set()


def test_lines_that_hold_a_shared_run_are_cut():
    shared = " ".join(f"s{i}" for i in range(25))
    lines = [f"own line {chr(97 + i)} " + text(i, 20).strip() for i in range(6)]
    body = "\n".join([*lines[:3], shared, *lines[3:]]) + "\n"
    start = words(body).index("s0")
    left, removed, share = cut_lines(body, "en", "text", np.array([start]), 25)
    assert left == "\n".join(lines) + "\n"
    assert removed == 1
    assert share == pytest.approx(25 / len(words(body)))


def overlap(make_work, folder: Path, train: list[str], heldout: dict[str, str], n: int) -> dict[str, dict]:
    """Held-out documents that were cut against train texts, both in one partition."""
    work = make_work(folder, "source=jsonl", "source.path=none", "partitions=1", f"split.overlap_words={n}")
    with Replacing(work.part("split", 0, ".words")) as out:
        out.write(word_stream(word_hashes(words(t)) for t in train).tobytes())
    with TableWriter(_cut_file(work, -1, 0), heldout_schema()) as table:
        rows = [
            {"id": i, "language": "en", "media": "text", "text": t, "lines": 0, "share": 0.0} for i, t in sorted(heldout.items())
        ]
        table.write_rows(rows)
    with ProcessExecutor(1) as executor:
        cut_overlaps(executor, work)
    return {row["id"]: row for row in cuts(work, 0)}


def test_a_run_of_24_words_is_no_run_of_25(make_work, tmp_path):
    shared = " ".join(f"s{i}" for i in range(25))
    heldout = {"h": f"own\n{shared}\nend\n", "k": " ".join(f"s{i}" for i in range(24)) + " end\n"}
    found = overlap(make_work, tmp_path, [f"before {shared} after\n"], heldout, 25)
    assert list(found) == ["h"]
    assert (found["h"]["text"], found["h"]["lines"]) == ("own\nend\n", 1)


@settings(max_examples=25)
@given(
    st.lists(st.lists(st.sampled_from("abc"), max_size=20), max_size=4),
    st.lists(st.lists(st.lists(st.sampled_from("abc"), max_size=6), max_size=5), max_size=4),
)
def test_no_run_is_ever_on_both_sides(make_work, train_items, heldout_items):
    train = [" ".join(items) + "\n" for items in train_items]
    heldout = {f"h{i}": "\n".join(" ".join(line) for line in lines) + "\n" for i, lines in enumerate(heldout_items)}
    with tempfile.TemporaryDirectory() as folder:
        found = overlap(make_work, Path(folder), train, heldout, 4)

    def runs(body: str) -> set[int]:
        return set(ngram_hashes(word_hashes(words(body)), 4).tolist())

    seen = set().union(*map(runs, train)) if train else set()
    for name, body in heldout.items():
        left = found[name]["text"] if name in found else body
        assert seen.isdisjoint(runs(left))
        assert (name in found) == bool(seen & runs(body))
