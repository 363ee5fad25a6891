"""Messages -> token ids, with a segment code, a message index and a role for every token.

The dialect says which pieces a dialog consists of (:mod:`herd.dialog.dialects`); here they become arrays. Roles, blank lines
and bodies are encoded apart, each as plain text: no text of a user can become a special token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from herd.dialog.dialects import DIALECTS, NO_MESSAGE, NO_ROLE, ChatTokenizer, Content, Piece, Segment, header
from herd.dialog.messages import Message, Role

__all__ = ["DIALECTS", "NO_MESSAGE", "NO_ROLE", "ChatTokenizer", "Rendered", "Segment", "render", "render_batch"]


@dataclass(frozen=True)
class Rendered:
    """A rendered dialog: four arrays of equal length T."""

    tokens: np.ndarray  # (T,) int64
    segments: np.ndarray  # (T,) int8, Segment
    messages: np.ndarray  # (T,) int32, index of the message; -1 for tokens of none, as <|begin_of_text|>
    roles: np.ndarray  # (T,) int8, Role; -1 for tokens of nobody, as <|begin_of_text|>

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, part: slice) -> Rendered:
        return Rendered(self.tokens[part], self.segments[part], self.messages[part], self.roles[part])


def render_batch(
    dialogs: Sequence[Sequence[Message]],
    tokenizer: ChatTokenizer,
    generation_prompt: bool = False,
    dialect: str = "meta",
) -> list[Rendered]:
    """Renders dialogs; `generation_prompt` ends each with an assistant header for the model to go on from."""
    pieces_of = DIALECTS.get(dialect)
    pieces: list[Piece] = []
    ends = []  # of each dialog, in pieces
    for messages in dialogs:
        pieces += pieces_of(messages, tokenizer)
        if generation_prompt:
            if pieces[-1].segment == Segment.END_OF_TEXT:
                pieces.pop()
            pieces.append(header(len(messages), Role.ASSISTANT, tokenizer))
        ends.append(len(pieces))
    return _assemble(pieces, ends, tokenizer)


def render(
    messages: Sequence[Message], tokenizer: ChatTokenizer, generation_prompt: bool = False, dialect: str = "meta"
) -> Rendered:
    """Renders one dialog; see `render_batch`."""
    return render_batch([messages], tokenizer, generation_prompt, dialect)[0]


def _assemble(pieces: Sequence[Piece], ends: Sequence[int], tokenizer: ChatTokenizer) -> list[Rendered]:
    """One set of arrays for the whole batch, of which each dialog is a view."""
    if not pieces:
        return []
    contents, segments, messages, roles = zip(*pieces, strict=True)
    # Headers repeat in every message, so what is encoded is little more than the bodies.
    numbers = {content: number for number, content in enumerate(dict.fromkeys(contents))}
    pool, offsets = _ids_of(list(numbers), tokenizer)
    of = np.fromiter(map(numbers.__getitem__, contents), np.int64, len(contents))
    counts = np.diff(offsets)[of]
    after = np.cumsum(counts)
    # fromiter takes an IntEnum eight times as fast as np.array does
    codes = ((segments, np.int8), (messages, np.int32), (roles, np.int8))
    arrays = (
        pool[np.repeat(offsets[of] + counts - after, counts) + np.arange(after[-1])],
        *(np.fromiter(values, dtype, len(values)).repeat(counts) for values, dtype in codes),
    )
    cuts = [0, *after[np.array(ends) - 1].tolist()]
    return [Rendered(*(array[a:b] for array in arrays)) for a, b in pairwise(cuts)]


def _ids_of(contents: Sequence[Content], tokenizer: ChatTokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Ids of contents in a row, int64, and where each of them begins and ends."""
    parts = [part for content in contents for part in (content if isinstance(content, tuple) else (content,))]
    ids, offsets = tokenizer.encode_flat([part for part in parts if isinstance(part, str)])
    text = np.fromiter((isinstance(part, str) for part in parts), bool, len(parts))
    counts = np.ones(len(parts), np.int64)
    counts[text] = np.diff(offsets)
    of_text = text.repeat(counts)
    pool = np.empty(len(of_text), np.int64)
    pool[of_text] = ids
    pool[~of_text] = [part for part in parts if isinstance(part, int)]
    sizes = [len(content) if isinstance(content, tuple) else 1 for content in contents]
    return pool, np.concatenate([[0], np.cumsum(counts)])[np.cumsum([0, *sizes])]
