"""Losses of the reward model."""

import torch.nn.functional as F
from torch import Tensor


def ranking_loss(better: Tensor, worse: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """-log sigmoid(better - worse - margin): Llama 2's ranking loss (its equation 2); Llama 3 drops the margin (4.1.2).

    Args:
        better, worse: rewards, (n,).
        margin: by how much the better reward should lead, (n,) or one number; 0 in Llama 3.

    Returns:
        (n,), nats; ln 2 where the rewards are equal and nothing is asked for.
    """
    return -F.logsigmoid(better - worse - margin)


def centering_loss(better: Tensor, worse: Tensor) -> Tensor:
    """(better + worse)^2, which draws the mean reward to 0 (Eisenstein et al. 2023; TRL's `center_rewards_coefficient`).

    The ranking loss sees differences alone, so it leaves the level of the rewards free.

    Args:
        better, worse: rewards, (n,).

    Returns:
        (n,).
    """
    return (better + worse) ** 2
