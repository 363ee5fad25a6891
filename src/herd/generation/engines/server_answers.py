"""What a server sends back for a prompt, checked and turned into samples."""

import math
from dataclasses import dataclass
from typing import Any

from herd.config.errors import UserError
from herd.generation.sampler import Asked, Sample


@dataclass(frozen=True)
class Served:
    """One answer of a server."""

    tokens: list[int]  # new ones only; ends with the stop id when finished
    finished: bool
    logprobs: list[float]  # of each token, nats

    @property
    def sample(self) -> Sample:
        """As any engine gives it."""
        total = 0.0
        for logprob in self.logprobs:  # in order, so that the sum has the bits of our own
            total += logprob
        return Sample(self.tokens, self.finished, total)


def samples_of(answer: Any, prompt: list[int], asked: Asked, vocab_size: int, url: str) -> list[Served]:
    """The answers of one response, to ``prompt``.

    Raises:
        UserError: it is no response to what was asked: other or missing ids, a wrong number of them, a length or an end that
            cannot be. Nothing is guessed, and no text is tokenised to make up for it.
    """

    def wrong(what: str) -> UserError:
        return UserError(f"engine: {url}: {what}.")

    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise wrong("the answer has no list of choices")
    if sorted(c["index"] for c in choices if isinstance(c.get("index"), int)) != list(range(asked.samples)):
        raise wrong(f"{asked.samples} answers were asked for, and {len(choices)} came")
    found, longest = [], asked.config.max_new_tokens
    for choice in sorted(choices, key=lambda c: int(c["index"])):
        ids, reason = choice.get("token_ids"), choice.get("finish_reason")
        told = choice.get("logprobs")
        logprobs = told.get("token_logprobs") if isinstance(told, dict) else None
        if not _is_ids(ids):
            raise wrong("the answers come without token ids: `return_token_ids` needs vLLM 0.10.2 or later, or herd serve")
        if not _is_ids(choice.get("prompt_token_ids")) or choice["prompt_token_ids"] != prompt:
            raise wrong("the server has read another prompt than was sent (cut, or tokenised anew)")
        if not isinstance(logprobs, list) or len(logprobs) != len(ids) or not all(map(_is_logprob, logprobs)):
            raise wrong("the answers come without a log-probability for each token")
        if any(token >= vocab_size for token in ids):
            raise wrong(f"token {max(ids)} is none of the model's {vocab_size:,}: another model is served")
        if reason not in ("stop", "length"):
            raise wrong(f"an answer ended with finish_reason {reason!r}, which is neither stop nor length")
        finished = reason == "stop"
        if not ids or len(ids) > longest or (ids[-1] in asked.stops) != finished:
            raise wrong(f"an answer of {len(ids)} tokens ends with {ids[-1] if ids else 'none'}, and finish_reason is {reason}")
        if not finished and len(ids) < longest:
            raise wrong(f"an answer was cut after {len(ids)} of {longest} tokens: is max_model_len too small?")
        if any(token in asked.stops for token in ids[:-1]):
            raise wrong("an answer goes on after a stop token")
        found.append(Served(ids, finished, [float(value) for value in logprobs]))
    return found


def _is_ids(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in value)


def _is_logprob(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value < 1e-3
