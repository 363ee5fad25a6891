"""How many parameters, how many FLOPs, each under a named convention.

Embeddings are most of a small model with a large vocabulary and attention is most of a long context, so a count
without its convention says little; records carry the convention's name beside the number.
"""

from typing import NamedTuple

from herd.config.errors import UserError, nearest
from herd.model.config import ModelConfig

PARAMETER_CONVENTIONS = ("total", "6N", "non_embedding")
FLOPS_CONVENTIONS = ("6N", "6N+attention_full", "6N+attention_causal")


class Parts(NamedTuple):
    """Parameters in matrices, by part; norms (under 0.1%) are in none."""

    blocks: int  # of the layers
    head: int  # output head
    embedding: int  # input embedding as a matrix of its own; 0 where the head is tied to it


def parameter_parts(config: ModelConfig) -> Parts:
    """How many parameters lie in which part."""
    c = config
    kv_dim = c.n_kv_heads * c.head_dim
    layer = 2 * c.dim * c.dim + 2 * c.dim * kv_dim + 3 * c.dim * c.ffn_dim
    matrix = c.vocab_size * c.dim
    return Parts(c.n_layers * layer, matrix, 0 if c.tie_embeddings else matrix)


def parameter_count(config: ModelConfig, convention: str = "total") -> int:
    """Number of parameters.

    Args:
        config: the shape.
        convention:
            ``total``: all that is stored; a tied matrix once. 8,030,261,248 for the 8B.
            ``6N``: those in matrix products, output head included, input embedding (a look-up) not: the N of C = 6ND.
            ``non_embedding``: those of the layers and norms alone (Kaplan et al. 2020).
    """
    parts, norms = parameter_parts(config), (2 * config.n_layers + 1) * config.dim
    match convention:
        case "total":
            return sum(parts) + norms
        case "6N":
            return parts.blocks + parts.head
        case "non_embedding":
            return parts.blocks + norms
    raise _unknown("parameter", convention, PARAMETER_CONVENTIONS)


def flops_per_token(config: ModelConfig, seq_len: float, convention: str = "6N") -> float:
    """Training FLOPs per token, forward and backward, a multiply-add counted as two.

    Args:
        config: the shape.
        seq_len: tokens that attend to each other (a document's length under a document mask; of several documents the mean,
            weighted by their tokens).
        convention:
            ``6N``: matrix products with weights, 2N forward and 4N backward, N = ``parameter_count(config, "6N")``.
            ``6N+attention_full``: plus 12 n_layers dim seq_len, scores and values over the full square (PaLM, app. B).
            ``6N+attention_causal``: plus half of that.
    """
    matrix = 6.0 * parameter_count(config, "6N")
    square = 12.0 * config.n_layers * config.dim * seq_len
    match convention:
        case "6N":
            return matrix
        case "6N+attention_full":
            return matrix + square
        case "6N+attention_causal":
            return matrix + square / 2
    raise _unknown("FLOP", convention, FLOPS_CONVENTIONS)


def _unknown(kind: str, convention: str, known: tuple[str, ...]) -> UserError:
    return UserError(f"Unknown {kind} convention '{convention}'.{nearest(convention, known)} Choices: {', '.join(known)}.")
