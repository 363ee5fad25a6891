"""Log-probabilities of tokens and of the likeliest ones, from logits: the model's own (temperature 1, no top-p), in nats."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from herd.model.transformer import Transformer

Alternatives = tuple[tuple[int, float], ...]  # ids and log-probabilities, likeliest first
_ROWS = 256  # positions of a prompt whose logits are held at once


@dataclass(frozen=True)
class Scored:
    """A token of a prompt."""

    token: int
    logprob: float  # after all tokens before it
    alternatives: Alternatives  # the likeliest tokens in its place


def likeliest(logits: Tensor, total: Tensor, count: int) -> list[Alternatives]:
    """The ``count`` likeliest tokens of each row.

    Args:
        logits: (n, V).
        total: their log-sum-exps, (n,).
        count: fewer where there are fewer tokens.
    """
    best, ids = logits.topk(min(count, logits.shape[1]), dim=-1)
    scores = best - total[:, None]
    return [tuple(zip(row, of, strict=True)) for row, of in zip(ids.tolist(), scores.tolist(), strict=True)]


def score_prompt(model: Transformer, hidden: Tensor, prompt: Sequence[int], count: int) -> tuple[Scored, ...]:
    """The tokens of a prompt but the first, each after those before it.

    Args:
        hidden: the model's at the prompt's positions, (T, dim).
        prompt: T tokens.
        count: alternatives to tell of each.
    """
    scored: list[Scored] = []
    for first in range(0, len(prompt) - 1, _ROWS):
        tokens = prompt[first + 1 : first + 1 + _ROWS]
        logits = model.logits(hidden[first : first + len(tokens)])
        total = logits.logsumexp(-1)
        own = logits.gather(1, torch.tensor(tokens, device=logits.device)[:, None]).squeeze(1) - total
        scored += map(Scored, tokens, own.tolist(), likeliest(logits, total, count))
    return tuple(scored)
