"""Between herd's parameters and those of Hugging Face's Llama classes and of Meta's release, both ways and exactly.

Besides the names, one thing differs: Hugging Face rotates the halves of a head, (x_i, x_{i + d/2}), herd and Meta
rotate neighbours, (x_2i, x_{2i+1}). Rows of the query and key projections are permuted accordingly.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from herd.config.errors import UserError
from herd.model.config import ModelConfig, RopeScaling

# Hugging Face's classes: for the language model, and for the reward model (one label, read at the last real token).
CAUSAL_LM, CLASSIFIER = "LlamaForCausalLM", "LlamaForSequenceClassification"

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
# Meta splits these over the ranks of model parallelism by rows (column-parallel, vocabulary-parallel) or by columns.
_SPLIT_ROWS = ("wq", "wk", "wv", "w1", "w3", "output", "tok_embeddings")
_SPLIT_COLUMNS = ("wo", "w2")
T = TypeVar("T")


def hf_names(config: ModelConfig, architecture: str = CAUSAL_LM) -> dict[str, str]:
    """herd's parameter -> Hugging Face's. A classifier's are those of a RewardModel, whose output head is not used."""
    layers = {
        f"layers.{i}.{o}.weight": f"model.layers.{i}.{t}.weight" for i in range(config.n_layers) for o, t in _LAYER_NAMES.items()
    }
    top = {f"{ours}.weight": f"{theirs}.weight" for ours, theirs in _TOP_NAMES.items()}
    if config.tie_embeddings or architecture == CLASSIFIER:
        del top["output.weight"]
    names = top | layers
    if architecture == CLASSIFIER:
        return {f"backbone.{ours}": theirs for ours, theirs in names.items()} | {"head.weight": "score.weight"}
    return names


def tensor_to_hf(weight: Tensor, name: str, config: ModelConfig) -> Tensor:
    """herd's parameter ``name`` as Hugging Face's: rows of a rotated head from (0, 1, 2, 3, ...) to (0, 2, ..., 1, 3, ...)."""
    if not _is_rotated(name):
        return weight
    heads = weight.unflatten(0, (-1, config.head_dim // 2, 2))
    return heads.transpose(1, 2).flatten(0, 2).contiguous()


def tensor_from_hf(weight: Tensor, name: str, config: ModelConfig) -> Tensor:
    """Inverse of :func:`tensor_to_hf`; ``name`` is herd's."""
    if not _is_rotated(name):
        return weight
    heads = weight.unflatten(0, (-1, 2, config.head_dim // 2))
    return heads.transpose(1, 2).flatten(0, 2).contiguous()


def tensor_from_meta(parts: list[Tensor], name: str) -> Tensor:
    """One parameter from its pieces on the ranks of model parallelism (fairscale's layers, in llama-models)."""
    layer = name.split(".")[-2]
    if len(parts) == 1 or layer not in (*_SPLIT_ROWS, *_SPLIT_COLUMNS):  # norms are on every rank
        return parts[0]
    return torch.cat(parts, dim=1 if layer in _SPLIT_COLUMNS else 0)


def to_hf(state: Mapping[str, Tensor], config: ModelConfig) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State dict and configuration (the content of ``config.json``) for ``transformers.LlamaForCausalLM``.

    Tied weights stay a single entry, ``model.embed_tokens.weight``, as Hugging Face stores them.
    """
    names = hf_names(config)
    missing = sorted(set(names) - set(state))
    if missing:
        raise UserError(f"Not a herd state dict of this shape: {missing[0]} is missing.")
    return {theirs: tensor_to_hf(state[ours], ours, config) for ours, theirs in names.items()}, hf_config(config)


def from_hf(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> tuple[dict[str, Tensor], ModelConfig]:
    """herd's state dict and configuration from those of a LlamaForCausalLM.

    Args:
        state: its state dict; ``lm_head.weight`` may be present or not when tied.
        config: its ``config.json`` or ``model.config.to_dict()``.

    Raises:
        UserError: as :func:`herd_config`, or missing tensors.
    """
    shape = herd_config(config)
    converted = {}
    for ours, theirs in hf_names(shape).items():
        if theirs not in state:
            raise UserError(f"Not a LlamaForCausalLM of this shape: {theirs} is missing.")
        converted[ours] = tensor_from_hf(state[theirs], ours, shape)
    return converted, shape


def hf_config(c: ModelConfig, architecture: str = CAUSAL_LM) -> dict[str, Any]:
    """The content of ``config.json``, without ids of tokens and type of the weights; transformers 4 and 5 read it."""
    rope: dict[str, Any] = {"rope_theta": c.rope_theta, "rope_type": "default"}
    if c.rope_scaling is not None:
        rope |= {
            "rope_type": "llama3",
            "factor": c.rope_scaling.factor,
            "low_freq_factor": c.rope_scaling.low_freq_factor,
            "high_freq_factor": c.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": c.rope_scaling.original_max_seq_len,
        }
    labels = {"id2label": {"0": "reward"}, "label2id": {"reward": 0}} if architecture == CLASSIFIER else {}
    return {
        "architectures": [architecture],
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
    } | labels


def architecture_of(hf: Mapping[str, Any]) -> str:
    """CAUSAL_LM or CLASSIFIER; UserError for a configuration of anything else."""
    if hf.get("model_type", "llama") != "llama":
        raise UserError(f"model_type is '{hf['model_type']}': only Llama checkpoints convert.")
    names = hf.get("architectures") or [CAUSAL_LM]
    if names[0] not in (CAUSAL_LM, CLASSIFIER):
        raise UserError(f"The architecture is {names[0]}: only {CAUSAL_LM} and {CLASSIFIER} convert.")
    if names[0] == CLASSIFIER and len(hf.get("id2label") or (0, 1)) != 1:
        raise UserError(f"This {CLASSIFIER} has {len(hf.get('id2label') or (0, 1))} labels: a reward model has one.")
    return str(names[0])


def herd_config(hf: Mapping[str, Any]) -> ModelConfig:
    """The shape behind a ``config.json``; the RoPE entries of transformers 4 and 5 are understood.

    Raises:
        UserError: another architecture, biases, quantised weights, a RoPE variant that herd lacks, a key missing or no number.
    """
    architecture = architecture_of(hf)
    if hf.get("attention_bias") or hf.get("mlp_bias"):
        raise UserError("This checkpoint has biases; the Llama 3 architecture has none.")
    if hf.get("quantization_config"):
        raise UserError("The weights are quantised (quantization_config): give the checkpoint they were made from.")
    if hf.get("hidden_act", "silu") != "silu":
        raise UserError(f"hidden_act is '{hf['hidden_act']}': Llama 3 uses SwiGLU (silu).")
    dim, n_heads = _value(hf, "hidden_size", int), _value(hf, "num_attention_heads", int)
    if n_heads < 1 or hf.get("head_dim") not in (None, dim // n_heads):
        raise UserError(f"head_dim is {hf.get('head_dim')}, not hidden_size / num_attention_heads = {dim} / {n_heads}.")
    rope = dict(hf.get("rope_parameters") or hf.get("rope_scaling") or {})
    return ModelConfig(
        dim=dim,
        n_layers=_value(hf, "num_hidden_layers", int),
        n_heads=n_heads,
        n_kv_heads=_value(hf, "num_key_value_heads", int, n_heads),
        ffn_dim=_value(hf, "intermediate_size", int),
        vocab_size=_value(hf, "vocab_size", int),
        max_seq_len=_value(hf, "max_position_embeddings", int),
        rope_theta=_value(rope, "rope_theta", float, _value(hf, "rope_theta", float, 10000.0)),
        rope_scaling=_rope_scaling(rope),
        norm_eps=_value(hf, "rms_norm_eps", float, 1e-6),
        # A classifier has no output head; ours then reads the embedding, and nothing uses it.
        tie_embeddings=bool(hf.get("tie_word_embeddings", False)) or architecture == CLASSIFIER,
    )


def config_from_meta(params: Mapping[str, Any], tied: bool, ffn_dim: int, max_seq_len: int, rope_factor: float) -> ModelConfig:
    """The shape behind Meta's ``params.json``, which leaves several things to its code and to the weights.

    Args:
        tied: no output head is among the weights.
        ffn_dim: inner width of the feed-forward network, read off the weights.
        max_seq_len: longest position + 1; 0 = that of the release, 131,072 with scaled RoPE (Llama 3.1), else 8,192.
        rope_factor: of the scaled RoPE. llama-models' code says 8 for all; Hugging Face's files of Llama 3.2 say 32.

    Raises:
        UserError: a key is missing or no number; no ``rope_theta``, as before Llama 3.
    """
    if "rope_theta" not in params:
        raise UserError("params.json has no rope_theta: Llama 1 and 2 leave it out, and only Llama 3 and later convert.")
    for key in ("lora_args", "quantization_args", "vision_chunk_size", "moe_args"):
        if params.get(key) not in (None, -1):
            raise UserError(f"params.json has {key}: only plain dense Llama 3 text models convert.")
    n_heads, scaled = _value(params, "n_heads", int), bool(params.get("use_scaled_rope", False))
    return ModelConfig(
        dim=_value(params, "dim", int),
        n_layers=_value(params, "n_layers", int),
        n_heads=n_heads,
        n_kv_heads=_value(params, "n_kv_heads", int, n_heads),
        ffn_dim=ffn_dim,
        vocab_size=_value(params, "vocab_size", int),
        max_seq_len=max_seq_len or (131_072 if scaled else 8192),
        rope_theta=_value(params, "rope_theta", float),
        rope_scaling=RopeScaling(factor=rope_factor) if scaled else None,
        norm_eps=_value(params, "norm_eps", float),
        tie_embeddings=tied,
    )


def _is_rotated(name: str) -> bool:
    return re.search(r"\bw[qk]\.weight$", name) is not None


def _rope_scaling(rope: Mapping[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise UserError(f"rope_type is '{kind}': only 'default' and 'llama3' convert.")
    if rope.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise UserError(f"partial_rotary_factor is {rope['partial_rotary_factor']}: Llama 3 rotates whole heads.")
    if kind == "default":
        return None
    return RopeScaling(
        factor=_value(rope, "factor", float),
        low_freq_factor=_value(rope, "low_freq_factor", float),
        high_freq_factor=_value(rope, "high_freq_factor", float),
        original_max_seq_len=_value(rope, "original_max_position_embeddings", int),
    )


def _value(values: Mapping[str, Any], key: str, kind: Callable[[Any], T], default: T | None = None) -> T:
    found = values.get(key)
    if found is None and default is not None:
        return default
    try:
        return kind(found)
    except (TypeError, ValueError):
        what = f"has no {key}" if found is None else f"says {key} = {str(found)[:40]!r}, which is no number"
        raise UserError(f"The configuration {what}: it is not that of a Llama.") from None
