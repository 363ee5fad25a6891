"""Keys and values of the positions seen so far, for generation."""

import torch
from torch import Tensor

from herd.model.config import ModelConfig


class KVCache:
    """A contiguous cache, allocated once: (n_layers, batch, n_kv_heads, capacity, head_dim) for keys and for values.

    All rows have the same length; prompts of unequal length are padded on the left and the padding is masked.

    Args:
        config: shape of the model.
        batch: rows.
        capacity: positions per row.
        device, dtype: where the model computes.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        capacity: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        # Zeros, not empty: masked keys are multiplied by a zero weight, and 0 x NaN would be NaN.
        shape = (config.n_layers, batch, config.n_kv_heads, capacity, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0

    @property
    def capacity(self) -> int:
        """Positions that fit into a row."""
        return self.keys.shape[3]

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write ``k``, ``v`` (B, T, n_kv_heads, head_dim) after the current length; return all so far, (B, S, ...)."""
        end = self.length + k.shape[1]
        assert end <= self.capacity, f"KV cache of {self.capacity} positions cannot hold {end}"
        self.keys[layer, :, :, self.length : end] = k.transpose(1, 2)
        self.values[layer, :, :, self.length : end] = v.transpose(1, 2)
        return self.keys[layer, :, :, :end].transpose(1, 2), self.values[layer, :, :, :end].transpose(1, 2)

    def advance(self, tokens: int) -> None:
        """Count ``tokens`` more positions as seen; called once a forward pass, after its last layer."""
        self.length += tokens

    def select(self, rows: Tensor) -> "KVCache":
        """A new cache whose row i is a copy of row ``rows[i]`` (int64): forks a prompt, drops finished rows."""
        picked = object.__new__(KVCache)
        picked.keys, picked.values = self.keys.index_select(1, rows), self.values.index_select(1, rows)
        picked.length = self.length
        return picked
