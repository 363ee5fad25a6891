"""Models whose weights are sharded over ranks (FSDP2), made whole again.

Sharding changes a model in place, and torch offers no way back; so a copy without weights is put aside before, and filled when
whole weights are asked for.
"""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from herd.model.transformer import Transformer

Model = TypeVar("Model", bound=nn.Module)


def whole_tensor(tensor: Tensor) -> Tensor:
    """The tensor itself, or gathered from all ranks, each of which must ask, where it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """Name -> weight on the CPU, gathered from all ranks where it is sharded."""
    return {name: whole_tensor(weight).detach().cpu() for name, weight in model.state_dict().items()}


@torch.no_grad()
def set_whole_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy whole weights into a model, to each rank its shard."""
    for name, weight in model.state_dict().items():
        source = weights[name].to(weight.device, weight.dtype)
        if isinstance(weight, DTensor):
            source = distribute_tensor(source, weight.device_mesh, weight.placements)
        weight.copy_(source)


def is_sharded(model: nn.Module) -> bool:
    """Whether this process holds no more than its shard of the weights."""
    return any(isinstance(weight, DTensor) for weight in model.parameters())


def without_weights(model: Model) -> Model:
    """A copy of a whole model with weights on the meta device, which take no memory."""
    memo = {id(weight): nn.Parameter(weight.detach().to("meta"), weight.requires_grad) for weight in model.parameters()}
    return copy.deepcopy(model, memo)


def filled(empty: Model, sharded: nn.Module) -> Model:
    """A whole model on the CPU, with the weights of a sharded one; every rank must ask.

    Args:
        empty: what :func:`without_weights` made of ``sharded`` before it was sharded; stays empty.
    """
    whole = copy.deepcopy(empty)
    whole.load_state_dict(whole_weights(sharded), assign=True)
    for ours, theirs in zip(whole.modules(), sharded.modules(), strict=True):
        if isinstance(ours, Transformer) and isinstance(theirs, Transformer):  # training may have moved it
            ours.set_rope(theirs.config.rope_theta, theirs.config.rope_scaling, theirs.config.max_seq_len)
    return whole
