"""Rows of post-training data as JSON lines: reading, writing, and the policy for bad ones.

A line that cannot be understood (broken JSON, an unknown role, a missing key) is refused by file and line: guessing
would train on something else than the user wrote. A row that is understood but cannot be trained on is dropped and its
reason counted.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from herd.config.errors import UserError
from herd.dialog.messages import Message, Role, parse_messages
from herd.runs.atomic import write_text


def read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (`file, line N`, row). UserError at the first line that is no JSON object; blank lines are passed over."""
    for number, line in read_lines(path):
        where = f"{path}, line {number}"
        yield where, parse_line(line, where)


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yields (number from 1, line without its end), blank lines and a byte order mark left out."""
    try:
        with Path(path).open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if text.strip():
                    yield number, text.rstrip(b"\r\n")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; give a file") from None


def parse_line(line: bytes, where: str) -> dict[str, Any]:
    """The JSON object that a line holds; UserError naming the place when it holds none."""
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 at byte {error.start}; convert the file to UTF-8") from None
    except json.JSONDecodeError as error:
        what = error.msg.removesuffix(" at")  # as in "Unterminated string starting at"
        raise UserError(f"{where}: not valid JSON ({what} at column {error.colno}); mend or remove the line") from None
    except RecursionError:
        raise UserError(f"{where}: JSON nested too deeply; mend or remove the line") from None
    return require_object(row, where)


def require_object(row: object, where: str) -> dict[str, Any]:
    """`row`, which must be a JSON object."""
    if not isinstance(row, dict):
        raise UserError(f"{where}: must be a JSON object, not {type(row).__name__}")
    return row


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes rows, one a line, whole or not at all."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def require(row: Mapping[str, Any], key: str, where: str, kind: type = str) -> Any:
    """`row[key]`, which must be there and of the given type; UserError names the place otherwise."""
    if not isinstance(row.get(key), kind):
        raise UserError(f"{where}: `{key}` must be there and be {kind.__name__}, not {row.get(key)!r:.60}")
    return row[key]


def parse_response(value: object, where: str) -> tuple[Message, ...]:
    """A response: text (one assistant message) or a list of messages."""
    return (Message(Role.ASSISTANT, value),) if isinstance(value, str) else parse_messages(value, where)


@dataclass(frozen=True)
class Prompt:
    """A prompt from the documentation with its reference answer."""

    id: str
    entry_id: str  # the documented function that it is about
    task: str  # what | signature | call
    messages: tuple[Message, ...]  # ends with a user message
    reference: str  # a right answer

    def to_dict(self) -> dict[str, Any]:
        messages = [m.to_dict() for m in self.messages]
        return {
            "id": self.id,
            "entry_id": self.entry_id,
            "task": self.task,
            "messages": messages,
            "reference": self.reference,
        }


def read_prompts(path: Path) -> list[Prompt]:
    """Reads `*_prompts.jsonl`; UserError names the bad line."""
    prompts = []
    for where, row in read_jsonl(path):
        messages = parse_messages(row.get("messages"), where)
        texts = {key: require(row, key, where) for key in ("id", "entry_id", "task", "reference")}
        prompts.append(Prompt(messages=messages, **texts))
    return prompts


class PairLength(NamedTuple):
    """Tokens of a preference pair that was held against a length limit."""

    prompt: int
    chosen: int  # of the best response alone: the edited one where there is one
    rejected: int  # of that response alone
    fits: bool
    prompt_key: Hashable  # pairs of one prompt are not independent


@dataclass
class Counted:
    """How many rows were kept, and how many were dropped for which reason."""

    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    in_part: int = 0  # of the kept: triples of which one response was left out as too long
    lengths: list[PairLength] = field(default_factory=list)  # of preference pairs, whether they fit or not

    def drop(self, reason: str) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def to_dict(self) -> dict[str, Any]:
        return {"kept": self.kept, "dropped": dict(sorted(self.dropped.items()))}
