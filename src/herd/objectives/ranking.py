"""Losses of the reward model."""

import torch.nn.functional as F
from torch import Tensor


def ranking_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """-log sigmoid(chosen - rejected): Llama 2's ranking loss without its margin (Llama 3 paper, section 4.1.2).

    Args:
        chosen, rejected: rewards, (n,).

    Returns:
        (n,), nats; ln 2 where the rewards are equal.
    """
    return -F.logsigmoid(chosen - rejected)


def triple_loss(edited: Tensor, chosen: Tensor, rejected: Tensor) -> Tensor:
    """Mean of :func:`ranking_loss` over the three ordered pairs of edited > chosen > rejected (section 4.1.2).

    The paper states the order, not how the three pairs are weighted; an equal mean keeps a triple at the weight of a
    pair.

    Args:
        edited, chosen, rejected: rewards, (n,).

    Returns:
        (n,), nats.
    """
    pairs = ranking_loss(edited, chosen) + ranking_loss(chosen, rejected) + ranking_loss(edited, rejected)
    return pairs / 3
