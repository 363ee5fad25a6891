"""The reward model: packed = separate, read at the last real token, better responses first."""

import math

import pytest
import torch
from posttraining import WINDOW, preferences, says, tiny_model, tokenizer, user

from herd.config.errors import UserError
from herd.dialog.preferences import Grade, Preference
from herd.dialog.render import render
from herd.dialog.rows import Counted
from herd.model.heads import RewardModel
from herd.objectives.ranking import ranking_loss
from herd.runs.stage import StageRun
from herd.training.fit import fit
from herd.training.optimizer import OptimizerConfig
from herd.training.reward import (
    RewardModule,
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


def test_triples_and_pairs_point_at_their_responses():
    batch = reward_batch(ranked(4), WINDOW, tokenizer().pad_id)  # rows 0 and 3 are edited
    assert batch.triples.tolist() == [[0, 1, 2], [7, 8, 9]]
    assert batch.pairs.tolist() == [[3, 4], [5, 6]]


def test_loss_is_the_ranking_loss_of_separate_rows():
    reward_model = model()
    loss, metrics = RewardModule(reward_model, OptimizerConfig(), lambda s: 0.0).micro_batch_loss(
        reward_batch(ranked(4), WINDOW, tokenizer().pad_id)
    )
    total, hits = 0.0, 0
    for row in preferences(4):
        r = [torch.tensor(alone(reward_model, row.prompt + x)) for x in (row.edited, row.chosen, row.rejected) if x is not None]
        pairs = [ranking_loss(r[i], r[j]).item() for i in range(len(r)) for j in range(i + 1, len(r))]
        total += sum(pairs) / len(pairs)
        hits += int(r[-2] > r[-1])
    assert loss.item() == pytest.approx(total, rel=1e-5)
    assert metrics["accuracy"][0].item() == hits
    assert metrics["accuracy"][1] == 4


def test_score_responses_keeps_the_order_whatever_the_batch():
    reward_model = model()
    dialogs = [row.prompt + r for row in preferences(7) for r in (row.chosen, row.rejected)]
    wanted = [alone(reward_model, d) for d in dialogs]
    for batch_size in (1, 3, 64):
        assert score_responses(reward_model, tokenizer(), dialogs, batch_size) == pytest.approx(wanted, abs=1e-5)
    assert score_responses(reward_model, tokenizer(), []) == []
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
