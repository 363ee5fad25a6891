"""Parameters and FLOPs against what torch itself counts."""

import dataclasses
import itertools

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from herd.config.errors import UserError
from herd.config.loader import conf_root, from_dict
from herd.model.config import ModelConfig
from herd.model.counts import flops_per_token, parameter_count
from herd.model.family import family_members, shape_for
from herd.model.transformer import Transformer
from herd.objectives.cross_entropy import linear_cross_entropy

PRESETS = sorted(path.stem for path in (conf_root() / "model").glob("*.yaml"))
SMALL = ModelConfig(dim=32, n_layers=3, n_heads=4, n_kv_heads=2, ffn_dim=80, vocab_size=160, max_seq_len=64)


def preset(name):
    return from_dict(ModelConfig, yaml.safe_load((conf_root() / "model" / f"{name}.yaml").read_text()))


def instantiated(config):
    with torch.device("meta"):
        return sum(p.numel() for p in Transformer(config).parameters())


@pytest.mark.parametrize(("name", "parameters"), [("8b", 8_030_261_248), ("70b", 70_553_706_496), ("405b", 405_853_388_800)])
def test_published_parameter_counts(name, parameters):
    config = preset(name)
    assert parameter_count(config) == parameters
    assert instantiated(config) == parameters


@pytest.mark.parametrize("tied", [False, True])
def test_conventions_against_a_built_model(tied):
    config = dataclasses.replace(SMALL, tie_embeddings=tied)
    model = Transformer(config)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    assert parameter_count(config, "total") == sum(sizes.values())
    layers_and_norms = sum(n for name, n in sizes.items() if name.startswith(("layers", "norm")))
    assert parameter_count(config, "non_embedding") == layers_and_norms
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2 and name.startswith("layers"))
    assert parameter_count(config, "6N") == matrices + config.vocab_size * config.dim


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_flops_against_torchs_counter(device):
    batch, length = 2, 48
    with torch.device(device):
        model = Transformer(SMALL)
        tokens = torch.zeros(batch, length, dtype=torch.int64)
        counter = FlopCounterMode(display=False)
        with counter:
            model.logits(model(tokens)).sum().backward()
    counted = counter.get_total_flops() / (batch * length)
    # torch counts the square of attention in full, masked or not; its CPU kernel is not in its table, so that run
    # counts none.
    if device == "meta":
        assert counted == flops_per_token(SMALL, length, "6N+attention_full")
    full, causal, plain = (flops_per_token(SMALL, length, c) for c in ("6N+attention_full", "6N+attention_causal", "6N"))
    assert full - plain == 2 * (causal - plain) == 12 * SMALL.n_layers * SMALL.dim * length
    assert counted in (full, plain)


def test_loss_costs_no_more_products_than_6n():
    model = Transformer(dataclasses.replace(SMALL, tie_embeddings=True))
    tokens = torch.zeros(2, 48, dtype=torch.int64)
    counter = FlopCounterMode(display=False)
    with counter:
        linear_cross_entropy(model(tokens), model.output_weight, tokens).backward()
    attention = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "attention" in str(op))
    assert (counter.get_total_flops() - attention) / 96 == flops_per_token(SMALL, 48, "6N")


def test_attention_share_at_8k_is_the_published_one():
    def share(name):
        config = preset(name)
        causal, plain = (flops_per_token(config, 8192, c) for c in ("6N+attention_causal", "6N"))
        return round(100 * (causal - plain) / (6 * parameter_count(config, "total")), 1)

    assert [share(name) for name in ("8b", "70b", "405b")] == [13.4, 7.6, 4.2]


def test_unknown_convention():
    with pytest.raises(UserError, match="Did you mean 'total'"):
        parameter_count(SMALL, "totl")
    with pytest.raises(UserError, match=r"6N\+attention_causal"):
        flops_per_token(SMALL, 8, "attention")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_list_every_key_and_build(name):
    values = yaml.safe_load((conf_root() / "model" / f"{name}.yaml").read_text())
    assert set(values) == {f.name for f in dataclasses.fields(ModelConfig)}
    config = preset(name)
    assert instantiated(config.with_vocab_size(2048)) == parameter_count(config.with_vocab_size(2048))


@pytest.mark.parametrize("name", [n for n in PRESETS if not n.endswith("b")])
def test_small_presets_belong_to_the_family(name):
    config = preset(name)
    assert config.vocab_size == 0
    config = config.with_vocab_size(2048)
    assert shape_for(parameter_count(config, "6N"), 2048, config.max_seq_len) == config
    size = {"k": 1e3, "m": 1e6}.get(name[-1])
    if size:
        assert 0.8 < parameter_count(config, "6N") / (float(name[:-1]) * size) < 1.25


@pytest.mark.parametrize("vocab_size", [300, 512, 2048, 128256])
def test_family_rises_and_every_member_is_its_own_nearest(vocab_size):
    members = family_members(vocab_size, 256)
    sizes = [parameter_count(m, "6N") for m in members]
    assert all(a < b for a, b in itertools.pairwise(sizes))
    assert [shape_for(n, vocab_size, 256) for n in sizes] == list(members)
    assert all(m.dim % 4 == 0 and m.tie_embeddings and m.n_kv_heads <= 8 for m in members)


def test_family_covers_the_laptops_sizes():
    wanted = (40e3, 70e3, 98e3, 172e3, 304e3, 591e3, 1.15e6, 2e6, 3.2e6, 6.5e6, 12e6, 20e6, 40e6)
    found = [parameter_count(shape_for(n, 2048, 256), "6N") for n in wanted]
    assert all(0.85 < b / a < 1.15 for a, b in zip(wanted, found, strict=True)), found
    with pytest.raises(UserError, match="No shape for 1,000 parameters"):
        shape_for(1000, 2048, 256)
