"""Which positions may attend to which. How attention is then computed: :mod:`herd.model.attention`."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

# (row of the batch, query's place, key's place) -> may it be seen; indices broadcast
Sees = Callable[[Tensor, Tensor, Tensor], Tensor]

# A call of SDPA, forward and backward, costs about as much as this many scores per head (measured on 2 CPU cores).
_CALL_COST = 10_000


@dataclass(frozen=True)
class Causal:
    """Each position attends to itself and to all before it."""


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

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and tokens of each, (B, T)."""
        return len(self.lengths), sum(self.lengths[0])

    def sees(self, device: torch.device | str = "cpu") -> Sees:
        """The mask as a function of places."""
        ids = self.ids(device)
        return lambda row, query, key: (ids[row, query] == ids[row, key]) & (query >= key)

    def grouping(self, device: torch.device | str = "cpu") -> "Grouping":
        """Order of the flattened tokens in which documents of equal length lie side by side."""
        order, inverse = _order((start, n) for n, starts in self.by_length.items() for start in starts)
        groups = tuple((len(starts), length) for length, starts in self.by_length.items())
        return Grouping(to_device(order, device), to_device(inverse, device), Grouped(groups))


@dataclass(frozen=True)
class Branches:
    """Packed groups of one prompt and several responses, each of which sees the prompt and itself, causally.

    No response sees another one, so that with positions that restart after the prompt a group gives the numbers of as many
    rows of their own, and the prompt is computed once.

    Attributes:
        rows: for each row of the batch its groups, left to right, as tokens (prompt, response, response, ...); a group of one
            number is a document without branches. The groups of each row sum to T.
    """

    rows: tuple[tuple[tuple[int, ...], ...], ...]

    def __post_init__(self) -> None:
        totals = {sum(map(sum, row)) for row in self.rows}
        assert len(totals) == 1, f"rows of unequal length: {sorted(totals)}"
        assert all(n > 0 for row in self.rows for group in row for n in group), "a prompt or response without tokens"

    @cached_property
    def trunks(self) -> dict[int, list[int]]:
        """Starts of the prompts, each with its first response, in the flattened batch, by length, longest first.

        A prompt and its first response are a plain causal document: it takes no more calls than the prompt alone.
        """
        starts = defaultdict(list)
        start = 0
        for group in (group for row in self.rows for group in row):
            starts[sum(group[:2])].append(start)
            start += sum(group)
        return dict(sorted(starts.items(), reverse=True))

    @cached_property
    def later(self) -> dict[tuple[int, int], list[tuple[int, int]]]:
        """Starts of (prompt, response) of all responses but the first ones, by (prompt's length, response's length)."""
        starts = defaultdict(list)
        start = 0
        for group in (group for row in self.rows for group in row):
            at = start + sum(group[:2])
            for response in group[2:]:
                starts[group[0], response].append((start, at))
                at += response
            start += sum(group)
        return dict(sorted(starts.items(), reverse=True))

    @property
    def simplest(self) -> "Documents | Branches":
        """The same mask; as documents, where no prompt has more than one response."""
        return self if self.later else Documents(tuple(tuple(sum(group) for group in row) for row in self.rows))

    @cached_property
    def prefers_dense(self) -> bool:
        """Whether one masked call over whole rows is cheaper than one call per distinct shape."""
        rows, length = self.shape
        split = sum(len(starts) * n**2 + _CALL_COST for n, starts in self.trunks.items())
        split += sum(len(starts) * r * (p + r) + _CALL_COST for (p, r), starts in self.later.items())
        return rows * length**2 + _CALL_COST < split

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and tokens of each, (B, T)."""
        return len(self.rows), sum(map(sum, self.rows[0]))

    def sees(self, device: torch.device | str = "cpu") -> Sees:
        """The mask as a function of places."""
        codes = [[(g, b) for g, group in enumerate(row) for b, n in enumerate(group) for _ in range(n)] for row in self.rows]
        groups, branches = to_device(torch.tensor(codes), device).unbind(-1)

        def allowed(row: Tensor, query: Tensor, key: Tensor) -> Tensor:
            of_prompt, same_branch = branches[row, key] == 0, branches[row, key] == branches[row, query]
            return (groups[row, query] == groups[row, key]) & (of_prompt | same_branch) & (query >= key)

        return allowed

    def grouping(self, device: torch.device | str = "cpu") -> "Grouping":
        """Order of the flattened tokens in which trunks of equal length, then later responses of equal shape lie together."""
        pieces = [(start, n) for n, starts in self.trunks.items() for start in starts]
        pieces += [(own, r) for (_, r), starts in self.later.items() for _, own in starts]
        order, inverse = _order(pieces)
        prompts = [inverse[start : start + p] for (p, _), starts in self.later.items() for start, _ in starts]
        forked = Forked(
            trunks=tuple((len(starts), length) for length, starts in self.trunks.items()),
            later=tuple((len(starts), p, r) for (p, r), starts in self.later.items()),
            prompts=to_device(torch.cat(prompts), device),
            allowed=tuple(to_device(torch.ones(r, p + r, dtype=torch.bool).tril(p), device) for p, r in self.later),
        )
        return Grouping(to_device(order, device), to_device(inverse, device), forked)


def allowed(mask: Documents | Branches, device: torch.device | str = "cpu") -> Tensor:
    """The mask as a boolean tensor (B, T, T)."""
    rows, length = (torch.arange(n, device=device) for n in mask.shape)
    return mask.sees(device)(rows[:, None, None], length[:, None], length[None, :])


def _order(pieces: Iterable[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """The permutation that lays pieces (start, length) of a flattened batch end to end, and its inverse."""
    order = torch.cat([torch.arange(start, start + length) for start, length in pieces])
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.numel())
    return order, inverse


@dataclass(frozen=True)
class Grouped:
    """Documents, causal each, in a batch whose flattened tokens are already sorted by document length.

    Attributes:
        groups: (number of documents, length of each), in the order in which they lie in the flattened batch.
    """

    groups: tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class Forked:
    """Documents, causal each, then further responses to the prompts that these begin with, in an already sorted batch.

    Attributes:
        trunks: (number of documents, length of each), in the order in which they lie in the flattened batch.
        later: (number of responses, length of each one's prompt, its own length), in the order in which they follow.
        prompts: (sum of number x prompt's length,) places of the tokens of each later response's prompt.
        allowed: for each entry of `later` what its responses see of prompt and response, (R, P + R) boolean.
    """

    trunks: tuple[tuple[int, int], ...]
    later: tuple[tuple[int, int, int], ...]
    prompts: Tensor
    allowed: tuple[Tensor, ...] = field(repr=False)


@dataclass(frozen=True, eq=False)
class Grouping:
    """A permutation of the flattened tokens and the mask that holds after it."""

    order: Tensor  # (B * T,) new place -> old place
    inverse: Tensor  # (B * T,) old place -> new place
    mask: Grouped | Forked

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


Mask = Causal | Documents | Branches | Grouped | Dense
CAUSAL = Causal()


def to_device(x: Tensor, device: torch.device | str) -> Tensor:
    """Copy host data to ``device`` without waiting for what runs there."""
    if torch.device(device).type == "cuda":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)
