"""Document and line de-duplication, against exact counts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.curation.config import DedupConfig
from herd.curation.lines import deduplicate_lines, ranges
from herd.curation.neardup import deduplicate_documents, minhash
from herd.curation.text import jaccard
from herd.runs.seeds import stream


def prose(seed: int, count: int) -> list[str]:
    """Words without digits, which shingles would fold."""
    letters = np.array(list("abcdefghijklmnopqrst"))
    return ["".join(row) for row in letters[stream(0, "prose", seed).integers(0, 20, (count, 4))]]


def test_near_duplicates_go_and_name_what_stays(make_document):
    base = prose(1, 300)
    near = [*base[:150], "changed", *base[151:]]  # 5 of 296 shingles differ
    half = base[:230] + prose(2, 70)
    documents = [
        make_document("a", " ".join(base), sign=True, date="2020"),
        make_document("b", " ".join(near), sign=True, date="2024"),
        make_document("c", " ".join(half), sign=True),
        make_document("d", " ".join(prose(3, 300)), sign=True),
    ]
    expected = (296 - 5) / (296 + 5)
    kept, rows, links = deduplicate_documents(documents, DedupConfig(), link_threshold=0.3)
    assert [d.id for d in kept] == ["b", "c", "d"]  # the newer version stays
    assert [(row.id, row.duplicate_of, row.rule) for row in rows] == [("a", "b", "near_duplicate")]
    assert rows[0].score == pytest.approx(expected)
    assert [set(pair) for pair in links] == [{"b", "c"}]


def test_languages_do_not_mix_and_short_texts_compare_exactly(make_document):
    documents = [
        make_document("a", "only three words", sign=True),
        make_document("b", "only three words", sign=True),
        make_document("c", "only three words", sign=True, language="de"),
        make_document("d", "!!!", sign=True),
        make_document("e", "???", sign=True),
    ]
    kept, rows, _ = deduplicate_documents(documents, DedupConfig(), 0.5)
    assert [d.id for d in kept] == ["a", "c", "d", "e"]
    assert rows[0].duplicate_of == "a"


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 90), st.sampled_from(["2020", "2024"])), max_size=12), st.randoms())
def test_agrees_with_exact_jaccard_and_ignores_order(make_document, recipe, random):
    """Every dropped document has a kept one above the threshold; no two kept ones are above it (28 x 4 misses < 1e-3)."""
    documents = []
    for number, (topic, changes, date) in enumerate(recipe):
        text = prose(topic, 200)
        text[:changes] = prose(100 + number, changes)
        documents.append(make_document(f"{number:03d}", " ".join(text), sign=True, date=date))
    config = DedupConfig()
    kept, rows, _ = deduplicate_documents(documents, config, 0.5)
    by_id = {d.id: d for d in documents}
    assert sorted([d.id for d in kept] + [row.id for row in rows]) == sorted(by_id)
    for row in rows:
        similarity = jaccard(by_id[row.id].shingles, by_id[row.duplicate_of].shingles)
        assert similarity == pytest.approx(row.score)
        assert similarity >= config.threshold
        assert row.duplicate_of in {d.id for d in kept}
    for i, a in enumerate(kept):
        assert all(jaccard(a.shingles, b.shingles) < config.threshold for b in kept[:i])
    shuffled = random.sample(documents, len(documents))
    again, _, _ = deduplicate_documents(shuffled, config, 0.5)
    assert {d.id for d in again} == {d.id for d in kept}


def test_minhash_estimates_jaccard():
    rng = stream(0, "sets")
    pool = np.unique(rng.integers(0, 2**32, 3000, dtype=np.uint32))
    a, b = pool[:1500], pool[500:2000]
    estimate = float(np.mean(minhash(a, 1024) == minhash(b, 1024)))
    assert estimate == pytest.approx(jaccard(a, b), abs=0.06)  # four standard errors


def test_seventh_copy_of_a_line_removes_all_of_them(make_document):
    config = DedupConfig()
    rare, frequent = "Six copies stay here", "Seven copies go, page {}"
    documents = [
        make_document(f"{i}", f"Own text {chr(97 + i)}\n{frequent.format(i)}\n" + (f"{rare}\n" if i < 6 else ""))
        for i in range(7)
    ]
    kept, rows = deduplicate_lines(documents, config)
    assert kept[0].text == "Own text a\nSix copies stay here\n"
    assert kept[6].text == "Own text g\n"
    lines = [row for row in rows if row.id.startswith("line:")]
    assert [(row.score, row.threshold, row.detail) for row in lines] == [(7.0, 6.0, "en, bucket 0: seven copies go page 0")]
    assert sum(row.action == "edited" and row.detail == "lines 2 removed" for row in rows) == 7


def test_lines_of_code_and_of_other_languages_are_left(make_document):
    code = [make_document(f"c{i}", "    return x\n", domain="code") for i in range(9)]
    german = [make_document(f"g{i}", "Alle Rechte vorbehalten\nText\n", language="de") for i in range(4)]
    french = [make_document(f"f{i}", "Alle Rechte vorbehalten\nTexte\n", language="fr") for i in range(4)]
    kept, rows = deduplicate_lines([*code, *german, *french], DedupConfig())
    assert len(kept) == 17
    assert rows == []


def test_documents_of_repeated_lines_alone_are_dropped_with_a_row(make_document):
    documents = [make_document(f"{i}", "All rights reserved\n") for i in range(7)]
    kept, rows = deduplicate_lines(documents, DedupConfig())
    assert kept == []
    assert sum(row.rule == "only_repeated_lines" for row in rows) == 7


@given(
    st.lists(st.lists(st.sampled_from(["aa", "bb", "cc", "--", ""]), min_size=1, max_size=8), min_size=1, max_size=8),
    st.integers(1, 4),
    st.integers(1, 10),
)
def test_line_rule_equals_a_plain_count_per_bucket(make_document, bodies, copies, bucket):
    documents = [make_document(f"{i:02d}", "\n".join(body) + "\n") for i, body in enumerate(bodies)]
    expected = []
    for start in range(0, len(bodies), bucket):
        part = bodies[start : start + bucket]
        flat = [line for body in part for line in body]
        gone = {line for line in flat if line not in ("--", "") and flat.count(line) > copies}
        expected += [[line for line in body if line and line not in gone] for body in part]
    config = DedupConfig(line_copies=copies, line_bucket=bucket)
    kept, _ = deduplicate_lines(documents, config)
    found = {d.id: [line for line in d.text.split("\n") if line] for d in kept}
    for number, lines in enumerate(expected):
        assert found.get(f"{number:02d}", []) == lines


def test_ranges_reads_as_people_count():
    assert ranges([0, 1, 2, 5, 7, 8]) == "1-3, 6, 8-9"
    assert ranges([]) == ""
