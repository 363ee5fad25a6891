"""Each quality rule against a document worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.curation.config import RuleLimits
from herd.curation.rules import STATISTICS, Measured, bad_lines, duplicate_ngram, first_broken, top_ngram


@pytest.mark.parametrize(
    ("statistic", "text", "expected"),
    [
        ("characters", "abc\n", 4),
        ("words", "one two, three", 3),
        ("mean_word_length", "a bbb cc", 2.0),
        ("alphabetic_words", "a 1 b2 33", 0.5),
        ("symbols_per_word", "one # two ... three…", 1.0),
        ("bullet_lines", "- a\n* b\nc\n\n• d", 0.75),
        ("ellipsis_lines", "a...\nb…\nc\nd", 0.5),
        ("stop_words", "the the cat that sat", 2),
        ("short_lines", "short\n" + "x" * 31, 0.5),
        ("placeholders", "Lorem ipsum dolor, lorem  ipsum, LOREM IPSUM", 2),
        ("duplicate_lines", "a\nb\na\na\n\n", 0.5),
        ("duplicate_line_characters", "aaa\nb\naaa", 3 / 7),
        # aa bb twice: 2 x 4 of 10 word characters
        ("top_2gram", "aa bb cc aa bb", 0.8),
        ("top_2gram", "aa bb cc dd", 0.0),
        # words 1-5 and 6-10 are the same run of five: all but the last word are covered
        ("duplicate_5gram", "a b c d e a b c d e xx", 10 / 12),
        ("duplicate_6gram", "a b c d e a b c d e xx", 0.0),
        # overlapping occurrences count each word once
        ("duplicate_5gram", "a a a a a a", 1.0),
    ],
)
def test_statistics(statistic, text, expected):
    assert STATISTICS[statistic](Measured(text, "en")) == pytest.approx(expected)


def test_of_equally_frequent_ngrams_the_longest_counts():
    text = "a b x cccc dddd y a b z cccc dddd"
    assert top_ngram(Measured(text, "en"), 2) == pytest.approx(16 / 23)


@given(st.lists(st.sampled_from(["a", "bb", "ccc"]), max_size=30), st.integers(2, 6))
def test_ngram_statistics_equal_slow_ones(items, n):
    doc = Measured(" ".join(items), "en")
    runs = [tuple(items[i : i + n]) for i in range(len(items) - n + 1)]
    covered = {i + j for i, run in enumerate(runs) if runs.count(run) > 1 for j in range(n)}
    total = sum(map(len, items))
    assert duplicate_ngram(doc, n) == pytest.approx(sum(len(items[i]) for i in covered) / total if total else 0)
    most = max((runs.count(run) for run in runs), default=0)
    length = max((sum(map(len, run)) for run in runs if runs.count(run) == most), default=0)
    assert top_ngram(doc, n) == pytest.approx(min(most * length / total, 1) if most > 1 else 0)


def test_first_broken_rule_is_named_with_value_and_limit():
    limits = RuleLimits(min_words=3, max_mean_word_length=4)
    assert first_broken("one two", "en", limits) == ("min_words", 2.0, 3.0)
    assert first_broken("elephants everywhere always", "en", limits) == ("max_mean_word_length", 25 / 3, 4.0)
    assert first_broken("one two six", "en", limits) is None
    assert first_broken("", "en", RuleLimits()) is None


def test_limits_are_inclusive():
    assert first_broken("one two", "en", RuleLimits(min_words=2, max_words=2)) is None
    assert first_broken("one two", "en", RuleLimits(max_words=1)) == ("max_words", 2.0, 1.0)


def test_english_stop_words_judge_english_only():
    text = "ein deutscher Satz ohne englische Wörter"
    assert first_broken(text, "de", RuleLimits(min_stop_words=2)) is None
    assert first_broken(text, "en", RuleLimits(min_stop_words=2)) == ("min_stop_words", 0.0, 2.0)


def test_bad_lines_of_c4():
    text = "\n".join(
        [
            "Good text about javascript engines.",
            "Please enable JavaScript to view this page.",
            "x" * 1001,
            "Read our Privacy Policy.",
            "y" * 1000,
        ]
    )
    assert bad_lines(text) == [(1, "javascript_notice"), (2, "endless_word"), (3, "policy_phrase")]
