"""Each statistic against a document worked out by hand, against slow versions, and against peers' numbers."""

import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.curation.dirty_words import DirtyWords
from herd.curation.kl import Reference, bucket_counts
from herd.curation.measures import STATISTICS, measure
from herd.curation.text import word_hashes, words


@pytest.mark.parametrize(
    ("statistic", "text", "expected"),
    [
        ("characters", "abc\n", 4),
        ("words", "one two, three", 3),
        ("sentences", "One. Two! Three e.g. this one?\nFour\n\nFive. (Six.)", 6),
        ("sentences", "一。二。三", 3),
        ("placeholders", "Lorem ipsum dolor, lorem  ipsum, LOREM IPSUM", 2),
        ("braces", "if (x) {\n}\n{{ y }}", 2),
        ("long_lines", "x" * 199 + "\n" + "y" * 200, 1),
        ("mean_word_length", "a bbb cc", 2.0),
        ("alphabetic_words", "a 1 b2 33", 0.5),
        ("symbols_per_word", "one # two ... three…", 1.0),
        ("hashes_per_word", "one # two ... three…", 1 / 3),
        ("ellipses_per_word", "one # two ... three…", 2 / 3),
        ("bullet_lines", "- a\n* b\nc\n\n• d", 0.75),
        ("ellipsis_lines", "a...\nb…\nc\nd", 0.5),
        ("stop_words", "the The cat that sat", 2),
        ("stop_word_count", "the The cat that sat", 3),
        ("terminal_lines", 'a.\nb?\nc"\nd\n\n', 0.5),
        ("short_lines", "short\n" + "x" * 31, 0.5),
        ("newlines_per_word", "a b\nc\n\nd", 0.75),
        ("duplicate_lines", "a\nb\na\na\n\n", 0.5),
        ("duplicate_lines_dclm", "a\nb\na\na\n\n", 0.75),
        ("duplicate_lines_datatrove", "a\nb\na\na\n\n", 2 / 5),  # the empty string after the last line end is a line there
        ("duplicate_lines_dolma", "a\nb\na\na\n\n", 5 / 6),  # three a and two empty lines
        ("duplicate_line_characters", "aaa\nb\naaa", 3 / 7),
        ("duplicate_line_characters_dclm", "aaa\nb\naaa", 6 / 7),
        ("duplicate_line_characters_datatrove", "aaa\nb\naaa", 3 / 9),
        ("duplicate_line_characters_fineweb", "aaa\n\nb\naaa", 3 / 7),
        ("duplicate_paragraphs", "a\nb\n\nc\n\na\nb", 1 / 3),
        ("duplicate_paragraph_characters", "a\nb\n\nc\n\na\nb", 3 / 7),
        ("duplicate_paragraphs_dclm", "a\nb\n\nc\n\na\nb", 2 / 3),
        # aa bb twice: 2 x 4 of 10 word characters, or 2 x 5 (with the space) of all 14
        ("top_2gram", "aa bb cc aa bb", 0.8),
        ("top_2gram_datatrove", "aa bb cc aa bb", 10 / 14),
        ("top_2gram_dolma", "aa bb cc aa bb", 0.8),
        ("top_2gram", "aa bb cc dd", 0.0),
        ("top_2gram_datatrove", "aa bb cc dd", 5 / 11),
        # of equally frequent ones the longest, or the first
        ("top_2gram", "a b x cccc dddd y a b z cccc dddd", 16 / 23),
        ("top_2gram_dolma", "a b x cccc dddd y a b z cccc dddd", 4 / 23),
        # words 1-5 and 6-10 are the same run of five: all but the last word are covered
        ("duplicate_5gram", "a b c d e a b c d e xx", 10 / 12),
        ("duplicate_5gram_datatrove", "a b c d e a b c d e xx", 5 / 22),
        ("duplicate_5gram_dolma", "a b c d e a b c d e xx", 10 / 36),  # of seven runs: 6 x 5 characters and one of 6
        ("duplicate_6gram", "a b c d e a b c d e xx", 0.0),
        # overlapping occurrences count each word once; datatrove sees the second run and has no room for another
        ("duplicate_5gram", "a a a a a a", 1.0),
        ("duplicate_5gram_datatrove", "a a a a a a", 5 / 11),
        ("duplicate_5gram_dolma", "a a a a a a", 1.0),
    ],
)
def test_statistics(statistic, text, expected):
    assert measure(text, "en")[statistic] == pytest.approx(expected)


def test_every_statistic_is_there_in_order_even_for_nothing():
    for text in ("", "\n", "!", "word", "\ud800 lone"):
        scores = measure(text, "en")
        assert tuple(scores) == STATISTICS
        assert all(isinstance(value, float) for value in scores.values())
    assert not any(measure("", "en").values())


PEERS = """\
the river ran past the old mill and the miller kept his books there
every morning the miller opened the gate and let the water in

the river ran past the old mill and the miller kept his books there
on sundays the gate stayed shut and nobody came
every morning the miller opened the gate and let the water in

the river ran past the old mill and the miller kept his books there
on sundays the gate stayed shut and nobody came

in winter the river ran past the old mill under ice and the wheel stood still
every morning the miller opened the gate and let the water in and went home
"""


def test_agrees_with_datatrove():
    """Measured with datatrove 0.10.1 (find_duplicates, find_top_duplicate, find_all_duplicate) on words split at white space."""
    scores = measure(PEERS, "en")
    expected = {
        "duplicate_paragraphs_datatrove": 0.0,
        "duplicate_lines_datatrove": 0.4,
        "duplicate_line_characters_datatrove": 0.4165232358003442,
        "duplicate_line_characters_fineweb": 0.4253075571177504,
        "top_2gram_datatrove": 0.10327022375215146,
        "top_3gram_datatrove": 0.08950086058519793,
        "top_4gram_datatrove": 0.12392426850258176,
        "duplicate_5gram_datatrove": 0.41480206540447506,
        "duplicate_6gram_datatrove": 0.4044750430292599,
        "duplicate_7gram_datatrove": 0.3838209982788296,
        "duplicate_8gram_datatrove": 0.33562822719449226,
        "duplicate_9gram_datatrove": 0.31153184165232356,
        "duplicate_10gram_datatrove": 0.3459552495697074,
    }
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-15)


def test_agrees_with_dolma():
    """Measured with dolma 1.2.1 (taggers.gopher.get_attributes)."""
    scores = measure(PEERS, "en")
    expected = {
        "duplicate_lines_dolma": 0.8461538461538461,
        "duplicate_line_characters_dolma": 0.9006479481641468,
        "top_2gram_dolma": 0.11663066954643629,
        "top_3gram_dolma": 0.09503239740820735,
        "top_4gram_dolma": 0.12958963282937366,
        "duplicate_5gram_dolma": 0.7323818019625334,
        "duplicate_6gram_dolma": 0.6886474334956912,
        "duplicate_7gram_dolma": 0.6469255663430421,
        "duplicate_8gram_dolma": 0.6064497716894978,
        "duplicate_9gram_dolma": 0.5725971370143149,
        "duplicate_10gram_dolma": 0.54022722003246,
    }
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-15)


@given(st.lists(st.sampled_from(["a", "bb", "ccc"]), max_size=40), st.sampled_from([" ", "\n", "\n\n"]))
def test_ngram_statistics_equal_slow_ones(items, gap):
    text = gap.join(items)
    scores = measure(text, "en")
    total, characters = sum(map(len, items)), len(text)
    for n in range(2, 11):
        runs = [tuple(items[i : i + n]) for i in range(len(items) - n + 1)]
        counts = Counter(runs)
        if n <= 4:
            most = max(counts.values(), default=0)
            longest = max((sum(map(len, run)) for run in runs if counts[run] == most), default=0)
            first = counts.most_common(1)[0][0] if runs else ()
            assert scores[f"top_{n}gram"] == pytest.approx(min(most * longest / total, 1) if most > 1 else 0)
            assert scores[f"top_{n}gram_dolma"] == pytest.approx(most * len("".join(first)) / total if runs else 0)
            assert scores[f"top_{n}gram_datatrove"] == pytest.approx(most * len(" ".join(first)) / characters if runs else 0)
            continue
        covered = {i + j for i, run in enumerate(runs) if counts[run] > 1 for j in range(n)}
        assert scores[f"duplicate_{n}gram"] == pytest.approx(sum(len(items[i]) for i in covered) / total if total else 0)
        size = {run: len("".join(run)) for run in counts}
        every = sum(size[run] for run in runs)
        repeated = sum(size[run] * count for run, count in counts.items() if count > 1)
        assert scores[f"duplicate_{n}gram_dolma"] == pytest.approx(repeated / every if every else 0)
        seen, i, hits = set(), 0, 0
        while i < len(runs):
            hit = runs[i] in seen
            hits += size[runs[i]] * hit
            seen.add(runs[i])
            i += n if hit else 1
        assert scores[f"duplicate_{n}gram_datatrove"] == pytest.approx(hits / characters if characters else 0)


@given(st.lists(st.sampled_from(["ก", "ข", "ค\u0e35"]), max_size=70))
def test_ngrams_of_unspaced_scripts_have_three_characters_a_word(items):
    """Against slow versions; a character with its vowel sign is one."""
    text = "".join(items)
    scores = measure(text, "th")
    for n in range(2, 11):
        runs = [tuple(items[i : i + 3 * n]) for i in range(len(items) - 3 * n + 1)]
        counts = Counter(runs)
        if n <= 4:
            most = max(counts.values(), default=0)
            longest = max((sum(map(len, run)) for run in runs if counts[run] == most), default=0)
            first = "".join(counts.most_common(1)[0][0]) if runs else ""
            assert scores[f"top_{n}gram"] == pytest.approx(min(most * longest / len(text), 1) if most > 1 else 0)
            assert scores[f"top_{n}gram_datatrove"] == pytest.approx(most * len(first) / len(text) if runs else 0)
            continue
        covered = {i + j for i, run in enumerate(runs) if counts[run] > 1 for j in range(3 * n)}
        assert scores[f"duplicate_{n}gram"] == pytest.approx(sum(len(items[i]) for i in covered) / len(text) if text else 0)


@given(st.lists(st.sampled_from(["a b", "a  b", " c", "", "dd", " "]), max_size=12))
def test_line_statistics_equal_slow_ones(lines):
    text = "\n".join(lines)
    scores = measure(text, "en")
    full = [line.strip() for line in lines if line.strip()]
    counts = Counter(full)
    assert scores["duplicate_lines"] == pytest.approx((len(full) - len(counts)) / len(full) if full else 0)
    every = [line for line in full if counts[line] > 1]
    assert scores["duplicate_lines_dclm"] == pytest.approx(len(every) / len(full) if full else 0)
    assert scores["duplicate_line_characters_dclm"] == pytest.approx(len("".join(every)) / len("".join(full)) if full else 0)
    split = re.split("\n+", text)
    copies = [line for i, line in enumerate(split) if line in split[:i]]
    assert scores["duplicate_lines_datatrove"] == pytest.approx(len(copies) / len(split) if text else 0)
    assert scores["duplicate_line_characters_datatrove"] == pytest.approx(len("".join(copies)) / len(text) if text else 0)


def test_lists_and_reference_use_the_same_tokens():
    text = "Bad word, good word: a really-bad phrase"
    reference = Reference(bucket_counts(word_hashes(words(text)), 1024))
    scores = measure(text, "en", DirtyWords(["bad", "Really bad"], "en"), reference)
    assert scores["dirty_words"] == 3
    assert scores["dirty_words_per_1000"] == 3000 / 8
    assert scores["kl"] > 0 == scores["unseen_words"]
