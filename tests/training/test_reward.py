"""The reward model: packed = separate, read at the last real token, better responses first."""

import math
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from posttraining import WINDOW, preferences, says, tiny_model, tokenizer, user

from herd.config.errors import UserError
from herd.dialog.preferences import Grade, Preference
from herd.dialog.render import render
from herd.dialog.rows import Counted
from herd.model.heads import RewardModel
from herd.runs.stage import StageRun
from herd.training.fit import fit
from herd.training.optimizer import OptimizerConfig
from herd.training.reward import (
    ORDERS,
    RewardModule,
    RewardObjective,
    comparisons,
    reward_batch,
    reward_steps,
    score_responses,
    scores_of,
)
from herd.training.trainer_config import TrainerConfig


def model(seed=0):
    return RewardModel(tiny_model(seed), seed)


def ranked(count=9):
    return comparisons(preferences(count), tokenizer(), WINDOW, Counted())


def alone(reward_model, messages) -> float:
    tokens = torch.from_numpy(render(messages, tokenizer()).tokens)[None]
    return reward_model(tokens)[0, -1].item()


def test_g12_packed_scores_are_those_of_separate_rows_at_the_last_real_token():
    reward_model, rows = model(), preferences(9)
    batch = reward_batch(ranked(), WINDOW, tokenizer().pad_id)
    wanted = [
        alone(reward_model, row.prompt + r) for row in rows for r in (row.edited, row.chosen, row.rejected) if r is not None
    ]
    assert len(batch.rows.tokens) < len(wanted)
    assert scores_of(reward_model, batch.rows).tolist() == pytest.approx(wanted, abs=1e-5)
    flat = batch.rows.tokens.flatten()
    assert (flat[batch.rows.ends] == tokenizer().eot_id).all()


def test_every_ordered_pair_is_compared_and_each_comparison_weighs_one():
    batch = reward_batch(ranked(4), WINDOW, tokenizer().pad_id)  # rows 0 and 3 are edited
    assert batch.better.tolist() == [0, 0, 1, 3, 5, 7, 7, 8]
    assert batch.worse.tolist() == [1, 2, 2, 4, 6, 8, 9, 9]
    assert [ORDERS[i].rpartition("/")[2] for i in batch.orders] == [
        *("edited_chosen", "edited_rejected", "accuracy"),
        *("accuracy", "accuracy"),
        *("edited_chosen", "edited_rejected", "accuracy"),
    ]
    assert batch.weights.tolist() == pytest.approx([1 / 3] * 3 + [1, 1] + [1 / 3] * 3)
    assert (batch.margins == 0).all()


def test_margins_follow_the_grade_and_edited_over_chosen_has_none():
    rows = [replace(row, grade=grade) for row, grade in zip(preferences(4), Grade, strict=True)]
    data = comparisons(rows, tokenizer(), WINDOW, Counted())
    margins = reward_batch(data, WINDOW, tokenizer().pad_id, RewardObjective("small")).margins
    # Row 0: edited > chosen, edited > rejected, chosen > rejected; rows 1 and 2: chosen > rejected; row 3 as row 0.
    assert margins.tolist() == pytest.approx([0, 1, 1, 2 / 3, 1 / 3, 0, 0, 0])
    assert RewardObjective("large").margin_of(Grade.SIGNIFICANTLY_BETTER) == 3


def reward_metrics(objective=None, count=4):
    """(loss, metrics as means) of a step on `count` comparisons, and the rewards of each, best first."""
    reward_model = model()
    module = RewardModule(reward_model, OptimizerConfig(), lambda s: 0.0)
    module.objective = objective or RewardObjective()
    loss, metrics = module.micro_batch_loss(reward_batch(ranked(count), WINDOW, tokenizer().pad_id, objective))
    rewards = [
        [alone(reward_model, row.prompt + x) for x in (row.edited, row.chosen, row.rejected) if x is not None]
        for row in preferences(count)
    ]
    return loss.item(), {name: float(total) / float(n) for name, (total, n) in metrics.items()}, rewards


def test_loss_and_metrics_are_those_of_separate_rows():
    loss, metrics, rewards = reward_metrics()
    wanted = 0.0
    for r in rewards:
        losses = [math.log1p(math.exp(b - a)) for a, b in combinations(r, 2)]
        wanted += sum(losses) / len(losses)
    assert loss == pytest.approx(wanted, rel=1e-5)
    every = [x for r in rewards for x in r]
    leads = [r[-2] - r[-1] for r in rewards]
    triples = [r for r in rewards if len(r) == 3]
    assert metrics == pytest.approx(
        {
            "accuracy": sum(lead > 0 for lead in leads) / 4,
            "margin": sum(leads) / 4,
            "min_reward": min(every),
            "mean_reward": sum(every) / len(every),
            "max_reward": max(every),
            "accuracy/edited_chosen": sum(r[0] > r[1] for r in triples) / 2,
            "accuracy/edited_rejected": sum(r[0] > r[2] for r in triples) / 2,
        },
        rel=1e-4,
    )


def test_centering_adds_the_squared_sum_of_each_pair():
    plain, _, rewards = reward_metrics()
    centred, _, _ = reward_metrics(RewardObjective(center_rewards_coefficient=0.01))
    sums = [[(a + b) ** 2 for a, b in combinations(r, 2)] for r in rewards]
    assert centred - plain == pytest.approx(0.01 * sum(sum(s) / len(s) for s in sums), rel=1e-3)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"margin": "smal"}, "unknown `smal`.*'small'"), ({"center_rewards_coefficient": -1.0}, "must be >= 0, not -1.0")],
)
def test_a_wrong_objective_is_refused(wrong, words):
    with pytest.raises(UserError, match=words):
        RewardObjective(**wrong)


def test_a_triple_learns_all_three_orders(tmp_path):
    """Trained on triples alone, whose edited response is the worst text but for its rank."""
    rows = [row for row in preferences(90) if row.edited][:30]
    data = comparisons(rows, tokenizer(), WINDOW, Counted())
    source = reward_steps(data, WINDOW, tokenizer().pad_id, 10, 4096, epochs=8, seed=0)
    result = fit(
        RewardModule(model(), OptimizerConfig(lr=5e-3), lambda step: 5e-3),
        source,
        TrainerConfig(log_every_steps=1),
        StageRun(tmp_path, seed=0),
    )
    assert [result.last[name] for name in ORDERS] == [1.0, 1.0, 1.0]


def test_score_responses_keeps_the_order_whatever_the_batch():
    reward_model = model()
    dialogs = [row.prompt + r for row in preferences(7) for r in (row.chosen, row.rejected)]
    wanted = [alone(reward_model, d) for d in dialogs]
    for batch_size in (1, 3, 64):
        assert score_responses(reward_model, tokenizer(), dialogs, batch_size) == pytest.approx(wanted, abs=1e-5)
    assert score_responses(reward_model, tokenizer(), []) == []
    with pytest.raises(UserError, match="dialog 0 does not end with an assistant's message"):
        score_responses(reward_model, tokenizer(), [user("and?")])
    with pytest.raises(UserError, match=r"dialog 1 has .* at most 128"):
        score_responses(reward_model, tokenizer(), [dialogs[0], user("long " * 200) + says("x")])


def test_a_response_that_does_not_fit_is_dropped_and_counted():
    counted = Counted()
    row = Preference("x", "y", user("a"), says("b"), says("red " * WINDOW), Grade.BETTER)
    kept = comparisons([row, *preferences(2)], tokenizer(), WINDOW, counted)
    assert len(kept) == counted.kept == 2
    assert counted.dropped == {"too_long": 1}


def test_training_ranks_unseen_pairs(tmp_path):
    reward_model = model()
    source = reward_steps(ranked(64), WINDOW, tokenizer().pad_id, 16, 2048, epochs=6, seed=0)
    module = RewardModule(reward_model, OptimizerConfig(lr=5e-3), lambda step: 5e-3)
    result = fit(module, source, TrainerConfig(log_every_steps=1), StageRun(tmp_path, seed=0))
    assert result.last["loss"] < math.log(2) / 2
    unseen = preferences(96)[64:]
    chosen = score_responses(reward_model, tokenizer(), [r.prompt + r.chosen for r in unseen])
    rejected = score_responses(reward_model, tokenizer(), [r.prompt + r.rejected for r in unseen])
    assert sum(c > r for c, r in zip(chosen, rejected, strict=True)) >= 30


def test_micro_batches_are_a_matter_of_memory_alone():
    def gradient(limit):
        reward_model = model()
        batch = reward_steps(ranked(8), WINDOW, tokenizer().pad_id, 8, limit, epochs=1, seed=0)[0]
        module = RewardModule(reward_model, OptimizerConfig(), lambda s: 0.0)
        for micro_batch in batch.micro_batches:
            (module.micro_batch_loss(micro_batch)[0] / batch.normalizer).backward()
        return len(batch.micro_batches), torch.cat([p.grad.flatten() for p in reward_model.parameters() if p.grad is not None])

    (one, together), (many, apart) = gradient(100_000), gradient(1)
    assert (one, many) == (1, 8)
    assert (together - apart).norm() < 1e-5 * together.norm()
