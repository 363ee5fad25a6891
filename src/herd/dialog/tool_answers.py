"""A model's answer read back while it comes: its text, and the tool call that it makes.

A call is one of the forms that the dialects write (:mod:`herd.dialog.tool_text`): JSON with `name` and `parameters`, a function
tag, a built-in tool's `NAME.call(ARGUMENT="...")` or, for the interpreter, code. It ends the answer, and its tool is one of those
offered: what looks like a call and is none stays text.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection
from typing import NoReturn

from herd.dialog.messages import ToolCall
from herd.dialog.tool_text import INTERPRETER, built_in_argument

# How a call begins that no tag parts from the text before it, without blanks.
_BEGINNINGS = ('{"type":"function"', '{"name":"', '{"parameters":{', '{"arguments":{', "<function=")
_LONGEST = 80  # characters, blanks included, that show whether one has begun
_FIRST = re.compile("[{<]")
_BLANKS = re.compile(r"\s+")
_TAG = re.compile(r"<function=([^<>{}]+)>(.*)</function>", re.DOTALL)
_KEYWORD = re.compile(r'(\w+)\.call\((\w+)="(.*)"\)', re.DOTALL)


def parse_call(text: str, names: Collection[str], tagged: bool = False) -> ToolCall | None:
    """The call that ``text`` is, from its first character to its last; None where it is none.

    Args:
        names: of the tools that were offered.
        tagged: it came after `<|python_tag|>`, where a built-in tool's call and code may stand.
    """
    text = text.strip()
    name: object
    arguments: object
    tag, keyword = _TAG.fullmatch(text), _KEYWORD.fullmatch(text) if tagged else None
    if tag:
        name, arguments = tag[1], _object(tag[2])
    elif keyword and keyword[2] == built_in_argument(keyword[1]):
        name, arguments = keyword[1], {keyword[2]: keyword[3]}
    else:
        value = _object(text) or {}
        name, arguments = value.pop("name", None), value.pop("parameters", value.pop("arguments", None))
        if value.pop("type", "function") != "function" or value:
            name = None
        if name is None and tagged and INTERPRETER in names and text:
            name, arguments = INTERPRETER, {"code": text}
    return ToolCall(name, arguments) if isinstance(name, str) and name in names and isinstance(arguments, dict) else None


def _object(text: str) -> dict[str, object] | None:
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _finite(number: str) -> float:
    """A number that can be written as JSON again: 1e999 cannot."""
    return value if math.isfinite(value := float(number)) else _refuse(number)


class AnswerReader:
    """Pieces of an answer in, the text that is no call out, as soon as that is certain.

    Args:
        names: of the tools that were offered.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._text = ""
        self._begun = 0  # where a call may begin, or the end of the text
        self._tag: int | None = None  # characters before the tag
        self.length = 0  # characters handed out

    def tag(self, place: int) -> None:
        """`<|python_tag|>` has come after ``place`` characters of the answer."""
        self._tag = place if self._tag is None else self._tag

    def push(self, piece: str) -> str:
        """The text that is certain now and was not before."""
        self._text += piece
        while found := _FIRST.search(self._text, self._begun):
            self._begun = found.start()
            start = _BLANKS.sub("", self._text[self._begun : self._begun + _LONGEST])
            if any(start.startswith(beginning) or beginning.startswith(start) for beginning in _BEGINNINGS):
                break
            self._begun += 1
        else:
            self._begun = len(self._text)
        return self._give(self._begun if self._tag is None else min(self._begun, self._tag))

    def end(self, finished: bool) -> tuple[str, ToolCall | None]:
        """What is left of the text, and the call; there is none in an answer that was cut off."""
        for place, tagged in ((self._tag, True), (self._begun, False)):
            call = parse_call(self._text[place:], self._names, tagged) if finished and place is not None else None
            if call is not None:
                return self._give(place or 0), call
        return self._give(len(self._text)), None

    def _give(self, end: int) -> str:
        piece = self._text[self.length : end]
        self.length += len(piece)
        return piece
