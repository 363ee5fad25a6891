"""Direct preference optimisation (Rafailov et al. 2023, equation 7)."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class DPOTerms:
    """One value a pair, (n,) each."""

    losses: Tensor  # nats; differentiable
    chosen_rewards: Tensor  # beta x log-ratio of policy to reference on the chosen response; detached
    rejected_rewards: Tensor  # the same on the rejected response; detached


def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float,
    label_smoothing: float = 0.0,
) -> DPOTerms:
    """-log sigmoid(h), h = beta ((log p_policy - log p_ref)(chosen) - (log p_policy - log p_ref)(rejected)).

    Args:
        policy_chosen, policy_rejected, ref_chosen, ref_rejected: log-probability of a response, summed over its
            trained tokens, (n,); Llama 3 leaves headers and terminators out of the sum (section 4.1.4).
        beta: strength of the pull towards the reference; 0.1 in the paper.
        label_smoothing: probability e that a label is flipped: -(1 - e) log sigmoid(h) - e log sigmoid(-h) (cDPO).

    Returns:
        Losses and implicit rewards; at policy = reference every loss is ln 2 and every reward 0.
    """
    chosen = beta * (policy_chosen - ref_chosen)
    rejected = beta * (policy_rejected - ref_rejected)
    margin = chosen - rejected
    losses = -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)
    return DPOTerms(losses, chosen.detach(), rejected.detach())
