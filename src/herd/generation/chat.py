"""Questions as messages in, answers as text out: the chat format around the sampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from herd.corpus.tokenizer import Tokenizer
from herd.dialog.messages import Message
from herd.dialog.render import render_batch
from herd.generation.sampler import Asked, Sampler, SamplingConfig


@dataclass(frozen=True)
class Answer:
    """One sampled answer."""

    text: str  # without special tokens
    tokens: tuple[int, ...]  # as sampled
    finished: bool  # ended by itself; False: cut at max_new_tokens
    logprob: float  # of the tokens under the sampling model


def sample_answers(
    sampler: Sampler,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[Message]],
    config: SamplingConfig,
    samples_per_prompt: int = 1,
    dialect: str = "meta",
) -> list[list[Answer]]:
    """`samples_per_prompt` answers to each dialog, in order. A dialog ends with the message that is to be answered.

    UserError (from the sampler) when a prompt and its longest answer do not fit the model's window.
    """
    rendered = render_batch(prompts, tokenizer, generation_prompt=True, dialect=dialect)
    ids, stops = [r.tokens.tolist() for r in rendered], frozenset(tokenizer.stop_ids)
    samples = sampler.draw(Asked(ids, samples_per_prompt, config, stops))
    return [
        [
            Answer(tokenizer.decode(s.tokens, skip_special_tokens=True), tuple(s.tokens), s.finished, float(s.logprob))
            for s in group
        ]
        for group in samples
    ]


def fits(prompt: Sequence[Message], tokenizer: Tokenizer, window: int, max_new_tokens: int, dialect: str = "meta") -> bool:
    """True when the prompt leaves room for the longest answer within `window` tokens."""
    return len(render_batch([prompt], tokenizer, generation_prompt=True, dialect=dialect)[0]) + max_new_tokens <= window
