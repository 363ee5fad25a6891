"""Messages of a dialog and what makes a dialog fit for training.

The wire roles of Llama 3.1 are `system`, `user`, `assistant` and `ipython` (tool output); `tool`, the name that other
libraries use for the last, is read as `ipython`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
        return self.name.lower()


_ROLE_NAMES = {role.wire: role for role in Role} | {"tool": Role.IPYTHON}
_KEYS = ("role", "content", "call", "end_of_message")


@dataclass(frozen=True)
class Message:
    """One message.

    `content` is plain text and stays plain text: the name of a special token in it is never a special token. `call` is
    the text after `<|python_tag|>` (code, a JSON call or `tool.call(...)`); None means that there is no call, and the
    call's message then ends with `<|eot_id|>`. A message with a call ends with `<|eom_id|>` (a result is expected)
    unless `end_of_message` says otherwise.
    """

    role: Role
    content: str = ""
    call: str | None = None
    end_of_message: bool | None = None  # None: exactly the messages with a call

    @property
    def expects_result(self) -> bool:
        """True when the message ends with `<|eom_id|>`: the tool's output comes next."""
        return self.call is not None if self.end_of_message is None else self.end_of_message

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; keys with their default value are left out."""
        row: dict[str, Any] = {"role": self.role.wire, "content": self.content}
        if self.call is not None:
            row["call"] = self.call
        if self.end_of_message is not None:
            row["end_of_message"] = self.end_of_message
        return row


def parse_messages(rows: object, where: str) -> tuple[Message, ...]:
    """JSON messages -> Message objects. UserError names `where` (a file and line) when something is malformed."""
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{where}: `messages` must be a list with at least one message")
    messages = []
    for number, row in enumerate(rows):
        place = f"{where}, message {number}"
        if not isinstance(row, dict):
            raise UserError(f"{place}: must be an object with `role` and `content`, not {type(row).__name__}")
        for key in row:
            if key not in _KEYS:
                raise UserError(f"{place}: unknown key `{key}`.{nearest(key, _KEYS)}")
        role, content, call = row.get("role"), row.get("content", ""), row.get("call")
        if not isinstance(role, str) or role not in _ROLE_NAMES:
            raise UserError(
                f"{place}: unknown role {role!r}; use one of {', '.join(_ROLE_NAMES)}.{nearest(str(role), _ROLE_NAMES)}"
            )
        if not isinstance(content, str) or not (call is None or isinstance(call, str)):
            raise UserError(f"{place}: `content` and `call` must be text")
        message = Message(_ROLE_NAMES[role], content, call, row.get("end_of_message"))
        if message.role is not Role.ASSISTANT and (call is not None or message.end_of_message):
            raise UserError(f"{place}: only an assistant message may call a tool or end with <|eom_id|>")
        messages.append(message)
    return tuple(messages)


def reject_reason(messages: Sequence[Message], first: int = 0) -> str | None:
    """Why the messages from index `first` on cannot be trained on, as a word to count; None when they can."""
    if not any(m.role is Role.ASSISTANT for m in messages[first:]):
        return "no_assistant_turn"
    for index, message in enumerate(messages):
        following = messages[index + 1] if index + 1 < len(messages) else None
        if index >= first and message.role is Role.ASSISTANT and not (message.content.strip() or (message.call or "").strip()):
            return "empty_response"
        if message.expects_result and following is not None and following.role is not Role.IPYTHON:
            return "tool_call_without_result"
        if message.role is Role.IPYTHON and (index == 0 or not messages[index - 1].expects_result):
            return "tool_result_without_call"
    return None
