"""Direct preference optimisation (Rafailov et al. 2023, equation 7) and its near relatives, under TRL's names.

With d = (log p_policy - log p_ref)(chosen) - (log p_policy - log p_ref)(rejected), and d_mean the same of means over the
tokens of each response in place of sums:

- ``sigmoid``: -log sigmoid(beta d); with label smoothing e, cDPO (Mitchell 2023): -(1 - e) log sigmoid(beta d) - e log
  sigmoid(-beta d).
- ``sigmoid_norm``: the same of d_mean, for which beta is some fifty times larger (Tulu 3 takes 5).
- ``ipo``: (d_mean - 1 / (2 beta))^2 (Azar et al. 2023, equation 17; over means, as its authors computed it).
- ``hinge``: max(0, 1 - beta d) (SLiC, Zhao et al. 2023).
- ``robust``: ((1 - e) (-log sigmoid(beta d)) - e (-log sigmoid(-beta d))) / (1 - 2 e), unbiased where a share e of the labels
  is flipped (Chowdhury et al. 2024, equation 11).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from herd.config.registry import Registry


@dataclass(frozen=True, eq=False)
class DPOTerms:
    """One value a pair, (n,) each."""

    losses: Tensor  # nats (ipo and hinge: without a unit); differentiable
    chosen_rewards: Tensor  # beta x log-ratio of policy to reference on the chosen response; detached
    rejected_rewards: Tensor  # the same on the rejected response; detached


@dataclass(frozen=True, eq=False)
class Ratios:
    """What a loss is made from: d of sums and of means, (n,) each."""

    difference: Tensor
    mean_difference: Tensor


# loss_type -> (ratios, beta, label smoothing) -> losses, (n,)
LOSSES: Registry[Callable[[Ratios, float, float], Tensor]] = Registry("loss_type")
SMOOTHED = ("sigmoid", "sigmoid_norm", "robust")  # the losses in which label smoothing has a meaning


@LOSSES.register("sigmoid")
def _sigmoid(ratios: Ratios, beta: float, smoothing: float) -> Tensor:
    return _logistic(beta * ratios.difference, smoothing)


@LOSSES.register("sigmoid_norm")
def _sigmoid_norm(ratios: Ratios, beta: float, smoothing: float) -> Tensor:
    return _logistic(beta * ratios.mean_difference, smoothing)


@LOSSES.register("ipo")
def _ipo(ratios: Ratios, beta: float, smoothing: float) -> Tensor:
    return (ratios.mean_difference - 1 / (2 * beta)).square()


@LOSSES.register("hinge")
def _hinge(ratios: Ratios, beta: float, smoothing: float) -> Tensor:
    return F.relu(1 - beta * ratios.difference)


@LOSSES.register("robust")
def _robust(ratios: Ratios, beta: float, smoothing: float) -> Tensor:
    margin = beta * ratios.difference
    return (smoothing * F.logsigmoid(-margin) - (1 - smoothing) * F.logsigmoid(margin)) / (1 - 2 * smoothing)


def _logistic(margin: Tensor, smoothing: float) -> Tensor:
    return -(1 - smoothing) * F.logsigmoid(margin) - smoothing * F.logsigmoid(-margin)


def dpo_loss(
    policy: Tensor,
    reference: Tensor,
    counts: Tensor,
    beta: float,
    label_smoothing: float = 0.0,
    loss_type: str = "sigmoid",
) -> DPOTerms:
    """The loss of n pairs.

    Args:
        policy, reference: log-probabilities of (chosen, rejected), each summed over its trained tokens, (n, 2); Llama 3 leaves
            headers and terminators out of the sum (section 4.1.4).
        counts: trained tokens of each response, (n, 2), for the losses over means.
        beta: strength of the pull towards the reference; 0.1 in the paper.
        label_smoothing: probability that a label is flipped, in :data:`SMOOTHED`.
        loss_type: one of :data:`LOSSES`.

    Returns:
        Losses and implicit rewards; at policy = reference every ``sigmoid`` loss is ln 2 and every reward 0.

    Raises:
        UserError: an unknown loss_type.
    """
    loss = LOSSES.get(loss_type)
    ratios = policy - reference
    chosen, rejected = ratios.unbind(1)
    mean_chosen, mean_rejected = (ratios / counts).unbind(1)
    losses = loss(Ratios(chosen - rejected, mean_chosen - mean_rejected), beta, label_smoothing)
    return DPOTerms(losses, beta * chosen.detach(), beta * rejected.detach())
