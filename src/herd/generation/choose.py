"""Drawing a token from logits: temperature, top-k and top-p, each row with a random number of its own."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from herd.config.errors import UserError
from herd.runs.seeds import stream

_NUCLEUS_GUESS = 128
_SMALLEST = 1e-30  # temperature; logits divided by less overflow


@dataclass(frozen=True)
class SamplingConfig:
    """How to draw tokens."""

    max_new_tokens: int = 128  # tokens after the prompt at most
    temperature: float = 1.0  # logits are divided by this; 0 = always the likeliest token
    top_p: float = 1.0  # keep the smallest set of likeliest tokens whose probability reaches this, in (0, 1]
    seed: int = 0  # of all draws
    top_k: int = 0  # keep this many likeliest tokens, before top_p; 0 = all

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {self.max_new_tokens}: must be at least 1.")
        if not self.temperature >= 0:  # NaN neither
            raise UserError(f"temperature is {self.temperature}: must be 0 (greedy) or positive.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}: must lie in (0, 1].")
        if self.top_k < 0:
            raise UserError(f"top_k is {self.top_k}: must be 0 (all) or positive.")


def digest_of(prompt: Sequence[int]) -> str:
    """What names a prompt's random streams."""
    return hashlib.sha256(np.asarray(prompt, dtype="<i8").tobytes()).hexdigest()


def draws_of(config: SamplingConfig, digest: str, sample: int) -> np.ndarray:
    """The uniform numbers in [0, 1) of a sample, (max_new_tokens,) float32: a stream named by seed, prompt and index."""
    return stream(config.seed, "sample", digest, sample).random(config.max_new_tokens, dtype=np.float32)


def choose(logits: Tensor, draws: Tensor, temperature: float, top_p: float, top_k: int = 0) -> Tensor:
    """Pick a token of each row by inverting its cumulative distribution; each row on its own.

    Args:
        logits: (n, V).
        draws: (n,) uniform in [0, 1).
        temperature: 0, or less than logits can be divided by, takes the likeliest.
        top_p: nucleus (Holtzman et al. 2020): likeliest tokens until their probability reaches this, at least one.
        top_k: likeliest tokens that are left at all (Fan et al. 2018); ``top_p`` then counts among them. 0 = every one.

    Returns:
        (n,) int64.
    """
    if temperature < _SMALLEST:
        return logits.argmax(-1)
    if 0 < top_k < logits.shape[1]:
        likeliest, ids = logits.topk(top_k, dim=-1)
        kept = _nucleus((likeliest / temperature).softmax(-1), top_p)
        return ids.gather(1, _invert(kept, draws)[:, None]).squeeze(1)
    probabilities = (logits if temperature == 1 else logits / temperature).softmax(-1)
    if top_p == 1:
        return _invert(probabilities, draws)
    # Most nuclei are small. The few likeliest tokens are found fast; only rows that need more are sorted in full.
    likeliest, ids = probabilities.topk(min(_NUCLEUS_GUESS, probabilities.shape[1]), dim=-1)
    picked = ids.gather(1, _invert(_nucleus(likeliest, top_p), draws)[:, None]).squeeze(1)
    wide = (likeliest.sum(-1) < top_p).nonzero().squeeze(1)
    if len(wide):
        likeliest, ids = torch.sort(probabilities[wide], dim=-1, descending=True, stable=True)
        picked[wide] = ids.gather(1, _invert(_nucleus(likeliest, top_p), draws[wide])[:, None]).squeeze(1)
    return picked


def _nucleus(descending: Tensor, top_p: float) -> Tensor:
    """Zero what follows once the tokens before it reach ``top_p``; the first token always stays."""
    before = descending.cumsum(-1) - descending
    return descending.masked_fill(before >= top_p, 0.0)


def _invert(weights: Tensor, draws: Tensor) -> Tensor:
    """Index of each row at which the cumulative weight first exceeds draw x total, (n,)."""
    cumulative = weights.cumsum(-1)
    total = cumulative[:, -1:].contiguous()
    picked = torch.searchsorted(cumulative, draws[:, None] * total, right=True)
    # Rounding must not step past the last index with any weight.
    return torch.minimum(picked, torch.searchsorted(cumulative, total)).squeeze(1)
