"""A needle test in the space of tokens: does a model find, far back in its context, what it is asked for?

A haystack of held-out text holds several statements, each a key of three tokens and a value of one, at depths spread evenly
over it. At its end stands one of the keys; the statement's own value must outrank those of all the others. So a model
that merely prefers what it has seen scores at chance, and no tokenizer is needed. One pass scores a trial, at any length.
"""

import numpy as np
import torch

from herd.config.errors import UserError
from herd.corpus.shards import TokenSource
from herd.model.transformer import Transformer
from herd.runs.seeds import stream

KEY_TOKENS = 3
_TOKENS_AT_ONCE = 8192  # of one forward pass, where a trial is shorter


@torch.no_grad()
def needle_accuracy(
    model: Transformer, source: TokenSource, length: int, trials: int = 64, statements: int = 8, seed: int = 0
) -> float:
    """Share of trials in which the asked statement's value outranks the others; by chance 1 / ``statements``.

    Args:
        model: its positions must reach ``length``.
        source: held-out text of the haystack.
        length: tokens of a trial, question included.
        trials: the asked statement stands at each depth in turn.
        statements: in a haystack.

    Raises:
        UserError: too short for its statements, or too few different tokens.
    """
    tokens, values = needle_trials(source, length, trials, statements, seed)
    device = model.output_weight.device
    found = 0
    with torch.autocast(device.type, enabled=False):
        for first in range(0, trials, max(1, _TOKENS_AT_ONCE // length)):
            part = slice(first, first + max(1, _TOKENS_AT_ONCE // length))
            last = model(torch.from_numpy(tokens[part]).to(device))[:, -1]
            scores = model.logits(last).gather(1, torch.from_numpy(values[part]).to(device))
            found += int((scores[:, :1] > scores[:, 1:]).all(dim=1).sum())
    return found / trials


def needle_trials(source: TokenSource, length: int, trials: int, statements: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Trials as (trials, length) int64 tokens, and (trials, statements) int64 values, the asked statement's first."""
    wanted = statements * (KEY_TOKENS + 1)
    hay_length = length - wanted - KEY_TOKENS
    words = np.flatnonzero(source.token_bytes > 0)
    if statements < 2 or hay_length < statements or len(words) < wanted:
        raise UserError(
            f"A needle test of {length} tokens cannot hold {statements} statements with tokens of their own "
            f"({len(words)} in the vocabulary): lengthen it."
        )
    tokens, values = np.empty((trials, length), dtype=np.int64), np.empty((trials, statements), dtype=np.int64)
    text = np.asarray(source.tokens)
    # Statement i stands after this many tokens of hay.
    depths = [round((i + 0.5) / statements * hay_length) for i in range(statements)]
    for trial in range(trials):
        random = stream(seed, "needle", length, trial)
        start = int(random.integers(0, len(text)))
        hay = np.resize(text[start : start + hay_length], hay_length)
        own = random.choice(words, wanted, replace=False).reshape(statements, KEY_TOKENS + 1)
        pieces = np.split(hay, depths)
        asked = trial % statements
        mixed = [pieces[0]] + [part for needle, piece in zip(own, pieces[1:], strict=True) for part in (needle, piece)]
        tokens[trial] = np.concatenate([*mixed, own[asked, :KEY_TOKENS]])
        order = [asked] + [i for i in range(statements) if i != asked]
        values[trial] = own[order, KEY_TOKENS]
    return tokens, values
