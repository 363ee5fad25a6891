"""Parity with Hugging Face's LlamaForCausalLM (an independent implementation), both ways."""

import json

import pytest
import torch

from herd.config.errors import UserError
from herd.model.config import ModelConfig, RopeScaling
from herd.model.convert import from_hf, to_hf
from herd.model.transformer import Transformer

transformers = pytest.importorskip("transformers", reason="parity needs transformers (extra dev)")

# The original context is far shorter than the row, so that the scaled frequencies matter.
SCALING = RopeScaling(factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_seq_len=16)


def shape(n_heads=4, n_kv_heads=2, tied=False, scaling=None):
    return ModelConfig(
        dim=64, n_layers=3, n_heads=n_heads, n_kv_heads=n_kv_heads, ffn_dim=96, vocab_size=211, max_seq_len=256,
        rope_theta=500000.0 if scaling is None else 100.0, rope_scaling=scaling, tie_embeddings=tied,
    )  # fmt: skip


SHAPES = [
    shape(),
    shape(n_heads=4, n_kv_heads=4, tied=True),
    shape(n_heads=8, n_kv_heads=1),
    shape(tied=True, scaling=SCALING),
    shape(n_heads=2, n_kv_heads=1, scaling=SCALING),
]


def hf_model(config, state):
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config, attn_implementation="eager"))
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    return model.eval()


@pytest.mark.parametrize("config", SHAPES, ids=["gqa", "mha_tied", "mqa", "gqa_tied_scaled", "mqa_scaled"])
def test_logits_agree_and_the_way_back_is_exact(config):
    ours = Transformer(config).requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in ours.named_parameters():
        if "norm" in name:  # away from 1, so that a swapped pair would show
            parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
        elif name.endswith(("wo.weight", "w2.weight")):  # and layers that matter, unlike at initialisation
            parameter.mul_(20)
    state, hf_config = to_hf(ours.state_dict(), config)
    theirs = hf_model(json.loads(json.dumps(hf_config)), state)
    # 40 positions: further on, the float32 angles of Hugging Face alone can move logits by more than 1e-5.
    tokens = torch.randint(0, config.vocab_size, (2, 40), generator=generator)
    with torch.no_grad():
        expected = theirs(tokens).logits
    torch.testing.assert_close(ours.logits(ours(tokens)), expected, rtol=0, atol=1e-5)

    back, config_back = from_hf(theirs.state_dict(), theirs.config.to_dict())
    assert config_back == config
    assert back.keys() == ours.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in ours.state_dict().items())


def test_a_random_llama_converts_with_its_published_scaling():
    config = {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 128, "vocab_size": 97, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        },
    }  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).eval()
    state, herd_config = from_hf(theirs.state_dict(), theirs.config.to_dict())
    assert herd_config.rope_scaling == RopeScaling()
    ours = Transformer(herd_config)
    ours.load_state_dict(state)
    tokens = torch.randint(0, 97, (1, 64))
    positions = torch.arange(64)[None] * 1500  # far positions, where the stretched frequencies differ most
    with torch.no_grad():
        expected = theirs(tokens, position_ids=positions).logits
        # float32 angles of positions near 100,000 differ by a few thousandths between implementations: a looser bound.
        torch.testing.assert_close(ours.logits(ours(tokens, positions)), expected, rtol=0, atol=2e-4)
        near = torch.arange(64)[None] + 1000
        expected = theirs(tokens, position_ids=near).logits
        torch.testing.assert_close(ours.logits(ours(tokens, near)), expected, rtol=0, atol=1e-5)


def test_what_cannot_convert_is_refused():
    config = shape()
    state, hf_config = to_hf(Transformer(config).state_dict(), config)
    with pytest.raises(UserError, match=r"q_proj.weight is missing"):
        from_hf({k: v for k, v in state.items() if k != "model.layers.1.self_attn.q_proj.weight"}, hf_config)
    with pytest.raises(UserError, match="rope_type is 'yarn'"):
        from_hf(state, hf_config | {"rope_parameters": {"rope_type": "yarn"}})
    with pytest.raises(UserError, match="biases"):
        from_hf(state, hf_config | {"attention_bias": True})
    with pytest.raises(UserError, match="only Llama"):
        from_hf(state, hf_config | {"model_type": "qwen2"})
    with pytest.raises(UserError, match="is missing"):
        to_hf({}, config)


def test_transformers_4_configuration_is_understood():
    config = shape(scaling=SCALING)
    _, hf_config = to_hf(Transformer(config).state_dict(), config)
    old = {k: v for k, v in hf_config.items() if k != "rope_parameters"}
    assert from_hf(to_hf(Transformer(config).state_dict(), config)[0], old)[1] == config
