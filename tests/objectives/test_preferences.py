"""Ranking and DPO losses against closed forms."""

import math

import pytest
import torch

from herd.objectives.dpo import dpo_loss
from herd.objectives.ranking import centering_loss, ranking_loss

LN2 = math.log(2)


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_ranking_loss_closed_forms():
    # sigmoid(ln 3) = 3/4, sigmoid(-ln 3) = 1/4
    loss = ranking_loss(doubles(0.0, math.log(3), 0.0), doubles(0.0, 0.0, math.log(3)))
    torch.testing.assert_close(loss, doubles(LN2, math.log(4 / 3), math.log(4)))


def test_ranking_loss_gradient_raises_chosen():
    chosen, rejected = doubles(0.3).requires_grad_(), doubles(1.1).requires_grad_()
    ranking_loss(chosen, rejected).sum().backward()
    wrong = 1 / (1 + math.exp(0.3 - 1.1))  # probability given to the wrong order
    torch.testing.assert_close(chosen.grad, doubles(-wrong))
    torch.testing.assert_close(rejected.grad, doubles(wrong))


def test_ranking_loss_does_not_overflow():
    assert ranking_loss(torch.tensor([-1e4]), torch.tensor([1e4])).item() == 2e4


def test_margin_asks_for_a_lead():
    # A lead of ln 3 less a margin of ln 3 leaves an even chance.
    loss = ranking_loss(doubles(math.log(3), 1.0), doubles(0.0, 0.0), doubles(math.log(3), 0.0))
    torch.testing.assert_close(loss, doubles(LN2, math.log(1 + math.exp(-1))))


def test_centering_draws_the_sum_to_zero():
    torch.testing.assert_close(centering_loss(doubles(1.0, 2.0), doubles(3.0, -2.0)), doubles(16.0, 0.0))


def test_dpo_at_the_reference_is_ln_2():
    chosen, rejected = doubles(-5.0, -80.0), doubles(-7.0, -3.0)
    terms = dpo_loss(chosen, rejected, chosen, rejected, beta=0.1)
    torch.testing.assert_close(terms.losses, doubles(LN2, LN2))
    assert (terms.chosen_rewards == 0).all()
    assert (terms.rejected_rewards == 0).all()


def test_dpo_closed_form():
    # h = 0.1 x ((-10 + 12) - (-9 + 8)) = 0.3
    terms = dpo_loss(doubles(-10.0), doubles(-9.0), doubles(-12.0), doubles(-8.0), beta=0.1)
    torch.testing.assert_close(terms.losses, doubles(math.log(1 + math.exp(-0.3))))
    torch.testing.assert_close(terms.chosen_rewards, doubles(0.2))
    torch.testing.assert_close(terms.rejected_rewards, doubles(-0.1))


def test_dpo_gradient_raises_chosen_and_lowers_rejected():
    chosen, rejected = doubles(-10.0).requires_grad_(), doubles(-9.0).requires_grad_()
    terms = dpo_loss(chosen, rejected, doubles(-12.0), doubles(-8.0), beta=0.1)
    terms.losses.sum().backward()
    slope = 0.1 / (1 + math.exp(0.3))  # beta x sigmoid(-h)
    torch.testing.assert_close(chosen.grad, doubles(-slope))
    torch.testing.assert_close(rejected.grad, doubles(slope))
    assert not terms.chosen_rewards.requires_grad
    assert not terms.rejected_rewards.requires_grad


@pytest.mark.parametrize("smoothing", [0.1, 0.5])
def test_dpo_label_smoothing(smoothing):
    terms = dpo_loss(doubles(-10.0), doubles(-9.0), doubles(-12.0), doubles(-8.0), beta=0.1, label_smoothing=smoothing)
    right, wrong = math.log(1 + math.exp(-0.3)), math.log(1 + math.exp(0.3))
    torch.testing.assert_close(terms.losses, doubles((1 - smoothing) * right + smoothing * wrong))


def test_dpo_half_smoothing_is_least_at_no_margin():
    policy = doubles(-10.0).requires_grad_()
    dpo_loss(policy, doubles(-9.0), policy.detach(), doubles(-9.0), 0.1, label_smoothing=0.5).losses.sum().backward()
    assert policy.grad.abs().item() < 1e-15
