"""A family of shapes, one for each width, for sweeps and presets.

Scaling laws compare models that differ in size and in nothing else, so depth, heads and feed-forward width are
functions of the width alone: for a vocabulary of 2,048 from 18 thousand to 16 billion parameters.
"""

import math

from herd.config.errors import UserError
from herd.model.config import ModelConfig
from herd.model.counts import parameter_count

# Multiples of 4 up to 40: with a tied head, small models jump by vocab_size x 4 from width to width.
_SMALL = (8, 12, 16, 20, 24, 28, 32, 36, 40, 48, 56, 64, 72, 80, 96, 128, 160, 192, 256, 320, 384)
_LARGE = (512, 640, 768, 1024, 1280, 1536, 2048, 2560, 3072, 4096, 5120, 6144)
_WIDTHS = _SMALL + _LARGE


def family_member(dim: int, vocab_size: int, max_seq_len: int) -> ModelConfig:
    """The member of width ``dim``: grouped-query attention with heads of about 32 (128 from width 2,048 on), tied head.

    Depth is dim / 40 + 2 up to width 512 and dim / 208 + 12.3 beyond, which gives the 8B model's 32 layers at its width.

    The feed-forward width is 8/3 dim, Llama's 2/3 x 4 before its multiplier, rounded up to a multiple of 16.
    """
    n_heads = max(2, dim // 32) if dim < 512 else dim // 64 if dim < 2048 else dim // 128
    # At most half as many key-value heads as query heads, where the number divides, and 8 as in the paper.
    n_kv_heads = max(d for d in range(1, 9) if n_heads % d == 0 and (d <= n_heads // 2 or d == 1))
    return ModelConfig(
        dim=dim,
        n_layers=round(min(2 + dim / 40, 12.3 + dim / 208)),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        ffn_dim=16 * math.ceil(8 * dim / 3 / 16),
        vocab_size=vocab_size,
        max_seq_len=max_seq_len,
        tie_embeddings=True,
    )


def family_members(vocab_size: int, max_seq_len: int) -> tuple[ModelConfig, ...]:
    """All members, smallest first; parameter counts (convention ``6N``) rise strictly."""
    return tuple(family_member(dim, vocab_size, max_seq_len) for dim in _WIDTHS)


def shape_for(parameters: float, vocab_size: int, max_seq_len: int) -> ModelConfig:
    """The member whose parameter count (convention ``6N``, tied head once) is nearest to ``parameters`` in ratio.

    Raises:
        UserError: more than a factor of two outside the family.
    """
    members = family_members(vocab_size, max_seq_len)
    sizes = [parameter_count(m, "6N") for m in members]
    if not sizes[0] / 2 <= parameters <= sizes[-1] * 2:
        raise UserError(
            f"No shape for {parameters:,.0f} parameters at a vocabulary of {vocab_size:,}: the family spans "
            f"{sizes[0]:,} to {sizes[-1]:,}. Ask for a size in this range, or name a model of conf/model."
        )
    return min(zip(members, sizes, strict=True), key=lambda pair: abs(math.log(pair[1] / parameters)))[0]
