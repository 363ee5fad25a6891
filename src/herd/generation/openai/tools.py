"""Tools over OpenAI's interface: what a client offers, and calls and their outputs in what was said before."""

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from herd.dialog.messages import ToolCall
from herd.generation.openai.values import Refused

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")  # OpenAI's rule
_KEYS = ("name", "description", "parameters")


def read_tools(body: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """The definitions to show to the model: none where ``tool_choice`` is `none`.

    Raises:
        Refused: a definition that is none, or a call that is to be forced.
    """
    tools, choice = body.get("tools") or [], body.get("tool_choice")
    if choice not in (None, "auto", "none"):
        raise Refused("`tool_choice` may be `auto` or `none`: a call cannot be forced here.", "tool_choice")
    if not isinstance(tools, list):
        raise Refused("`tools` must be a list of definitions.", "tools")
    read = [_definition(tool, f"tools[{i}]") for i, tool in enumerate(tools)]
    names = [definition["function"]["name"] for definition in read]
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise Refused(f"`tools`: two are called {twice!r}.", "tools")
    return () if choice == "none" else tuple(read)


def _definition(tool: object, place: str) -> dict[str, Any]:
    """A definition without what asks for nothing."""
    if not isinstance(tool, dict) or tool.get("type") != "function" or not isinstance(tool.get("function"), dict):
        raise Refused(
            f'{place} must be {{"type": "function", "function": {{"name": ...}}}}; other types are not offered.', "tools"
        )
    function = tool["function"]
    if not isinstance(function.get("name"), str) or not _NAME.fullmatch(function["name"]):
        raise Refused(f"{place}: `name` must be up to 64 letters, digits, _ and -, not {function.get('name')!r:.80}.", "tools")
    if function.get("strict"):
        raise Refused(f"{place}: `strict` is not offered here: arguments are as the model writes them.", "tools")
    if not isinstance(function.get("parameters") or {}, dict) or not isinstance(function.get("description") or "", str):
        raise Refused(f"{place}: `parameters` must be an object, a JSON schema, and `description` a text.", "tools")
    unknown = next((key for key in function if key not in (*_KEYS, "strict")), None)
    if unknown is not None:
        raise Refused(f"{place}: unknown key `{unknown}`; there are {', '.join(_KEYS)}.", "tools")
    return {"type": "function", "function": {key: function[key] for key in function if key in _KEYS}}


def check_order(messages: Sequence[Mapping[str, Any]]) -> None:
    """Refused where a call is not followed by its output, or an output does not follow its call; ``messages`` were parsed."""
    for i, message in enumerate(messages):
        before, after = messages[i - 1] if i else {}, messages[i + 1] if i + 1 < len(messages) else {"role": "tool"}
        calls, called = message.get("tool_calls") or [], before.get("tool_calls") or []
        if len(calls) > 1:
            raise Refused(f"messages[{i}]: {len(calls)} tool calls; Llama 3.1 makes one at a time.", "messages")
        if calls and after["role"] != "tool":
            raise Refused(f"messages[{i}]: its tool call needs an output: a message of role `tool` after it.", "messages")
        if message["role"] == "tool" and not called:
            raise Refused(f"messages[{i}]: a tool's output must follow the assistant's message with its call.", "messages")
        if message["role"] == "tool":
            given, known = message.get("tool_call_id"), called[0].get("id")
            if None not in (given, known) and given != known:
                raise Refused(f"messages[{i}]: `tool_call_id` is {given!r:.80}, the id of its call {known!r:.80}.", "messages")


def call_of(call: ToolCall) -> dict[str, Any]:
    """A call as OpenAI writes it in a message, with an id of its own."""
    function = {"name": call.name, "arguments": json.dumps(call.arguments)}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
