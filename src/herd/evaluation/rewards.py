"""Rewards of two answers to the same prompt."""

from collections.abc import Sequence

import numpy as np

from herd.corpus.tokenizer import Tokenizer
from herd.dialog.messages import Message
from herd.dialog.render import render_batch
from herd.model.heads import RewardModel
from herd.training.reward import score_responses

Messages = Sequence[Message]


def pair_rewards(
    model: RewardModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Messages],
    firsts: Sequence[Messages],
    seconds: Sequence[Messages],
    *,
    dialect: str = "meta",
) -> tuple[np.ndarray, np.ndarray]:
    """Rewards of both answers to each prompt that the reward model can read whole.

    Returns:
        (kept,) indices of the prompts whose two dialogs fit the model, and (kept, 2) float64 rewards.
    """
    dialogs = [(*p, *answer) for p, a, b in zip(prompts, firsts, seconds, strict=True) for answer in (a, b)]
    lengths = np.array([len(rendered) for rendered in render_batch(dialogs, tokenizer, dialect=dialect)]).reshape(-1, 2)
    kept = np.flatnonzero(lengths.max(axis=1) <= model.backbone.config.max_seq_len)
    if not len(kept):
        return kept, np.zeros((0, 2))
    scores = score_responses(model, tokenizer, [dialogs[i] for k in kept for i in (2 * k, 2 * k + 1)], dialect=dialect)
    return kept, np.array(scores).reshape(-1, 2)
