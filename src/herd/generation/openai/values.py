"""Values in a body of OpenAI's interface: checked one by one, and refused by their key."""

import json
from collections.abc import Mapping
from typing import Any

from herd.config.errors import UserError
from herd.corpus.tokenizer import Tokenizer


class Refused(UserError):
    """A body that cannot be answered; ``key`` is at fault."""

    def __init__(self, message: str, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key


def number(body: Mapping[str, Any], key: str, default: Any, kind: type, low: float, high: float) -> Any:
    """``body[key]``, an int or float within bounds; ``default`` where it is not given, or null."""
    value = body.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)) or not low <= value <= high:
        bounds = f"from {low:g} to {high:g}" if high < 2**31 else f"{low:g} or more"
        what = "a whole number" if kind is int else "a number"
        raise Refused(f"`{key}` must be {what} {bounds}, not {json.dumps(value):.60}.", key)
    return kind(value)


def token_ids(value: object, tokenizer: Tokenizer, key: str) -> list[int]:
    """``value``, which must be a list of ids of the vocabulary."""
    if not isinstance(value, list) or not all(isinstance(i, int) and not isinstance(i, bool) for i in value):
        raise Refused(f"`{key}`: token ids must be a list of whole numbers.", key)
    wrong = next((i for i in value if not 0 <= i < tokenizer.vocab_size), None)
    if wrong is not None:
        raise Refused(f"`{key}`: the vocabulary of {tokenizer.vocab_size:,} has no token {wrong}.", key)
    return value


def flag(body: Mapping[str, Any], key: str) -> bool:
    """``body[key]``, true or false; false where it is not given, or null."""
    value = body.get(key)
    if value is not None and not isinstance(value, bool):
        raise Refused(f"`{key}` must be true or false.", key)
    return bool(value)
