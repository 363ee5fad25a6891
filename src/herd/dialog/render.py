"""Messages -> token ids, with a segment code, a message index and a role for every token.

The dialect says which pieces a dialog consists of (:mod:`herd.dialog.dialects`); here they become arrays. Roles, blank lines
and bodies are encoded apart, each as plain text: no text of a user can become a special token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np

from herd.dialog.dialects import DIALECTS, NO_MESSAGE, NO_ROLE, ChatTokenizer, Piece, Segment, header
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
    ids = _ids_of({piece.content for piece in pieces}, tokenizer)
    contents, segments, messages, roles = zip(*pieces, strict=True)
    parts = [ids[content] for content in contents]
    counts = np.fromiter(map(len, parts), np.int64, len(parts))
    tokens = np.fromiter(chain.from_iterable(parts), np.int64, int(counts.sum()))
    arrays = (
        tokens,
        np.array(segments, np.int8).repeat(counts),
        np.array(messages, np.int32).repeat(counts),
        np.array(roles, np.int8).repeat(counts),
    )
    cuts = np.concatenate([[0], np.cumsum(counts)[np.array(ends) - 1]]).tolist()
    return [Rendered(*(array[a:b] for array in arrays)) for a, b in pairwise(cuts)]


def _ids_of(contents: set[int | str | tuple[int | str, ...]], tokenizer: ChatTokenizer) -> dict[object, Sequence[int]]:
    """Ids of each distinct content. Headers repeat in every message, so what is encoded is little more than the bodies."""
    parts = {content: content if isinstance(content, tuple) else (content,) for content in contents}
    texts = list({part for of in parts.values() for part in of if isinstance(part, str)})
    ids: dict[object, Sequence[int]] = dict(zip(texts, tokenizer.encode_batch(texts), strict=True))
    for content, of in parts.items():
        if not isinstance(content, str):
            ids[content] = [i for part in of for i in ([part] if isinstance(part, int) else ids[part])]
    return ids
