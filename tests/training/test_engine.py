"""Compilation, recomputation and 8-bit products: the same results, put on from outside and taken off again."""

import functools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from herd.config.errors import UserError
from herd.model.config import ModelConfig
from herd.model.heads import RewardModel
from herd.model.masks import Documents
from herd.model.transformer import Linear, Transformer
from herd.objectives.cross_entropy import linear_cross_entropy
from herd.training.engine import EngineConfig, engine, fp8_linears

SHAPE = ModelConfig(dim=32, n_layers=3, n_heads=4, n_kv_heads=2, ffn_dim=48, vocab_size=101, max_seq_len=64, tie_embeddings=True)
LENGTHS = ((40, 24), (64,))


def lively():
    model = Transformer(SHAPE)
    for name, weight in model.named_parameters():
        if name.endswith(("wo.weight", "w2.weight")):
            weight.data.mul_(20)
    return model


def loss_and_gradients(model, lengths=LENGTHS):
    tokens = torch.randint(0, 101, (2, 64), generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    loss = linear_cross_entropy(model(tokens, None, Documents(lengths)), model.output_weight, tokens.roll(-1, 1))
    with CountProducts() as count:
        loss.backward()
    return loss.item(), [weight.grad.clone() for weight in model.parameters()], count.products


class CountProducts(TorchDispatchMode):
    """Matrix products."""

    products = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.products += function is torch.ops.aten.mm.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("how", "products"), [("none", 14), ("selective", 14), ("block", 20)])
def test_recomputation_gives_the_same_bits_and_repeats_what_it_says(how, products):
    """7 linear maps a block: 2 products each in the backward pass, and all but w2's again where a block is recomputed."""
    expected = loss_and_gradients(lively())
    model = lively()
    with engine(model, EngineConfig(recompute=how), "cpu"):
        loss, gradients, count = loss_and_gradients(model)
    assert loss == expected[0]
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected[1], strict=True))
    assert count == products * SHAPE.n_layers


def kept_elements(model, how):
    """Elements of the tensors that autograd's graph holds between the passes, recomputed parts apart."""
    kept = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x)
    with engine(model, EngineConfig(recompute=how), "cpu"), hooks:
        model(torch.zeros(2, 64, dtype=torch.int64), None, Documents(LENGTHS))
    return sum(kept)


def test_recomputation_keeps_less():
    model = lively()
    assert kept_elements(model, "block") < 0.5 * kept_elements(model, "none")


def test_compiled_blocks_give_the_same_and_are_compiled_once(monkeypatch):
    """Two graphs, before and after attention, serve all layers and all layouts of documents."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    model = lively().double()
    layouts = [LENGTHS, ((10, 20, 34), (1, 63)), ((64,), (32, 32))]
    expected = [loss_and_gradients(model, layout) for layout in layouts]
    names = list(model.state_dict())
    with engine(model, EngineConfig(compile="block"), "cpu"):
        found = [loss_and_gradients(model, layout) for layout in layouts]
        assert list(model.state_dict()) == names
    for a, b in zip(found, expected, strict=True):
        assert a[0] == pytest.approx(b[0], rel=1e-12)
        for x, y in zip(a[1], b[1], strict=True):
            torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-12)
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]


@pytest.mark.slow
def test_blocks_compiled_in_earnest_give_the_same():
    model = lively()
    expected = loss_and_gradients(model)
    with engine(model, EngineConfig(compile="block"), "cpu"):
        loss, gradients, _ = loss_and_gradients(model)
    assert loss == pytest.approx(expected[0], rel=1e-6)
    for a, b in zip(gradients, expected[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_the_model_leaves_as_it_came():
    model = RewardModel(lively())
    before = [dict(module.__dict__) for module in model.modules()]
    with engine(model, EngineConfig(attention="sdpa", recompute="block", compile="block"), "cpu"):
        assert model.backbone.attention == "sdpa"
        assert "forward" in model.backbone.layers[0].__dict__
    assert [dict(module.__dict__) for module in model.modules()] == before
    assert model.backbone.attention == "auto"


def test_evaluation_inside_is_not_recomputed():
    model = lively()
    with engine(model, EngineConfig(recompute="selective"), "cpu"), torch.no_grad():
        inside = model(torch.zeros(1, 8, dtype=torch.int64))
    assert torch.equal(inside, model(torch.zeros(1, 8, dtype=torch.int64)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"compile": "all"}, r"Unknown trainer.engine.compile 'all'. Choices: none, block."),
        ({"recompute": "layer"}, "Unknown trainer.engine.recompute 'layer'"),
        ({"fp8": "e4m3"}, "Unknown trainer.engine.fp8 'e4m3'"),
        ({"attention": "flash"}, "Unknown attention 'flash'"),
        (
            {"compile": "block", "recompute": "selective"},
            "not go with recompute = selective: use recompute = none, or block",
        ),
    ],
)
def test_unknown_names_and_impossible_pairs_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        EngineConfig(**settings)


def test_what_this_machine_lacks_is_said(monkeypatch):
    with pytest.raises(UserError, match=r"fp8 needs (torchao|a GPU)"), engine(lively(), EngineConfig(fp8="rowwise"), "cpu"):
        pass
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler"), engine(lively(), EngineConfig(compile="block"), "cpu"):
        pass


@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise"])
def test_8_bit_linears_are_near_and_can_be_taken_off(recipe):
    """Emulated: torchao rounds to 8 bits and multiplies in the wide type, which needs no GPU."""
    pytest.importorskip("torchao", reason="optional: pip install 'herd[fp8]'")
    model = lively()
    linears = [module for module in model.modules() if isinstance(module, Linear)]
    names, exact = list(model.state_dict()), loss_and_gradients(model)
    undo = [fp8_linears(block, recipe, emulate=True) for block in model.layers]
    assert not any(isinstance(module, Linear) for module in model.layers.modules())
    assert list(model.state_dict()) == names
    rounded = loss_and_gradients(model)
    assert rounded[0] != exact[0]
    assert rounded[0] == pytest.approx(exact[0], rel=0.02)
    for back in undo:
        back()
    assert [module for module in model.modules() if isinstance(module, Linear)] == linears
    assert loss_and_gradients(model)[0] == exact[0]
