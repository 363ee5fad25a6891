"""Rendering in batches, masks of a response, messages as JSON, and what makes a dialog unfit. The golden cases stand apart."""

import pytest

from herd.config.errors import UserError
from herd.dialog.masks import dpo_mask, sft_mask
from herd.dialog.messages import Message, Role, ToolCall, parse_messages, reject_reason
from herd.dialog.render import render, render_batch

USER, ASSISTANT, IPYTHON, SYSTEM = Role.USER, Role.ASSISTANT, Role.IPYTHON, Role.SYSTEM
SEARCH = [
    Message(SYSTEM, "Tools: brave_search"),
    Message(USER, "who"),
    Message(ASSISTANT, "", call='brave_search.call(query="who")'),
    Message(IPYTHON, "7"),
    Message(ASSISTANT, "me"),
]


def kept(rendered, mask, tokenizer):
    return tokenizer.decode(rendered.tokens[mask])


def test_masks_of_the_response_alone(tokenizer):
    dialog = [Message(USER, "a"), Message(ASSISTANT, "old"), Message(USER, "b"), Message(ASSISTANT, "new")]
    rendered = render(dialog, tokenizer)
    assert kept(rendered, sft_mask(rendered), tokenizer) == "old<EOT>new<EOT>"
    assert kept(rendered, sft_mask(rendered, first=3), tokenizer) == "new<EOT>"
    assert kept(rendered, dpo_mask(rendered, first=3), tokenizer) == "new"


def test_batch_equals_one_by_one(tokenizer):
    dialogs = [SEARCH, SEARCH[:2], [Message(USER, "é")]]
    for one, many in zip((render(d, tokenizer) for d in dialogs), render_batch(dialogs, tokenizer), strict=True):
        for field in ("tokens", "segments", "messages", "roles"):
            assert (getattr(one, field) == getattr(many, field)).all()


def test_unknown_dialect_names_the_nearest(tokenizer):
    with pytest.raises(UserError, match="meta"):
        render(SEARCH, tokenizer, dialect="mata")


def test_messages_survive_json():
    assert parse_messages([m.to_dict() for m in SEARCH], "x") == tuple(SEARCH)
    assert parse_messages([{"role": "tool", "content": "7"}], "x")[0].role is IPYTHON
    called = (
        Message(USER, "a", tools=({"name": "f", "parameters": {}}, "brave_search")),
        Message(ASSISTANT, "", tool_calls=(ToolCall("f", {"b": [1, None], "a": "é"}),)),
        Message(IPYTHON, "7", spelt_tool=True),
        Message(ASSISTANT, "b", tool_calls=()),
    )
    assert parse_messages([m.to_dict() for m in called], "x") == called


def test_calls_are_read_as_other_libraries_write_them():
    inner = {"name": "f", "arguments": '{"x": 1}'}
    row = {"role": "assistant", "content": None, "tool_calls": [{"id": "c0", "type": "function", "function": inner}]}
    assert parse_messages([row], "x") == (Message(ASSISTANT, "", tool_calls=(ToolCall("f", {"x": 1}),)),)
    tools = '[{"name": "f"}]'
    assert parse_messages([{"role": "user", "content": "a", "tools": tools}], "x")[0].tools == ({"name": "f"},)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "at least one message"),
        ("hello", "list"),
        (["hello"], "message 0: must be an object"),
        ([{"role": "asistant", "content": "x"}], "unknown role 'asistant'.*assistant"),
        ([{"role": ["user"], "content": "x"}], "unknown role"),
        ([{"role": "user", "content": None}], "must be text"),
        ([{"role": "user", "contents": "x"}], "unknown key `contents`.*content"),
        ([{"role": "user", "content": "", "call": "f()"}], "only an assistant"),
        ([{"role": "user", "content": "x", "tool_calls": [{"name": "f", "arguments": {}}]}], "only an assistant"),
        ([{"role": "assistant", "content": "x", "tool_calls": {}}], "`tool_calls` must be a list"),
        ([{"role": "assistant", "content": "x", "tool_calls": [{"arguments": {}}]}], "needs a `name`"),
        ([{"role": "assistant", "content": "x", "tool_calls": [{"name": "f", "arguments": "no"}]}], "no JSON object: 'no'"),
        ([{"role": "assistant", "call": "f()", "tool_calls": [{"name": "f", "arguments": {}}]}], "either `call`"),
        ([{"role": "assistant", "content": "x", "end_of_message": "yes"}], "true or false, not 'yes'"),
        ([{"role": "user", "content": "x", "tools": {"name": "f"}}], "`tools` must be a list"),
        ([{"role": "user", "content": "x", "tools": [{"type": "function"}]}], "definition with a `name`"),
        ([{"role": "system", "content": "x", "tools": ["brave_search"]}], "`tools` belongs to a user message"),
    ],
)
def test_bad_messages_are_refused_with_their_place(rows, words):
    with pytest.raises(UserError, match=f"f.jsonl, line 3.*{words}"):
        parse_messages(rows, "f.jsonl, line 3")


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([Message(USER, "a")], "no_assistant_turn"),
        ([Message(USER, "a"), Message(ASSISTANT, " \n")], "empty_response"),
        ([Message(USER, "a"), Message(ASSISTANT, "", call="f()"), Message(USER, "b")], "tool_call_without_result"),
        ([Message(USER, "a"), Message(IPYTHON, "7"), Message(ASSISTANT, "b")], "tool_result_without_call"),
        ([Message(USER, "a"), Message(ASSISTANT, "", tool_calls=(ToolCall("f", {}),) * 2)], "several_tool_calls"),
        ([Message(USER, "a"), Message(ASSISTANT, "", call="f()", end_of_message=False), Message(IPYTHON, "7")], None),
        (SEARCH, None),
        (SEARCH[:3], None),  # a response may end with a call
    ],
)
def test_reject_reason(messages, reason):
    assert reject_reason(messages) == reason


def test_only_the_response_must_have_an_assistant_turn():
    messages = [Message(USER, "a"), Message(ASSISTANT, "b"), Message(USER, "c")]
    assert reject_reason(messages) is None
    assert reject_reason(messages, first=2) == "no_assistant_turn"
