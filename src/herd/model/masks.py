"""Which positions may attend to which. How attention is then computed: :mod:`herd.model.attention`."""

from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property

import torch
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

    def ids(self, device: torch.device | str = "cpu") -> Tensor:
        """Index of each position's document within its row, (B, T) int64."""
        return to_device(torch.tensor([[i for i, n in enumerate(row) for _ in range(n)] for row in self.lengths]), device)

    def allowed(self, device: torch.device | str = "cpu") -> Tensor:
        """The mask as a boolean tensor (B, T, T)."""
        ids = self.ids(device)
        steps = torch.arange(ids.shape[1], device=device)
        return (ids[:, :, None] == ids[:, None, :]) & (steps[:, None] >= steps[None, :])

    def grouping(self, device: torch.device | str = "cpu") -> "Grouping":
        """Order of the flattened tokens in which documents of equal length lie side by side."""
        order = torch.tensor([s + i for n, starts in self.by_length.items() for s in starts for i in range(n)])
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(order.numel())
        groups = tuple((len(starts), length) for length, starts in self.by_length.items())
        return Grouping(to_device(order, device), to_device(inverse, device), Grouped(groups))


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


Mask = Causal | Documents | Dense
CAUSAL = Causal()


def to_device(x: Tensor, device: torch.device | str) -> Tensor:
    """Copy host data to ``device`` without waiting for what runs there."""
    if torch.device(device).type == "cuda":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)
