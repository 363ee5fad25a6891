"""Attention behind one interface: a mask and a name give a way (:func:`prepare`), a way gives outputs (:func:`attend`).

All ways compute the same, a masked softmax; they differ in what they cost. A name settles how packed documents are done:

- ``sdpa``: one call over whole rows with a boolean mask. Costs T^2 a row, whatever the documents.
- ``documents``: causal calls over documents of equal length batched together. Fastest on a CPU, which has no kernel for packed
  documents.
- ``flex``: FlexAttention with a block mask, compiled on a GPU. Forward pass only on a CPU, and slow there.
- ``varlen``: FlashAttention over documents laid end to end. GPU, half precision.
- ``auto``: ``varlen`` for half precision on a GPU; otherwise the cheaper of ``sdpa`` and ``documents``, from the lengths.

Masks that name no documents (plain causal, :class:`Dense`) always go to SDPA, which has kernels for them.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from herd.config.errors import UserError
from herd.config.registry import Registry
from herd.model.masks import CAUSAL, Causal, Dense, Documents, Grouped, Grouping, Mask, to_device


@dataclass(frozen=True, eq=False)
class Blocks:
    """Packed documents for FlexAttention."""

    block_mask: Any  # torch's BlockMask


@dataclass(frozen=True, eq=False)
class Ragged:
    """Packed documents laid end to end: rows flattened, borders given.

    Attributes:
        borders: (documents + 1,) int32, place of each document's first token in the flattened batch, then the total.
        longest: tokens of the longest document.
    """

    borders: Tensor
    longest: int


Way = Causal | Dense | Grouped | Grouping | Blocks | Ragged

# name -> (documents, device, type of queries) -> way. Documents with one document a row never get here: they are causal.
ATTENTIONS: Registry[Callable[[Documents, torch.device, torch.dtype], Way]] = Registry("attention")


def prepare(mask: Mask, name: str, device: torch.device | str, dtype: torch.dtype) -> Way:
    """What :func:`attend` needs for ``mask``; made once a forward pass, used in every layer.

    Args:
        mask: who may attend to whom.
        name: one of :data:`ATTENTIONS`.
        device, dtype: of the queries.

    Raises:
        UserError: an unknown name, or one that this device or type cannot do.
    """
    choose = ATTENTIONS.get(name)
    if not isinstance(mask, Documents):
        return mask
    return CAUSAL if mask.one_per_row else choose(mask, torch.device(device), dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, way: Way) -> Tensor:
    """Grouped-query attention, softmax(q k^T / sqrt(head_dim)) v, under the mask that ``way`` was prepared from.

    Args:
        q: (B, T, heads, head_dim).
        k, v: (B, S, kv_heads, head_dim), S >= T; query i is position S - T + i. Only Causal and Dense allow S > T.

    Returns:
        (B, T, heads, head_dim).
    """
    match way:
        case Causal():
            length, total = q.shape[1], k.shape[1]
            if length == total:
                return _sdpa(q, k, v, causal=True)
            if length == 1:
                return _sdpa(q, k, v)
            seen = torch.ones(length, total, dtype=torch.bool, device=q.device).tril(total - length)
            return _sdpa(q, k, v, allowed=seen)
        case Dense():
            return _sdpa(q, k, v, allowed=way.allowed.unsqueeze(1))
        case Grouped():
            return _by_document(q, k, v, way)
        case Grouping():
            return way.undo(_by_document(way.apply(q), way.apply(k), way.apply(v), way.mask))
        case Blocks():
            return _flex(q, k, v, way)
        case Ragged():
            return _varlen(q, k, v, way)


@ATTENTIONS.register("auto")
def _auto(mask: Documents, device: torch.device, dtype: torch.dtype) -> Way:
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        return _ragged(mask, device, dtype)
    return (_masked if mask.prefers_dense else _grouped)(mask, device, dtype)


@ATTENTIONS.register("sdpa")
def _masked(mask: Documents, device: torch.device, dtype: torch.dtype) -> Way:
    return Dense(mask.allowed(device))


@ATTENTIONS.register("documents")
def _grouped(mask: Documents, device: torch.device, dtype: torch.dtype) -> Way:
    return mask.grouping(device)


@ATTENTIONS.register("flex")
def _blocks(mask: Documents, device: torch.device, dtype: torch.dtype) -> Way:
    from torch.nn.attention.flex_attention import create_block_mask

    if device.type == "cpu" and torch.is_grad_enabled():
        raise UserError(
            "attention = flex trains on a GPU only (torch has no backward pass for it on a CPU): use attention = auto."
        )
    ids = mask.ids(device)

    def allowed(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (ids[row, query] == ids[row, key]) & (query >= key)

    return Blocks(create_block_mask(allowed, ids.shape[0], None, ids.shape[1], ids.shape[1], device=str(device)))


@ATTENTIONS.register("varlen")
def _ragged(mask: Documents, device: torch.device, dtype: torch.dtype) -> Way:
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        kind = str(dtype).removeprefix("torch.")
        raise UserError(
            f"attention = varlen needs a GPU and half precision (here: {device.type}, {kind}): use attention = auto, or "
            "hardware = gpu with precision = bf16."
        )
    return ragged(mask, device)


def ragged(mask: Documents, device: torch.device) -> Ragged:
    """Borders of the documents in the flattened batch."""
    lengths = torch.tensor([0, *(n for row in mask.lengths for n in row)], dtype=torch.int32)
    return Ragged(to_device(lengths.cumsum(0, dtype=torch.int32), device), max(mask.by_length))


def _by_document(q: Tensor, k: Tensor, v: Tensor, way: Grouped) -> Tensor:
    sizes = [count * length for count, length in way.groups]
    # split, not slices: the gradient of a slice is a whole tensor of zeros, that of a split one concatenation.
    pieces = zip(*(x.flatten(0, 1).split(sizes) for x in (q, k, v)), strict=True)
    outputs = []
    for shape, (qs, ks, vs) in zip(way.groups, pieces, strict=True):
        out = _sdpa(qs.unflatten(0, shape), ks.unflatten(0, shape), vs.unflatten(0, shape), causal=True)
        outputs.append(out.flatten(0, 1))
    return torch.cat(outputs).view_as(q)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None, causal: bool = False) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, is_causal=causal, enable_gqa=grouped)
    return out.transpose(1, 2)


def _flex(q: Tensor, k: Tensor, v: Tensor, way: Blocks) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    kernel = _flex_kernel(q.device.type == "cuda")
    out: Tensor = kernel(q, k, v, block_mask=way.block_mask, enable_gqa=q.shape[1] != k.shape[1])
    return out.transpose(1, 2)


@cache
def _flex_kernel(compiled: bool) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    # Without compilation it materialises all scores: bearable for a test, pointless on a GPU.
    return torch.compile(flex_attention) if compiled else flex_attention  # type: ignore[return-value]


def _varlen(q: Tensor, k: Tensor, v: Tensor, way: Ragged) -> Tensor:
    kernel, knows_groups = _varlen_kernel()
    flat = [x.flatten(0, 1) for x in (q, k, v)]
    extra = {}
    if q.shape[2] != k.shape[2]:
        if knows_groups:
            extra["enable_gqa"] = True
        else:
            flat[1:] = [x.repeat_interleave(q.shape[2] // k.shape[2], dim=1) for x in flat[1:]]
    out: Tensor = kernel(*flat, way.borders, way.borders, way.longest, way.longest, window_size=(-1, 0), **extra)
    return out.view_as(q)


@cache
def _varlen_kernel() -> tuple[Callable[..., Any], bool]:
    """torch's varlen_attn, and whether it takes fewer key-value heads than query heads (it does from torch 2.12 on)."""
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn, "enable_gqa" in inspect.signature(varlen_attn).parameters
