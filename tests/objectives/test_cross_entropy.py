"""Chunked losses against torch's plain ones, float64, with gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from herd.objectives.cross_entropy import linear_cross_entropy, linear_cross_entropy_with_z, token_logprobs


def inputs(rows=2, length=37, dim=16, vocab=50, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, length, dim, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(vocab, dim, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(0, vocab, (rows, length), generator=generator)
    targets[0, 3:9] = -100
    targets[-1, -1] = -100
    return hidden, weight, targets


@pytest.mark.parametrize("chunk", [1, 10, 37, 1000, None])
def test_sum_equals_torch(chunk):
    hidden, weight, targets = inputs()
    expected = F.cross_entropy(F.linear(hidden, weight).flatten(0, 1), targets.flatten(), reduction="sum")
    found = linear_cross_entropy(hidden, weight, targets, chunk)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)
    for a, b in zip(
        torch.autograd.grad(found * 0.3, (hidden, weight)),
        torch.autograd.grad(expected * 0.3, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 10, 1000, None])
def test_z_loss_equals_its_definition(chunk):
    hidden, weight, targets = inputs()
    logits, counts = F.linear(hidden, weight).flatten(0, 1), targets.flatten() != -100
    z = 0.03 * (logits.exp().sum(-1).log() ** 2)[counts].sum()
    expected = F.cross_entropy(logits, targets.flatten(), reduction="sum") + z
    found, added = linear_cross_entropy_with_z(hidden, weight, targets, 0.03, chunk)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(added, z.detach(), rtol=1e-13, atol=0)
    assert not added.requires_grad
    for a, b in zip(
        torch.autograd.grad(found * 0.3, (hidden, weight)),
        torch.autograd.grad(expected * 0.3, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_z_loss_gradcheck():
    hidden, weight, targets = inputs(rows=2, length=5, dim=4, vocab=9)
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy_with_z(h, w, targets, 0.1, 3)[0], (hidden, weight))


@pytest.mark.parametrize("chunk", [1, 10, 1000, None])
def test_token_logprobs_equal_torch(chunk):
    hidden, weight, targets = inputs()
    logprobs = F.linear(hidden, weight).log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1)
    expected = logprobs.masked_fill(targets == -100, 0.0)
    found = token_logprobs(hidden, weight, targets, chunk)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    upstream = torch.randn(targets.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for a, b in zip(
        torch.autograd.grad((found * upstream).sum(), (hidden, weight)),
        torch.autograd.grad((expected * upstream).sum(), (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("function", [linear_cross_entropy, token_logprobs])
def test_gradcheck(function):
    hidden, weight, targets = inputs(rows=2, length=5, dim=4, vocab=9)
    assert torch.autograd.gradcheck(lambda h, w: function(h, w, targets, 3), (hidden, weight))


def test_ignored_positions_get_no_gradient_and_all_ignored_is_zero():
    hidden, weight, targets = inputs()
    linear_cross_entropy(hidden, weight, targets).backward()
    assert ((hidden.grad == 0).all(-1) == (targets == -100)).all()
    hidden.grad = None
    loss = linear_cross_entropy(hidden, weight, torch.full_like(targets, -100))
    loss.backward()
    assert loss == 0
    assert (hidden.grad == 0).all()
    assert (token_logprobs(hidden, weight, torch.full_like(targets, -100)) == 0).all()


@pytest.mark.parametrize("function", [linear_cross_entropy, token_logprobs])
def test_large_logits_do_not_overflow(function):
    hidden, weight, targets = inputs(dtype=torch.float32)
    out = function(hidden * 1e3, weight, targets)
    out.sum().backward()
    assert out.isfinite().all()
    assert hidden.grad.isfinite().all()


def test_only_what_needs_a_gradient_gets_one():
    hidden, weight, targets = inputs()
    linear_cross_entropy(hidden.detach(), weight, targets).backward()
    assert hidden.grad is None
    assert weight.grad is not None
    weight.grad = None
    token_logprobs(hidden, weight.detach(), targets).sum().backward()
    assert weight.grad is None
    assert hidden.grad is not None
    with torch.no_grad():
        assert not linear_cross_entropy(hidden, weight, targets).requires_grad


def test_tied_weight_receives_both_gradients():
    _, weight, targets = inputs()
    tokens = targets.clamp(min=0)
    linear_cross_entropy(weight[tokens], weight, targets).backward()
    found, weight.grad = weight.grad, None
    logits = F.linear(weight[tokens], weight)
    F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").backward()
    torch.testing.assert_close(found, weight.grad, rtol=0, atol=1e-11)


@pytest.mark.parametrize("function", [linear_cross_entropy, token_logprobs])
def test_autocast_multiplies_in_bfloat16_and_sums_in_float32(function):
    hidden, weight, targets = inputs(dtype=torch.float32, length=512)
    exact = function(hidden, weight, targets)
    with torch.autocast("cpu", torch.bfloat16):
        rough = function(hidden, weight, targets)
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    # Products are rounded to 8 bits, sums are not: 1,000 terms added in bfloat16 would be off by percents.
    torch.testing.assert_close(rough.sum(), exact.sum(), rtol=2e-3, atol=0)
    rough.sum().backward()
    assert hidden.grad.dtype == torch.float32


def test_full_logits_are_never_held():
    hidden, weight, targets = inputs(length=400, vocab=500)
    seen = []

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            seen.extend(x.numel() for x in torch.utils._pytree.tree_leaves(out) if isinstance(x, torch.Tensor))
            return out

    for function in (linear_cross_entropy, token_logprobs):
        with Largest():
            function(hidden, weight, targets, 20).sum().backward()
    assert max(seen) <= max(20 * 500, hidden.numel())  # the plain version holds 400,000


def test_evaluation_computes_no_gradient():
    """A custom function is told that a weight requires a gradient even where none is recorded."""
    hidden, weight, targets = inputs()
    weight.requires_grad_(True)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        loss = linear_cross_entropy(hidden, weight, targets)
    assert counter.get_total_flops() == 2 * targets.numel() * weight.numel()
    torch.testing.assert_close(loss, linear_cross_entropy(hidden, weight, targets).detach())
