"""Models on disk: exact, atomic, and clear about what is wrong."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

from herd.config.errors import UserError
from herd.model.config import ModelConfig, RopeScaling
from herd.model.heads import RewardModel
from herd.model.io import average_models, load_model, load_reward_model, save_model
from herd.model.transformer import Transformer

SHAPE = ModelConfig(dim=16, n_layers=2, n_heads=2, n_kv_heads=1, ffn_dim=32, vocab_size=50, max_seq_len=32)
TOKENS = torch.arange(20).view(2, 10)


def transformer(seed=1, **changes):
    model = Transformer(dataclasses.replace(SHAPE, **changes))
    model.init_weights(seed)
    return model


@pytest.mark.parametrize("tied", [False, True])
def test_round_trip_is_exact(tmp_path, tied):
    model = transformer(tie_embeddings=tied, rope_scaling=RopeScaling(original_max_seq_len=16))
    save_model(model, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert loaded.config == model.config
    assert torch.equal(loaded(TOKENS), model(TOKENS))
    assert all(p.requires_grad for p in loaded.parameters())
    assert ("output.weight" in load_file(tmp_path / "model" / "model.safetensors")) == (not tied)
    assert (loaded.output_weight is loaded.tok_embeddings.weight) == tied
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]


def test_equal_weights_give_equal_bytes(tmp_path):
    for name in ("a", "b"):
        save_model(transformer(), tmp_path / name)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_loaded_model_trains_and_saves_over_its_own_file(tmp_path):
    save_model(transformer(), tmp_path)
    loaded = load_model(tmp_path)
    with torch.no_grad():
        loaded.norm.weight.add_(1.0)
    save_model(loaded, tmp_path)
    assert torch.equal(load_model(tmp_path).norm.weight, torch.full((16,), 2.0))


def test_reward_model_round_trip(tmp_path):
    reward = RewardModel(transformer(tie_embeddings=True), seed=5)
    save_model(reward, tmp_path)
    loaded = load_reward_model(tmp_path)
    assert torch.equal(loaded(TOKENS), reward(TOKENS))
    assert torch.equal(load_model(tmp_path)(TOKENS), reward.backbone(TOKENS))


def test_a_language_model_is_no_reward_model(tmp_path):
    save_model(transformer(), tmp_path)
    with pytest.raises(UserError, match="without a reward head"):
        load_reward_model(tmp_path)


def test_average_is_the_mean(tmp_path):
    models = [transformer(seed) for seed in (1, 2, 3)]
    for i, model in enumerate(models):
        save_model(model, tmp_path / str(i))
    mean = average_models([tmp_path / str(i) for i in range(3)])
    for name, tensor in mean.items():
        exact = torch.stack([m.state_dict()[name].double() for m in models]).mean(0)
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, exact.float(), rtol=0, atol=1e-7)
    weighted = average_models([tmp_path / "0", tmp_path / "1"], [0.25, 0.75])
    for name, tensor in weighted.items():
        exact = models[0].state_dict()[name].double() / 4 + models[1].state_dict()[name].double() * 3 / 4
        assert torch.equal(tensor, exact.float())
    alone = average_models([tmp_path / "1"])
    assert all(torch.equal(alone[name], tensor) for name, tensor in models[1].state_dict().items())


def test_average_of_half_precision_is_summed_in_float64(tmp_path):
    models = [transformer(seed).bfloat16() for seed in (1, 2, 3)]
    for i, model in enumerate(models):
        save_model(model, tmp_path / str(i))
    for name, tensor in average_models([tmp_path / str(i) for i in range(3)]).items():
        exact = torch.stack([m.state_dict()[name].double() for m in models]).mean(0)
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, exact.bfloat16())


def test_average_refuses_what_does_not_match(tmp_path):
    save_model(transformer(), tmp_path / "a")
    save_model(transformer(ffn_dim=48), tmp_path / "wider")
    save_model(transformer(n_layers=1), tmp_path / "shallower")
    save_model(transformer(norm_eps=1e-6), tmp_path / "eps")
    save_model(RewardModel(transformer()), tmp_path / "reward")
    with pytest.raises(UserError, match=r"w1.weight is \(48, 16\), expected \(32, 16\)"):
        average_models([tmp_path / "a", tmp_path / "wider"])
    with pytest.raises(UserError, match="is missing"):
        average_models([tmp_path / "a", tmp_path / "shallower"])
    with pytest.raises(UserError, match="differ in norm_eps"):
        average_models([tmp_path / "a", tmp_path / "eps"])
    with pytest.raises(UserError, match="Cannot average"):
        average_models([tmp_path / "a", tmp_path / "reward"])
    with pytest.raises(UserError, match="Nothing to average"):
        average_models([])


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_missing_file(tmp_path, file):
    save_model(transformer(), tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(UserError, match=f"No {file} in"):
        load_model(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 200, -8])
def test_truncated_weights(tmp_path, keep):
    save_model(transformer(), tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="truncated or no safetensors") as error:
        load_model(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b'{"architectures": ["LlamaForCausalLM"]}'])
def test_damaged_or_foreign_config(tmp_path, content):
    save_model(transformer(), tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json is no"):
        load_model(tmp_path)


def test_weights_that_do_not_fit_the_config(tmp_path):
    save_model(transformer(), tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    values["model"]["vocab_size"] = 60
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"output.weight is \(50, 16\), expected \(60, 16\)"):
        load_model(tmp_path)
    values["model"]["dimm"] = 3
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match="Did you mean 'dim'"):
        load_model(tmp_path)


def test_a_failed_write_leaves_the_old_model(tmp_path, monkeypatch):
    save_model(transformer(1), tmp_path)
    monkeypatch.setattr("os.fsync", lambda fd: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_model(transformer(2), tmp_path)
    monkeypatch.undo()
    assert torch.equal(load_model(tmp_path)(TOKENS), transformer(1)(TOKENS))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
