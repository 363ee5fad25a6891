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

    def slots(self, pages: Tensor, offsets: Tensor, run: int = 1) -> Tensor:
        """Where :meth:`write` puts positions, (n * n_kv_heads,) int64.

        Args:
            pages: of each position, (n,), or the first page of its run.
            offsets: its place within the page or run, (n,).
            run: pages that follow each other and lie as one.
        """
        heads = torch.arange(self.keys.shape[2], device=pages.device)
        return ((pages[:, None] * len(heads) + heads * run) * self.page_size + offsets[:, None]).flatten()

    def write(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Store ``k``, ``v`` (..., n_kv_heads, head_dim) of ``n`` positions at their ``slots``."""
        keys, values = self._flat[layer]
        keys.index_copy_(0, slots, k.reshape(-1, k.shape[-1]))
        values.index_copy_(0, slots, v.reshape(-1, v.shape[-1]))

    def read(self, layer: int, pages: slice | Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of ``pages``, (n, n_kv_heads, page_size, head_dim) each: a view of a slice, a copy of others."""
        keys, values = self.keys[layer], self.values[layer]
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
class Part:
    """Pages that are read together.

    Attributes:
        pages: which, as a slice (read in place) or (n,) int64 (copied first).
        whole: whether they are one prompt, read as one matrix, or each is read apart, by as many users.
        users: (n * u,) int64, rows of the batch that read each page, or (u,) those that read the whole; a row may stand in for
            users that are not there.
        hidden: (n, 1, 1, page_size) or (1, 1, 1, n * page_size) float, -inf at positions that hold nothing.
        views: of each layer what the storage gave for a slice, once it has been asked for.
    """

    pages: slice | Tensor
    whole: bool
    users: Tensor
    hidden: Tensor
    views: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def attend(self, storage: PagedCache, layer: int, asked: Tensor) -> tuple[Tensor, Tensor]:
        """:func:`partial_attention` of the users' queries, rows of ``asked`` (R, group x kv_heads x head_dim)."""
        keys, values = self._read(storage, layer)
        q = asked.index_select(0, self.users).view(len(keys), -1, keys.shape[1], keys.shape[3]).transpose(1, 2)
        # For few queries and keys at a time torch's kernel takes twice as long as single products, on two threads.
        return (partial_attention if self.whole else by_scores)(q, keys, values, self.hidden)

    def _read(self, storage: PagedCache, layer: int) -> tuple[Tensor, Tensor]:
        read = storage.read_whole if self.whole else storage.read
        if not isinstance(self.pages, slice):
            return read(layer, self.pages)
        if layer not in self.views:
            self.views[layer] = read(layer, self.pages)
        return self.views[layer]


@dataclass(frozen=True, eq=False)
class Decode:
    """One new position for each of R sequences, which attend to their own pages.

    Attributes:
        slots: where the new positions go.
        parts: every page that is read.
        merge: (R * w,) int64, the results that belong to each row: indices into those of all parts, counted in the order
            part, page, user.
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
        with torch.autocast(q.device.type, enabled=False):  # queries, keys and values are of its type already
            for part in self.parts:
                out, size = part.attend(self.storage, layer, asked)
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
    q, k, v = (operand(x, x.dtype) for x in (q, k, v))
    if q.device.type == "cpu":  # the kernel behind scaled_dot_product_attention, which does not hand out the log-sum-exp
        out, size = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=hidden.to(q.dtype))
        return out, size
    return by_scores(q, k, v, hidden)


def by_scores(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`partial_attention` written out, for any device."""
    q, k, v = (operand(x, x.dtype) for x in (q, k, v))
    scores = (q @ k.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32))
    scores = scores.mul_(q.shape[-1] ** -0.5).add_(hidden)
    largest = scores.amax(-1, keepdim=True)
    weights = scores.sub_(largest).exp_()
    total = weights.sum(-1, keepdim=True)
    return weights.to(v.dtype) @ v / total, (total.log_() + largest).squeeze(-1)
