"""AdamW's groups and decay rules, against what one step must take away from a weight that has no gradient."""

import pytest
import torch
from torch import nn

from herd.config.errors import UserError
from herd.training.optimizer import OptimizerConfig, build_optimizer, make_state


def step_without_gradient(config: OptimizerConfig, rate: float) -> dict[str, float]:
    """Factor by which one step at learning rate ``rate`` shrinks a matrix and a vector of ones."""
    parameters = {"matrix": nn.Parameter(torch.ones(2, 3)), "vector": nn.Parameter(torch.ones(3))}
    optimizer = build_optimizer(parameters.values(), config)
    for group in optimizer.param_groups:
        group["lr"] = rate
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return {name: parameter.flatten()[0].item() for name, parameter in parameters.items()}


@pytest.mark.parametrize("rate", [0.1, 0.02])
def test_papers_rule_takes_a_tenth_of_the_learning_rate(rate):
    after = step_without_gradient(OptimizerConfig(lr=0.1, weight_decay=0.1), rate)
    assert after["matrix"] == pytest.approx(1 - 0.1 * rate)
    assert after["vector"] == 1.0


@pytest.mark.parametrize("rate", [0.1, 0.02])
def test_schedule_rule_takes_a_share_that_forgets_the_peak(rate):
    config = OptimizerConfig(lr=0.1, weight_decay=1e-2, decay_rule="schedule")
    assert step_without_gradient(config, rate)["matrix"] == pytest.approx(1 - 1e-2 * rate / 0.1)


def test_first_step_is_the_learning_rate_in_each_coordinate():
    """With bias correction Adam's first step is lr x sign(gradient), whatever the betas."""
    weight = nn.Parameter(torch.zeros(2, 2))
    optimizer = build_optimizer([weight], OptimizerConfig(lr=1e-2, weight_decay=0.0))
    weight.grad = torch.tensor([[3.0, -0.5], [1e-3, 7.0]])
    optimizer.step()
    torch.testing.assert_close(weight.data, -1e-2 * weight.grad.sign(), rtol=1e-4, atol=0.0)


def test_second_step_follows_the_betas():
    weight = nn.Parameter(torch.zeros(1, 1))
    optimizer = build_optimizer([weight], OptimizerConfig(lr=1.0, betas=[0.9, 0.95], eps=1e-12, weight_decay=0.0))
    expected = 0.0
    mean = square = 0.0
    for step, gradient in enumerate((1.0, -3.0), 1):
        weight.grad = torch.tensor([[gradient]])
        optimizer.step()
        mean, square = 0.9 * mean + 0.1 * gradient, 0.95 * square + 0.05 * gradient**2
        expected -= mean / (1 - 0.9**step) / (square / (1 - 0.95**step)) ** 0.5
    assert weight.item() == pytest.approx(expected, rel=1e-5)


def test_frozen_parameters_are_left_out():
    frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)
    optimizer = build_optimizer([frozen, nn.Parameter(torch.ones(2, 2))], OptimizerConfig())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 1


@pytest.mark.parametrize(
    "bad", [{"kind": "adam"}, {"lr": 0.0}, {"betas": [0.9]}, {"weight_decay": -1.0}, {"decay_rule": "paper"}]
)
def test_bad_settings_are_refused(bad):
    with pytest.raises(UserError, match="optimizer"):
        OptimizerConfig(**bad)


def test_a_state_made_beforehand_is_that_of_no_step():
    weight = nn.Parameter(torch.ones(2, 3))
    optimizer = build_optimizer([weight], OptimizerConfig(lr=0.5, weight_decay=0.3))
    make_state(optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert weight.grad is None and torch.equal(weight.detach(), torch.ones(2, 3))
    assert all(not value.any() for value in optimizer.state[weight].values())
    weight.grad = torch.ones(2, 3)
    optimizer.step()
    optimizer.state[weight]["exp_avg"].fill_(7.0)
    make_state(optimizer)  # there is one
    assert optimizer.state[weight]["exp_avg"].unique().tolist() == [7.0]
