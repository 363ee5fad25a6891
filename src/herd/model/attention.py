"""Attention behind one interface: a mask and a name give a way (:func:`prepare`), a way gives outputs (:func:`attend`).

All ways compute the same, a masked softmax; they differ in what they cost. A name settles how packed documents, and groups of
responses to one prompt (:class:`herd.model.masks.Branches`), are done:

- ``sdpa``: one call over whole rows with a boolean mask. Costs T^2 a row, whatever the documents.
- ``documents``: causal calls over documents of equal length batched together. Fastest on a CPU, which has no kernel for packed
  documents. A prompt and its first response are such a document; each later response is a masked call over the prompt and itself.
- ``flex``: FlexAttention with a block mask, compiled on a GPU. Forward pass only on a CPU, and slow there.
- ``varlen``: FlashAttention over documents laid end to end. GPU, half precision; not for groups.
- ``auto``: ``varlen`` for documents in half precision on a GPU; otherwise the cheaper of ``sdpa`` and ``documents``, from the
  lengths.

Masks that name no documents (plain causal, :class:`Dense`) always go to SDPA, which has kernels for them.

Later responses could also attend to prompt and response apart, merged by their log-sum-exps, which spares the masked half of
the response's own square: at a prompt of 757 and a response of 284 tokens no faster on a CPU than the masked call (29.8 and
29.2 ms forward and backward), for kernels that torch keeps private.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from herd.config.errors import UserError
from herd.config.registry import Registry
from herd.model.masks import (
    CAUSAL,
    Branches,
    Causal,
    Dense,
    Documents,
    Forked,
    Grouped,
    Grouping,
    Mask,
    allowed,
    to_device,
)
from herd.products import by_float32, operand, product_dtype


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


Packed = Documents | Branches
Way = Causal | Dense | Grouped | Forked | Grouping | Blocks | Ragged

# name -> (packed rows, device, type of queries) -> way. Neither documents with one document a row (they are causal) nor
# branches of which no prompt has two (they are documents) ever get here.
ATTENTIONS: Registry[Callable[[Packed, torch.device, torch.dtype], Way]] = Registry("attention")


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
    if isinstance(mask, Branches):
        mask = mask.simplest
    if not isinstance(mask, Documents | Branches):
        return mask
    if isinstance(mask, Documents) and mask.one_per_row:
        return CAUSAL
    return choose(mask, torch.device(device), dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, way: Way) -> Tensor:
    """Grouped-query attention, softmax(q k^T / sqrt(head_dim)) v, under the mask that ``way`` was prepared from.

    Args:
        q: (B, T, heads, head_dim).
        k, v: (B, S, kv_heads, head_dim), S >= T; only Dense allows S > T.

    Returns:
        (B, T, heads, head_dim).
    """
    match way:
        case Causal():
            return _sdpa(q, k, v, causal=True)
        case Dense():
            return _sdpa(q, k, v, allowed=way.allowed.unsqueeze(1))
        case Grouped():
            return _by_document(q, k, v, way)
        case Forked():
            return _by_branch(q, k, v, way)
        case Grouping():
            return way.undo(attend(way.apply(q), way.apply(k), way.apply(v), way.mask))
        case Blocks():
            return _flex(q, k, v, way)
        case Ragged():
            return _varlen(q, k, v, way)


@ATTENTIONS.register("auto")
def _auto(mask: Packed, device: torch.device, dtype: torch.dtype) -> Way:
    if isinstance(mask, Documents) and device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        return _ragged(mask, device, dtype)
    return (_masked if mask.prefers_dense else _grouped)(mask, device, dtype)


@ATTENTIONS.register("sdpa")
def _masked(mask: Packed, device: torch.device, dtype: torch.dtype) -> Way:
    return Dense(allowed(mask, device))


@ATTENTIONS.register("documents")
def _grouped(mask: Packed, device: torch.device, dtype: torch.dtype) -> Way:
    return mask.grouping(device)


@ATTENTIONS.register("flex")
def _blocks(mask: Packed, device: torch.device, dtype: torch.dtype) -> Way:
    from torch.nn.attention.flex_attention import create_block_mask

    if device.type == "cpu" and torch.is_grad_enabled():
        raise UserError(
            "attention = flex trains on a GPU only (torch has no backward pass for it on a CPU): use attention = auto."
        )
    sees, (rows, length) = mask.sees(device), mask.shape

    def allowed_in_head(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return sees(row, query, key)

    return Blocks(create_block_mask(allowed_in_head, rows, None, length, length, device=str(device)))


@ATTENTIONS.register("varlen")
def _ragged(mask: Packed, device: torch.device, dtype: torch.dtype) -> Way:
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        kind = str(dtype).removeprefix("torch.")
        raise UserError(
            f"attention = varlen needs a GPU and half precision (here: {device.type}, {kind}): use attention = auto, or "
            "hardware = gpu with precision = bf16."
        )
    if isinstance(mask, Branches):
        raise UserError(
            "attention = varlen cannot let responses share a prompt: use attention = auto or flex, or row = separate."
        )
    return ragged(mask, device)


def ragged(mask: Documents, device: torch.device) -> Ragged:
    """Borders of the documents in the flattened batch."""
    lengths = torch.tensor([0, *(n for row in mask.lengths for n in row)], dtype=torch.int32)
    return Ragged(to_device(lengths.cumsum(0, dtype=torch.int32), device), max(mask.by_length))


def _by_document(q: Tensor, k: Tensor, v: Tensor, way: Grouped) -> Tensor:
    outputs = [_sdpa(qs, ks, vs, causal=True).flatten(0, 1) for qs, ks, vs in _pieces((q, k, v), way.groups)]
    return torch.cat(outputs).view_as(q)


def _by_branch(q: Tensor, k: Tensor, v: Tensor, way: Forked) -> Tensor:
    own = [(count, length) for count, _, length in way.later]
    pieces = _pieces((q, k, v), (*way.trunks, *own))
    outputs = [_sdpa(qs, ks, vs, causal=True).flatten(0, 1) for qs, ks, vs in pieces[: len(way.trunks)]]
    # Keys and values of all prompts at once: one gradient to add to those of the trunks, not one for each shape.
    prompts = _pieces(
        [x.flatten(0, 1).index_select(0, way.prompts)[None] for x in (k, v)], [(count, p) for count, p, _ in way.later]
    )
    for (qs, ks, vs), (kp, vp), seen in zip(pieces[len(way.trunks) :], prompts, way.allowed, strict=True):
        out = _sdpa(qs, torch.cat((kp, ks), 1), torch.cat((vp, vs), 1), allowed=seen)
        outputs.append(out.flatten(0, 1))
    return torch.cat(outputs).view_as(q)


def _pieces(tensors: Sequence[Tensor], shapes: Sequence[tuple[int, int]]) -> list[tuple[Tensor, ...]]:
    """Each tensor (B, T, ...) cut, as it lies flattened, into (count, length, ...) for each of the shapes in turn."""
    # split, not slices: the gradient of a slice is a whole tensor of zeros, that of a split one concatenation.
    split = zip(*(x.flatten(0, 1).split([count * length for count, length in shapes]) for x in tensors), strict=True)
    return [tuple(x.unflatten(0, shape) for x in piece) for shape, piece in zip(shapes, split, strict=True)]


def _sdpa(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None, causal: bool = False) -> Tensor:
    if by_float32(q.device, dtype := product_dtype(q)):
        with torch.autocast(q.device.type, enabled=False):
            q, k, v = (operand(x, dtype) for x in (q, k, v))
            return _sdpa(q, k, v, allowed, causal).to(dtype)
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
