"""Words, normal forms, shingles: against hand-computed examples and slow, obvious implementations."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.curation import text as text_module
from herd.curation.text import (
    STOP_WORDS,
    jaccard,
    line_key,
    ngram_hashes,
    runs_present,
    shingles,
    tidy,
    tidy_code,
    tokenise,
    word_hashes,
    word_stream,
    words,
)


def test_words_keep_combining_marks_and_split_unspaced_scripts():
    assert words("Hello, World-wide: it's 3.5!") == ["hello", "world", "wide", "it", "s", "3", "5"]
    assert words("मैं हिन्दी बोलता हूँ", "hi") == ["मैं", "हिन्दी", "बोलता", "हूँ"]
    assert words("ชื่อ", "th") == ["ชื่", "อ"]


@pytest.mark.parametrize(("text", "language"), [("The 3 B2b words,\n\nnot # lettered: 42\n", "en"), ("ชื่อ\nผม", "th"), ("", "en")])
def test_tokens_are_the_words_with_their_facts(text, language):
    tokens = tokenise(text, language)
    items = words(text, language)
    assert np.array_equal(tokens.hashes, word_hashes(items))
    assert np.array_equal(tokens.folded, word_hashes([re.sub(r"\d", "0", item) for item in items]))
    assert tokens.lengths.tolist() == [len(item) for item in items]
    assert tokens.characters == sum(map(len, items))
    assert tokens.lettered.tolist() == [any(c.isalpha() for c in item) for item in items]
    assert [STOP_WORDS[i - 1] for i in tokens.stops if i] == [item for item in items if item in STOP_WORDS]
    by_line = [word for number, line in enumerate(text.split("\n")) for word in [number] * len(words(line, language))]
    assert tokens.lines.tolist() == by_line


def test_the_last_text_is_tokenised_once():
    text = "some words"
    assert tokenise(text) is tokenise(text)
    assert tokenise(text) is not tokenise(text, "th")


def test_the_table_of_words_begins_anew_when_it_is_large(monkeypatch):
    before = word_hashes(["one", "two"])
    monkeypatch.setattr(text_module._WORDS, "characters", 10**9)
    assert np.array_equal(word_hashes(["one", "two"]), before)
    assert len(text_module._WORDS) == 2
    many = [f"w{i}" for i in range(10_000)]  # the tables grow
    assert len(np.unique(word_hashes(many))) == 10_000


def test_tidy_normalises_prose_and_leaves_code_alone():
    assert tidy("a\u00a0b  \r\n\r\n\r\n\r\ncafe\u0301\x00\n\n") == "a b\n\ncaf\u00e9\n"
    assert tidy(" \n\t\n") == ""
    assert tidy_code("def f():\r\n\treturn 1  \r\n\n\n\nx") == "def f():\n\treturn 1  \n\n\n\nx\n"


def test_line_key_folds_case_digits_and_punctuation():
    assert line_key("  Page 12 of 340 -- NEXT!  ") == "page 00 of 000 next"
    assert line_key("-----") == "-----"
    assert line_key("}") == ""


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 26))
def test_ngram_hashes_are_equal_exactly_when_the_runs_are(numbers, n):
    items = [f"w{i}" for i in numbers]
    hashes = ngram_hashes(word_hashes(items), n)
    runs = [tuple(items[i : i + n]) for i in range(len(items) - n + 1)]
    assert len(hashes) == len(runs)
    assert len(set(hashes.tolist())) == len(set(runs))
    by_run = dict(zip(runs, hashes.tolist(), strict=True))
    assert [by_run[run] for run in runs] == hashes.tolist()


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=12), max_size=6), st.integers(1, 4))
def test_runs_present_finds_runs_within_documents_only(documents, n):
    stream = word_stream(word_hashes(document) for document in documents)
    every = [(a, b, c, d)[:n] for a in "abc" for b in "abc" for c in "abc" for d in "abc"]
    runs = sorted({(int(ngram_hashes(word_hashes(list(run)), n)[0]), run) for run in every})
    wanted = np.array([value for value, _ in runs], np.uint64)
    inside = {tuple(doc[i : i + n]) for doc in documents for i in range(len(doc) - n + 1)}
    assert runs_present(stream, n, wanted).tolist() == [run in inside for _, run in runs]


@given(st.text("ab ", max_size=60), st.text("ab ", max_size=60))
def test_jaccard_of_shingles_is_that_of_the_sets(a, b):
    def slow(text):
        items = text.split()
        size = min(3, len(items))
        return {tuple(items[i : i + size]) for i in range(len(items) - size + 1)} if size else set()

    left, right = slow(a), slow(b)
    expected = len(left & right) / len(left | right) if left | right else 1.0
    assert jaccard(shingles(a, "en", 3), shingles(b, "en", 3)) == pytest.approx(expected)


def test_shingles_fold_digits():
    a, b = (shingles(f"generated on 2024-05-{day} by the build of tonight", "en", 5) for day in ("01", "27"))
    assert np.array_equal(a, b)
