"""Keys and values of many sequences, in pages that several of them may share.

A page holds a fixed number of positions. Which pages make up a sequence is not known here (:mod:`herd.generation.pages`): a
forward pass gets a :class:`Prefill` or a :class:`Decode`, made from this storage, as its ``cache``.

A step of decoding reads every page once, however many sequences share it: attention over a page, or over a run of them, is one
product for the queries of all its users; what a query got from each is then merged by their log-sum-exps (the partial softmax of
FlashAttention, Dao et al. 2022, split over pages). So K samples of a prompt cost one reading of the prompt a step, not K. What a
sequence has of its own comes last: there the log-sum-exp of its prompt is one more score, whose value is what the prompt gave.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from herd.model.attention import Way, attend
from herd.model.config import ModelConfig
from herd.products import operand


class PagedCache:
    """Storage: (n_layers, pages, n_kv_heads, page_size, head_dim) for keys and for values.

    The pages of a prompt that is read whole lie as one matrix to each head where they follow each other (``run``).

    Args:
        config: shape of the model.
        pages: how many there are.
        page_size: positions of each.
        device, dtype: where and in which type the model computes.
    """

    def __init__(
        self,
        config: ModelConfig,
        pages: int,
        page_size: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        shape = (config.n_layers, pages, config.n_kv_heads, page_size, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.page_size = page_size
        # Position by position, a layer each: made once, for views cost as much as the arithmetic of a small step.
        self._flat = [
            (k.view(-1, config.head_dim), v.view(-1, config.head_dim)) for k, v in zip(self.keys, self.values, strict=True)
        ]

    def __len__(self) -> int:
        """Pages."""
        return self.keys.shape[1]

    def clear(self, pages: Tensor) -> None:
        """Zero ``pages``: what lies behind the last position of a page gets no weight, and 0 x NaN would be NaN."""
        self.keys.index_fill_(1, pages, 0)
        self.values.index_fill_(1, pages, 0)

    def slots(self, pages: Tensor, offsets: Tensor, run: int | Tensor = 1) -> Tensor:
        """Where :meth:`write` puts positions, (n * n_kv_heads,) int64.

        Args:
            pages: of each position, (n,), or the first page of its run.
            offsets: its place within the page or run, (n,).
            run: pages that follow each other and lie as one, or (n, 1) such numbers.
        """
        heads = torch.arange(self.keys.shape[2], device=pages.device)
        return ((pages[:, None] * len(heads) + heads * run) * self.page_size + offsets[:, None]).flatten()

    def write(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Store ``k``, ``v`` (..., n_kv_heads, head_dim) of ``n`` positions at their ``slots``."""
        keys, values = self._flat[layer]
        keys.index_copy_(0, slots, k.reshape(-1, k.shape[-1]))
        values.index_copy_(0, slots, v.reshape(-1, v.shape[-1]))

    def read(self, layer: int, pages: slice | Tensor, run: int = 1, width: int | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values of ``pages``, (n, n_kv_heads, width, head_dim) each: a view of a slice, a copy of others.

        Args:
            pages: in units of ``run`` pages that lie as one.
            width: positions that are read of each, from the first on; None reads all.
        """
        _, total, heads, size, head_dim = self.keys.shape
        keys, values = (
            x[layer, : total // run * run].view(-1, heads, run * size, head_dim)[:, :, :width] for x in (self.keys, self.values)
        )
        if isinstance(pages, slice):
            return keys[pages], values[pages]
        return keys.index_select(0, pages), values.index_select(0, pages)

    def read_whole(self, layer: int, pages: slice | Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of ``pages`` end to end, (1, n_kv_heads, n * page_size, head_dim) each.

        A slice is a run that was written as one, read in place; others were written page by page and are copied together.
        """
        keys, values = self.read(layer, pages)
        if not isinstance(pages, slice):
            keys, values = keys.transpose(0, 1), values.transpose(0, 1)
        shape = (1, self.keys.shape[2], len(keys) * self.page_size if isinstance(pages, slice) else -1, keys.shape[-1])
        return keys.reshape(shape), values.reshape(shape)


@dataclass(frozen=True, eq=False)
class Prefill:
    """Prompts laid end to end in one row: they attend as the mask says and are stored.

    Attributes:
        slots: where the T positions go.
    """

    storage: PagedCache
    slots: Tensor

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, way: Way) -> Tensor:
        """Attention within the row, (1, T, heads, head_dim)."""
        self.storage.write(layer, self.slots, k, v)
        return attend(q, k, v, way)


@dataclass(frozen=True, eq=False)
class Whole:
    """A prompt that is read as one matrix, by rows of the batch that follow each other.

    Attributes:
        pages: of the prompt, as a slice (a run, read in place) or (n,) int64 (copied first).
        length: tokens of the prompt.
        rows: who reads it.
        users: (u,) int64, the same with stand-ins, where their number needs any; else None.
        views: what :meth:`_read` gave for each layer, where that is no copy.
    """

    pages: slice | Tensor
    length: int
    rows: slice
    users: Tensor | None
    views: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def attend(self, storage: PagedCache, layer: int, q: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of the rows' queries among ``q`` (R, kv_heads, group, d): (rows, kv_heads, group, d) and log-sum-exps."""
        asked = q[self.rows] if self.users is None else q.index_select(0, self.users)
        users, heads, group, width = asked.shape
        out, size = partial_attention(asked.transpose(0, 1).reshape(heads, -1, width), *self._read(storage, layer))
        out, size = out.view(heads, users, group, width).transpose(0, 1), size.view(heads, users, group).transpose(0, 1)
        if self.users is None:
            return out, size
        count = self.rows.stop - self.rows.start
        return out[:count], size[:count]

    def _read(self, storage: PagedCache, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values, (kv_heads, length, d) each."""
        if layer in self.views:
            return self.views[layer]
        stored = [x[0, :, : self.length] for x in storage.read_whole(layer, self.pages)]
        return _kept(self, layer, stored, [operand(x, x.dtype) for x in stored])


@dataclass(frozen=True, eq=False)
class Paged:
    """Pages of short prompts, each read by as many rows of the batch.

    Attributes:
        pages: which, as a slice (read in place) or (n,) int64 (copied first).
        users: (n * u,) int64, rows that read each page; a row may stand in for users that are not there.
        hidden: (n * kv_heads, 1, page_size) float, -inf at positions that hold nothing.
        views: what :meth:`_read` gave for each layer, where that is no copy.
    """

    pages: slice | Tensor
    users: Tensor
    hidden: Tensor
    views: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def attend(self, storage: PagedCache, layer: int, q: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of the users' queries among ``q`` (R, kv_heads, group, d): (n * u, kv_heads, group, d) and log-sum-exps."""
        keys, values = self._read(storage, layer)
        _, heads, group, width = q.shape
        pages = len(keys) // heads
        asked = q.index_select(0, self.users).view(pages, -1, heads, group, width).transpose(1, 2)
        # For few queries and keys at a time torch's kernel takes twice as long, on two threads.
        out, size = by_scores(asked.reshape(len(keys), -1, width), keys, values, self.hidden)
        out, size = (x.reshape(pages, heads, -1, group, *x.shape[2:]).transpose(1, 2) for x in (out, size))
        return out.reshape(-1, heads, group, width), size.reshape(-1, heads, group)

    def _read(self, storage: PagedCache, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values, (n * kv_heads, page_size, d) each."""
        if layer in self.views:
            return self.views[layer]
        stored = [x.flatten(0, 1) for x in storage.read(layer, self.pages)]
        return _kept(self, layer, stored, [operand(x, x.dtype) for x in stored])


@dataclass(frozen=True, eq=False)
class Own:
    """What sequences have of their own: runs of pages, each read by one row of the batch.

    Attributes:
        runs: which, in units of ``run`` pages, as a slice (read in place) or (n,) int64 (copied first).
        run: pages that lie as one.
        width: positions that are read of each.
        users: (n,) int64, the row that reads each run; None: the rows in their order.
        hidden: (n * kv_heads, 1, width) float, -inf at positions that hold nothing.
        newest: int64, where the new positions stand in the flattened ``hidden``.
        views: what :meth:`_read` gave for each layer, where that is no copy.
    """

    runs: slice | Tensor
    run: int
    width: int
    users: Tensor | None
    hidden: Tensor
    newest: Tensor
    views: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def attend(self, storage: PagedCache, layer: int, q: Tensor, given: Tensor, size: Tensor) -> Tensor:
        """Attention of the users' queries among ``q`` (R, kv_heads, group, d) over prompt and own positions, (n, ...).

        Args:
            given: what the prompts gave, (R, kv_heads, group, d).
            size: log-sum-exps of their scores, (R, kv_heads, group).
        """
        if self.users is not None:
            q, given, size = (x.index_select(0, self.users) for x in (q, given, size))
        keys, values = self._read(storage, layer)
        scores = scores_of(q.reshape(len(keys), -1, q.shape[3]), keys, self.hidden)
        weights = torch.cat((scores, size.reshape(len(keys), -1, 1)), 2).softmax(-1)
        own = torch.bmm(weights[..., : self.width].to(values.dtype), values).to(weights.dtype)
        return torch.addcmul(own.view_as(given), given, weights[..., self.width :].view(*size.shape, 1))

    def _read(self, storage: PagedCache, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values, (n * kv_heads, width, d) each."""
        if layer in self.views:
            return self.views[layer]
        stored = [x.flatten(0, 1) for x in storage.read(layer, self.runs, self.run, self.width)]
        return _kept(self, layer, stored, [operand(x, x.dtype) for x in stored])


def _kept(part: Whole | Paged | Own, layer: int, stored: list[Tensor], found: list[Tensor]) -> tuple[Tensor, Tensor]:
    """``found``, kept for the steps to come if it is what is ``stored`` and no copy: views cost as much as small arithmetic."""
    keys, values = found
    if isinstance(part.runs if isinstance(part, Own) else part.pages, slice) and keys is stored[0] and values is stored[1]:
        part.views[layer] = keys, values
    return keys, values


@dataclass(frozen=True, eq=False)
class Decode:
    """One new position for each of R sequences, which attend to their own pages.

    Attributes:
        slots: where the new positions go.
        whole: prompts that are read whole, each by some of the rows.
        paged: pages of the prompts of all other rows, S of them.
        columns: results that a row has from ``paged`` at most, w.
        merge: (S * w,) int64, the results that belong to each of these rows: indices into those of ``paged``, counted in the
            order part, page, user.
        absent: (S, w, 1) float, -inf where a row has fewer than w results; None where all have w.
        order: (R,) int64, where each row's prompt stands among the rows of ``whole`` and then the others; None: in this order.
        own: what each row has of its own.
        found: (R,) int64, where each row stands among those of ``own``; None: in this order.
    """

    storage: PagedCache
    slots: Tensor
    whole: Sequence[Whole]
    paged: Sequence[Paged]
    columns: int
    merge: Tensor
    absent: Tensor | None
    order: Tensor | None
    own: Sequence[Own]
    found: Tensor | None

    def advance(self) -> None:
        """Go on to the next position of every sequence, on the same pages."""
        self.slots.add_(1)
        for part in self.own:
            part.hidden.view(-1).index_fill_(0, part.newest.add_(1), 0)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, way: Way) -> Tensor:
        """Attention of each row's one query over its pages, (R, 1, heads, head_dim)."""
        if torch.is_autocast_enabled(q.device.type):  # queries, keys and values are of its type already
            with torch.autocast(q.device.type, enabled=False):
                return self.attend(layer, q, k, v, way)
        self.storage.write(layer, self.slots, k, v)
        asked = operand(q, q.dtype).reshape(len(q), k.shape[2], -1, q.shape[3])
        given, size = self._over_prompts(layer, asked)
        out = _in_order([part.attend(self.storage, layer, asked, given, size) for part in self.own], self.found)
        return out.reshape(q.shape).to(q.dtype)

    def _over_prompts(self, layer: int, asked: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of each row over its prompt: (R, kv_heads, group, head_dim) and the log-sum-exps of its scores."""
        results = [part.attend(self.storage, layer, asked) for part in self.whole]
        if self.paged:
            results.append(self._over_pages(layer, asked))
        given, size = (_in_order(list(x), self.order) for x in zip(*results, strict=True))
        return given, size

    def _over_pages(self, layer: int, asked: Tensor) -> tuple[Tensor, Tensor]:
        """The same of the rows whose prompts are read page by page."""
        results = [part.attend(self.storage, layer, asked) for part in self.paged]
        out, size = (_in_order(list(x), self.merge) for x in zip(*results, strict=True))
        if self.columns == 1:
            return out, size
        _, heads, group, width = out.shape
        out, size = out.view(-1, self.columns, heads * group, width), size.view(-1, self.columns, heads * group)
        if self.absent is not None:
            size = size + self.absent
        weights = size.softmax(1)  # (S, w, heads)
        merged = (out * weights.unsqueeze(3)).sum(1)
        return merged.view(-1, heads, group, width), _log_sum(size, weights, 1).view(-1, heads, group)


def _in_order(parts: list[Tensor], order: Tensor | None) -> Tensor:
    """``parts`` end to end, or those of their rows that ``order`` names."""
    together = parts[0] if len(parts) == 1 else torch.cat(parts)
    return together if order is None else together.index_select(0, order)


def partial_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over some of the keys, with what is needed to merge it with that over the others.

    Args:
        q: (n, m, d).
        k, v: (n, s, d).

    Returns:
        softmax(q k^T / sqrt(d)) v, (n, m, d), and the log-sum-exp of the scores, (n, m); float32 or wider.
    """
    if q.device.type == "cpu":  # the kernel behind scaled_dot_product_attention, which does not hand out the log-sum-exp
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, size = kernel(q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0))
        return out.squeeze(0).to(size.dtype), size.squeeze(0)
    return by_scores(q, k, v, q.new_zeros(1, 1, 1))


def by_scores(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`partial_attention` written out, for any device; ``hidden`` (n or 1, 1, s or 1) is added to the scores."""
    scores = scores_of(q, k, hidden)
    weights = scores.softmax(-1)
    return torch.bmm(weights.to(v.dtype), v).to(scores.dtype), _log_sum(scores, weights, -1)


def scores_of(q: Tensor, k: Tensor, hidden: Tensor) -> Tensor:
    """q k^T / sqrt(d) + ``hidden``, (n, m, s), float32 or wider; shapes as in :func:`by_scores`."""
    scores = torch.baddbmm(hidden, q, k.transpose(1, 2), alpha=q.shape[2] ** -0.5)
    return scores.to(torch.promote_types(q.dtype, torch.float32))


def _log_sum(scores: Tensor, weights: Tensor, dim: int) -> Tensor:
    """Log-sum-exp of ``scores`` from their softmax: the largest one's weight is exp(it) / the sum of exponentials."""
    return scores.amax(dim).sub_(weights.amax(dim).log_())
