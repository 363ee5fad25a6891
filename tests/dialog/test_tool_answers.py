"""Answers read back: hand-written ones, and whatever the dialects write, in pieces of any size."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.dialog.messages import Message, Role, ToolCall
from herd.dialog.render import Segment, render
from herd.dialog.tool_answers import AnswerReader, parse_call

NAMES = ("f", "get-weather", "brave_search", "code_interpreter")
F = ToolCall("f", {"x": 1})


def read(parts, finished=True):
    """(what came before the end, all text, call); None among the parts is the tag."""
    reader, text = AnswerReader(NAMES), ""
    for part in parts:
        if part is None:
            reader.tag(sum(len(p) for p in parts[: parts.index(None)]))
        else:
            text += reader.push(part)
    rest, call = reader.end(finished)
    assert reader.length == len(text + rest)
    return text, text + rest, call


@pytest.mark.parametrize(
    ("answer", "text", "call"),
    [
        ('{"type": "function", "name": "f", "parameters": {"x": 1}}', "", F),
        ('{"name": "f", "parameters": {"x": 1}}', "", F),
        ('\n {\n "name" : "f",\n "arguments": {"x": 1} }\n', "\n ", F),
        ('{"parameters": {"x": 1}, "name": "f"}', "", F),
        ('<function=f>{"x": 1}</function>', "", F),
        ('<function=get-weather>{"city": "Zürich"}</function>', "", ToolCall("get-weather", {"city": "Zürich"})),
        ('I look. {"name": "f", "parameters": {"x": 1}}', "I look. ", F),
        ('{"name": "f", "parameters": {}}', "", ToolCall("f", {})),
        (
            '{"name": "f", "parameters": {"x": {"name": "f", "parameters": {}}}}',
            "",
            ToolCall("f", {"x": {"name": "f", "parameters": {}}}),
        ),
    ],
)
def test_calls(answer, text, call):
    for size in (1, 3, 1000):
        assert read([answer[i : i + size] for i in range(0, len(answer), size)])[1:] == (text, call)
    assert read([answer], finished=False)[1:] == (answer, None)


@pytest.mark.parametrize(
    "answer",
    [
        '{"name": "g", "parameters": {"x": 1}}',  # not offered
        '{"name": "f", "parameters": {"x": 1}',
        '{"name": "f", "parameters": [1]}',
        '{"name": "f"}',
        '{"name": "f", "parameters": {}, "why": "so"}',
        '{"type": "tool", "name": "f", "parameters": {}}',
        '{"name": "f", "parameters": {"x": NaN}}',
        '{"name": "f", "parameters": {"x": 1e999}}',
        '{"name": "f", "parameters": {}}; {"name": "f", "parameters": {}}',  # one at a time
        '{"name": "f", "parameters": {}} That is the call.',
        '["f", {}]',
        '{"name": ["f"], "parameters": {}}',
        "<function=f>{x}</function>",
        "<function=>{}</function>",
        'brave_search.call(query="a")',  # without the tag
        "if a < b: {1: 2}",
        "",
        '{"name": "f", "parameters": ' + "[" * 5000,
    ],
)
def test_what_is_no_call_stays_text(answer):
    for size in (1, 1000):
        assert read([answer[i : i + size] for i in range(0, len(answer), size)])[1:] == (answer, None)


@pytest.mark.parametrize(
    ("parts", "text", "call"),
    [
        ([None, '{"name": "f", "parameters": {"x": 1}}'], "", F),
        (["Look: ", None, '{"name": "f", ', '"parameters": {"x": 1}}'], "Look: ", F),
        ([None, 'brave_search.call(query="a "quoted" b")'], "", ToolCall("brave_search", {"query": 'a "quoted" b'})),
        ([None, "print(1)\n"], "", ToolCall("code_interpreter", {"code": "print(1)"})),
        ([None, 'f.call(query="a")'], "", ToolCall("code_interpreter", {"code": 'f.call(query="a")'})),
        (["Look: ", None], "Look: ", None),
    ],
)
def test_calls_after_the_tag(parts, text, call):
    before, whole, found = read(parts)
    assert (whole, found) == (text, call)
    assert parts[0] is None or before == text  # at once
    told = "".join(part for part in parts if part)
    assert read(parts, finished=False)[1:] == (told, None)


def test_code_is_text_where_no_interpreter_was_offered():
    assert parse_call("print(1)", ["f"], tagged=True) is None


@pytest.mark.parametrize("text", ["a < b", "{", "use {x} or <b>", '{"names": 1}', '{ "type": "text"}'])
def test_text_waits_no_longer_than_it_might_be_a_call(text):
    before, whole, call = read([text, " and so on"])
    assert (before, whole, call) == (text + " and so on", text + " and so on", None)


text = st.text(alphabet="ab .\n<{é", max_size=6).filter(lambda t: "{" not in t and "<" not in t)
values = st.recursive(
    st.integers() | st.booleans() | st.none() | st.text(max_size=4), lambda v: st.lists(v, max_size=2), max_leaves=3
)


@pytest.mark.parametrize("dialect", ["meta", "meta_tag", "hf"])
@pytest.mark.parametrize("system", ["", "Environment: ipython"])
@settings(max_examples=20, deadline=None)
@given(said=text, arguments=st.dictionaries(st.text(max_size=4), values, max_size=2), size=st.integers(1, 9))
def test_what_a_dialect_writes_is_read_back(tokenizer, dialect, system, said, arguments, size):
    call = ToolCall("get-weather", arguments)
    given = (Message(Role.SYSTEM, system), Message(Role.USER, "a"), Message(Role.ASSISTANT, said, tool_calls=(call,)))
    dialog = render(given, tokenizer, dialect=dialect)
    mine = (dialog.messages == 2) & (dialog.segments != Segment.HEADER) & (dialog.segments != Segment.TERMINATION)
    ids, tags = dialog.tokens[mine].tolist(), (dialog.segments[mine] == Segment.PYTHON_TAG).tolist()
    cut = tags.index(True) if True in tags else len(ids)
    before, after = (tokenizer.decode(part) for part in (ids[:cut], ids[cut + 1 :]))
    parts = [before[i : i + size] for i in range(0, len(before), size)]
    parts += [None] * (cut < len(ids)) + [after[i : i + size] for i in range(0, len(after), size)]
    assert read(parts)[1:] == ("" if dialect == "hf" else said, call)
