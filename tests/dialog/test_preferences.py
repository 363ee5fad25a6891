import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.config.errors import UserError
from herd.dialog.messages import Message, Role, ToolCall
from herd.dialog.preferences import (
    Grade,
    Preference,
    PreferenceFilter,
    longest_common_subsequence,
    more_alike,
    read_preferences,
    similarity,
)
from herd.dialog.rows import Counted, Prompt, read_jsonl, read_prompts, write_jsonl

PROMPT = (Message(Role.USER, "what?"),)


UNANSWERED = (Message(Role.ASSISTANT, "", "search()", True), Message(Role.IPYTHON, "42"))


def says(text):
    return (Message(Role.ASSISTANT, text),)


def pair(chosen="a clear answer", rejected="nonsense!", grade=Grade.BETTER, edited=None, prompt=PROMPT):
    return Preference("p", "q", prompt, says(chosen), says(rejected), grade, None if edited is None else says(edited))


def test_rows_survive_the_file(tmp_path):
    rows = [pair(), pair(edited="a clearer answer")]
    write_jsonl(tmp_path / "p.jsonl", [r.to_dict() for r in rows])
    assert read_preferences(tmp_path / "p.jsonl") == rows


def test_responses_may_be_plain_text(tmp_path):
    row = pair().to_dict() | {"chosen": "a clear answer", "rejected": "nonsense!"}
    write_jsonl(tmp_path / "p.jsonl", [row])
    assert read_preferences(tmp_path / "p.jsonl") == [pair()]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (pair(), None),
        (pair(grade=Grade.SIGNIFICANTLY_BETTER), None),
        (pair(grade=Grade.SLIGHTLY_BETTER), "grade_slightly_better"),
        (pair(grade=Grade.MARGINALLY_BETTER), "grade_marginally_better"),
        (pair(rejected="a clear answer"), "chosen_equals_rejected"),
        (pair(chosen="x" * 50 + "y", rejected="x" * 50 + "z"), "similar_responses"),
        (pair(chosen="other", rejected="x" * 50 + "y", edited="x" * 50 + "z"), "edited_similar_to_rejected"),
        (pair(chosen="x" * 50 + "y", rejected="z", edited="x" * 50 + "z"), None),  # a small edit is a clear verdict
        (pair(rejected=""), "empty_response"),
        (pair(edited=" "), "empty_response"),
        (pair(edited="a clear answer"), "edited_equals_chosen"),
        (pair(edited="nonsense!"), "edited_equals_rejected"),
        (replace(pair(), chosen=UNANSWERED), "ends_with_tool_output"),
    ],
)
def test_what_is_trained_on(row, reason):
    counted = Counted()
    kept = PreferenceFilter().select([row], counted)
    assert (kept, counted.dropped) == (([row], {}) if reason is None else ([], {reason: 1}))


def test_similarity():
    assert similarity(says("abc"), says("abc")) == 1.0
    assert similarity(says("abc"), says("xyz")) == 0.0
    assert similarity(says("abcd"), says("xbydz")) == 2 * 2 / 9
    assert similarity(says(""), says("")) == 1.0
    calls = [(Message(Role.ASSISTANT, "", tool_calls=(ToolCall("f", {"x": x}),)),) for x in ("a", "something else")]
    assert similarity(calls[0], calls[0]) == 1.0 > similarity(*calls)


@given(st.text("abc", max_size=12), st.text("abc", max_size=12))
def test_longest_common_subsequence_is_that_of_the_table(a, b):
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    assert longest_common_subsequence(a, b) == table[-1][-1]


@given(st.text("ab", max_size=9), st.text("ab", max_size=9), st.sampled_from([0.3, 0.5, 0.8, 1.0]))
def test_lengths_decide_only_what_comparing_would(a, b, threshold):
    assert more_alike(says(a), says(b), threshold) == (similarity(says(a), says(b)) > threshold)


def test_broken_line_is_refused_by_number(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n' * 4999 + '{"a": \n' + '{"a": 1}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl, line 5000: not valid JSON"):
        list(read_jsonl(path))
    path.write_text('{"a": "cut off\n')
    with pytest.raises(UserError, match=r"line 1: not valid JSON \(Unterminated string starting at column 7\); mend"):
        list(read_jsonl(path))


def test_other_bad_lines(tmp_path):
    (tmp_path / "a").write_bytes(b'{"a": "\xff"}\n')
    (tmp_path / "b").write_text("[1]\n")
    for name, words in (("a", "line 1: not UTF-8"), ("b", "line 1: must be a JSON object"), ("c", "no such file")):
        with pytest.raises(UserError, match=words):
            list(read_jsonl(tmp_path / name))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"grade": "bettr"}, "unknown grade `bettr`.*better"),
        ({"grade": None}, "`grade` must be there"),
        ({"chosen": None}, "chosen: `messages` must be a list"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "unknown role 'robot'"),
    ],
)
def test_bad_preference_rows(tmp_path, change, words):
    (tmp_path / "p.jsonl").write_text(json.dumps(pair().to_dict() | change) + "\n")
    with pytest.raises(UserError, match=f"line 1.*{words}"):
        read_preferences(tmp_path / "p.jsonl")


def test_filter_settings_are_checked():
    with pytest.raises(UserError, match="unknown grade `good`"):
        PreferenceFilter(grades=["good"])
    with pytest.raises(UserError, match="grades is empty"):
        PreferenceFilter(grades=[])
    with pytest.raises(UserError, match="max_similarity"):
        PreferenceFilter(max_similarity=0.0)


def test_prompts_survive_the_file(tmp_path):
    prompt = Prompt("p1", "e1", "what", PROMPT, "Does it.")
    write_jsonl(tmp_path / "p.jsonl", [prompt.to_dict()])
    assert read_prompts(tmp_path / "p.jsonl") == [prompt]


def test_an_empty_answer_in_the_history_is_no_matter_and_a_response_must_answer():
    history = (Message(Role.USER, "a"), Message(Role.ASSISTANT, ""), Message(Role.USER, "b"))
    yes, no = (Message(Role.ASSISTANT, "yes"),), (Message(Role.ASSISTANT, "no"),)
    row = Preference("x", "y", history, yes, no, Grade.BETTER)
    assert PreferenceFilter().reason(row) is None
    answered = (*history[:1], Message(Role.ASSISTANT, "c"))
    asks = Preference("x", "y", answered, (Message(Role.USER, "what?"),), no, Grade.BETTER)
    assert PreferenceFilter().reason(asks) == "no_assistant_turn"
