"""Rows as people have them -> dialogs and preferences.

| kind              | columns                                                                               |
|-------------------|---------------------------------------------------------------------------------------|
| messages          | `messages`: a list of {role, content}                                                 |
| prompt_completion | `prompt`, `completion`: text or lists of messages                                     |
| alpaca            | `instruction`, `output`; `input`                                                      |
| sharegpt          | `conversations`: a list of {from, value} (or {role, content})                         |
| preference        | `chosen`, `rejected`: text or lists of messages; `prompt`, or the lists begin with it |

All may have `system` (text) and `tools` (definitions, or JSON text of them); a preference also `grade` or `strength`, `edited`,
`models` and `scores`. Other columns, and other keys of messages, are passed over, but for what says that an answer is not to
be learnt: a `label` beside a completion, a `weight` or `train` of a message other than 1.

A row that cannot be read is refused by its place (UserError); one that is understood but of no use is dropped with a reason.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from herd.config.errors import UserError, nearest
from herd.config.registry import Registry
from herd.dialog.messages import Message, Role, parse_messages, parse_tools, reject_reason, require_unicode
from herd.dialog.preferences import Grade, Preference
from herd.dialog.rows import require

Messages = tuple[Message, ...]
TIE = "tie"
PREFERENCE = "preference"
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "observation": "tool", "function": "tool"}
_CALL_ROLE = "function_call"  # ShareGPT with tools: the value is JSON with name and arguments
_KEYS = ("role", "content", "call", "end_of_message", "tool_calls", "tools")
_COLUMNS = {  # kind -> columns that it must have, in the order in which kinds are looked for
    PREFERENCE: ("chosen", "rejected"),
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
}
_FURTHER = ("id", "input", "system", "tools", "grade", "strength", "edited", "models", "scores", "prompt_id", "label")


class Unusable(Exception):
    """A row that is understood and of no use; the argument is the reason, a word to count."""


@dataclass(frozen=True)
class RowFormat:
    """How columns are read."""

    columns: dict[str, str] = field(default_factory=dict)  # our column -> theirs, e.g. messages: conversation
    grades: dict[str | int | float, str] = field(default_factory=dict)  # their strength -> a grade, or tie, which is dropped
    default_grade: str = Grade.SIGNIFICANTLY_BETTER.value  # of a preference without a strength

    def __post_init__(self) -> None:
        for grade in (*self.grades.values(), self.default_grade):
            if grade not in (*Grade, TIE):
                raise UserError(f"no grade `{grade}`; use one of {', '.join(Grade)} or {TIE}.{nearest(grade, list(Grade))}")
        ours = (*dict.fromkeys(name for needed in _COLUMNS.values() for name in needed), *_FURTHER)
        for name in self.columns:
            if name not in ours:
                raise UserError(f"format.columns.{name}: no column of ours; use one of {', '.join(ours)}.{nearest(name, ours)}")

    def rename(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row with our names of its columns."""
        ours = {theirs: name for name, theirs in self.columns.items()}
        return {ours.get(name, name): value for name, value in row.items()}

    def grade(self, row: Mapping[str, Any], where: str) -> Grade:
        """How much better the chosen response is; UserError for a strength that has no grade."""
        value = row.get("grade") if row.get("grade") is not None else row.get("strength")
        grades = {str(theirs): grade for theirs, grade in self.grades.items()}
        name = self.default_grade if value is None else grades.get(str(value), str(value))
        if name == TIE:
            raise Unusable(TIE)
        if name not in list(Grade):
            raise UserError(
                f"{where}: no grade for strength {value!r:.60}; name one (of {', '.join(Grade)} or {TIE}): "
                f"'++format.grades={{{value!s:.60}: better}}'"
            )
        return Grade(name)


DIALOG_KINDS: Registry[Callable[[Mapping[str, Any], str], Messages]] = Registry("kind of row")


def kind_of(row: Mapping[str, Any], where: str) -> str:
    """The kind of a row by its columns; UserError when they fit none."""
    for kind, needed in _COLUMNS.items():
        if all(row.get(name) is not None for name in needed):
            if kind == "prompt_completion" and isinstance(row.get("label"), bool):
                raise UserError(
                    f"{where}: `label` says whether a completion is good, which nothing here learns from: keep the good rows "
                    "alone, or take all with kind=prompt_completion"
                )
            return kind
    kinds = "; ".join(f"{kind}: {', '.join(needed)}" for kind, needed in _COLUMNS.items())
    raise UserError(
        f"{where}: columns {', '.join(sorted(row)) or 'none'} are of no known kind ({kinds}); "
        "say which they are with ++format.columns.OURS=THEIRS"
    )


def require_columns(kind: str, row: Mapping[str, Any], where: str) -> None:
    """UserError when a row lacks a column of its kind."""
    for name in _COLUMNS[kind]:
        if row.get(name) is None:
            raise UserError(
                f"{where}: no `{name}`, which rows of kind {kind} have (this one has {', '.join(sorted(row)) or 'nothing'}); "
                "import each kind apart, or drop such rows with malformed=drop"
            )


def read_dialog(kind: str, row: Mapping[str, Any], where: str) -> Messages:
    """A row as a dialog that can be trained on. Raises UserError for a malformed one, Unusable for one of no use."""
    require_columns(kind, row, where)
    messages = _with_context(row, DIALOG_KINDS.get(kind)(row, where), where)
    require_unicode(messages, where)
    reason = reject_reason(messages)
    if reason:
        raise Unusable(reason)
    return messages


@DIALOG_KINDS.register("messages")
def _messages(row: Mapping[str, Any], where: str) -> Messages:
    return to_messages(row.get("messages"), where, "messages")


@DIALOG_KINDS.register("sharegpt")
def _sharegpt(row: Mapping[str, Any], where: str) -> Messages:
    return to_messages(row.get("conversations"), where, "conversations")


@DIALOG_KINDS.register("prompt_completion")
def _prompt_completion(row: Mapping[str, Any], where: str) -> Messages:
    return _prompt(row, where) + _response(row, "completion", where)


@DIALOG_KINDS.register("alpaca")
def _alpaca(row: Mapping[str, Any], where: str) -> Messages:
    instruction, output = (require(row, name, where) for name in ("instruction", "output"))
    more = row.get("input") or ""
    if not isinstance(more, str):
        raise UserError(f"{where}: `input` must be text, not {type(more).__name__}")
    return (Message(Role.USER, f"{instruction}\n\n{more}" if more.strip() else instruction), Message(Role.ASSISTANT, output))


def read_preference(row: Mapping[str, Any], where: str, identity: str, format: RowFormat) -> Preference:
    """A row as a preference. Raises UserError for a malformed one, Unusable for one of no use.

    Without `prompt`, or where the lists repeat it, the prompt is what both lists begin with.
    """
    require_columns(PREFERENCE, row, where)
    chosen, rejected = (_response(row, name, where) for name in ("chosen", "rejected"))
    edited = None if row.get("edited") in (None, "", []) else _response(row, "edited", where)
    whole = chosen[0].role is not Role.ASSISTANT
    if whole:
        prompt = _shared(chosen, rejected)
        given = row.get("prompt")
        if isinstance(given, str) and given and given != _last_user(prompt):
            raise Unusable("prompt_differs_from_responses")
        if edited is not None and edited[: len(prompt)] != prompt and edited[0].role is not Role.ASSISTANT:
            raise Unusable("edited_has_another_prompt")
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
        edited = edited[len(prompt) :] if edited is not None and edited[0].role is not Role.ASSISTANT else edited
    else:
        prompt = _prompt(row, where)
    prompt = _with_context(row, prompt, where)
    for response in (chosen, rejected, *([edited] if edited is not None else [])):
        if not response or response[0].role is not Role.ASSISTANT:
            raise Unusable("no_assistant_turn" if response else "empty_response")
        require_unicode(prompt + response, where)
        reason = reject_reason(prompt + response, first=len(prompt))
        if reason:
            raise Unusable(reason)
    if chosen == rejected:
        raise Unusable("chosen_equals_rejected")
    grade = format.grade(row, where)
    return Preference(
        id=identity,
        prompt_id="" if row.get("prompt_id") is None else str(row["prompt_id"]),  # without: pairs of one prompt are one by it
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        grade=grade,
        edited=edited,
        models={name: value for name, value in _items(row, "models") if isinstance(value, str)},
        scores=_scores(row, where),
    )


def to_messages(value: object, where: str, column: str, instead: str = "") -> Messages:
    """A list of messages with other libraries' keys and roles; UserError when it is none (`instead`: what else it may be)."""
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: `{column}` must be {instead}a list with at least one message, not {value!r:.60}")
    rows = [_plain(row, f"{where}, message {number}") for number, row in enumerate(value)]
    return parse_messages(rows, where)


def _plain(row: object, place: str) -> dict[str, Any]:
    """A message with our keys; keys without a value are left out, as tables have every key in every row."""
    if not isinstance(row, Mapping):
        raise UserError(f"{place}: must be an object with `role` and `content`, not {type(row).__name__}")
    named = {{"from": "role", "value": "content"}.get(key, key): value for key, value in row.items()}
    for key in ("weight", "train"):
        if named.get(key, 1) not in (None, 1):
            raise UserError(
                f"{place}: `{key}` is {named[key]!r:.60}, but every answer is learnt alike: take `{key}` or the row out"
            )
    message = {key: named[key] for key in _KEYS if named.get(key) is not None}
    if not message.get("tool_calls", True):
        del message["tool_calls"]  # an empty list: no call
    role = message.get("role")
    if role == _CALL_ROLE:
        try:
            call = json.loads(str(message.pop("content", "")))
        except ValueError:
            raise UserError(f"{place}: the value of a {_CALL_ROLE} must be JSON with `name` and `arguments`") from None
        return message | {"role": Role.ASSISTANT.wire, "tool_calls": call if isinstance(call, list) else [call]}
    if isinstance(role, str):
        message["role"] = _ROLES.get(role, role)
    if "content" in message:
        message["content"] = _text(message["content"], message.get("role"))
    elif "tool_calls" not in message and "call" not in message:
        raise UserError(f"{place}: has no `content`")
    return message


def _text(content: object, role: object) -> object:
    """Content as text: parts are joined, a tool's structured output becomes JSON; anything else is left for parsing to refuse."""
    if isinstance(content, Mapping) and role in ("tool", Role.IPYTHON.wire):
        return json.dumps(content, ensure_ascii=False)
    if not isinstance(content, list):
        return content
    parts = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) else part
        if not isinstance(text, str) or (isinstance(part, Mapping) and part.get("type", "text") != "text"):
            raise Unusable("not_text")
        parts.append(text)
    return "\n".join(parts)


def _prompt(row: Mapping[str, Any], where: str) -> Messages:
    value = row.get("prompt")
    if isinstance(value, str):
        return (Message(Role.USER, value),)
    return to_messages(value, f"{where}, prompt", "prompt", "text or ")


def _response(row: Mapping[str, Any], name: str, where: str) -> Messages:
    value = row.get(name)
    if isinstance(value, str):
        return (Message(Role.ASSISTANT, value),)
    if isinstance(value, Mapping):  # a single message
        value = [value]
    if value == []:
        raise Unusable("empty_response")
    return to_messages(value, f"{where}, {name}", name, "text or ")


def _shared(chosen: Messages, rejected: Messages) -> Messages:
    """What both begin with, up to the assistant's message in which they part."""
    count = 0
    while count < min(len(chosen), len(rejected)) and chosen[count] == rejected[count]:
        count += 1
    if count == len(chosen) == len(rejected):
        raise Unusable("chosen_equals_rejected")
    if count == 0:
        raise Unusable("no_common_prompt")
    return chosen[:count]


def _last_user(prompt: Messages) -> str | None:
    return next((m.content for m in reversed(prompt) if m.role is Role.USER), None)


def _with_context(row: Mapping[str, Any], messages: Messages, where: str) -> Messages:
    """The columns `system` and `tools` put where dialogs have them: a first message, and the first user's `tools`."""
    system = row.get("system")
    if isinstance(system, str) and system.strip() and messages[0].role is not Role.SYSTEM:
        messages = (Message(Role.SYSTEM, system), *messages)
    tools = parse_tools(row.get("tools"), where)
    if not tools:
        return messages
    first = next((i for i, m in enumerate(messages) if m.role is not Role.SYSTEM), None)
    if first is None or messages[first].role is not Role.USER:
        raise Unusable("tools_without_user_message")
    return (*messages[:first], replace(messages[first], tools=tools), *messages[first + 1 :])


def _items(row: Mapping[str, Any], name: str) -> Sequence[tuple[str, Any]]:
    value = row.get(name)
    return [(str(key), item) for key, item in value.items()] if isinstance(value, Mapping) else []


def _scores(row: Mapping[str, Any], where: str) -> dict[str, float]:
    """Response -> its score; what is no number at all is passed over, NaN and infinity, which JSON cannot hold, are refused."""
    scores = {name: float(value) for name, value in _items(row, "scores") if isinstance(value, int | float)}
    for name, value in scores.items():
        if not math.isfinite(value):
            raise UserError(f"{where}: scores.{name} is {value}, which is no number; leave it out")
    return scores
