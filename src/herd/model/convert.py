"""Between herd's parameters and Hugging Face's LlamaForCausalLM, both ways and exactly.

Besides the names, one thing differs: Hugging Face rotates the halves of a head, (x_i, x_{i + d/2}), herd and Meta
rotate neighbours, (x_2i, x_{2i+1}). Rows of the query and key projections are permuted accordingly.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from herd.config.errors import UserError
from herd.model.config import ModelConfig, RopeScaling

_LAYER_NAMES = {
    "attention_norm": "input_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
}
_TOP_NAMES = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}


def to_hf(state: Mapping[str, Tensor], config: ModelConfig) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State dict and configuration (the content of ``config.json``) for ``transformers.LlamaForCausalLM``.

    Tied weights stay a single entry, ``model.embed_tokens.weight``, as Hugging Face stores them.
    """
    names = {f"{_hf_name(name, config)}": name for name in _names(config)}
    missing = sorted(set(names.values()) - set(state))
    if missing:
        raise UserError(f"Not a herd state dict of this shape: {missing[0]} is missing.")
    converted = {theirs: _halves(state[ours], ours, config) for theirs, ours in names.items()}
    return converted, _hf_config(config)


def from_hf(state: Mapping[str, Tensor], hf_config: Mapping[str, Any]) -> tuple[dict[str, Tensor], ModelConfig]:
    """herd's state dict and configuration from those of a LlamaForCausalLM.

    Args:
        state: its state dict; ``lm_head.weight`` may be present or not when tied.
        hf_config: its ``config.json`` or ``model.config.to_dict()``; the RoPE entries of transformers 4 and 5 are
            understood.

    Raises:
        UserError: another architecture, biases, a RoPE variant herd lacks, or missing tensors.
    """
    config = _herd_config(hf_config)
    converted = {}
    for ours in _names(config):
        theirs = _hf_name(ours, config)
        if theirs not in state:
            raise UserError(f"Not a LlamaForCausalLM of this shape: {theirs} is missing.")
        converted[ours] = _neighbours(state[theirs], ours, config)
    return converted, config


def _names(config: ModelConfig) -> list[str]:
    layers = [f"layers.{i}.{name}.weight" for i in range(config.n_layers) for name in _LAYER_NAMES]
    top = [f"{name}.weight" for name in _TOP_NAMES if name != "output" or not config.tie_embeddings]
    return top + layers


def _hf_name(name: str, config: ModelConfig) -> str:
    layer = re.fullmatch(r"layers\.(\d+)\.(.+)\.weight", name)
    if layer:
        return f"model.layers.{layer[1]}.{_LAYER_NAMES[layer[2]]}.weight"
    return f"{_TOP_NAMES[name.removesuffix('.weight')]}.weight"


def _is_rotated(name: str) -> bool:
    return name.endswith(("wq.weight", "wk.weight"))


def _halves(weight: Tensor, name: str, config: ModelConfig) -> Tensor:
    """Rows of each head from (0, 1, 2, 3, ...) to (0, 2, 4, ..., 1, 3, 5, ...)."""
    if not _is_rotated(name):
        return weight
    heads = weight.unflatten(0, (-1, config.head_dim // 2, 2))
    return heads.transpose(1, 2).flatten(0, 2).contiguous()


def _neighbours(weight: Tensor, name: str, config: ModelConfig) -> Tensor:
    """Inverse of :func:`_halves`."""
    if not _is_rotated(name):
        return weight
    heads = weight.unflatten(0, (-1, 2, config.head_dim // 2))
    return heads.transpose(1, 2).flatten(0, 2).contiguous()


def _hf_config(c: ModelConfig) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_theta": c.rope_theta, "rope_type": "default"}
    if c.rope_scaling is not None:
        rope |= {
            "rope_type": "llama3",
            "factor": c.rope_scaling.factor,
            "low_freq_factor": c.rope_scaling.low_freq_factor,
            "high_freq_factor": c.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": c.rope_scaling.original_max_seq_len,
        }
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": c.dim,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads,
        "head_dim": c.head_dim,
        "intermediate_size": c.ffn_dim,
        "vocab_size": c.vocab_size,
        "max_position_embeddings": c.max_seq_len,
        "rms_norm_eps": c.norm_eps,
        "tie_word_embeddings": c.tie_embeddings,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        # transformers 4 reads the first two, transformers 5 the third.
        "rope_theta": c.rope_theta,
        "rope_scaling": None if c.rope_scaling is None else {k: v for k, v in rope.items() if k != "rope_theta"},
        "rope_parameters": rope,
    }


def _herd_config(hf: Mapping[str, Any]) -> ModelConfig:
    if hf.get("model_type", "llama") != "llama":
        raise UserError(f"model_type is '{hf['model_type']}': only Llama checkpoints convert.")
    if hf.get("attention_bias") or hf.get("mlp_bias"):
        raise UserError("This checkpoint has biases; the Llama 3 architecture has none.")
    if hf.get("hidden_act", "silu") != "silu":
        raise UserError(f"hidden_act is '{hf['hidden_act']}': Llama 3 uses SwiGLU (silu).")
    dim, n_heads = int(hf["hidden_size"]), int(hf["num_attention_heads"])
    if hf.get("head_dim") not in (None, dim // n_heads):
        raise UserError(f"head_dim is {hf['head_dim']}, not hidden_size / num_attention_heads = {dim // n_heads}.")
    rope = dict(hf.get("rope_parameters") or hf.get("rope_scaling") or {})
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise UserError(f"rope_type is '{kind}': only 'default' and 'llama3' convert.")
    scaling = None
    if kind == "llama3":
        scaling = RopeScaling(
            factor=float(rope["factor"]),
            low_freq_factor=float(rope["low_freq_factor"]),
            high_freq_factor=float(rope["high_freq_factor"]),
            original_max_seq_len=int(rope["original_max_position_embeddings"]),
        )
    return ModelConfig(
        dim=dim,
        n_layers=int(hf["num_hidden_layers"]),
        n_heads=n_heads,
        n_kv_heads=int(hf.get("num_key_value_heads") or n_heads),
        ffn_dim=int(hf["intermediate_size"]),
        vocab_size=int(hf["vocab_size"]),
        max_seq_len=int(hf["max_position_embeddings"]),
        rope_theta=float(rope.get("rope_theta") or hf.get("rope_theta") or 10000.0),
        rope_scaling=scaling,
        norm_eps=float(hf.get("rms_norm_eps", 1e-6)),
        tie_embeddings=bool(hf.get("tie_word_embeddings", False)),
    )
