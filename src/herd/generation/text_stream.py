"""Text as it grows, token by token."""

from collections.abc import Sequence

from herd.corpus.tokenizer import Tokenizer

_BROKEN = "\ufffd"  # what a decoder writes for bytes that are no character yet


class TextStream:
    """Tokens in, pieces of text out: nothing that a later token could change, and nothing from a stop text on.

    Args:
        tokenizer: special tokens are left out of the text.
        stops: texts that end the answer.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self._tokenizer, self._stops = tokenizer, [stop for stop in stops if stop]
        self._tokens: list[int] = []
        self._given = 0  # characters handed out
        self.text = ""  # all that was handed out
        self.stopped = False  # a stop text has come

    def push(self, token: int) -> str:
        """The text that is certain now and was not before; empty once stopped."""
        self._tokens.append(token)
        return self._advance(last=False)

    def end(self) -> str:
        """What is left when no more tokens come."""
        return self._advance(last=True)

    def _advance(self, last: bool) -> str:
        if self.stopped:
            return ""
        text = self._tokenizer.decode(self._tokens, skip_special_tokens=True)
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.stopped, end = True, min(found)
        elif last:
            end = len(text)
        else:
            certain = text.rstrip(_BROKEN)  # the beginning of a character may be its last bytes
            end = len(certain) - max((_overlap(certain, stop) for stop in self._stops), default=0)
        piece = text[self._given : max(end, self._given)]
        self._given += len(piece)
        self.text += piece
        return piece


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that ``stop`` begins with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
