"""Log-probabilities of drawn tokens, in the shapes of OpenAI's chat completions and completions.

They are the model's own (temperature 1, no top-p), as vLLM's are by default. The tokens given are those whose text is given: a
stop token and what a stop text cut off are left out, so that the bytes of the tokens make up the answer.
"""

import codecs
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from herd.corpus.tokenizer import Tokenizer


@dataclass(frozen=True)
class SpelledToken:
    """A token of an answer."""

    text: str  # what it reads as alone; a part of a character is U+FFFD
    spelled: bytes | None  # its own bytes; None for a special token, which has none
    logprob: float  # nats
    offset: int  # characters of the answer before the one in which it begins


class TokenTrail:
    """The tokens of one answer, handed out with the text in which they begin."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._waiting: deque[SpelledToken] = deque()
        self._characters = 0  # complete ones, of all tokens so far

    def push(self, token: int, logprob: float) -> None:
        """One token more."""
        spelled = self._tokenizer.bytes_of(token)
        text = self._tokenizer.decode([token]) if spelled is None else spelled.decode("utf-8", "replace")
        self._waiting.append(SpelledToken(text, spelled, logprob, self._characters))
        self._characters += len(self._decoder.decode(spelled or b""))

    def take(self, characters: int, last: bool = False) -> tuple[SpelledToken, ...]:
        """Those that begin within the answer's first ``characters`` and were not given; ``last``: all that are left."""
        taken = []
        while self._waiting and (last or self._waiting[0].offset < characters):
            taken.append(self._waiting.popleft())
        return tuple(taken)


def logprobs_of(kind: str, tokens: Sequence[SpelledToken]) -> dict[str, Any]:
    """A choice's ``logprobs``: ``content`` of a chat answer, the four lists of a text's."""
    if kind == "chat":
        content = [
            {
                "token": token.text,
                "logprob": token.logprob,
                "bytes": None if token.spelled is None else [*token.spelled],
                "top_logprobs": [],
            }
            for token in tokens
        ]
        return {"content": content, "refusal": None}
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": None,
        "text_offset": [token.offset for token in tokens],
    }
