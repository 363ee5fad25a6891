"""Messages of a dialog and what makes a dialog fit for training.

The wire roles of Llama 3.1 are `system`, `user`, `assistant` and `ipython` (tool output). `tool`, the name that other
libraries use for the last, is read as `ipython`; only the dialect `torchtune` writes it as it was spelt.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from herd.config.errors import UserError, nearest


class Role(IntEnum):
    """Who speaks. The lower-case name is the text between the header tokens."""

    SYSTEM = 0
    USER = 1
    ASSISTANT = 2
    IPYTHON = 3  # tool output

    @property
    def wire(self) -> str:
        return _WIRE[self]


_WIRE = tuple(role.name.lower() for role in Role)
_TOOL = "tool"
_ROLE_NAMES = {role.wire: role for role in Role} | {_TOOL: Role.IPYTHON}
_KEYS = ("role", "content", "call", "end_of_message", "tool_calls", "tools")


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool by name; the dialect decides how it is written."""

    name: str
    arguments: dict[str, Any] = field(hash=False)  # JSON values

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, OpenAI's."""
        return {"type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True)
class Message:
    """One message.

    `content` is plain text and stays plain text: the name of a special token in it is never a special token.

    A tool is called in one of two ways. `call` is the text after `<|python_tag|>` (code, a JSON call or
    `tool.call(...)`), written as it stands. `tool_calls` holds name and arguments, which the dialect writes; Llama 3.1 makes
    one call at a time, so more than one is for :func:`reject_reason` to find. `end_of_message` says that the message ends
    with `<|eom_id|>` (or not), where the dialect would decide otherwise.

    `tools` belongs to the user's message that a dialog begins with: definitions (objects with a JSON schema) of the tools
    that the dialog offers, and names of built-in ones (`brave_search`).
    """

    role: Role
    content: str = ""
    call: str | None = None
    end_of_message: bool | None = None  # None: as the dialect ends such a message
    tool_calls: tuple[ToolCall, ...] | None = None  # None: the row had none; (): an empty list, which dialect hf refuses
    tools: tuple[dict[str, Any] | str, ...] = field(default=(), hash=False)
    spelt_tool: bool = False  # the row said `tool`, not `ipython`

    @property
    def calls(self) -> bool:
        """True when the message calls a tool."""
        return self.call is not None or bool(self.tool_calls)

    @property
    def expects_result(self) -> bool:
        """True when the tool's output comes next, if anything does."""
        return self.calls if self.end_of_message is None else self.end_of_message

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; keys with their default value are left out."""
        row: dict[str, Any] = {"role": _TOOL if self.spelt_tool else self.role.wire, "content": self.content}
        if self.call is not None:
            row["call"] = self.call
        if self.end_of_message is not None:
            row["end_of_message"] = self.end_of_message
        if self.tool_calls is not None:
            row["tool_calls"] = [call.to_dict() for call in self.tool_calls]
        if self.tools:
            row["tools"] = list(self.tools)
        return row


def parse_messages(rows: object, where: str) -> tuple[Message, ...]:
    """JSON messages -> Message objects. UserError names `where` (a file and line) when something is malformed."""
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{where}: `messages` must be a list with at least one message")
    messages = tuple(_parse_message(row, f"{where}, message {number}") for number, row in enumerate(rows))
    require_unicode(messages, where)
    return messages


def require_unicode(messages: Sequence[Message], where: str) -> None:
    """UserError when a message holds half of a surrogate pair, which JSON can spell and no tokenizer reads."""
    for number, message in enumerate(messages):
        arguments = [json.dumps(call.arguments, ensure_ascii=False) for call in message.tool_calls or ()]
        try:
            "".join([message.content, message.call or "", *arguments]).encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(f"{where}, message {number}: half of a surrogate pair at character {error.start}; mend it") from None


def _parse_message(row: object, place: str) -> Message:
    if not isinstance(row, dict):
        raise UserError(f"{place}: must be an object with `role` and `content`, not {type(row).__name__}")
    for key in row:
        if key not in _KEYS:
            raise UserError(f"{place}: unknown key `{key}`.{nearest(key, _KEYS)}")
    name, content, call, end = row.get("role"), row.get("content", ""), row.get("call"), row.get("end_of_message")
    tool_calls = None if row.get("tool_calls") is None else parse_tool_calls(row["tool_calls"], place)
    if not isinstance(name, str) or name not in _ROLE_NAMES:
        hint = nearest(str(name), _ROLE_NAMES)
        raise UserError(f"{place}: unknown role {name!r}; use one of {', '.join(_ROLE_NAMES)}.{hint}")
    if content is None and tool_calls:
        content = ""  # as OpenAI writes a message that only calls
    if not isinstance(content, str) or not (call is None or isinstance(call, str)):
        raise UserError(f"{place}: `content` and `call` must be text")
    if end is not None and not isinstance(end, bool):
        raise UserError(f"{place}: `end_of_message` must be true or false, not {end!r:.60}")
    role = _ROLE_NAMES[name]
    if role is not Role.ASSISTANT and (call is not None or tool_calls or end):
        raise UserError(f"{place}: only an assistant message may call a tool or end with <|eom_id|>")
    if call is not None and tool_calls:
        raise UserError(f"{place}: give either `call`, text, or `tool_calls`, names and arguments")
    tools = parse_tools(row.get("tools"), place)
    if tools and role is not Role.USER:
        raise UserError(f"{place}: `tools` belongs to a user message, not to role '{name}'")
    return Message(role, content, call, end, tool_calls, tools, name == _TOOL)


def parse_tool_calls(value: object, place: str) -> tuple[ToolCall, ...]:
    """Calls as OpenAI writes them, `{"function": {"name": ..., "arguments": ...}}`, or name and arguments alone.

    Arguments are an object, or JSON text of one.
    """
    if not isinstance(value, list):
        raise UserError(f"{place}: `tool_calls` must be a list, not {type(value).__name__}")
    calls = []
    for given in value:
        inner = given.get("function", given) if isinstance(given, dict) else None
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str) or not inner["name"]:
            raise UserError(f"{place}: a tool call needs a `name`, and `arguments`, an object; found {given!r:.80}")
        arguments = _from_json(inner.get("arguments", inner.get("parameters")))
        if not isinstance(arguments, dict):
            raise UserError(f"{place}: the arguments of tool call '{inner['name']}' are no JSON object: {arguments!r:.80}")
        calls.append(ToolCall(inner["name"], arguments))
    return tuple(calls)


def parse_tools(value: object, place: str) -> tuple[dict[str, Any] | str, ...]:
    """Definitions of tools: a list (or its JSON text) of objects, each with a `name` or a `function` that has one, and of
    names of built-in tools."""
    tools = _from_json(value)
    if tools is None or tools == "":
        return ()
    if not isinstance(tools, list):
        raise UserError(f"{place}: `tools` must be a list of definitions, not {type(tools).__name__}")
    found = [_from_json(tool) for tool in tools]
    for tool in found:
        inner = tool.get("function", tool) if isinstance(tool, dict) else tool
        if not (isinstance(inner, dict) and isinstance(inner.get("name"), str)) and not (isinstance(tool, str) and tool):
            raise UserError(f"{place}: a tool needs a definition with a `name`; found {tool!r:.80}")
    return tuple(found)


def _from_json(value: Any) -> Any:
    """The value that text spells as a JSON object or list; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def reject_reason(messages: Sequence[Message], first: int = 0) -> str | None:
    """Why the messages from index `first` on cannot be trained on, as a word to count; None when they can."""
    if not any(m.role is Role.ASSISTANT for m in messages[first:]):
        return "no_assistant_turn"
    for index, message in enumerate(messages):
        following = messages[index + 1] if index + 1 < len(messages) else None
        said = message.content.strip() or (message.call or "").strip() or message.tool_calls
        if index >= first and message.role is Role.ASSISTANT and not said:
            return "empty_response"
        if message.tool_calls and len(message.tool_calls) > 1:
            return "several_tool_calls"
        if message.expects_result and following is not None and following.role is not Role.IPYTHON:
            return "tool_call_without_result"
        before = messages[index - 1] if index else None
        if message.role is Role.IPYTHON and not (before is not None and (before.calls or before.expects_result)):
            return "tool_result_without_call"
    return None
