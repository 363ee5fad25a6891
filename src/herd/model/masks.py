"""Which positions may attend to which, and attention under each of these masks.

On a CPU (and with SDPA alone) there is no kernel for packed documents, so :class:`Documents` picks the cheaper of two
exact ways from the lengths alone: causal SDPA over documents of equal length batched together, or one call with a
boolean mask.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

# A call of SDPA, forward and backward, costs about as much as this many scores per head (measured on 2 CPU cores).
_CALL_COST = 10_000


@dataclass(frozen=True)
class Causal:
    """Each position attends to itself and to all before it; with a KV cache, queries are the last positions."""


@dataclass(frozen=True)
class Documents:
    """Causal within each document of a packed row, nothing between documents.

    Attributes:
        lengths: for each row of the batch the lengths of its documents, left to right; each row sums to T.
    """

    lengths: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        totals = {sum(row) for row in self.lengths}
        assert len(totals) == 1, f"rows of unequal length: {sorted(totals)}"
        assert all(length > 0 for row in self.lengths for length in row), "a document without tokens"

    @cached_property
    def by_length(self) -> dict[int, list[int]]:
        """Starts of all documents in the flattened batch, by document length, longest first."""
        starts = defaultdict(list)
        start = 0
        for row in self.lengths:
            for length in row:
                starts[length].append(start)
                start += length
        return dict(sorted(starts.items(), reverse=True))

    @property
    def one_per_row(self) -> bool:
        """Whether every row is one document, which makes the mask plainly causal."""
        return all(len(row) == 1 for row in self.lengths)

    @cached_property
    def prefers_dense(self) -> bool:
        """Whether one masked call over whole rows is cheaper than one call per distinct document length."""
        dense = len(self.lengths) * sum(self.lengths[0]) ** 2
        grouped = sum(len(starts) * length**2 + _CALL_COST for length, starts in self.by_length.items())
        return dense + _CALL_COST < grouped

    def allowed(self, device: torch.device | str = "cpu") -> Tensor:
        """The mask as a boolean tensor (B, T, T)."""
        ids = torch.tensor([[i for i, n in enumerate(row) for _ in range(n)] for row in self.lengths])
        ids = _to(ids, device)
        steps = torch.arange(ids.shape[1], device=device)
        return (ids[:, :, None] == ids[:, None, :]) & (steps[:, None] >= steps[None, :])

    def grouping(self, device: torch.device | str = "cpu") -> "Grouping":
        """Order of the flattened tokens in which documents of equal length lie side by side."""
        order = torch.tensor([s + i for n, starts in self.by_length.items() for s in starts for i in range(n)])
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(order.numel())
        groups = tuple((len(starts), length) for length, starts in self.by_length.items())
        return Grouping(_to(order, device), _to(inverse, device), Grouped(groups))


@dataclass(frozen=True)
class Grouped:
    """Documents, causal each, in a batch whose flattened tokens are already sorted by document length.

    Attributes:
        groups: (number of documents, length of each), in the order in which they lie in the flattened batch.
    """

    groups: tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class Grouping:
    """A permutation of the flattened tokens and the mask that holds after it."""

    order: Tensor  # (B * T,) new place -> old place
    inverse: Tensor  # (B * T,) old place -> new place
    mask: Grouped

    def apply(self, x: Tensor) -> Tensor:
        """Reorder (B, T, ...); everything but attention works on single tokens, so a whole model may run reordered."""
        return x.flatten(0, 1)[self.order].view_as(x)

    def undo(self, x: Tensor) -> Tensor:
        """Inverse of :meth:`apply`."""
        return x.flatten(0, 1)[self.inverse].view_as(x)


@dataclass(frozen=True, eq=False)
class Dense:
    """Any mask.

    Attributes:
        allowed: boolean, (B, T, S) or (1, T, S), True where a query (T) may see a key (S). A row without a single True
            yields an undefined output.
    """

    allowed: Tensor = field(repr=False)


Mask = Causal | Documents | Grouped | Dense
CAUSAL = Causal()


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """Grouped-query attention, softmax(q k^T / sqrt(head_dim)) v, under ``mask``.

    Args:
        q: (B, T, heads, head_dim).
        k, v: (B, S, kv_heads, head_dim), S >= T; query i is position S - T + i.

    Returns:
        (B, T, heads, head_dim).
    """
    match mask:
        case Causal():
            length, total = q.shape[1], k.shape[1]
            if length == total:
                return _sdpa(q, k, v, causal=True)
            if length == 1:
                return _sdpa(q, k, v)
            seen = torch.ones(length, total, dtype=torch.bool, device=q.device).tril(total - length)
            return _sdpa(q, k, v, allowed=seen)
        case Dense():
            return _sdpa(q, k, v, allowed=mask.allowed.unsqueeze(1))
        case Documents():
            assert q.shape[:2] == k.shape[:2] == (len(mask.lengths), sum(mask.lengths[0])), "mask and tokens disagree"
            if mask.one_per_row:
                return _sdpa(q, k, v, causal=True)
            if mask.prefers_dense:
                return _sdpa(q, k, v, allowed=mask.allowed(q.device).unsqueeze(1))
            grouping = mask.grouping(q.device)
            return grouping.undo(attend(grouping.apply(q), grouping.apply(k), grouping.apply(v), grouping.mask))
        case Grouped():
            sizes = [count * length for count, length in mask.groups]
            # split, not slices: the gradient of a slice is a whole tensor of zeros, that of a split one concatenation.
            pieces = zip(*(x.flatten(0, 1).split(sizes) for x in (q, k, v)), strict=True)
            outputs = []
            for shape, (qs, ks, vs) in zip(mask.groups, pieces, strict=True):
                out = _sdpa(qs.unflatten(0, shape), ks.unflatten(0, shape), vs.unflatten(0, shape), causal=True)
                outputs.append(out.flatten(0, 1))
            return torch.cat(outputs).view_as(q)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None, causal: bool = False) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, is_causal=causal, enable_gqa=grouped)
    return out.transpose(1, 2)


def _to(x: Tensor, device: torch.device | str) -> Tensor:
    """Copy host data to ``device`` without waiting for what runs there."""
    if torch.device(device).type == "cuda":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)
