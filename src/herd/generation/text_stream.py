"""Text as it grows, token by token."""

import codecs
from collections.abc import Sequence

from herd.corpus.tokenizer import Tokenizer


class TextStream:
    """Tokens in, pieces of text out: nothing that a later token could change, and nothing from a stop text on.

    All pieces together are ``tokenizer.decode`` of all tokens, up to the first stop text.

    Args:
        tokenizer: special tokens are left out of the text.
        stops: texts that end the answer.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self._tokenizer, self._stops = tokenizer, [stop for stop in stops if stop]
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # read and not handed out: a stop text may begin in it
        self._given: list[str] = []
        self.length = 0  # characters handed out
        self.stopped = False  # a stop text has come

    @property
    def text(self) -> str:
        """All that was handed out."""
        return "".join(self._given)

    @property
    def read(self) -> int:
        """Characters that are whole, handed out or not."""
        return self.length + len(self._held)

    def push(self, token: int) -> str:
        """The text that is certain now and was not before; empty once stopped."""
        return self._advance(self._tokenizer.bytes_of(token) or b"", last=False)

    def end(self) -> str:
        """What is left when no more tokens come."""
        return self._advance(b"", last=True)

    def _advance(self, spelled: bytes, last: bool) -> str:
        if self.stopped:
            return ""
        held = self._held + self._decoder.decode(spelled, last)
        found = [place for stop in self._stops if (place := held.find(stop)) >= 0]
        if found:
            self.stopped, end = True, min(found)
        else:
            end = len(held) - (0 if last else max((_overlap(held, stop) for stop in self._stops), default=0))
        piece, self._held = held[:end], "" if found else held[end:]
        if piece:
            self._given.append(piece)
            self.length += len(piece)
        return piece


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that ``stop`` begins with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
