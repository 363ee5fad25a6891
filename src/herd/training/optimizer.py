"""AdamW as the paper trains with it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from herd.config.errors import UserError
from herd.config.registry import Registry

OPTIMIZERS: Registry[Callable[..., torch.optim.Optimizer]] = Registry("optimizer")
OPTIMIZERS.register("adamw")(torch.optim.AdamW)

# How much of a weight one step takes away.
#   learning_rate: weight_decay x (learning rate of that step). What PyTorch's AdamW does, and the paper's rule for
#   its scaling
#                  runs ("0.1 times the learning rate at that step", section 3.2.1).
#   schedule:      weight_decay x (learning rate of that step / peak): the decay does not shrink when the peak does
#                  (Loshchilov & Hutter 2019, eq. 12; Wortsman et al. 2023), so weight_decay must then be small, about
#                  1e-4.
DECAY_RULES = ("learning_rate", "schedule")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW. The learning rate is a share of ``lr`` that the schedule gives for each step."""

    kind: str = "adamw"
    lr: float = 3e-4  # peak learning rate
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])  # decay of the running mean and square of the gradient
    eps: float = 1e-8  # added to the root of the running square
    weight_decay: float = 0.1  # on matrices only; meaning set by decay_rule
    decay_rule: str = "learning_rate"  # learning_rate | schedule
    fused: bool = True  # one kernel for all parameters, where the device has it

    def __post_init__(self) -> None:
        OPTIMIZERS.get(self.kind)
        if not self.lr > 0:
            raise UserError(f"optimizer.lr = {self.lr}: a learning rate above 0 is needed.")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimizer.betas = {self.betas}: two numbers in [0, 1) are needed.")
        if self.weight_decay < 0 or self.eps <= 0:
            raise UserError("optimizer.weight_decay must be 0 or more and optimizer.eps above 0.")
        if self.decay_rule not in DECAY_RULES:
            raise UserError(f"Unknown optimizer.decay_rule '{self.decay_rule}'. Choices: {', '.join(DECAY_RULES)}.")


def build_optimizer(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    """An optimizer over the trainable ``parameters``; weight decay on matrices only (not on norms' gains)."""
    trainable = [p for p in parameters if p.requires_grad]
    matrices = [p for p in trainable if p.dim() >= 2]
    vectors = [p for p in trainable if p.dim() < 2]
    decay = config.weight_decay / config.lr if config.decay_rule == "schedule" else config.weight_decay
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    return OPTIMIZERS.get(config.kind)(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=(config.betas[0], config.betas[1]),
        eps=config.eps,
        fused=config.fused or None,
    )


@torch.no_grad()
def make_state(optimizer: torch.optim.Optimizer) -> None:
    """Make the optimizer's state as it is before the first step, for a checkpoint of that moment.

    Asked for the state of sharded parameters that have none yet, torch takes a step without effect to make it, and leaves that
    step counted, which would shift the bias correction of all later ones.
    """
    if optimizer.state:  # of a run that this one continues
        return
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    for state in optimizer.state.values():
        state["step"].zero_()


def misfit(moments: Mapping[str, Any], parameter: Tensor) -> str | None:
    """What is wrong with AdamW's state of a parameter: an entry that is missing, or of another shape; None where it fits.

    PyTorch loads any shape, and its fused kernel then reads past the end of what is too small.
    """
    for entry in ("step", "exp_avg", "exp_avg_sq"):
        if entry not in moments:
            return f"has no {entry}"
    for entry, value in moments.items():
        wanted = () if entry == "step" else tuple(parameter.shape)
        if isinstance(value, Tensor) and tuple(value.shape) != wanted:
            return f"has {entry} of shape {tuple(value.shape)} where {wanted} is needed"
    return None
