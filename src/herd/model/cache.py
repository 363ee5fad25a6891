"""Keys and values of many sequences, in pages that several of them may share.

A page holds a fixed number of positions. Which pages make up a sequence is not known here (:mod:`herd.generation.pages`): a
forward pass gets a :class:`Prefill` or a :class:`Decode`, made from this storage, as its ``cache``.

A step of decoding reads every page once, however many sequences share it: attention over a page, or over a run of them, is one
product for the queries of all its users; what a query got from each is then merged by their log-sum-exps (the partial softmax of
FlashAttention, Dao et al. 2022, split over pages). So K samples of a prompt cost one reading of the prompt a step, not K.
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
    """Pages, or runs of them, that are read one by one, each by as many users.

    Attributes:
        pages: which, in units of ``run``, as a slice (read in place) or (n,) int64 (copied first).
        run: pages that lie as one.
        width: positions that are read of each.
        users: (n * u,) int64, rows of the batch that read each page; a row may stand in for users that are not there. None: the
            rows in their order, one a page.
        hidden: (n * kv_heads, 1, width) float, -inf at positions that hold nothing.
        newest: int64, where the new positions stand in the flattened ``hidden``; none for a prompt.
        views: what :meth:`_read` gave for each layer, where that is no copy.
    """

    pages: slice | Tensor
    run: int
    width: int
    users: Tensor | None
    hidden: Tensor
    newest: Tensor
    views: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def attend(self, storage: PagedCache, layer: int, q: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of the users' queries among ``q`` (R, kv_heads, group, d): (n * u, kv_heads, group, d) and log-sum-exps."""
        keys, values = self._read(storage, layer)
        asked = q if self.users is None else q.index_select(0, self.users)
        users, heads, group, width = asked.shape
        pages = len(keys) // heads
        if users > pages:
            asked = asked.view(pages, -1, heads, group, width).transpose(1, 2)
        # For few queries and keys at a time torch's kernel takes twice as long, on two threads.
        out, size = by_scores(asked.reshape(len(keys), -1, width), keys, values, self.hidden)
        if users > pages:
            out, size = (x.reshape(pages, heads, -1, group, *x.shape[2:]).transpose(1, 2) for x in (out, size))
        return out.reshape(users, heads, group, width), size.reshape(users, heads, group)

    def _read(self, storage: PagedCache, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values, (n * kv_heads, width, d) each."""
        if layer in self.views:
            return self.views[layer]
        stored = [x.flatten(0, 1) for x in storage.read(layer, self.pages, self.run, self.width)]
        return _kept(self, layer, stored, [operand(x, x.dtype) for x in stored])


def _kept(part: Whole | Paged, layer: int, stored: list[Tensor], found: list[Tensor]) -> tuple[Tensor, Tensor]:
    """``found``, kept for the steps to come if it is what is ``stored`` and no copy: views cost as much as small arithmetic."""
    keys, values = found
    if isinstance(part.pages, slice) and keys is stored[0] and values is stored[1]:
        part.views[layer] = keys, values
    return keys, values


@dataclass(frozen=True, eq=False)
class Decode:
    """One new position for each of R sequences, which attend to their own pages.

    Attributes:
        slots: where the new positions go.
        whole: prompts that are read whole, each by some of the rows.
        paged: every other page that is read.
        columns: results that a row has from ``paged`` at most, w.
        merge: (R * w,) int64, the results that belong to each row: indices into those of ``paged``, counted in the order part,
            page, user; None where they stand in this order.
        absent: (R, w, 1) float, -inf where a row has fewer than w results; None where all have w.
    """

    storage: PagedCache
    slots: Tensor
    whole: Sequence[Whole]
    paged: Sequence[Paged]
    columns: int
    merge: Tensor | None
    absent: Tensor | None

    def advance(self) -> None:
        """Go on to the next position of every sequence, on the same pages."""
        self.slots.add_(1)
        for part in self.paged:
            if len(part.newest):
                part.hidden.view(-1).index_fill_(0, part.newest.add_(1), 0)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, way: Way) -> Tensor:
        """Attention of each row's one query over its pages, (R, 1, heads, head_dim)."""
        if torch.is_autocast_enabled(q.device.type):  # queries, keys and values are of its type already
            with torch.autocast(q.device.type, enabled=False):
                return self.attend(layer, q, k, v, way)
        self.storage.write(layer, self.slots, k, v)
        asked = operand(q, q.dtype).reshape(len(q), k.shape[2], -1, q.shape[3])
        out, size = self._over_pages(layer, asked)
        for part in self.whole:
            first, first_size = part.attend(self.storage, layer, asked)
            one = len(first) == len(out)
            # Two softmaxes over parts of the keys weigh as their sums of exponentials do. (Written out: torch's sigmoid rounds
            # an element by its place in the tensor, so by a row's company; so do sums and softmaxes over a first dimension.)
            weight = (first_size - (size if one else size[part.rows])).exp_().add_(1).reciprocal_().unsqueeze(3)
            merged = torch.lerp(first, out if one else out[part.rows], weight)
            if one:
                out = merged
            else:
                out[part.rows] = merged
        return out.reshape(q.shape).to(q.dtype)

    def _over_pages(self, layer: int, asked: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of each row over its pages in ``paged``: (R, kv_heads, group, head_dim) and the log-sum-exp of its scores."""
        results = [part.attend(self.storage, layer, asked) for part in self.paged]
        out, size = results[0] if len(results) == 1 else (torch.cat(x) for x in zip(*results, strict=True))
        if self.merge is not None:
            out, size = out.index_select(0, self.merge), size.index_select(0, self.merge)
        if self.columns == 1:
            return out, size
        out, size = out.view(len(asked), self.columns, -1, out.shape[3]), size.view(len(asked), self.columns, -1)
        if self.absent is not None:
            size = size + self.absent
        weights = size.softmax(1)  # (R, w, heads)
        merged = (out * weights.unsqueeze(3)).sum(1).view(asked.shape)
        return merged, _log_sum(size, weights, 1).view(asked.shape[:3])


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
    scores = torch.baddbmm(hidden, q, k.transpose(1, 2), alpha=q.shape[2] ** -0.5)
    scores = scores.to(torch.promote_types(q.dtype, torch.float32))
    weights = scores.softmax(-1)
    return torch.bmm(weights.to(v.dtype), v).to(scores.dtype), _log_sum(scores, weights, -1)


def _log_sum(scores: Tensor, weights: Tensor, dim: int) -> Tensor:
    """Log-sum-exp of ``scores`` from their softmax: the largest one's weight is exp(it) / the sum of exponentials."""
    return scores.amax(dim).sub_(weights.amax(dim).log_())
