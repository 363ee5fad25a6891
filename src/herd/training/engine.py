"""What makes a step faster or smaller without changing what it computes, put on a model from outside, by name.

The model's code knows nothing of it, parameter names and checkpoints stay as they are, and the model leaves as it came.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from herd.config.errors import UserError
from herd.model.attention import ATTENTIONS
from herd.model.transformer import Block, Linear, Transformer
from herd.runs.heap import keep_freed_memory

COMPILE = ("none", "block")
RECOMPUTE = ("none", "selective", "block")
FP8 = ("none", "tensorwise", "rowwise")


@dataclass(frozen=True)
class EngineConfig:
    """How the forward and backward pass are carried out."""

    # auto | sdpa | documents | flex | varlen: how packed documents attend, see herd.model.attention
    attention: str = "auto"
    # none | block: compile each block, apart from its attention; costs a minute or more at the first step
    compile: str = "none"
    # Activations computed again in the backward pass, for memory. none | selective: all but matrix products and attention |
    # block: everything inside a block, a third more FLOPs
    recompute: str = "none"
    # none | tensorwise | rowwise: the blocks' linear maps in 8-bit floats, by torchao; one scale a tensor, or one a row. GPU only
    fp8: str = "none"

    def __post_init__(self) -> None:
        ATTENTIONS.get(self.attention)
        for name, value, choices in (
            ("compile", self.compile, COMPILE),
            ("recompute", self.recompute, RECOMPUTE),
            ("fp8", self.fp8, FP8),
        ):
            if value not in choices:
                raise UserError(f"Unknown trainer.engine.{name} '{value}'. Choices: {', '.join(choices)}.")
        if self.compile == "block" and self.recompute == "selective":
            raise UserError(
                "trainer.engine: compile = block already computes again what is cheap, so it does not go with recompute = "
                "selective: use recompute = none, or block."
            )


@contextmanager
def engine(model: nn.Module, config: EngineConfig, accelerator: str) -> Iterator[None]:
    """Run every Transformer inside ``model`` as ``config`` says, until the block is left.

    Args:
        model: a Transformer, or what holds some.
        accelerator: cpu | gpu, where it will run.

    Raises:
        UserError: something is asked that is not installed, or that this device cannot do.
    """
    if accelerator == "cpu":
        keep_freed_memory()
    transformers = [module for module in model.modules() if isinstance(module, Transformer)]
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    with ExitStack() as undo:
        if config.fp8 != "none":
            require_fp8(accelerator)
            for block in blocks:
                undo.callback(fp8_linears(block, config.fp8))
        if config.compile == "block":
            _require_compiler(accelerator)
        for transformer in transformers:
            undo.enter_context(_replaced(transformer, "attention", config.attention))
        for block in blocks:
            if config.compile == "block":
                undo.enter_context(_replaced(block, "before", torch.compile(block.before)))
                undo.enter_context(_replaced(block, "after", torch.compile(block.after)))
            if config.recompute != "none":
                undo.enter_context(_replaced(block, "forward", _recomputed(block.forward, config.recompute)))
        yield


@contextmanager
def _replaced(thing: nn.Module, name: str, value: Any) -> Iterator[None]:
    """An attribute of this one object in front of its class's."""
    thing.__dict__[name] = value
    try:
        yield
    finally:
        del thing.__dict__[name]


def _recomputed(forward: Callable[..., Tensor], how: str) -> Callable[..., Tensor]:
    settings: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}  # nothing here draws random numbers
    if how == "selective":
        settings["context_fn"] = partial(create_selective_checkpoint_contexts, _keep_products)

    def run(*inputs: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return forward(*inputs)
        result: Tensor = checkpoint(forward, *inputs, **settings)
        return result

    return run


# By name, since which of them exist depends on the build of torch.
_PRODUCTS = ("mm", "addmm", "bmm", "_scaled_mm")
_ATTENTION = ("attention", "flash_attn", "varlen_attn")


def _keep_products(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Keep what is dear to compute: matrix products and attention; the rest is elementwise."""
    name = str(operator).split(".")[1]
    dear = name in _PRODUCTS or any(part in name for part in _ATTENTION)
    return CheckpointPolicy.MUST_SAVE if dear else CheckpointPolicy.PREFER_RECOMPUTE


def _require_compiler(accelerator: str) -> None:
    """On a CPU, torch.compile writes C++; on a GPU Triton brings its own compiler."""
    if accelerator == "cpu" and not any(shutil.which(name) for name in (os.environ.get("CXX") or "g++", "clang++")):
        raise UserError("trainer.engine.compile = block needs a C++ compiler (g++ or clang++, or CXX): use compile = none.")


def require_fp8(accelerator: str) -> None:
    """Refuse where 8-bit products are not installed or not possible."""
    try:
        import torchao.float8  # noqa: F401
    except ImportError:
        raise UserError("trainer.engine.fp8 needs torchao: pip install 'herd[fp8]', or use fp8 = none.") from None
    if accelerator != "gpu" or not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9):
        raise UserError("trainer.engine.fp8 needs a GPU of compute capability 8.9 or more (H100, L40): use fp8 = none.")


def fp8_linears(block: Block, recipe: str, **settings: Any) -> Callable[[], None]:
    """Let torchao carry out the linear maps of ``block``, where both widths are multiples of 16, as its kernels need.

    Weights stay the same objects, in their own type; they are rounded at each use.

    Args:
        recipe: tensorwise | rowwise, torchao's names.
        settings: fields of torchao's Float8LinearConfig to set otherwise.

    Returns:
        What puts the maps back.
    """
    from dataclasses import replace

    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    def fits(module: nn.Module, name: str) -> bool:
        return isinstance(module, Linear) and module.in_features % 16 == module.out_features % 16 == 0

    before = {name: module for name, module in block.named_modules() if isinstance(module, Linear)}
    config = replace(Float8LinearConfig.from_recipe_name(recipe), **settings)
    convert_to_float8_training(block, config=config, module_filter_fn=fits)

    def undo() -> None:
        for name, module in before.items():
            module.weight = cast(nn.Parameter, block.get_submodule(name).weight)
            block.set_submodule(name, module)

    return undo
