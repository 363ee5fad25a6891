"""Tool calls and definitions as the text that Llama 3.1 reads and writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from herd.config.errors import UserError
from herd.dialog.messages import ToolCall

INTERPRETER = "code_interpreter"
_ARGUMENT = {"brave_search": "query", "wolfram_alpha": "query", "photogen": "query", INTERPRETER: "code"}
BUILT_IN = tuple(_ARGUMENT)


def built_in_argument(name: str) -> str | None:
    """The one argument of a built-in tool; None for a tool that is none."""
    return _ARGUMENT.get(name)


def built_in_call(call: ToolCall) -> str:
    """`brave_search.call(query="...")`, or the interpreter's code; UserError when the tool's one argument is missing."""
    argument = _ARGUMENT[call.name]
    value = call.arguments.get(argument)
    if not isinstance(value, str):
        raise UserError(f"tool call {call.name}: the built-in tool takes the argument `{argument}`, a text")
    return value if call.name == INTERPRETER else f'{call.name}.call({argument}="{value}")'


def typed_json_call(call: ToolCall) -> str:
    """`{"type": "function", "name": ..., "parameters": ...}`, with the spacing and escapes of Meta's code."""
    return json.dumps({"type": "function", "name": call.name, "parameters": call.arguments})


def function_tag_call(call: ToolCall) -> str:
    """`<function=NAME>{...}</function>`, the user-defined tag."""
    return f"<function={call.name}>{json.dumps(call.arguments)}</function>"


def plain_json_call(call: ToolCall) -> str:
    """`{"name": "...", "parameters": ...}` as the Hugging Face template writes it: the name is not escaped."""
    return f'{{"name": "{call.name}", "parameters": {to_json(call.arguments)}}}'


def keyword_call(call: ToolCall) -> str:
    """`NAME.call(a="x", b="y")`, the Hugging Face template's built-in call; its arguments are text."""
    for name, value in call.arguments.items():
        if not isinstance(value, str):
            raise UserError(f"tool call {call.name}: argument `{name}` of a built-in tool must be text, not {value!r:.60}")
    return f"{call.name}.call(" + ", ".join(f'{name}="{value}"' for name, value in call.arguments.items()) + ")"


def to_json(value: object, indent: int | None = None) -> str:
    """JSON as `tojson` in a Hugging Face template: no letter is escaped."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def definitions(tools: Sequence[Mapping[str, Any]]) -> str:
    """Definitions one after another, each indented by four and followed by a blank line."""
    return "".join(to_json(tool, indent=4) + "\n\n" for tool in tools)
