"""Products in bfloat16 done in float32, against float64 on rounded operands and against torch's own bfloat16."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from herd import products
from herd.model.attention import attend
from herd.model.config import ModelConfig
from herd.model.masks import CAUSAL, Documents
from herd.model.transformer import Linear, Transformer
from herd.objectives.cross_entropy import linear_cross_entropy, token_logprobs
from herd.training import surroundings
from herd.training.engine import EngineConfig, engine
from herd.training.trainer_config import TrainerConfig

BF16 = torch.bfloat16
HALF_STEP = 2.0**-8  # relative distance of a number from its bfloat16
SHAPE = ModelConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=64, vocab_size=50, max_seq_len=64)


@pytest.fixture(autouse=True)
def no_units(monkeypatch):
    """As on a processor without bfloat16 arithmetic, whatever this one has."""
    monkeypatch.setattr(products, "CPU_MULTIPLIES_BF16", False)


def rounded(x):
    """The bfloat16 of ``x`` in float64."""
    return x.detach().to(BF16).double()


def maps(*shapes, seed=0):
    torch.manual_seed(seed)
    made = [Linear(*shape) for shape in shapes]
    for one in made:
        torch.nn.init.normal_(one.weight)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_projections_and_gradients_are_those_of_float64_on_rounded_operands(dtype):
    layers = maps((24, 16), (24, 8))
    x = torch.randn(3, 5, 24).to(dtype).requires_grad_()
    slopes = [torch.randn(3, 5, 16).to(BF16), torch.randn(3, 5, 8).to(BF16)]
    with torch.autocast("cpu", BF16):
        found = products.project(x, *layers)
        torch.autograd.backward(found, slopes)
    weights = [rounded(layer.weight) for layer in layers]
    for result, layer, weight, slope in zip(found, layers, weights, slopes, strict=True):
        exact = rounded(x) @ weight.T
        assert result.dtype == BF16
        torch.testing.assert_close(result.double(), exact, rtol=HALF_STEP, atol=1e-5)  # rounded once
        to_weight = slope.double().flatten(0, 1).T @ rounded(x).flatten(0, 1)
        assert layer.weight.grad.dtype == torch.float32
        torch.testing.assert_close(layer.weight.grad.double(), to_weight, rtol=1e-5, atol=1e-5)  # not rounded at all
    to_x = sum(slope.double() @ weight for slope, weight in zip(slopes, weights, strict=True))
    assert x.grad.dtype == dtype
    bound = 1e-5 if dtype == torch.float32 else HALF_STEP
    torch.testing.assert_close(x.grad.double(), to_x, rtol=bound, atol=1e-5)


def test_a_map_alone_is_what_torch_computes_in_bfloat16(monkeypatch):
    layer, x = maps((48, 16))[0], torch.randn(2, 7, 48)
    results = []
    for units in (False, True):
        monkeypatch.setattr(products, "CPU_MULTIPLIES_BF16", units)
        layer.weight.grad, inputs = None, x.clone().requires_grad_()
        with torch.autocast("cpu", BF16):
            out = layer(inputs)
        out.float().square().sum().backward()
        results.append((out, inputs.grad, layer.weight.grad))
    for ours, torchs in zip(*results, strict=True):
        assert ours.dtype == torchs.dtype
        scale = torchs.abs().max().item()
        torch.testing.assert_close(ours.float(), torchs.float(), rtol=2 * HALF_STEP, atol=2 * HALF_STEP * scale)


def test_only_gradients_that_are_asked_for():
    layer, x = maps((8, 8))[0], torch.randn(2, 8)
    layer.weight.requires_grad_(False)
    wanting = x.clone().requires_grad_()
    with torch.autocast("cpu", BF16):
        layer(wanting).sum().backward()
        assert not layer(x).requires_grad
    assert layer.weight.grad is None
    assert wanting.grad is not None


def test_what_is_kept_for_the_backward_pass_is_one_bfloat16_and_the_weights_themselves():
    layers, x, kept = maps((16, 16), (16, 16)), torch.randn(64, 16, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t), torch.autocast("cpu", BF16):
        products.project(x, *layers)
    assert [t.dtype for t in kept] == [BF16, torch.float32, torch.float32]
    assert [t.data_ptr() for t in kept[1:]] == [layer.weight.data_ptr() for layer in layers]


@pytest.mark.parametrize("autocast", [False, True])
def test_attention_is_that_of_float64_on_rounded_operands(autocast):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 20, heads, 8, dtype=BF16, requires_grad=True) for heads in (4, 2, 2))
    slope = torch.randn(2, 20, 4, 8).to(BF16)
    with torch.autocast("cpu", BF16, enabled=autocast):
        found = attend(q, k, v, CAUSAL)
        found.backward(slope)
    wide = [rounded(x).requires_grad_() for x in (q, k, v)]
    exact = attend(*wide, CAUSAL)
    exact.backward(slope.double())
    assert found.dtype == BF16
    torch.testing.assert_close(found.double(), exact, rtol=HALF_STEP, atol=1e-5)
    for ours, true in zip((q, k, v), wide, strict=True):
        torch.testing.assert_close(ours.grad.double(), true.grad, rtol=2 * HALF_STEP, atol=1e-3)


@pytest.mark.parametrize("loss", [linear_cross_entropy, token_logprobs])
def test_loss_multiplies_rounded_operands(loss):
    torch.manual_seed(0)
    hidden, weight = torch.randn(30, 16, requires_grad=True), torch.randn(40, 16, requires_grad=True)
    targets = torch.randint(40, (30,))
    with torch.autocast("cpu", BF16):
        found = loss(hidden, weight, targets, chunk=8)
    found.sum().backward()
    wide = [rounded(x).requires_grad_() for x in (hidden, weight)]
    exact = loss(*wide, targets, chunk=8)
    exact.sum().backward()
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-4)  # logits are not rounded
    for ours, true in zip((hidden, weight), wide, strict=True):  # the slope of the logits is, as an operand
        torch.testing.assert_close(ours.grad.double(), true.grad, rtol=HALF_STEP, atol=2e-2)


def losses(model, autocast, steps=8):
    """A few steps on packed rows."""
    tokens = torch.randint(50, (2, 48), generator=torch.Generator().manual_seed(0))
    optimizer, found = torch.optim.AdamW(model.parameters(), lr=2e-3), []
    for _ in range(steps):
        with torch.autocast("cpu", BF16, enabled=autocast):
            hidden = model(tokens, mask=Documents(((20, 28), (48,))))
            loss = linear_cross_entropy(hidden, model.output_weight, tokens.roll(-1, 1)) / tokens.numel()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def test_training_keeps_near_fp32_and_repeats_to_the_bit(monkeypatch):
    ours, again, fp32 = (losses(Transformer(SHAPE), autocast) for autocast in (True, True, False))
    assert ours == again
    assert ours != fp32
    assert ours == pytest.approx(fp32, rel=5e-3)
    monkeypatch.setattr(products, "CPU_MULTIPLIES_BF16", True)
    torchs = losses(Transformer(SHAPE), True)
    assert ours == pytest.approx(torchs, rel=1e-2)
    assert abs(ours[0] - fp32[0]) <= abs(torchs[0] - fp32[0]) + 1e-4


class Operands(TorchDispatchMode):
    """Types of what products and attention are given."""

    def __init__(self):
        super().__init__()
        self.types = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(part in str(func) for part in ("mm", "attention")):
            self.types |= {x.dtype for x in args if isinstance(x, torch.Tensor)}
        return func(*args, **(kwargs or {}))


def test_no_product_of_a_step_is_left_to_torchs_bfloat16():
    with Operands() as seen:
        losses(Transformer(SHAPE), True, 1)
    assert seen.types == {torch.float32}


@pytest.mark.parametrize("how", ["selective", "block"])
def test_recomputing_changes_no_bit(how):
    plain, spared = Transformer(SHAPE), Transformer(SHAPE)
    with engine(spared, EngineConfig(recompute=how), "cpu"):
        assert losses(spared, True, 3) == losses(plain, True, 3)


def test_with_units_or_in_another_type_torch_does_it(monkeypatch):
    monkeypatch.setattr(products._Projections, "apply", None)  # would fail when called
    layers, x = maps((8, 8), (8, 4)), torch.randn(2, 8)
    assert torch.equal(products.project(x, *layers)[1], F.linear(x, layers[1].weight))
    monkeypatch.setattr(products, "CPU_MULTIPLIES_BF16", True)
    with torch.autocast("cpu", BF16):
        assert torch.equal(products.project(x, *layers)[1], F.linear(x, layers[1].weight))


@pytest.mark.parametrize(("units", "told"), [(False, "no bf16 arithmetic"), (True, "")])
def test_a_run_says_how_it_multiplies(units, told, monkeypatch, capsys):
    monkeypatch.setattr(products, "CPU_MULTIPLIES_BF16", units)
    monkeypatch.setattr(surroundings, "bf16_slowdown", lambda: 0.5)
    with surroundings.surroundings(TrainerConfig(precision="bf16")):
        pass
    said = capsys.readouterr().err
    assert said.count("\n") == (told != "")
    assert told in said


class Calls(TorchDispatchMode):
    """Names of the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("by_inputs", [False, True])
@pytest.mark.parametrize("shape", [(256, 2048), (1024, 768), (400, 1376)])
def test_a_product_of_few_rows_is_cut_by_outputs_and_the_same(two_threads, shape, by_inputs):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape[::-1], generator=generator)
    if by_inputs:
        weight = weight.t().contiguous().t()
    for rows, cut in ((1, True), (4, True), (64, True), (65, False)):
        x = torch.randn(rows, 1, shape[0], generator=generator)
        with torch.no_grad(), Calls() as calls:
            found = products.linear(x, weight)
        assert ("bmm" in calls.names) == cut, rows
        assert found.shape == (rows, 1, shape[1]) and found.is_contiguous()
        torch.testing.assert_close(found.double(), x.double() @ weight.double().T, rtol=1e-4, atol=1e-4)


def test_small_weights_other_types_and_what_trains_are_left_to_torch(two_threads):
    x = torch.randn(4, 1024)
    weight = torch.randn(1024, 1024)
    with Calls() as calls:
        products.linear(x, weight)  # may be trained
        with torch.no_grad():
            products.linear(x, weight[:256])
            products.linear(x.double(), weight.double())
            products.linear(x.half(), weight.half())
            torch.set_num_threads(1)
            products.linear(x, weight)
    assert "bmm" not in calls.names


def test_pieces_are_equal_not_small_and_enough_for_all_threads():
    for outputs in (128, 256, 688, 1000, 1376, 2048, 4096, 14336, 128_256, 4093):
        for threads in (1, 2, 8, 64):
            count = products._pieces(outputs, threads)
            assert outputs % count == 0
            assert count == 1 or (count >= threads > 1 and outputs // count >= 128)
    assert [products._pieces(4096, threads) for threads in (1, 2, 16, 32, 64)] == [1, 16, 16, 32, 1]
