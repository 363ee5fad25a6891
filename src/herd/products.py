"""Matrix products in bfloat16, on a processor without bfloat16 arithmetic too.

There torch multiplies bfloat16 matrices a hundred times slower than float32 ones. So operands are rounded to bfloat16, multiplied
and summed in float32, and the result is rounded once, to the type that it is returned in: what a bfloat16 unit with float32 sums
does, but for the order of the sums. What linear maps keep for the backward pass is bfloat16. Where torch has such a unit, and in
any other type, everything here is torch's own.

A product of few rows, as in a step of decoding, is cut by outputs for the threads of a processor (:func:`linear`).
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# What torch itself asks before it hands a bfloat16 product to oneDNN: AVX-512, AMX, or bfloat16 on an ARM processor.
CPU_MULTIPLIES_BF16 = torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())

# Of a product that is cut: rows at most, elements of the weight and outputs of a piece at least.
_FEW_ROWS, _LEAST_WEIGHT, _LEAST_OUTPUTS = 64, 2**19, 128


def product_dtype(x: Tensor) -> torch.dtype:
    """The type that a product with ``x`` comes in: autocast's, or its own."""
    device = x.device.type  # autocast does not know the meta device
    if not x.is_meta and torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype


def by_float32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether products of ``dtype`` on ``device`` are done in float32 here."""
    return dtype == torch.bfloat16 and device.type == "cpu" and not CPU_MULTIPLIES_BF16


def operand(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` rounded to ``dtype``, held in the type that products of ``dtype`` are done in."""
    rounded = x.to(dtype)
    return rounded.float() if by_float32(x.device, dtype) else rounded


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight.T``, (..., outputs), of ``x`` (..., inputs) and ``weight`` (outputs, inputs).

    Several threads of a processor share few rows badly: the same product as a batch of products, each with some of the outputs,
    takes 0.4 to 0.9 of the time (4 to 64 rows, two threads, the less the larger the weight).
    """
    if by_float32(x.device, product_dtype(x)):
        result: Tensor = _Projections.apply(x, weight)[0]
        return result
    pieces = 1 if torch.is_grad_enabled() else _pieces_for(x, weight)
    if pieces == 1:
        return F.linear(x, weight)
    rows = x.reshape(-1, x.shape[-1])
    cut = torch.bmm(rows.expand(pieces, *rows.shape), weight.unflatten(0, (pieces, -1)).transpose(1, 2))
    return cut.transpose(0, 1).reshape(*x.shape[:-1], weight.shape[0])


def _pieces_for(x: Tensor, weight: Tensor) -> int:
    """Into how many pieces a product is cut."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return 1
    if not x.dtype == weight.dtype == product_dtype(x) == torch.float32:  # others have not been measured
        return 1
    if weight.numel() < _LEAST_WEIGHT or x.numel() > _FEW_ROWS * x.shape[-1]:
        return 1
    return _pieces(weight.shape[0], torch.get_num_threads())


@cache
def _pieces(outputs: int, threads: int) -> int:
    """The most pieces of equal size, none of them small, that leave no thread idle; 1 if there are none."""
    most = min(max(16, threads), outputs // _LEAST_OUTPUTS)
    count = next((n for n in range(most, 1, -1) if outputs % n == 0), 1)
    return count if count >= threads > 1 else 1


def project(x: Tensor, *maps: nn.Linear) -> tuple[Tensor, ...]:
    """Each of ``maps`` (linear, without bias) applied to ``x`` (..., dim)."""
    if by_float32(x.device, product_dtype(x)):
        results: tuple[Tensor, ...] = _Projections.apply(x, *(m.weight for m in maps))
        return results
    return tuple(m(x) for m in maps)


def side_by_side(*maps: nn.Linear) -> Tensor | None:
    """The weights of ``maps`` as one (all outputs, inputs), if they lie in memory as :mod:`herd.model.layout` puts them."""
    weights = [m.weight for m in maps]
    if weights[0].requires_grad or torch.compiler.is_compiling() or weights[0].stride(0) != 1:
        return None
    outputs, stride, place = 0, weights[0].stride(), weights[0].data_ptr()
    for weight in weights:
        if weight.stride() != stride or weight.data_ptr() != place + outputs * weight.element_size():
            return None
        outputs += weight.shape[0]
    return weights[0].as_strided((outputs, weights[0].shape[1]), stride) if stride[1] == outputs else None


class _Projections(torch.autograd.Function):
    """Bfloat16 products of one tensor with several weights; the tensor is rounded and kept once, its gradient rounded once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast("cpu", enabled=False):
            narrow = x.to(torch.bfloat16)
            # Weights are kept as they are, for which nothing is copied, and rounded again in the backward pass.
            ctx.save_for_backward(narrow, *weights)
            ctx.dtype, wide = x.dtype, narrow.float()
            return tuple(F.linear(wide, operand(w, torch.bfloat16)).to(torch.bfloat16) for w in weights)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        with torch.autocast("cpu", enabled=False):
            wide = x.flatten(0, -2).float()
            total, to_weights = None, []
            for weight, grad, wanted in zip(weights, grads, ctx.needs_input_grad[1:], strict=True):
                slope = grad.flatten(0, -2).float()
                to_weights.append((slope.T @ wide).to(weight.dtype) if wanted else None)
                if ctx.needs_input_grad[0]:
                    w = operand(weight, torch.bfloat16)
                    total = slope @ w if total is None else total.addmm_(slope, w)
            to_x = None if total is None else total.view(x.shape).to(ctx.dtype)
        return to_x, *to_weights
