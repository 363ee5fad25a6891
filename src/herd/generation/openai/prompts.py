"""What a body of OpenAI's interface asks a model to go on from: a dialog's messages, or texts, as token ids."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from herd.config.errors import UserError
from herd.corpus.tokenizer import Tokenizer
from herd.dialog.messages import Message, Role, parse_messages
from herd.dialog.render import render
from herd.generation.openai.tools import check_order
from herd.generation.openai.values import Refused, token_ids

_ROLES = {"developer": "system"}
_KEYS = ("role", "content", "tool_calls")
_NAMES = ("name", "tool_call_id")  # which no dialect writes
_TYPES = ("text", "message")  # clients that send more than asked for send these


@dataclass(frozen=True)
class Prompt:
    """Token ids to go on from."""

    ids: tuple[int, ...]
    text: str  # what the client gave, as text
    added: int = 0  # tokens in front that the client did not give


def dialog_prompt(messages: object, tools: Sequence[dict[str, Any]], tokenizer: Tokenizer, dialect: str) -> Prompt:
    """A dialog, with the header of the answer.

    Args:
        messages: OpenAI's, calls of tools and their outputs among them.
        tools: definitions to show.

    Raises:
        Refused: messages that the dialect has no form for, or none to answer.
    """
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise Refused("`messages` must be a list of objects with `role` and `content`.", "messages")
    rows = [_row(message, i) for i, message in enumerate(messages)]
    try:
        parsed = parse_messages(rows, "messages")
        check_order(messages)
        if parsed[-1].role is Role.ASSISTANT:
            raise Refused("The last message is the assistant's own: end with the one to be answered.", "messages")
        shown = _with_tools(parsed, tools)
        return Prompt(tuple(render(shown, tokenizer, generation_prompt=True, dialect=dialect).tokens.tolist()), "")
    except Refused:
        raise
    except UserError as error:
        raise Refused(str(error), "messages") from None


def _row(message: dict[str, Any], i: int) -> dict[str, Any]:
    """A message in our own form."""
    row = {key: value for key, value in message.items() if key in _KEYS and (value or key != "tool_calls")}
    extra = [key for key, value in message.items() if key not in (*_KEYS, *_NAMES) and value]
    if extra and not (extra == ["type"] and message["type"] in _TYPES):
        raise Refused(f"messages[{i}]: `{extra[0]}` is not offered here.", "messages")
    if isinstance(row.get("role"), str):
        row["role"] = _ROLES.get(row["role"], row["role"])
    row["content"] = _content(row.get("content"), i)
    return row


def _with_tools(messages: tuple[Message, ...], tools: Sequence[dict[str, Any]]) -> tuple[Message, ...]:
    """Definitions belong to the user's message that a dialog begins with."""
    if not tools:
        return messages
    first = next((i for i, message in enumerate(messages) if message.role is not Role.SYSTEM), None)
    if first is None or messages[first].role is not Role.USER:
        raise Refused("`tools` need a user's message first, or after the system's.", "tools")
    return (*messages[:first], replace(messages[first], tools=tuple(tools)), *messages[first + 1 :])


def _content(content: object, i: int) -> object:
    """A text, also from a list of parts."""
    if not isinstance(content, list):
        return content
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content]
    if not all(isinstance(text, str) for text in texts):
        raise Refused(f"messages[{i}]: only parts of type `text` are offered here.", "messages")
    return "".join(str(text) for text in texts)


def text_prompts(prompt: object, tokenizer: Tokenizer) -> list[Prompt]:
    """A text, a list of texts, a list of token ids or a list of such lists.

    Texts get the begin-of-text token in front; ids are taken as they are.
    """
    several = [prompt] if isinstance(prompt, str) else prompt
    if isinstance(several, list) and several and isinstance(several[0], int):
        several = [several]
    if isinstance(several, list) and several and isinstance(several[0], list):
        checked = [token_ids(ids, tokenizer, "prompt") for ids in several]
        return [Prompt(tuple(ids), tokenizer.decode(ids, skip_special_tokens=True)) for ids in checked]
    if not isinstance(several, list) or not several or not all(isinstance(text, str) for text in several):
        raise Refused("`prompt` must be a text, a list of texts, a list of token ids, or a list of such lists.", "prompt")
    try:
        encoded = tokenizer.encode_batch(several)
    except UserError as error:
        raise Refused(str(error), "prompt") from None
    return [Prompt((tokenizer.bos_id, *ids), text, added=1) for ids, text in zip(encoded, several, strict=True)]
