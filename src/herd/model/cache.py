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


class PagedCache:
    """Storage: (n_layers, n_kv_heads, pages, page_size, head_dim) for keys and for values.

    Pages that follow each other are one matrix to each head, so that a run of them is read as one.

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
        shape = (config.n_layers, config.n_kv_heads, pages, page_size, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.page_size = page_size
        # Position by position, a layer each: made once, for views cost as much as the arithmetic of a small step.
        self._flat = [
            (k.view(-1, config.head_dim), v.view(-1, config.head_dim)) for k, v in zip(self.keys, self.values, strict=True)
        ]

    def __len__(self) -> int:
        """Pages."""
        return self.keys.shape[2]

    def clear(self, pages: Tensor) -> None:
        """Zero ``pages``: what lies behind the last position of a page gets no weight, and 0 x NaN would be NaN."""
        self.keys.index_fill_(2, pages, 0)
        self.values.index_fill_(2, pages, 0)

    def slots(self, pages: Tensor, offsets: Tensor) -> Tensor:
        """Where :meth:`write` puts positions, (n * n_kv_heads,) int64, from the page and the place within it of each, (n,)."""
        heads = torch.arange(self.keys.shape[1], device=pages.device)
        return ((heads * self.keys.shape[2] + pages[:, None]) * self.page_size + offsets[:, None]).flatten()

    def write(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Store ``k``, ``v`` (..., n_kv_heads, head_dim) of ``n`` positions at their ``slots``."""
        keys, values = self._flat[layer]
        keys.index_copy_(0, slots, k.reshape(-1, k.shape[-1]))
        values.index_copy_(0, slots, v.reshape(-1, v.shape[-1]))

    def read(self, layer: int, pages: slice | Tensor, run: int = 1) -> tuple[Tensor, Tensor]:
        """Keys and values of ``pages``, ``run`` of them end to end: (n / run, n_kv_heads, run * page_size, head_dim) each.

        A view of a slice, a copy of others.
        """
        keys, values = self.keys[layer], self.values[layer]
        if isinstance(pages, slice):
            keys, values = keys[:, pages], values[:, pages]
        else:
            keys, values = keys.index_select(1, pages), values.index_select(1, pages)
        shape = (len(keys), -1, run * self.page_size, keys.shape[-1])
        return keys.view(shape).transpose(0, 1), values.view(shape).transpose(0, 1)


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
class Part:
    """Runs of pages that are read together, each by as many users.

    Attributes:
        pages: which, as a slice (read in place) or (n * run,) int64 (copied first).
        run: pages of each of the n runs.
        users: (n * u,) int64, rows of the batch that read each run; a row may stand in for users that are not there.
        hidden: (n, 1, 1, run * page_size) float, -inf at positions that hold nothing.
        views: of each layer what :meth:`PagedCache.read` gave for a slice, once it has been asked for.
    """

    pages: slice | Tensor
    run: int
    users: Tensor
    hidden: Tensor
    views: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def read(self, storage: PagedCache, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the n runs in ``layer``."""
        if not isinstance(self.pages, slice):
            return storage.read(layer, self.pages, self.run)
        if layer not in self.views:
            self.views[layer] = storage.read(layer, self.pages, self.run)
        return self.views[layer]


@dataclass(frozen=True, eq=False)
class Decode:
    """One new position for each of R sequences, which attend to their own pages.

    Attributes:
        slots: where the new positions go.
        parts: every page that is read.
        merge: (R * w,) int64, the results that belong to each row: indices into those of all parts, counted in the order
            part, run, user.
        absent: (R, w, 1) float, -inf where a row has fewer than w results; None where all have w.
        newest: (R,) int64, where the new positions stand in the flattened ``hidden`` of the last part, that of the sequences' own
            pages.
    """

    storage: PagedCache
    slots: Tensor
    parts: Sequence[Part]
    merge: Tensor
    absent: Tensor | None
    newest: Tensor

    def advance(self) -> None:
        """Go on to the next position of every sequence, on the same pages."""
        self.slots.add_(1)
        self.newest.add_(1)
        self.parts[-1].hidden.view(-1).index_fill_(0, self.newest, 0)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, way: Way) -> Tensor:
        """Attention of each row's one query over its pages, (R, 1, heads, head_dim)."""
        self.storage.write(layer, self.slots, k, v)
        rows, kv_heads, width = len(q), k.shape[2], q.shape[3]
        # Queries of one key-value head apart, (R, group, kv_heads x head_dim): the order in which the kernel writes its results,
        # so that whole rows are copied from here on.
        asked = q.view(rows, kv_heads, -1, width).transpose(1, 2).reshape(rows, -1)
        outputs, sizes = [], []
        for part in self.parts:
            keys, values = part.read(self.storage, layer)
            queries = asked.index_select(0, part.users).view(len(keys), -1, kv_heads, width).transpose(1, 2)
            out, size = partial_attention(queries, keys, values, part.hidden)
            outputs.append(out.transpose(1, 2).reshape(len(part.users), -1))
            sizes.append(size.transpose(1, 2).reshape(len(part.users), -1))
        merged, size = (torch.cat(x).index_select(0, self.merge).view(rows, -1, x[0].shape[1]) for x in (outputs, sizes))
        if self.absent is not None:
            size = size + self.absent
        weights = size.softmax(1)  # (R, w, heads)
        attended = (merged.unflatten(2, (-1, width)) * weights.unsqueeze(3)).sum(1)
        return attended.to(q.dtype).view(rows, -1, kv_heads, width).transpose(1, 2).reshape(q.shape)


def partial_attention(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over some of the keys, with what is needed to merge it with that over the others.

    Args:
        q: (n, h, m, d).
        k, v: (n, h, s, d).
        hidden: (n, 1, 1, s), added to the scores.

    Returns:
        softmax(q k^T / sqrt(d) + hidden) v, (n, h, m, d), and the log-sum-exp of the scores, (n, h, m) float32 or wider.
    """
    if q.device.type == "cpu":  # the kernel behind scaled_dot_product_attention, which does not hand out the log-sum-exp
        out, size = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=hidden)
        return out, size
    return by_scores(q, k, v, hidden)


def by_scores(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`partial_attention` written out, for any device."""
    scores = (q @ k.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32)) * q.shape[-1] ** -0.5 + hidden
    size = scores.logsumexp(-1)
    return (scores - size.unsqueeze(-1)).exp().to(v.dtype) @ v, size
