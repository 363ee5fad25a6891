"""Log-probabilities of drawn tokens, in the shapes of OpenAI's chat completions and completions.

They are the model's own (temperature 1, no top-p), as vLLM's are by default. The tokens given are those whose text is given, so
that their bytes make up the answer: what a stop text cut off is left out, and of a chat the stop token. A text's lists end with
it, as OpenAI's and vLLM's do; lm-evaluation-harness takes their last entry for the one token that it asks for after a prompt.
"""

import codecs
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from herd.corpus.tokenizer import Tokenizer
from herd.generation.likeliest import Alternatives


@dataclass(frozen=True)
class SpelledToken:
    """A token of a prompt or an answer."""

    text: str  # what it reads as alone; a part of a character is U+FFFD
    spelled: bytes | None  # its own bytes; None for a special token, which has none
    logprob: float | None  # nats; None for the first token of a prompt, which follows nothing
    offset: int  # characters of the text before the one in which it begins
    alternatives: tuple["SpelledToken", ...] | None = None  # likeliest first; None where none were asked for

    @property
    def name(self) -> str:
        """What stands for it where its text is all there is: a part of a character as ``bytes:\\xe2``."""
        if self.spelled is None or "\ufffd" not in self.text:
            return self.text
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in self.spelled)


class TokenTrail:
    """The tokens of a text, handed out with the part of it in which they begin.

    Args:
        tokenizer: of the tokens.
        offset: characters before the text.
    """

    def __init__(self, tokenizer: Tokenizer, offset: int = 0) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._waiting: deque[SpelledToken] = deque()
        self._characters = offset  # complete ones, of all tokens so far and before them

    def push(self, token: int, logprob: float | None, alternatives: Alternatives | None = None) -> None:
        """One token more."""
        others = None if alternatives is None else tuple(self._spell(*other) for other in alternatives)
        self._waiting.append(spelled := self._spell(token, logprob, others))
        self._characters += len(self._decoder.decode(spelled.spelled or b""))

    def take(self, characters: int, last: bool = False) -> tuple[SpelledToken, ...]:
        """Those that begin within the first ``characters`` and were not given; ``last``: all that are left."""
        taken = []
        while self._waiting and (last or self._waiting[0].offset < characters):
            taken.append(self._waiting.popleft())
        return tuple(taken)

    def _spell(self, token: int, logprob: float | None, others: tuple[SpelledToken, ...] | None = None) -> SpelledToken:
        spelled = self._tokenizer.bytes_of(token)
        text = self._tokenizer.decode([token]) if spelled is None else spelled.decode("utf-8", "replace")
        return SpelledToken(text, spelled, logprob, self._characters, others)


def logprobs_of(kind: str, tokens: Sequence[SpelledToken]) -> dict[str, Any]:
    """A choice's ``logprobs``: ``content`` of a chat answer, the four lists of a text's."""
    if kind == "chat":
        content = [_entry(token) | {"top_logprobs": [_entry(other) for other in token.alternatives or ()]} for token in tokens]
        return {"content": content, "refusal": None}
    alternatives = any(token.alternatives is not None for token in tokens)
    return {
        "tokens": [token.name for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [_by_name(token) for token in tokens] if alternatives else None,
        "text_offset": [token.offset for token in tokens],
    }


def _entry(token: SpelledToken) -> dict[str, Any]:
    return {"token": token.text, "logprob": token.logprob, "bytes": None if token.spelled is None else [*token.spelled]}


def _by_name(token: SpelledToken) -> dict[str, float | None] | None:
    """The likeliest tokens and the one that stands there, which may be one more."""
    if token.alternatives is None:
        return None
    found: dict[str, float | None] = {}
    for other in (*token.alternatives, token):
        found.setdefault(other.name, other.logprob)  # of several that read alike, the likeliest
    return found
