"""Messages -> token ids, with a segment code, a message index and a role for every token.

Dialect `meta`: the format of llama-models `models/llama3/chat_format.py`. A message is

    <|start_header_id|> role <|end_header_id|> \\n\\n body (<|eot_id|> | <|eom_id|>)

a dialog is `<|begin_of_text|>` and its messages, and a generation prompt is the assistant's header alone. The role,
the blank lines and the body are encoded apart, each as plain text: no text of a user can become a special token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np

from herd.config.registry import Registry
from herd.dialog.messages import Message, Role


class ChatTokenizer(Protocol):
    """What rendering needs of a tokenizer; `herd.corpus.tokenizer.Tokenizer` is one."""

    @property
    def bos_id(self) -> int: ...
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
    def encode_batch(self, texts: list[str]) -> list[list[int]]: ...


class Segment(IntEnum):
    """What a token is within its message."""

    BOS = 0
    HEADER = 1  # start_header, role, end_header, the two line breaks
    BODY = 2
    PYTHON_TAG = 3
    TERMINATION = 4  # eot or eom
    TOOL_OUTPUT = 5  # the body of an ipython message


NO_MESSAGE, NO_ROLE = -1, -1  # of <|begin_of_text|>


@dataclass(frozen=True)
class Rendered:
    """A rendered dialog: four arrays of equal length T."""

    tokens: np.ndarray  # (T,) int64
    segments: np.ndarray  # (T,) int8, Segment
    messages: np.ndarray  # (T,) int32, index of the message; -1 for <|begin_of_text|>
    roles: np.ndarray  # (T,) int8, Role; -1 for <|begin_of_text|>

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, part: slice) -> Rendered:
        return Rendered(self.tokens[part], self.segments[part], self.messages[part], self.roles[part])


@dataclass(frozen=True)
class Piece:
    """A special token (`content` is its id) or plain text (`content` is the text), and what it is."""

    content: int | str
    segment: Segment
    message: int
    role: int


Dialect = Callable[[Sequence[Message], ChatTokenizer], Iterator[Piece]]
DIALECTS: Registry[Dialect] = Registry("dialect")


def _header(index: int, role: Role, tokenizer: ChatTokenizer) -> Iterator[Piece]:
    for content in (tokenizer.start_header_id, role.wire, tokenizer.end_header_id, "\n\n"):
        yield Piece(content, Segment.HEADER, index, role)


@DIALECTS.register("meta")
def meta(messages: Sequence[Message], tokenizer: ChatTokenizer) -> Iterator[Piece]:
    """Llama 3.1 as Meta's own code writes it: no default system message, content as it is, tool output raw."""
    yield Piece(tokenizer.bos_id, Segment.BOS, NO_MESSAGE, NO_ROLE)
    for index, message in enumerate(messages):
        role = message.role
        yield from _header(index, role, tokenizer)
        body = Segment.TOOL_OUTPUT if role is Role.IPYTHON else Segment.BODY
        yield Piece(message.content, body, index, role)
        if message.call is not None:
            yield Piece(tokenizer.python_tag_id, Segment.PYTHON_TAG, index, role)
            yield Piece(message.call, Segment.BODY, index, role)
        end = tokenizer.eom_id if message.expects_result else tokenizer.eot_id
        yield Piece(end, Segment.TERMINATION, index, role)


def render_batch(
    dialogs: Sequence[Sequence[Message]],
    tokenizer: ChatTokenizer,
    generation_prompt: bool = False,
    dialect: str = "meta",
) -> list[Rendered]:
    """Renders dialogs; `generation_prompt` ends each with an assistant header for the model to go on from."""
    pieces_of = DIALECTS.get(dialect)
    dialog_pieces = []
    for messages in dialogs:
        pieces = list(pieces_of(messages, tokenizer))
        if generation_prompt:
            pieces += _header(len(messages), Role.ASSISTANT, tokenizer)
        dialog_pieces.append(pieces)
    # Headers repeat in every message: each distinct text is encoded once.
    texts = list(dict.fromkeys(p.content for pieces in dialog_pieces for p in pieces if isinstance(p.content, str)))
    ids = dict(zip(texts, tokenizer.encode_batch(texts), strict=True))
    return [_assemble(pieces, ids) for pieces in dialog_pieces]


def render(
    messages: Sequence[Message], tokenizer: ChatTokenizer, generation_prompt: bool = False, dialect: str = "meta"
) -> Rendered:
    """Renders one dialog; see `render_batch`."""
    return render_batch([messages], tokenizer, generation_prompt, dialect)[0]


def _assemble(pieces: Sequence[Piece], ids: dict[str, list[int]]) -> Rendered:
    tokens: list[int] = []
    counts = []
    for piece in pieces:
        piece_ids = [piece.content] if isinstance(piece.content, int) else ids[piece.content]
        tokens.extend(piece_ids)
        counts.append(len(piece_ids))
    codes = np.array([(p.segment, p.message, p.role) for p in pieces], dtype=np.int32).repeat(counts, axis=0)
    return Rendered(np.array(tokens, dtype=np.int64), codes[:, 0].astype(np.int8), codes[:, 1], codes[:, 2].astype(np.int8))
