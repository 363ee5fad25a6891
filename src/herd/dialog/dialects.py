"""How a dialog is written: the dialects of Llama 3.1, each a generator of pieces.

A message is, in all of them,

    <|start_header_id|> role <|end_header_id|> \\n\\n body (<|eot_id|> | <|eom_id|>)

and a dialog is `<|begin_of_text|>` and its messages. Where they disagree:

|                      | meta                           | hf                                  | torchtune               |
|----------------------|--------------------------------|-------------------------------------|-------------------------|
| no system message    | nothing                        | a system message with two dates     | nothing                 |
| content              | as it is                       | stripped                            | stripped                |
| tool definitions     | a user message of their own    | before the first user's text        | no form: refused        |
| call by name         | {"type", "name", "parameters"} | {"name", "parameters"}, no tag      | the same JSON, with tag |
| end of a call        | eom in the ipython environment | eom where there are built-in tools  | eom                     |
| tool output          | as it is, eot                  | as JSON, eot                        | stripped, eom           |
| text beside a call   | kept                           | dropped                             | kept, after the tag     |
| after the last one   | nothing                        | nothing                             | <|end_of_text|>         |
| role `tool`          | ipython                        | ipython                             | tool                    |

`meta` is llama-models' `chat_format.py` with the tags of its document `llama3_1/prompt_format.md`; `meta_tag` is `meta` with
calls as `<function=NAME>{...}</function>`; `hf` is the chat template that the Llama 3.1 checkpoints carry; `torchtune` is its
`Llama3Tokenizer`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple, Protocol

import numpy as np

from herd.config.errors import UserError
from herd.config.registry import Registry
from herd.dialog import tool_text
from herd.dialog.messages import Message, Role, ToolCall


class ChatTokenizer(Protocol):
    """What rendering needs of a tokenizer; `herd.corpus.tokenizer.Tokenizer` is one."""

    @property
    def bos_id(self) -> int: ...
    @property
    def eos_id(self) -> int: ...
    @property
    def eot_id(self) -> int: ...
    @property
    def eom_id(self) -> int: ...
    @property
    def start_header_id(self) -> int: ...
    @property
    def end_header_id(self) -> int: ...
    @property
    def python_tag_id(self) -> int: ...
    def encode_flat(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts in a row; those of text i are ``ids[offsets[i]:offsets[i + 1]]``."""
        ...


class Segment(IntEnum):
    """What a token is within its message."""

    BOS = 0
    HEADER = 1  # start_header, role, end_header, the two line breaks
    BODY = 2
    PYTHON_TAG = 3
    TERMINATION = 4  # eot or eom
    TOOL_OUTPUT = 5  # the body of an ipython message
    END_OF_TEXT = 6  # after the last message (torchtune); never trained


NO_MESSAGE, NO_ROLE = -1, -1  # of tokens that belong to no message of the dialog


Content = int | str | tuple[int | str, ...]  # a special token (its id), plain text, or several of both in a row


class Piece(NamedTuple):
    """A content and what it is."""

    content: Content
    segment: Segment
    message: int  # index in the dialog
    role: int


Dialect = Callable[[Sequence[Message], ChatTokenizer], Iterator[Piece]]
DIALECTS: Registry[Dialect] = Registry("dialect")

ENVIRONMENT = "Environment: ipython"
DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
HF_TOOLS = (
    "Given the following functions, please respond with a JSON for a function call with its proper arguments that best "
    'answers the given prompt.\n\nRespond in the format {"name": function name, "parameters": dictionary of argument name '
    "and its value}.Do not use variables.\n\n"
)
# The dialect says where definitions stand, not in which words; these are ours.
META_TOOLS = "You may call these functions:\n\n{}Reply with a call in JSON, one at a time."
TAG_TOOLS = "You may call these functions:\n\n{}Reply with a call as <function=NAME>{{ARGUMENTS}}</function>, one at a time."


def header(index: int, role: Role, tokenizer: ChatTokenizer, wire: str = "") -> Piece:
    """The header of a message; `wire` where the role is written otherwise."""
    parts = (tokenizer.start_header_id, wire or role.wire, tokenizer.end_header_id, "\n\n")
    return Piece(parts, Segment.HEADER, index, role)


def _begin(tokenizer: ChatTokenizer) -> Piece:
    return Piece(tokenizer.bos_id, Segment.BOS, NO_MESSAGE, NO_ROLE)


def _one_call(message: Message, index: int) -> ToolCall | None:
    """The message's call by name, if it has one; UserError for several."""
    if message.tool_calls and len(message.tool_calls) > 1:
        raise UserError(f"message {index}: {len(message.tool_calls)} tool calls; Llama 3.1 makes one at a time")
    return message.tool_calls[0] if message.tool_calls else None


def _meta(messages: Sequence[Message], tokenizer: ChatTokenizer, tag: bool) -> Iterator[Piece]:
    """`tag`: calls by name as user-defined function tags."""
    yield _begin(tokenizer)
    ipython = any(m.role is Role.SYSTEM and ENVIRONMENT in m.content for m in messages)
    for index, message in enumerate(messages):
        role = message.role
        if message.tools:
            yield from _definitions(index, message, tokenizer, tag, ipython)
        yield header(index, role, tokenizer)
        yield Piece(message.content, Segment.TOOL_OUTPUT if role is Role.IPYTHON else Segment.BODY, index, role)
        text, tagged = message.call, message.call is not None
        waits = tagged
        call = _one_call(message, index)
        if call is not None:
            built_in = call.name in tool_text.BUILT_IN
            if built_in:
                text = tool_text.built_in_call(call)
            else:
                text = tool_text.function_tag_call(call) if tag else tool_text.typed_json_call(call)
            waits = tagged = built_in or (ipython and not tag)
        if tagged:
            yield Piece(tokenizer.python_tag_id, Segment.PYTHON_TAG, index, role)
        if text is not None:
            yield Piece(text, Segment.BODY, index, role)
        waits = waits if message.end_of_message is None else message.end_of_message
        yield Piece(tokenizer.eom_id if waits else tokenizer.eot_id, Segment.TERMINATION, index, role)


def _definitions(index: int, message: Message, tokenizer: ChatTokenizer, tag: bool, ipython: bool) -> Iterator[Piece]:
    """The user message of their own that definitions have; built-in tools are switched on by the system message."""
    custom = [tool for tool in message.tools if not isinstance(tool, str)]
    if len(custom) < len(message.tools) and not ipython:
        raise UserError(
            f"message {index}: built-in tools need a system message with the lines `{ENVIRONMENT}` and `Tools: NAME, NAME`"
        )
    if custom:
        yield header(index, Role.USER, tokenizer)
        text = (TAG_TOOLS if tag else META_TOOLS).format(tool_text.definitions(custom))
        yield Piece(text, Segment.BODY, index, Role.USER)
        yield Piece(tokenizer.eot_id, Segment.TERMINATION, index, Role.USER)


@DIALECTS.register("meta")
def meta(messages: Sequence[Message], tokenizer: ChatTokenizer) -> Iterator[Piece]:
    """Llama 3.1 as Meta's own code and document write it."""
    return _meta(messages, tokenizer, tag=False)


@DIALECTS.register("meta_tag")
def meta_tag(messages: Sequence[Message], tokenizer: ChatTokenizer) -> Iterator[Piece]:
    """`meta` with calls by name as `<function=NAME>{...}</function>`."""
    return _meta(messages, tokenizer, tag=True)


@DIALECTS.register("hf")
def hf(messages: Sequence[Message], tokenizer: ChatTokenizer) -> Iterator[Piece]:
    """The chat template of the Llama 3.1 checkpoints, with its fixed date. `end_of_message` has no say here."""
    given = bool(messages) and messages[0].role is Role.SYSTEM
    start = int(given)
    tools = messages[start].tools if start < len(messages) else ()
    if any(message.tools for message in messages[start + 1 :]):
        raise UserError("dialect hf: tools belong to the first message after the system's, a user's")
    built_in = [tool for tool in tools if isinstance(tool, str)]
    custom = [tool for tool in tools if not isinstance(tool, str)]
    system = f"{ENVIRONMENT}\n" if tools else ""
    if built_in:
        system += "Tools: " + ", ".join(name for name in built_in if name != tool_text.INTERPRETER) + "\n\n"
    system += DATES + (messages[0].content.strip() if given else "")
    yield _begin(tokenizer)
    at = 0 if given else NO_MESSAGE
    yield header(at, Role.SYSTEM, tokenizer)
    yield Piece(system, Segment.BODY, at, Role.SYSTEM)
    yield Piece(tokenizer.eot_id, Segment.TERMINATION, at, Role.SYSTEM)
    for index in range(start, len(messages)):
        message, role = messages[index], messages[index].role
        yield header(index, role, tokenizer)
        call, end = _one_call(message, index), tokenizer.eot_id
        if message.tool_calls == ():
            raise UserError(f"message {index}: dialect hf refuses an empty list of tool calls; leave `tool_calls` out")
        if message.calls:
            text = message.call
            if text is not None or (call is not None and call.name in built_in):
                yield Piece(tokenizer.python_tag_id, Segment.PYTHON_TAG, index, role)
            if call is not None:
                text = tool_text.keyword_call(call) if call.name in built_in else tool_text.plain_json_call(call)
            assert text is not None
            yield Piece(text, Segment.BODY, index, role)
            end = tokenizer.eom_id if built_in else end
        elif role is Role.IPYTHON:
            yield Piece(tool_text.to_json(message.content), Segment.TOOL_OUTPUT, index, role)
        else:
            before = HF_TOOLS + tool_text.definitions(custom) if custom and index == start else ""
            yield Piece(before + message.content.strip(), Segment.BODY, index, role)
        yield Piece(end, Segment.TERMINATION, index, role)


@DIALECTS.register("torchtune")
def torchtune(messages: Sequence[Message], tokenizer: ChatTokenizer) -> Iterator[Piece]:
    """torchtune's `Llama3Tokenizer.tokenize_messages`: a message that calls is one of its `ipython=True` messages."""
    yield _begin(tokenizer)
    for index, message in enumerate(messages):
        role = message.role
        if message.tools:
            raise UserError("dialect torchtune has no form for tool definitions: put them into the system message")
        yield header(index, role, tokenizer, "tool" if message.spelt_tool else "")
        call = _one_call(message, index)
        text = message.call if call is None else tool_text.typed_json_call(call)
        if text is not None:
            yield Piece(tokenizer.python_tag_id, Segment.PYTHON_TAG, index, role)
        body = Segment.TOOL_OUTPUT if role is Role.IPYTHON else Segment.BODY
        yield Piece(message.content.strip(), body, index, role)
        if text is not None:
            yield Piece(text.strip(), Segment.BODY, index, role)
        waits = message.expects_result or (role is Role.IPYTHON and message.end_of_message is None)
        yield Piece(tokenizer.eom_id if waits else tokenizer.eot_id, Segment.TERMINATION, index, role)
    yield Piece(tokenizer.eos_id, Segment.END_OF_TEXT, NO_MESSAGE, NO_ROLE)
