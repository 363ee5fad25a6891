"""Ranking and DPO losses against closed forms."""

import math

import pytest
import torch

from herd.config.errors import UserError
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


# Log-probabilities of (chosen, rejected): d = (-10 + 12) - (-9 + 8) = 3; over 4 and 2 tokens, d_mean = 0.5 + 0.5 = 1.
POLICY, REFERENCE, COUNTS = doubles(-10.0, -9.0)[None], doubles(-12.0, -8.0)[None], doubles(4, 2)[None]


def log_odds(h: float) -> float:
    """-log sigmoid(h)."""
    return math.log(1 + math.exp(-h))


def test_g5_dpo_at_the_reference_is_ln_2():
    logps = doubles(-5.0, -80.0, -7.0, -3.0).view(2, 2)
    terms = dpo_loss(logps, logps, torch.ones(2, 2), beta=0.1)
    torch.testing.assert_close(terms.losses, doubles(LN2, LN2))
    assert (terms.chosen_rewards == 0).all()
    assert (terms.rejected_rewards == 0).all()


def test_dpo_closed_form():
    terms = dpo_loss(POLICY, REFERENCE, COUNTS, beta=0.1)
    torch.testing.assert_close(terms.losses, doubles(log_odds(0.3)))
    torch.testing.assert_close(terms.chosen_rewards, doubles(0.2))
    torch.testing.assert_close(terms.rejected_rewards, doubles(-0.1))


@pytest.mark.parametrize(
    ("loss_type", "smoothing", "loss"),
    [
        ("sigmoid", 0.1, 0.9 * log_odds(0.3) + 0.1 * log_odds(-0.3)),
        ("sigmoid", 0.5, 0.5 * log_odds(0.3) + 0.5 * log_odds(-0.3)),
        ("sigmoid_norm", 0.0, log_odds(0.1)),
        ("sigmoid_norm", 0.2, 0.8 * log_odds(0.1) + 0.2 * log_odds(-0.1)),
        ("ipo", 0.0, (1 - 5) ** 2),
        ("hinge", 0.0, 0.7),
        ("robust", 0.1, (0.9 * log_odds(0.3) - 0.1 * log_odds(-0.3)) / 0.8),
        ("robust", 0.0, log_odds(0.3)),
    ],
)
def test_every_loss_has_its_closed_form(loss_type, smoothing, loss):
    terms = dpo_loss(POLICY, REFERENCE, COUNTS, 0.1, smoothing, loss_type)
    torch.testing.assert_close(terms.losses, doubles(loss))
    torch.testing.assert_close(terms.chosen_rewards, doubles(0.2))  # whatever the loss, as TRL's are


@pytest.mark.parametrize("loss_type", ["sigmoid", "sigmoid_norm", "ipo", "hinge", "robust"])
def test_gradients_raise_chosen_and_lower_rejected(loss_type):
    policy = POLICY.clone().requires_grad_()
    dpo_loss(policy, REFERENCE, COUNTS, 0.1, 0.0, loss_type).losses.sum().backward()
    assert policy.grad[0, 0] < 0 < policy.grad[0, 1]
    slope = -0.1 / (1 + math.exp(0.3))  # beta x sigmoid(-h)
    if loss_type == "sigmoid":
        torch.testing.assert_close(policy.grad[0], doubles(slope, -slope))


def test_rewards_carry_no_gradient_and_an_unknown_loss_is_refused():
    terms = dpo_loss(POLICY.clone().requires_grad_(), REFERENCE, COUNTS, 0.1)
    assert not terms.chosen_rewards.requires_grad
    assert not terms.rejected_rewards.requires_grad
    with pytest.raises(UserError, match=r"Unknown loss_type 'sigmod'\. Did you mean 'sigmoid'"):
        dpo_loss(POLICY, REFERENCE, COUNTS, 0.1, loss_type="sigmod")


def test_dpo_half_smoothing_is_least_at_no_margin():
    policy = REFERENCE.clone().requires_grad_()
    dpo_loss(policy, REFERENCE, COUNTS, 0.1, label_smoothing=0.5).losses.sum().backward()
    assert policy.grad.abs().max() < 1e-15
