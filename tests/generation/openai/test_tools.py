"""Tools over OpenAI's interface: prompts as the dialects write them, hand-written answers as calls, refusals."""

import json
from collections import deque

import pytest

from herd.dialog.messages import Message, Role, ToolCall
from herd.dialog.render import render
from herd.generation.engine import Drawn
from herd.generation.service import Service

from ..conftest import events

testclient = pytest.importorskip("starlette.testclient", reason="needs the extra `serve`")

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"properties": {"city": {"type": "string"}}}}}
CLOCK = {"type": "function", "function": {"name": "clock", "description": "The time."}}
SEARCH = {"type": "function", "function": {"name": "brave_search"}}
USER = {"role": "user", "content": "Rain?"}
CALL = {"id": "c0", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Z\u00fcrich"}'}}
ASKED = [
    {"role": "system", "content": "Environment: ipython"},
    USER,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c0", "content": "7 mm"},
]
WRITTEN = '{"type": "function", "name": "weather", "parameters": {"city": "Bern"}}'


class Scripted:
    """An engine that says what it is told to."""

    def __init__(self):
        self.said, self.asked, self._left, self.busy = [], [], deque(), False

    def submit(self, request):
        self.asked.append(request)
        for place in range(max(map(len, self.said))):
            for sample, tokens in enumerate(self.said):
                if place < len(tokens):
                    token, last = tokens[place], place + 1 == len(tokens)
                    self._left.append(Drawn(len(self.asked), sample, token, -1.0, last, token in request.stops))
        self.busy = True
        return len(self.asked)

    def step(self):
        drawn = [self._left.popleft()] if self._left else []
        self.busy = bool(self._left)
        return drawn

    def cancel(self, request, sample=None):
        self._left = deque(d for d in self._left if sample is not None and d.sample != sample)


@pytest.fixture(scope="module")
def make_client(tokenizer):
    from herd.generation.openai.app import Served, make_app

    services = []

    def make(dialect="meta"):
        engine = Scripted()
        services.append(Service(engine))
        client = testclient.TestClient(make_app(Served("m", tokenizer, services[-1], 2000, 20, dialect)))
        client.engine = engine
        return client

    yield make
    for service in services:
        service.close()


@pytest.fixture(scope="module")
def client(make_client):
    return make_client()


def ask(client, *answers, **body):
    client.engine.said = list(answers)
    body = {"messages": [USER], "tools": [WEATHER, CLOCK, SEARCH], "n": len(answers)} | body
    return client.post("/v1/chat/completions", json=body)


def joined(chunks, index=0):
    """What a stream's chunks of a choice add up to: content, calls, reason."""
    content, calls, reason = "", {}, None
    for choice in (part for chunk in chunks for part in chunk["choices"] if part["index"] == index):
        assert reason is None  # nothing comes after it
        reason, delta = choice["finish_reason"], choice["delta"]
        content += delta.get("content") or ""
        for call in delta.get("tool_calls", ()):
            kept = calls.setdefault(call["index"], {"name": "", "arguments": "", "id": call["id"]})
            for key in ("name", "arguments"):
                kept[key] += call["function"][key]
    return content, [calls[i] for i in sorted(calls)], reason


@pytest.mark.parametrize(
    ("before", "tag", "after", "content", "call"),
    [
        ("", False, WRITTEN, None, ("weather", {"city": "Bern"})),
        ("", True, WRITTEN, None, ("weather", {"city": "Bern"})),
        ("I look.", True, WRITTEN, "I look.", ("weather", {"city": "Bern"})),
        ("I look. ", False, WRITTEN, "I look. ", ("weather", {"city": "Bern"})),
        ("I look. ", True, 'brave_search.call(query="x")', "I look. ", ("brave_search", {"query": "x"})),
        ("", False, '\n{"name": "clock", "parameters": {}}', None, ("clock", {})),
        ("", False, '<function=clock>{"zone": "\u20ac"}</function>', None, ("clock", {"zone": "\u20ac"})),
        ("", False, '{"name": "nobody", "parameters": {}}', '{"name": "nobody", "parameters": {}}', None),
        ("a", True, "print(1)", "aprint(1)", None),
        ("No {rain}.", False, "", "No {rain}.", None),
    ],
)
@pytest.mark.parametrize("end", ["eot_id", "eom_id", None])
def test_an_answer_becomes_a_call(client, tokenizer, before, tag, after, content, call, end):
    tokens = [*tokenizer.encode(before), *([tokenizer.python_tag_id] * tag), *tokenizer.encode(after)]
    tokens += [getattr(tokenizer, end)] if end else []
    if not end:  # cut off: what is there is text
        content, call = before + after, None
    answer = ask(client, tokens, tokenizer.encode("Hi."), logprobs=True).json()
    choice, plain = answer["choices"]
    assert plain["message"] == {"role": "assistant", "content": "Hi."} and plain["finish_reason"] == "length"
    assert choice["message"]["content"] == content
    assert choice["finish_reason"] == ("tool_calls" if call else "stop" if end else "length")
    made = choice["message"].get("tool_calls", [])
    assert [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in made] == ([call] if call else [])
    assert all(c["type"] == "function" and c["id"].startswith("call_") for c in made)
    spelled = b"".join(bytes(t["bytes"] or ()) for t in choice["logprobs"]["content"])
    assert spelled.decode() == before + after
    chunks = events(ask(client, tokens, tokenizer.encode("Hi."), logprobs=True, stream=True))
    text, calls, reason = joined(chunks)
    assert (text.strip(), reason) == ((content or "").strip(), choice["finish_reason"])
    assert [(c["name"], json.loads(c["arguments"])) for c in calls] == ([call] if call else [])
    assert joined(chunks, 1) == ("Hi.", [], "length")
    parts = [part["logprobs"] for chunk in chunks for part in chunk["choices"] if part["index"] == 0]
    assert [t for part in parts if part for t in part["content"]] == choice["logprobs"]["content"]


def test_text_streams_on_beside_tools_and_a_call_comes_in_one_piece(client, tokenizer):
    tokens = [*tokenizer.encode("I look."), tokenizer.python_tag_id, *tokenizer.encode(WRITTEN), tokenizer.eom_id]
    chunks = [chunk["choices"][0] for chunk in events(ask(client, tokens, stream=True, logprobs=True))]
    deltas, told = (
        [chunk["delta"] for chunk in chunks],
        [len((chunk["logprobs"] or {"content": ()})["content"]) for chunk in chunks],
    )
    spoken = len(tokenizer.encode("I look."))
    assert len([d for d in deltas if d.get("content")]) == spoken
    assert told == [*[1] * spoken, len(tokens) - 1 - spoken, 0, 0]  # each token with its text, those of the call before it
    assert [list(d) for d in deltas[-2:]] == [["tool_calls"], []]
    assert "role" in deltas[0] and not any("role" in d for d in deltas[1:])


def test_a_stop_text_cuts_a_call_to_text(client, tokenizer):
    tokens = [*tokenizer.encode(WRITTEN), tokenizer.eot_id]
    choice = ask(client, tokens, stop=["Bern"]).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (WRITTEN[: WRITTEN.index("Bern")], "stop")


@pytest.mark.parametrize("dialect", ["meta", "meta_tag", "hf"])
def test_prompts_are_the_dialects(make_client, tokenizer, dialect):
    client = make_client(dialect)
    assert ask(client, [tokenizer.eot_id], messages=ASKED).status_code == 200
    dialog = [
        Message(Role.SYSTEM, "Environment: ipython"),
        Message(Role.USER, "Rain?", tools=(WEATHER, CLOCK, SEARCH)),
        Message(Role.ASSISTANT, "", tool_calls=(ToolCall("weather", {"city": "Z\u00fcrich"}),)),
        Message(Role.IPYTHON, "7 mm"),
    ]
    wanted = render(dialog, tokenizer, generation_prompt=True, dialect=dialect).tokens.tolist()
    assert [*client.engine.asked[-1].prompt] == wanted


def test_tools_that_may_not_be_called_are_not_shown(client, tokenizer):
    tokens = [*tokenizer.encode(WRITTEN), tokenizer.eot_id]
    choice = ask(client, tokens, tool_choice="none").json()["choices"][0]
    assert (choice["message"], choice["finish_reason"]) == ({"role": "assistant", "content": WRITTEN}, "stop")
    shown = client.engine.asked[-1].prompt
    assert ask(client, tokens, tools=[]).json()["choices"][0]["message"] == choice["message"]
    assert client.engine.asked[-1].prompt == shown


def test_what_asks_for_nothing_changes_nothing(client, tokenizer):
    prompts = []
    more = {"strict": False}
    for tools in ([CLOCK], [CLOCK | {"function": CLOCK["function"] | more}]):
        messages = [USER | {"type": "text", "name": "me"}, {"role": "assistant", "content": "No.", "tool_calls": []}, USER]
        response = ask(client, [tokenizer.eot_id], tools=tools, tool_choice="auto", messages=messages)
        assert response.status_code == 200
        prompts.append(client.engine.asked[-1].prompt)
    assert prompts[0] == prompts[1]


def function(**more):
    return [{"type": "function", "function": {"name": "f"} | more}]


@pytest.mark.parametrize(
    ("body", "message", "key"),
    [
        ({"tools": {}, "tool_choice": "required"}, "`tool_choice` may be `auto` or `none`", "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "clock"}}}, "a call cannot be forced here", "tool_choice"),
        ({"tools": CLOCK}, "`tools` must be a list", "tools"),
        ({"tools": [{"type": "web_search"}]}, 'tools[0] must be {"type": "function"', "tools"),
        ({"tools": [CLOCK, {"type": "function"}]}, "tools[1] must be", "tools"),
        ({"tools": [CLOCK, CLOCK]}, "two are called 'clock'", "tools"),
        ({"tools": function(name="a b")}, "not 'a b'", "tools"),
        ({"tools": function(strict=True)}, "`strict` is not offered", "tools"),
        ({"tools": function(parameters=[1])}, "`parameters` must be an object", "tools"),
        ({"tools": function(parametres={})}, "unknown key `parametres`", "tools"),
        ({"messages": ASKED[:1]}, "`tools` need a user's message", "tools"),
        ({"messages": [USER, *ASKED[3:]]}, "messages[1]: a tool's output must follow", "messages"),
        ({"messages": [*ASKED[:3], USER]}, "messages[2]: its tool call needs an output", "messages"),
        (
            {"messages": [*ASKED[:3], ASKED[3] | {"tool_call_id": "c1"}]},
            "is 'c1', the id of its call 'c0'",
            "messages",
        ),
        ({"messages": [USER, ASKED[2] | {"tool_calls": [CALL, CALL]}, *ASKED[3:] * 2]}, "makes one at a time", "messages"),
        ({"messages": [USER, ASKED[2] | {"tool_calls": CALL}, *ASKED[3:]]}, "`tool_calls` must be a list", "messages"),
        ({"messages": [USER | {"tool_calls": [CALL]}]}, "only an assistant message may call", "messages"),
        ({"messages": [USER | {"call": "f()"}]}, "messages[0]: `call` is not offered", "messages"),
        (
            {"messages": [USER, ASKED[2] | {"tool_calls": [{"name": "f", "arguments": "{"}]}]},
            "no JSON",
            "messages",
        ),
    ],
)
def test_refusals(client, body, message, key):
    response = ask(client, [1], **body)
    error = response.json()["error"]
    assert response.status_code == 400 and message in error["message"] and "\n" not in error["message"]
    assert error["param"] == key


def test_a_dialect_without_definitions_refuses_them(make_client):
    error = ask(make_client("torchtune"), [1]).json()["error"]
    assert "torchtune has no form for tool definitions" in error["message"]
