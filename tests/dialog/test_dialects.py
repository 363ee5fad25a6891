"""Each dialect written out by hand; `hf` also against a published template of its family."""

import importlib.util
import json
from pathlib import Path

import jinja2.sandbox
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.config.errors import UserError
from herd.dialog.masks import dpo_mask, sft_mask
from herd.dialog.messages import Message, Role, ToolCall, parse_messages
from herd.dialog.render import DIALECTS, Segment, render, render_batch

USER, ASSISTANT, IPYTHON, SYSTEM = Role.USER, Role.ASSISTANT, Role.IPYTHON, Role.SYSTEM
DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"properties": {"città": {"type": "string"}}}}}
CALL = ToolCall("weather", {"città": "Zürich", "days": 2})
ASKED = [
    Message(SYSTEM, " Environment: ipython\n"),
    Message(USER, " Rain? ", tools=(WEATHER,)),
    Message(ASSISTANT, "I look.", tool_calls=(CALL,)),
    Message(IPYTHON, " 7 ", spelt_tool=True),
    Message(ASSISTANT, " Yes.\n"),
]
ESCAPED = r'{"citt\u00e0": "Z\u00fcrich", "days": 2}'
META_CALL = '{"type": "function", "name": "weather", "parameters": ' + ESCAPED + "}"
INDENTED = json.dumps(WEATHER, indent=4, ensure_ascii=False)


def wire(messages, tokenizer, dialect, **options):
    return tokenizer.decode(render(messages, tokenizer, dialect=dialect, **options).tokens)


def test_meta_writes_tools_a_call_and_its_output(tokenizer):
    text = wire(ASKED, tokenizer, "meta")
    definitions = text[text.index("<H>user") : text.index("<H>user</H>\n\n Rain?")]
    assert INDENTED in definitions and definitions.endswith("<EOT>")  # a user message of their own
    assert text.replace(definitions, "") == (
        "<BOS><H>system</H>\n\n Environment: ipython\n<EOT><H>user</H>\n\n Rain? <EOT>"
        f"<H>assistant</H>\n\nI look.<PY>{META_CALL}<EOM><H>ipython</H>\n\n 7 <EOT><H>assistant</H>\n\n Yes.\n<EOT>"
    )


def test_meta_without_the_environment_has_no_tag_and_ends_the_turn(tokenizer):
    assert wire(ASKED[2:3], tokenizer, "meta").endswith(f"I look.{META_CALL}<EOT>")
    stopped = Message(ASSISTANT, "", tool_calls=(CALL,), end_of_message=True)
    assert wire([stopped], tokenizer, "meta").endswith(f"{META_CALL}<EOM>")


def test_meta_tag_is_the_user_defined_function(tokenizer):
    expected = f"I look.<function=weather>{ESCAPED}</function><EOT>"
    assert expected in wire(ASKED, tokenizer, "meta_tag")
    assert "<function=NAME>{ARGUMENTS}</function>" in wire(ASKED, tokenizer, "meta_tag")


@pytest.mark.parametrize("dialect", ["meta", "meta_tag"])
@pytest.mark.parametrize(
    ("call", "text"),
    [
        (ToolCall("brave_search", {"query": "who"}), 'brave_search.call(query="who")'),
        (ToolCall("code_interpreter", {"code": "print(1)"}), "print(1)"),
    ],
)
def test_meta_built_in_calls_have_the_tag_wherever_they_stand(tokenizer, dialect, call, text):
    assert wire([Message(ASSISTANT, "", tool_calls=(call,))], tokenizer, dialect).endswith(f"<PY>{text}<EOM>")


def test_hf_merges_tools_before_the_first_user_text(tokenizer):
    instructions = (
        "Given the following functions, please respond with a JSON for a function call with its proper arguments that best "
        'answers the given prompt.\n\nRespond in the format {"name": function name, "parameters": dictionary of argument '
        "name and its value}.Do not use variables.\n\n"
    )
    assert wire(ASKED, tokenizer, "hf") == (
        f"<BOS><H>system</H>\n\nEnvironment: ipython\n{DATES}Environment: ipython<EOT>"
        f"<H>user</H>\n\n{instructions}{INDENTED}\n\nRain?<EOT>"
        '<H>assistant</H>\n\n{"name": "weather", "parameters": {"città": "Zürich", "days": 2}}<EOT>'
        '<H>ipython</H>\n\n" 7 "<EOT><H>assistant</H>\n\nYes.<EOT>'
    )


def test_hf_ends_a_call_with_eom_where_there_are_built_in_tools(tokenizer):
    search = ToolCall("brave_search", {"query": "who", "n": "3"})
    messages = [Message(USER, "a", tools=("brave_search", "code_interpreter")), Message(ASSISTANT, "", tool_calls=(search,))]
    head = f"<BOS><H>system</H>\n\nEnvironment: ipython\nTools: brave_search\n\n{DATES}<EOT><H>user</H>\n\na<EOT>"
    assert wire(messages, tokenizer, "hf") == f'{head}<H>assistant</H>\n\n<PY>brave_search.call(query="who", n="3")<EOM>'
    messages[1] = Message(ASSISTANT, "", tool_calls=(CALL,))
    assert wire(messages, tokenizer, "hf").endswith('{"name": "weather", "parameters": {"città": "Zürich", "days": 2}}<EOM>')


def test_torchtune_strips_ends_outputs_with_eom_and_the_dialog_with_eos(tokenizer):
    messages = [ASKED[0], Message(USER, " Rain? "), *ASKED[2:]]
    assert wire(messages, tokenizer, "torchtune") == (
        "<BOS><H>system</H>\n\nEnvironment: ipython<EOT><H>user</H>\n\nRain?<EOT>"
        f"<H>assistant</H>\n\n<PY>I look.{META_CALL}<EOM><H>tool</H>\n\n7<EOM><H>assistant</H>\n\nYes.<EOT><EOS>"
    )
    assert wire(messages[:2], tokenizer, "torchtune", generation_prompt=True).endswith("Rain?<EOT><H>assistant</H>\n\n")


@pytest.mark.parametrize(
    ("dialect", "messages", "words"),
    [
        ("hf", [Message(USER, "a"), Message(ASSISTANT, "b", tool_calls=())], "message 1: dialect hf refuses an empty list"),
        ("hf", [Message(USER, "a"), Message(ASSISTANT, "", tool_calls=(CALL, CALL))], "message 1: 2 tool calls; .*one at a time"),
        ("hf", [Message(USER, "a"), Message(USER, "b", tools=(WEATHER,))], "belong to the first message"),
        (
            "hf",
            [Message(USER, "a", tools=("x",)), Message(ASSISTANT, tool_calls=(ToolCall("x", {"n": 1}),))],
            "`n` of a built-in tool must be text, not 1",
        ),
        ("meta", [Message(ASSISTANT, "", tool_calls=(CALL, CALL))], "one at a time"),
        ("meta", [Message(USER, "a", tools=("brave_search",))], "system message with the lines"),
        ("meta", [Message(ASSISTANT, tool_calls=(ToolCall("brave_search", {}),))], "takes the argument `query`"),
        ("torchtune", [Message(USER, "a", tools=(WEATHER,))], "no form for tool definitions"),
    ],
)
def test_what_a_dialect_has_no_form_for_is_refused(tokenizer, dialect, messages, words):
    with pytest.raises(UserError, match=words):
        render(messages, tokenizer, dialect=dialect)


@pytest.fixture(scope="module")
def published_template():
    """The template of the Llama 3.2 checkpoints that TRL carries: that of 3.1 but for built-in tools."""
    trl = importlib.util.find_spec("trl")
    path = Path(trl.origin).parent / "chat_templates" / "llama3_2.jinja" if trl and trl.origin else Path("missing")
    if not path.is_file():
        pytest.skip("the published template comes with TRL 1.16, which is not installed")
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    return environment.from_string(path.read_text())


DIALOGS = {
    "question": [{"role": "user", "content": " hi "}],
    "system": [{"role": "system", "content": "\nBe brief. "}, {"role": "user", "content": "a\n\nb"}],
    "turns": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": " def f():\n    pass\n"},
        {"role": "user", "content": ""},
    ],
    "tools": [
        {"role": "user", "content": " Rain? "},
        {"role": "assistant", "content": "I look.", "tool_calls": [{"type": "function", "function": CALL.__dict__}]},
        {"role": "tool", "content": '7 "é"'},
        {"role": "assistant", "content": "Yes."},
    ],
}


@pytest.mark.parametrize("generation_prompt", [False, True])
@pytest.mark.parametrize("tools", [None, [WEATHER, {"name": "g"}]])
@pytest.mark.parametrize("name", DIALOGS)
def test_hf_equals_the_published_template(published_template, tokenizer, name, tools, generation_prompt):
    given = DIALOGS[name]
    options = {"tools": tools} if tools else {}
    theirs = published_template.render(
        messages=given,
        bos_token="<|begin_of_text|>",
        date_string="26 Jul 2024",
        add_generation_prompt=generation_prompt,
        **options,
    )
    first = next(i for i, row in enumerate(given) if row["role"] == "user")
    rows = [row | ({"tools": tools} if tools and i == first else {}) for i, row in enumerate(given)]
    ours = render(parse_messages(rows, name), tokenizer, generation_prompt, dialect="hf")
    assert tokenizer.written_out(ours.tokens) == theirs
    assert ours.tokens.tolist() == tokenizer.ids_of(theirs)


pieces = st.sampled_from(["a", "b ", " ", "\n", "é", "<|", "<|eot_id|>", "<|python_tag|>", "<|start_header_id|>"])
text = st.lists(pieces, max_size=5).map("".join)
arguments = st.dictionaries(st.sampled_from(["a", "b"]), text, max_size=2)
turn = st.one_of(
    st.builds(lambda t: [Message(USER, t)], text),
    st.builds(lambda t: [Message(ASSISTANT, t)], text),
    st.builds(lambda t, c, o: [Message(ASSISTANT, t, call=c), Message(IPYTHON, o)], text, text, text),
    st.builds(
        lambda t, a, o: [Message(ASSISTANT, t, tool_calls=(ToolCall("f", a),)), Message(IPYTHON, o)], text, arguments, text
    ),
)
dialogs = st.builds(
    lambda system, turns: [*([Message(SYSTEM, system)] if system else []), *(m for messages in turns for m in messages)],
    text,
    st.lists(turn, min_size=1, max_size=4),
)


@pytest.mark.parametrize("dialect", DIALECTS.names())
@settings(max_examples=25, deadline=None)
@given(batch=st.lists(dialogs, min_size=1, max_size=3), generation_prompt=st.booleans())
def test_codes_agree_and_no_text_is_special(tokenizer, dialect, batch, generation_prompt):
    for messages, dialog in zip(batch, render_batch(batch, tokenizer, generation_prompt, dialect), strict=True):
        special = dialog.tokens >= 256
        text_only = {Segment.BODY, Segment.TOOL_OUTPUT}
        assert not special[[s in text_only for s in dialog.segments]].any()
        assert special[[s not in text_only | {Segment.HEADER} for s in dialog.segments]].all()
        owned = dialog.messages >= 0
        for index in set(dialog.messages[owned].tolist()):
            role = messages[index].role if index < len(messages) else ASSISTANT
            mine = dialog.messages == index
            assert (dialog.roles[mine] == role).all()
            codes = dialog.segments[mine].tolist()
            assert (codes.count(Segment.TERMINATION), codes[0]) == (int(index < len(messages)), Segment.HEADER)
            assert (Segment.TOOL_OUTPUT in codes) <= (role is IPYTHON)
        assert dialog.messages[owned].tolist() == sorted(dialog.messages[owned].tolist())
        assert (dpo_mask(dialog) <= sft_mask(dialog)).all()
        assert not sft_mask(dialog)[~owned].any()
        one = render(messages, tokenizer, generation_prompt, dialect)
        assert (one.tokens.tolist(), one.segments.tolist()) == (dialog.tokens.tolist(), dialog.segments.tolist())
