"""The shape of a Transformer."""

from dataclasses import dataclass, replace
from typing import Optional

from herd.config.errors import UserError


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's rescaling of the RoPE frequencies for contexts longer than those of pre-training."""

    factor: float = 8.0  # wavelengths longer than the original context are stretched by this, > 1
    low_freq_factor: float = 1.0  # wavelengths above original_max_seq_len / this are stretched in full
    high_freq_factor: float = 4.0  # wavelengths below original_max_seq_len / this stay as they are
    original_max_seq_len: int = 8192  # context length before the extension, tokens

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise UserError(f"rope_scaling.factor is {self.factor}: must be at least 1.")
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise UserError(
                f"rope_scaling: low_freq_factor {self.low_freq_factor} must be positive and below "
                f"high_freq_factor {self.high_freq_factor}."
            )
        if self.original_max_seq_len < 1:
            raise UserError(f"rope_scaling.original_max_seq_len is {self.original_max_seq_len}: must be positive.")


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a dense Llama 3 decoder (Llama 3 paper, section 3.2 and table 3)."""

    dim: int  # width of the residual stream
    n_layers: int  # Transformer blocks
    n_heads: int  # query heads; dim / n_heads is the head dimension, which RoPE needs even
    n_kv_heads: int  # key-value heads, each shared by n_heads / n_kv_heads query heads
    ffn_dim: int  # inner width of the SwiGLU feed-forward network
    vocab_size: int  # token ids; 0 = take the tokenizer's (see with_vocab_size)
    max_seq_len: int  # longest position + 1 that the RoPE table covers, tokens
    rope_theta: float = 500000.0  # base of the RoPE frequencies
    rope_scaling: Optional[RopeScaling] = None  # noqa: UP045  (OmegaConf wants Optional) None = frequencies as they are
    norm_eps: float = 1e-5  # added to the mean square in RMSNorm
    tie_embeddings: bool = False  # one matrix for the input embedding and the output head

    def __post_init__(self) -> None:
        for name in ("dim", "n_layers", "n_heads", "n_kv_heads", "ffn_dim", "max_seq_len"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} is {getattr(self, name)}: must be at least 1.")
        if self.vocab_size < 0:
            raise UserError(f"model.vocab_size is {self.vocab_size}: must be positive, or 0 for the tokenizer's.")
        if self.dim % self.n_heads:
            raise UserError(f"model.dim {self.dim} is not a multiple of model.n_heads {self.n_heads}.")
        if self.head_dim % 2:
            raise UserError(f"model.dim / model.n_heads is {self.head_dim}: RoPE rotates pairs, so it must be even.")
        if self.n_heads % self.n_kv_heads:
            raise UserError(f"model.n_heads {self.n_heads} is not a multiple of model.n_kv_heads {self.n_kv_heads}.")
        if self.rope_theta <= 1 or self.norm_eps <= 0:
            raise UserError(f"model: rope_theta {self.rope_theta} must exceed 1 and norm_eps {self.norm_eps} exceed 0.")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.n_heads

    def with_vocab_size(self, tokenizer_size: int) -> "ModelConfig":
        """This shape with ``vocab_size`` 0 replaced by the tokenizer's.

        Raises:
            UserError: a vocabulary was given that cannot hold the tokenizer's ids.
        """
        if self.vocab_size == 0:
            return replace(self, vocab_size=tokenizer_size)
        if self.vocab_size < tokenizer_size:
            raise UserError(
                f"model.vocab_size is {self.vocab_size}, the tokenizer has {tokenizer_size} entries: "
                "set model.vocab_size=0 to take the tokenizer's."
            )
        return self
