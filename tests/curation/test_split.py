"""The held-out split: sizes, groups, and that nothing of it can be found in train."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.curation.config import SplitConfig
from herd.curation.split import choose_heldout, cut_overlap
from herd.curation.text import word_hashes, word_stream, words
from herd.runs.seeds import stream

CONFIG = SplitConfig(share={"general": 0.1, "code": 0.1, "maths": 0.1, "multilingual": 0.1})


def text(seed: int, count: int) -> str:
    return " ".join(f"w{i}" for i in stream(0, "text", seed).integers(0, 100_000, count)) + "\n"


def train_words(documents):
    return word_stream(word_hashes(words(d.text)) for d in documents)


def test_share_of_characters_is_met_in_each_domain(make_document):
    documents = [
        make_document(f"{domain}{i}", text(i, 50), url=f"u://{domain}/{i}", domain=domain)
        for domain in ("general", "code")
        for i in range(300)
    ]
    chosen = choose_heldout(documents, [], CONFIG, seed=0)
    for domain in ("general", "code"):
        total = sum(len(d.text) for d in documents if d.domain == domain)
        held = sum(len(d.text) for d in documents if d.domain == domain and d.id in chosen)
        assert 0.1 <= held / total <= 0.11


def test_choice_ignores_input_order_and_follows_the_seed(make_document):
    documents = [make_document(f"{i}", text(i, 50), url=f"u://{i}") for i in range(100)]
    chosen = choose_heldout(documents, [], CONFIG, seed=0)
    assert choose_heldout(documents[::-1], [], CONFIG, seed=0) == chosen
    assert choose_heldout(documents, [], CONFIG, seed=1) != chosen


def test_groups_and_links_stay_together(make_document):
    documents = [
        make_document(f"{i:03d}", text(i, 40), group=f"g{i // 3}", domain="code" if i % 3 else "general") for i in range(300)
    ]
    links = [(f"{i:03d}", f"{i + 3:03d}") for i in range(0, 300, 6)]  # joins groups in pairs
    chosen = choose_heldout(documents, links, CONFIG, seed=0)
    assert chosen
    sides = {}
    for document in documents:
        sides.setdefault(int(document.id) // 6, set()).add(document.id in chosen)
    assert all(len(side) == 1 for side in sides.values())


def test_a_giant_group_stays_in_train_and_small_strata_get_one(make_document):
    giant = [make_document(f"g{i}", text(i, 50), group="giant") for i in range(60)]
    single = [make_document(f"s{i}", text(100 + i, 50), url=f"u://s/{i}") for i in range(40)]
    thai = [make_document(f"t{i}", text(200 + i, 50), url=f"u://t/{i}", language="th", domain="multilingual") for i in range(4)]
    three = [make_document(f"h{i}", text(300 + i, 50), url=f"u://h/{i}", language="hi", domain="multilingual") for i in range(3)]
    chosen = choose_heldout([*giant, *single, *thai, *three], [], CONFIG, seed=0)
    by_kind = Counter(name[0] for name in chosen)
    assert by_kind["g"] == 0
    assert by_kind["s"] >= 9
    assert by_kind["t"] == 1  # the fourth part of four documents
    assert by_kind["h"] == 0  # too few to give one away


def test_shared_run_is_cut_line_by_line(make_document):
    shared = " ".join(f"s{i}" for i in range(25))
    lines = [f"own line {chr(97 + i)} " + text(i, 20).strip() for i in range(6)]
    heldout = make_document("h", "\n".join([*lines[:3], shared, *lines[3:]]) + "\n")
    short = make_document("k", " ".join(f"s{i}" for i in range(24)) + " end\n")
    train = [make_document("t", f"before {shared} after\n")]
    kept, rows = cut_overlap(train_words(train), [heldout, short], SplitConfig())
    assert [d.id for d in kept] == ["h", "k"]
    assert heldout.text == "\n".join(lines) + "\n"
    assert short.text.endswith("end\n")  # 24 words are no run of 25
    assert [(row.id, row.action, row.rule) for row in rows] == [("h", "edited", "overlap_cut")]


def test_mostly_shared_document_is_dropped(make_document):
    body = text(1, 100)
    heldout = make_document("h", body + text(2, 20))
    kept, rows = cut_overlap(train_words([make_document("t", body)]), [heldout], SplitConfig())
    assert kept == []
    assert [(row.id, row.action, row.rule) for row in rows] == [("h", "dropped", "overlaps_train")]
    assert rows[0].score == pytest.approx(100 / 120)


@given(
    st.lists(st.lists(st.sampled_from("abc"), max_size=20), max_size=4),
    st.lists(st.lists(st.lists(st.sampled_from("abc"), max_size=6), max_size=5), max_size=4),
)
def test_no_run_is_ever_on_both_sides(make_document, train_items, heldout_items):
    train = [make_document(f"t{i}", " ".join(items) + "\n") for i, items in enumerate(train_items)]
    heldout = [
        make_document(f"h{i}", "\n".join(" ".join(line) for line in lines) + "\n") for i, lines in enumerate(heldout_items)
    ]
    config = SplitConfig(overlap_words=4, max_overlap=0.9)
    before = len(heldout)
    kept, rows = cut_overlap(train_words(train), heldout, config)
    assert len(kept) + sum(row.action == "dropped" for row in rows) == before

    def runs(document):
        items = words(document.text)
        return {tuple(items[i : i + 4]) for i in range(len(items) - 3)}

    seen = set().union(*map(runs, train)) if train else set()
    assert all(seen.isdisjoint(runs(document)) for document in kept)
