"""Rules that remove lines, against pages worked out by hand and against what peers keep of them."""

from hypothesis import given
from hypothesis import strategies as st

from herd.curation.line_rules import LINE_RULES, CoverageConfig, bad_lines, count_rules, covered_lines, edit_lines
from herd.curation.text import words

NONE = CoverageConfig(enabled=False)


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


PAGE = f"""\
The harbour of the town[12] was built by hand. It took nine years!
  A short one.
This line has no terminal mark
Is this one a question? Yes it "is"
It fades away...
Two words.
Please turn on JavaScript to see the map.
We use cookies to count our guests.
The walls are made of granite [citation needed].
An 'apostrophe ends this line'
An endless {"z" * 1001} word is here.
"""


def test_c4_keeps_what_datatrove_keeps():
    """Kept lines, counts by rule and sentences as datatrove 0.10.1 gives them (C4QualityFilter); it counts seven sentences."""
    edit = edit_lines(PAGE, "en", "c4", NONE)
    assert edit.text.split("\n")[:-1] == [
        "The harbour of the town was built by hand. It took nine years!",
        "A short one.",
        'Is this one a question? Yes it "is"',
        "The walls are made of granite .",
        "An 'apostrophe ends this line'",
    ]
    assert count_rules(edit.removed) == {
        "endless_word": 1,
        "few_words": 1,
        "javascript": 1,
        "no_terminal_mark": 2,
        "policy_phrase": 1,
    }
    assert edit.scores["sentences"] == 7
    assert len(words(edit.text)) == 35
    assert edit.scores["removed_words"] == 32 / (32 + 35)  # words of removed lines; the three in citations are not counted


def test_c4_of_fineweb_keeps_lines_without_terminal_marks():
    """datatrove 0.10.1 with filter_no_terminal_punct=False keeps seven lines and drops four."""
    edit = edit_lines(PAGE, "en", "c4_fineweb", NONE)
    assert len(edit.text.split("\n")) - 1 == 7
    assert count_rules(edit.removed) == {"endless_word": 1, "few_words": 1, "javascript": 1, "policy_phrase": 1}


def test_c4_of_dclm_wants_five_words_and_no_apostrophe():
    edit = edit_lines(PAGE, "en", "c4_dclm", NONE)
    assert edit.text.split("\n")[:-1] == [
        "The harbour of the town was built by hand. It took nine years!",
        'Is this one a question? Yes it "is"',
        "The walls are made of granite .",
    ]


def test_order_of_c4s_rules_decides_which_line_drops_the_page():
    """As datatrove decides on each line beside a good one: an earlier rule takes the line, a later one never sees it."""
    cases = {
        "A lorem ipsum line with javascript here.": "placeholders",
        "A javascript line with { in it here.": None,
        "Use cookies { here it goes now.": "braces",
        "No mark lorem ipsum line": None,
        "Few lorem.": None,
    }
    for line, drops in cases.items():
        scores = edit_lines(f"{line}\nA good line stands here.", "en", "c4", NONE).scores
        assert (scores["placeholders"], scores["braces"]) == (drops == "placeholders", drops == "braces"), line


def test_refinedweb_lines_of_dclm():
    text = "A good line here\nMENU AND SEARCH now\n2024\n1,204 Likes\nHome\nIBM is fine here\n12 views of the sea are described\n"
    edit = edit_lines(text, "en", "refinedweb", NONE)
    assert edit.text == "A good line here\nIBM is fine here\n12 views of the sea are described\n"
    assert [rule for _, rule in edit.removed] == ["capitals", "digits", "counter", "few_words"]
    assert edit.scores["removed_words"] == 9 / 24  # MENU AND SEARCH now, 2024, 1, 204, Likes, Home


def test_readings_made_for_english_leave_other_languages_alone():
    text = "यह एक पंक्ति है।\nนี่คือบรรทัดภาษาไทย\n这是中文的一行。\nPlease enable JavaScript now\n"
    for reading in ("c4", "c4_dclm", "c4_fineweb", "refinedweb", "notices"):
        edit = edit_lines(text, "hi", reading, NONE)
        assert edit.removed == [(3, "javascript_notice")], reading
    assert edit_lines(text, "hi", "none", NONE).text == text


def test_a_long_paragraph_without_spaces_is_no_endless_word():
    paragraph = "".join(chr(0x4E00 + i) for i in range(1500)) + "。"
    for reading in ("notices", "c4", "refinedweb"):
        assert edit_lines(f"{paragraph}\n", "zh", reading, NONE).text == f"{paragraph}\n"
    assert edit_lines(f"{paragraph}\nEnd.\n", "en", "notices", NONE).removed == [(0, "endless_word")]


def test_lines_that_repeat_ngrams_go():
    log = [
        f"2024-05-{day:02d} 10:{day:02d}:07 ERROR worker {day} lost its connection to host 10.0.0.{day}" for day in range(1, 6)
    ]
    prose = "The service keeps a queue of jobs and hands each one to the first worker that is free."
    text = "\n".join([prose, *log, "Short line"])
    found = covered_lines(text, "en", CoverageConfig(copies=4))
    assert [i for i, _ in found] == [1, 2, 3, 4, 5]
    assert all(coverage == 1.0 for _, coverage in found)
    edit = edit_lines(text, "en", "notices", CoverageConfig(copies=4))
    assert edit.text == f"{prose}\nShort line\n"
    assert edit.removed == [(i, "ngram_coverage") for i in range(1, 6)]
    assert covered_lines(text, "en", CoverageConfig(copies=6)) == []
    assert edit_lines(text, "en", "notices", CoverageConfig(copies=4), "maths").removed == []


def test_coverage_is_the_share_of_characters():
    line = "aa bb cc dd ee"
    text = f"{line} {'x' * 10}\n{line} {'y' * 40}\n"
    (found,) = covered_lines(text, "en", CoverageConfig(copies=2, max_coverage=0.4, min_words=5))
    assert found == (0, 0.5)


def test_line_numbers_are_those_of_the_text_that_came_in():
    repeated = [f"{name} one two three four five six seven" for name in "abcd"]
    text = "\n".join(["Please enable JavaScript now", "", "Good text stands at the top", *repeated])
    edit = edit_lines(text, "en", "notices", CoverageConfig(copies=4))
    assert edit.removed == [(0, "javascript_notice"), *((i, "ngram_coverage") for i in range(3, 7))]


@given(
    st.lists(st.lists(st.sampled_from("abc"), max_size=7), max_size=7),
    st.integers(2, 3),
    st.sampled_from([0.0, 0.5, 0.9]),
    st.integers(0, 4),
)
def test_coverage_equals_a_slow_one(lines, copies, limit, shortest):
    runs = [[tuple(line[i : i + 2]) for i in range(len(line) - 1)] for line in lines]
    flat = [run for line in runs for run in line]
    expected = []
    for number, line in enumerate(lines):
        covered = {i + j for i, run in enumerate(runs[number]) if flat.count(run) >= copies for j in (0, 1)}
        share = len(covered) / len(line) if line else 0.0
        if share > limit and len(line) >= shortest:
            expected.append((number, share))
    config = CoverageConfig(ngram_words=2, copies=copies, max_coverage=limit, min_words=shortest)
    assert covered_lines("\n".join(map(" ".join, lines)), "en", config) == expected


@given(st.text(st.sampled_from("ab.{[]1J \n\"'"), max_size=80))
def test_any_text_passes_through_every_reading(text):
    for reading in LINE_RULES:
        for language in ("en", "th"):
            edit_lines(text, language, reading, CoverageConfig())
        edit = edit_lines(text, "en", reading, CoverageConfig())
        assert all(0 <= i <= text.count("\n") for i, _ in edit.removed)
