"""Rows as people have them: each kind, what is dropped with its reason, what is refused by its place."""

import pytest

from herd.config.errors import UserError
from herd.dialog.formats import RowFormat, Unusable, kind_of, read_dialog, read_preference
from herd.dialog.messages import Message, Role, ToolCall
from herd.dialog.preferences import Grade

U, A, S, T = Role.USER, Role.ASSISTANT, Role.SYSTEM, Role.IPYTHON
QA = (Message(U, "q"), Message(A, "a"))
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def dialog(row):
    return read_dialog(kind_of(row, "here"), row, "here")


def preference(row, **format):
    return read_preference(row, "here", "id", RowFormat(**format))


def said(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


@pytest.mark.parametrize(
    ("row", "kind", "messages"),
    [
        ({"messages": said(("user", "q"), ("assistant", "a")), "source": "x"}, "messages", QA),
        ({"messages": [{"role": "user", "content": "q", "name": "Ann"}, {"role": "assistant", "content": "a"}]}, "messages", QA),
        ({"messages": said(("user", [{"type": "text", "text": "q"}]), ("assistant", "a"))}, "messages", QA),
        ({"prompt": "q", "completion": "a"}, "prompt_completion", QA),
        ({"prompt": said(("user", "q")), "completion": said(("assistant", "a"))}, "prompt_completion", QA),
        ({"instruction": "q", "input": "", "output": "a"}, "alpaca", QA),
        ({"instruction": "q", "input": "x", "output": "a"}, "alpaca", (Message(U, "q\n\nx"), QA[1])),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "sharegpt", QA),
        ({"conversations": said(("user", "q"), ("assistant", "a"))}, "sharegpt", QA),
        ({"system": "s", "prompt": "q", "completion": "a"}, "prompt_completion", (Message(S, "s"), *QA)),
        ({"tools": [TOOL], "prompt": "q", "completion": "a"}, "prompt_completion", (Message(U, "q", tools=(TOOL,)), QA[1])),
        ({"tools": "", "messages": said(("user", "q"), ("assistant", "a"))}, "messages", QA),
    ],
)
def test_kinds_of_dialogs(row, kind, messages):
    assert (kind_of(row, "here"), dialog(row)) == (kind, messages)


def test_calls_and_their_results():
    called = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1}'}}]}
    rows = [*said(("user", "q")), called, {"role": "tool", "content": {"y": 2}, "tool_call_id": "c0"}, *said(("assistant", "a"))]
    rows[-1]["tool_calls"] = []
    call = Message(A, "", tool_calls=(ToolCall("f", {"x": 1}),))
    assert dialog({"messages": rows}) == (QA[0], call, Message(T, '{"y": 2}', spelt_tool=True), QA[1])
    turns = [("human", "q"), ("function_call", '{"name": "f", "arguments": {"x": 1}}'), ("observation", "7"), ("gpt", "a")]
    row = {"conversations": [{"from": role, "value": value} for role, value in turns], "tools": '[{"name": "f"}]'}
    assert dialog(row)[1:3] == (call, Message(T, "7", spelt_tool=True))
    assert dialog(row)[0].tools == ({"name": "f"},)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": said(("user", "q"))}, "no_assistant_turn"),
        ({"prompt": "q", "completion": " \n"}, "empty_response"),
        ({"prompt": "q", "completion": []}, "empty_response"),
        ({"messages": said(("user", [{"type": "image"}]), ("assistant", "a"))}, "not_text"),
        ({"messages": said(("assistant", "a")), "tools": [TOOL]}, "tools_without_user_message"),
        (
            {"messages": [*said(("user", "q")), {"role": "assistant", "call": "f()"}, *said(("user", "r"))]},
            "tool_call_without_result",
        ),
        ({"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": {}}] * 2}]}, "several_tool_calls"),
    ],
)
def test_dialogs_of_no_use_have_a_reason(row, reason):
    with pytest.raises(Unusable, match=f"^{reason}$"):
        dialog(row)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "q"}, "here: columns text are of no known kind .*alpaca: instruction, output"),
        ({"prompt": "q", "completion": "a", "label": False}, "`label` says whether a completion is good"),
        ({"messages": [*said(("user", "q")), {"role": "assistant", "content": "a", "weight": 0}]}, "message 1: `weight` is 0"),
        ({"messages": [*said(("user", "q")), {"role": "assistant", "content": "a", "train": False}]}, "`train` is False"),
        ({"messages": said(("robot", "q"))}, "here, message 0: unknown role 'robot'"),
        ({"messages": []}, "at least one message"),
        ({"messages": ["q"]}, "message 0: must be an object"),
        ({"messages": [{"role": "user"}]}, "message 0: has no `content`"),
        ({"messages": said(("user", 7))}, "`content` and `call` must be text"),
        ({"messages": said(("user", "\ud800"), ("assistant", "a"))}, "message 0: half of a surrogate pair"),
        ({"prompt": 7, "completion": "a"}, "here, prompt: `prompt` must be text or a list with at least one message, not 7"),
        ({"prompt": "q", "completion": 7}, "`completion` must be text or a list with at least one message, not 7"),
        ({"instruction": "q", "output": 7}, "`output` must be there and be str"),
        ({"conversations": [{"from": "function_call", "value": "f()"}]}, "must be JSON with `name`"),
        ({"prompt": "q", "completion": "a", "tools": "f"}, "`tools` must be a list"),
    ],
)
def test_malformed_dialogs_are_refused_by_their_place(row, words):
    with pytest.raises(UserError, match=words):
        dialog(row)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": said(("user", "q")), "chosen": said(("assistant", "a")), "rejected": said(("assistant", "b"))},
        {"chosen": said(("user", "q"), ("assistant", "a")), "rejected": said(("user", "q"), ("assistant", "b"))},
        {"prompt": "q", "chosen": said(("user", "q"), ("assistant", "a")), "rejected": said(("user", "q"), ("assistant", "b"))},
        {"prompt": "q", "chosen": {"role": "assistant", "content": "a"}, "rejected": "b"},
    ],
)
def test_kinds_of_preferences(row):
    assert kind_of(row, "here") == "preference"
    found = preference(row)
    assert (found.prompt, found.chosen, found.rejected) == ((QA[0],), (QA[1],), (Message(A, "b"),))
    assert (found.grade, found.edited) == (Grade.SIGNIFICANTLY_BETTER, None)


def test_strength_edited_and_who_wrote_it():
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "strength": 2, "edited": "c", "models": {"chosen": "m"}}
    found = preference(row, grades={"2": "better"})
    assert (found.grade, found.edited, found.models) == (Grade.BETTER, (Message(A, "c"),), {"chosen": "m"})
    implicit = {name: said(("user", "q"), ("assistant", name)) for name in ("chosen", "rejected", "edited")}
    assert preference(implicit).edited == (Message(A, "edited"),)
    assert preference(row | {"strength": "slightly_better"}).grade is Grade.SLIGHTLY_BETTER
    with pytest.raises(Unusable, match="tie"):
        preference(row, grades={"2": "tie"})
    assert preference(row, grades={2: "better"}).grade is Grade.BETTER  # as Hydra reads a number in a mapping
    with pytest.raises(UserError, match=r"here: no grade for strength 2; name one .*: '\+\+format\.grades=\{2: better\}'"):
        preference(row)
    with pytest.raises(UserError, match=r"scores\.chosen is nan"):
        preference(row | {"strength": "better", "scores": {"chosen": float("nan")}})
    with pytest.raises(UserError, match="no grade `bettr`"):
        RowFormat(grades={"2": "bettr"})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "chosen_equals_rejected"),
        ({name: said(("user", "q"), ("assistant", "a")) for name in ("chosen", "rejected")}, "chosen_equals_rejected"),
        ({"prompt": "q", "chosen": "a", "rejected": " "}, "empty_response"),
        ({"prompt": "q", "chosen": "a", "rejected": []}, "empty_response"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "edited": " "}, "empty_response"),
        ({"chosen": said(("user", "q"), ("assistant", "a")), "rejected": said(("user", "q"))}, "empty_response"),
        ({"chosen": said(("user", "q"), ("assistant", "a")), "rejected": said(("user", "r"))}, "no_common_prompt"),
        (
            {"prompt": "r", **{n: said(("user", "q"), ("assistant", n)) for n in ("chosen", "rejected")}},
            "prompt_differs_from_responses",
        ),
    ],
)
def test_preferences_of_no_use_have_a_reason(row, reason):
    with pytest.raises(Unusable, match=f"^{reason}$"):
        preference(row)


def test_columns_of_other_names():
    row = RowFormat(columns={"prompt": "question", "completion": "answer"}).rename({"question": "q", "answer": "a"})
    assert dialog(row) == QA
    with pytest.raises(UserError, match=r"format\.columns\.mesages: no column of ours.*Did you mean 'messages'"):
        RowFormat(columns={"mesages": "conversation"})


@pytest.mark.parametrize("completion", [{}, {"completion": None}])
def test_a_row_of_another_kind_than_the_first_is_refused_by_the_column_it_lacks(completion):
    with pytest.raises(UserError, match="here: no `completion`, which rows of kind prompt_completion have"):
        read_dialog("prompt_completion", {"prompt": "q", **completion}, "here")
    with pytest.raises(UserError, match="here: no `rejected`, which rows of kind preference have"):
        preference({"prompt": "q", "chosen": "a", **completion})
