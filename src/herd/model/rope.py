"""Rotary position embeddings with the frequency scaling of Llama 3.1.

Pairs are interleaved, (x0, x1), (x2, x3), ..., as in Meta's release; ``herd.model.convert`` permutes for Hugging Face,
which rotates halves. On a CPU, multiplying complex numbers takes about half the time of rotating halves.
"""

import math

import torch
from torch import Tensor

from herd.model.config import RopeScaling


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> Tensor:
    """Angle per position of each pair, (head_dim / 2,), float64.

    theta^(-2i/d) (Su et al. 2021), then Llama 3.1's scaling: a wavelength longer than ``original / low`` is stretched
    by ``factor``, one shorter than ``original / high`` is left alone, and those between are interpolated.
    """
    frequency = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64, device="cpu") / head_dim)
    if scaling is None:
        return frequency
    wavelength = 2 * math.pi / frequency
    ratio = scaling.original_max_seq_len / wavelength  # turns of this pair within the original context
    smooth = (ratio - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    smooth = smooth.clamp(0, 1)  # 0: stretch in full, 1: leave alone
    return frequency * (smooth + (1 - smooth) / scaling.factor)


def rope_table(head_dim: int, max_seq_len: int, theta: float, scaling: RopeScaling | None, dtype: torch.dtype) -> Tensor:
    """Cosine and sine of every position and pair, (max_seq_len, head_dim / 2, 2); computed in float64, then rounded."""
    positions = torch.arange(max_seq_len, dtype=torch.float64, device="cpu")
    angles = torch.outer(positions, rope_frequencies(head_dim, theta, scaling))
    return torch.stack((angles.cos(), angles.sin()), dim=-1).to(dtype)


def apply_rope(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate ``x`` (B, T, heads, head_dim) by ``rotation`` (B or 1, T, head_dim / 2, 2), in the latter's precision."""
    if torch.compiler.is_compiling():  # Inductor fuses real arithmetic with its neighbours and leaves complex numbers alone
        first, second = x.to(rotation.dtype).unflatten(-1, (-1, 2)).unbind(-1)
        cosine, sine = rotation.unsqueeze(-3).unbind(-1)
        turned = torch.stack((first * cosine - second * sine, first * sine + second * cosine), dim=-1)
        return turned.flatten(-2).to(x.dtype)
    pairs = torch.view_as_complex(x.to(rotation.dtype).unflatten(-1, (-1, 2)))
    turned = pairs * torch.view_as_complex(rotation).unsqueeze(-2)
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)
