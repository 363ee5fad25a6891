"""The reward model: packed = separate, read at the last real token, better responses first."""

import math
from dataclasses import replace
from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from posttraining import WINDOW, preferences, says, tiny_model, tokenizer, user

from herd.config.errors import UserError
from herd.dialog.preferences import Grade, Preference
from herd.dialog.render import render
from herd.dialog.rows import Counted
from herd.model.heads import RewardModel
from herd.runs.seeds import stream
from herd.runs.stage import StageRun
from herd.training import reward
from herd.training.fit import fit
from herd.training.optimizer import OptimizerConfig
from herd.training.reward import (
    ORDERS,
    RewardModule,
    RewardObjective,
    RowLayout,
    comparisons,
    reward_batch,
    reward_steps,
    score_if_read,
    score_responses,
    scores_of,
)
from herd.training.trainer_config import TrainerConfig


def model(seed=0):
    return RewardModel(tiny_model(seed), seed)


def layout(row="block", window=WINDOW):
    return RowLayout(window, tokenizer().pad_id, row)


def ranked(count=9):
    return comparisons(preferences(count), tokenizer(), WINDOW, Counted())


def alone(reward_model, messages) -> float:
    tokens = torch.from_numpy(render(messages, tokenizer()).tokens)[None]
    return reward_model(tokens)[0, -1].item()


def separate_scores(reward_model, rows):
    return [
        [alone(reward_model, row.prompt + r) for r in (row.edited, row.chosen, row.rejected) if r is not None] for row in rows
    ]


@pytest.mark.parametrize("row", ["separate", "block"])
def test_g6_packed_and_block_rows_score_as_separate_rows_do(row):
    reward_model, rows = model(), preferences(9)
    batch = reward_batch(ranked(), layout(row))
    wanted = [score for scores in separate_scores(reward_model, rows) for score in scores]
    assert scores_of(reward_model, batch.rows).tolist() == pytest.approx(wanted, abs=1e-5)
    assert len(batch.rows.tokens) < len(wanted)


def test_g6_a_causal_row_scores_its_first_response_as_alone_and_the_others_not():
    reward_model, rows = model(), preferences(9)
    data = comparisons(rows, tokenizer(), 128, Counted())
    scores = scores_of(reward_model, reward_batch(data, layout("causal", 128)).rows)
    wanted = separate_scores(reward_model, rows)
    place = 0
    for r in wanted:
        found = scores[place : place + len(r)].tolist()
        assert found[0] == pytest.approx(r[0], abs=1e-5)
        assert all(abs(f - w) > 1e-3 for f, w in zip(found[1:], r[1:], strict=True))
        place += len(r)


def test_g12_scores_are_read_at_the_last_real_token_and_padding_is_never_the_end_of_a_turn():
    assert tokenizer().pad_id not in (tokenizer().eot_id, tokenizer().eom_id, tokenizer().bos_id)
    for row in ("separate", "block", "causal"):
        batch = reward_batch(ranked(2), layout(row, 128))
        flat = batch.rows.tokens.flatten()
        assert (flat[batch.rows.ends] == tokenizer().eot_id).all()
        assert (flat == tokenizer().pad_id).any()
        # What stands in the padding is no matter.
        filled = replace(batch.rows, tokens=batch.rows.tokens.where(batch.rows.tokens != tokenizer().pad_id, 7))
        reward_model = model()
        torch.testing.assert_close(scores_of(reward_model, filled), scores_of(reward_model, batch.rows), rtol=0, atol=1e-6)


@pytest.mark.parametrize("row", ["block", "causal"])
def test_shuffled_responses_keep_their_ranks(row):
    data = ranked(6)
    draw = stream(3, "test")
    batch = reward_batch(data, layout(row, 128), orders=[draw.permutation(len(one.responses)) for one in data])
    ends = {}
    for better, worse in zip(batch.better.tolist(), batch.worse.tolist(), strict=True):
        for index in (better, worse):
            end = int(batch.rows.ends[index])
            ends[index] = batch.rows.tokens.flatten()[end - 2 : end + 1].tolist()
    plain = reward_batch(data, layout(row, 128))
    last = [plain.rows.tokens.flatten()[int(e) - 2 : int(e) + 1].tolist() for e in plain.rows.ends]
    pairs = list(zip(plain.better.tolist(), plain.worse.tolist(), strict=True))
    shuffled = list(zip(batch.better.tolist(), batch.worse.tolist(), strict=True))
    assert shuffled != pairs  # the places moved ...
    assert [(ends[b], ends[w]) for b, w in shuffled] == [(last[b], last[w]) for b, w in pairs]  # ... and the texts with them


def test_the_order_of_responses_is_a_function_of_seed_and_step():
    def first_step(seed):
        batch = reward_steps(ranked(8), layout("causal", 128), 8, 2048, epochs=2, seed=seed)[1].micro_batches[0]
        return batch.rows.tokens.tolist(), batch.better.tolist()

    assert first_step(0) == first_step(0) != first_step(1)


def test_responses_are_shuffled_anew_in_every_step():
    """One comparison, a step an epoch: without shuffling a causal row would always score the rejected one last."""
    source = reward_steps(ranked(1), layout("causal", 128), 1, 2048, epochs=24, seed=0)
    orders = {tuple(source[step].micro_batches[0].better.tolist()) for step in range(24)}
    assert len(orders) == 6  # all orders of three: `better` names places of (edited, edited, chosen)


def test_the_objective_reaches_the_steps():
    source = reward_steps(ranked(4), layout(), 4, 2048, epochs=1, seed=0, objective=RewardObjective(margin="large"))
    plain = reward_steps(ranked(4), layout(), 4, 2048, epochs=1, seed=0)
    assert source[0].micro_batches[0].margins.max() >= 2 and plain[0].micro_batches[0].margins.max() == 0


def test_no_more_responses_than_asked_are_scored_together(monkeypatch):
    together = []
    real = reward.one_row
    monkeypatch.setattr(reward, "one_row", lambda groups: together.append(sum(len(g.responses) for g in groups)) or real(groups))
    rows = [row.prompt + r for row in preferences(6) for r in (row.chosen, row.rejected)]
    score_responses(model(), tokenizer(), rows, batch_size=4)
    assert max(together) == 4 and sum(together) == 12


def test_what_fits_to_the_token_is_kept_and_shared():
    [comparison] = ranked(1)
    whole = comparison.prompt_tokens + sum(comparison.response_tokens)
    for row in ("block", "causal"):
        assert [len(layout(row, window).groups(comparison, range(3))[0]) for window in (whole, whole - 1)] == [1, 2]
        assert [layout(row, window).apart(comparison) for window in (whole, whole - 1)] == [False, True]


def test_a_step_counts_its_own_tokens():
    source = reward_steps(ranked(7), layout("separate"), 4, 2048, epochs=1, seed=0)
    sizes = [sum(map(len, comparison.responses)) for comparison in ranked(7)]
    for step in range(2):
        batch = source[step]
        assert batch.tokens == sum(sizes[i] for i in source.units_of(step))
        assert batch.tokens == source.tokens_at(step + 1) - source.tokens_at(step)


def test_equal_rewards_are_no_hit():
    reward_model = model()
    torch.nn.init.zeros_(reward_model.head.weight)
    _, metrics = RewardModule(reward_model, OptimizerConfig(), lambda s: 0.0).micro_batch_loss(reward_batch(ranked(4), layout()))
    assert [(float(metrics[name][0]), int(metrics[name][1])) for name in ORDERS] == [(0, 4), (0, 2), (0, 2)]


def test_the_head_starts_small_and_from_its_seed():
    first, again, other = (model(0), model(0), RewardModel(tiny_model(0), 1))
    assert torch.equal(first.head.weight, again.head.weight) and not torch.equal(first.head.weight, other.head.weight)
    dim = first.head.weight.shape[1]
    assert first.head.weight.std().item() == pytest.approx((dim + 1) ** -0.5, rel=0.5)


def test_only_what_stands_before_the_last_message_is_shared():
    """Two questions in one dialog: answers to the second differ in what was said between."""
    reward_model = model()
    rows = [user("and?") + says(first) + user("red?") + says(second) for first in ("red", "blue") for second in ("yes", "no")]
    assert score_responses(reward_model, tokenizer(), rows) == pytest.approx([alone(reward_model, row) for row in rows], abs=1e-5)


def test_a_dialog_as_long_as_the_model_reads_is_scored_and_a_longer_one_has_no_score():
    reward_model = model()
    window = reward_model.backbone.config.max_seq_len
    longer = [user("red " * count) + says("x") for count in range(1, window)]
    whole = next(i for i, row in enumerate(longer) if len(render(row, tokenizer())) == window)
    rows = longer[whole : whole + 2]
    read, unread = score_if_read(reward_model, tokenizer(), rows)
    assert read == pytest.approx(alone(reward_model, rows[0]), abs=1e-5) and unread is None


@pytest.mark.parametrize("row", ["block", "causal"])
def test_responses_that_fit_one_by_one_and_not_together_get_rows_of_their_own(row):
    """All apart: the scores of separate rows, in both kinds of row and in every order."""
    rows = preferences(9)
    longest = max(len(response) for comparison in ranked() for response in comparison.responses)
    counted = Counted()
    data = comparisons(rows, tokenizer(), longest, counted)
    short = layout(row, longest)
    assert (counted.kept, counted.dropped) == (9, {})
    assert all(short.apart(comparison) and len(short.shared(comparison)) == len(comparison.responses) for comparison in data)
    wanted = RewardModule(model(), OptimizerConfig(), lambda s: 0.0).micro_batch_loss(reward_batch(data, layout("separate")))[0]
    for draw in (None, stream(1, "test"), stream(2, "test")):
        orders = draw and [draw.permutation(len(one.responses)) for one in data]
        batch = reward_batch(data, short, orders=orders)
        loss, _ = RewardModule(model(), OptimizerConfig(), lambda s: 0.0).micro_batch_loss(batch)
        assert loss.item() == pytest.approx(wanted.item(), abs=1e-5)
    source = reward_steps(data, short, 9, 10_000, epochs=1, seed=0)
    assert source[0].tokens == sum(len(response) for comparison in data for response in comparison.responses)


def test_two_of_three_share_the_row_that_has_room_for_two():
    """In `causal` the second of the two sees the first, the third is read alone; in every order of the responses."""
    [comparison] = ranked(1)
    sizes = comparison.response_tokens
    room = layout("causal", comparison.prompt_tokens + sum(sizes) - 1)
    assert sorted(map(len, room.shared(comparison))) == [1, 2]
    wanted, reward_model = separate_scores(model(), preferences(1))[0], model()
    for order in permutations(range(3)):
        batch = reward_batch([comparison], room, orders=[np.array(order)])
        scores = scores_of(reward_model, batch.rows)
        ranks = [int(batch.better[0]), int(batch.better[2]), int(batch.worse[2])]  # edited, chosen, rejected
        together = next(members for members in room.shared(comparison) if len(members) == 2)
        second = [i for i in order if i in together][1]
        for i in range(3):
            assert (abs(scores[ranks[i]].item() - wanted[i]) < 1e-5) == (i != second)
        exact = scores_of(reward_model, reward_batch([comparison], replace(room, row="block"), orders=[np.array(order)]).rows)
        assert exact[ranks].tolist() == pytest.approx(wanted, abs=1e-5)


def test_of_a_triple_with_one_that_is_too_long_the_other_is_compared_with_the_rejected():
    long, short, wrong = (says(text) for text in ("red " * 60, "red.", "blue!!!"))
    triples = [
        Preference("a", "a", user("x"), long, wrong, Grade.BETTER, short),
        Preference("b", "b", user("x"), short, wrong, Grade.BETTER, long),
        Preference("c", "c", user("x"), short, long, Grade.BETTER, short),
    ]
    counted = Counted()
    kept = comparisons(triples, tokenizer(), WINDOW, counted)
    [pair] = comparisons([Preference("d", "d", user("x"), short, wrong, Grade.BETTER)], tokenizer(), WINDOW, Counted())
    for found in kept:
        assert [r.tokens.tolist() for r in found.responses] == [r.tokens.tolist() for r in pair.responses]
    assert (counted.kept, counted.in_part, counted.dropped) == (2, 2, {"too_long": 1})
    assert [length.fits for length in counted.lengths] == [True, True, False]


def test_block_and_separate_rows_have_the_same_gradient():
    def gradient(row):
        reward_model = model()
        module = RewardModule(reward_model, OptimizerConfig(), lambda s: 0.0)
        module.micro_batch_loss(reward_batch(ranked(6), layout(row)))[0].backward()
        return torch.cat([p.grad.flatten() for p in reward_model.parameters() if p.grad is not None])

    separate, block = gradient("separate"), gradient("block")
    assert (separate - block).norm() < 1e-5 * separate.norm()


def test_every_ordered_pair_is_compared_and_each_comparison_weighs_one():
    batch = reward_batch(ranked(4), layout())  # rows 0 and 3 are edited
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
    margins = reward_batch(data, layout(), RewardObjective("small")).margins
    # Row 0: edited > chosen, edited > rejected, chosen > rejected; rows 1 and 2: chosen > rejected; row 3 as row 0.
    assert margins.tolist() == pytest.approx([0, 1, 1, 2 / 3, 1 / 3, 0, 0, 0])
    assert RewardObjective("large").margin_of(Grade.SIGNIFICANTLY_BETTER) == 3


def reward_metrics(objective=None, count=4):
    """(loss, metrics as means) of a step on `count` comparisons, and the rewards of each, best first."""
    reward_model = model()
    module = RewardModule(reward_model, OptimizerConfig(), lambda s: 0.0)
    module.objective = objective or RewardObjective()
    loss, metrics = module.micro_batch_loss(reward_batch(ranked(count), layout(), objective))
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
    source = reward_steps(data, layout(), 10, 4096, epochs=8, seed=0)
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
    dialogs.insert(3, dialogs[0])  # a prompt's answers need not stand together
    wanted.insert(3, wanted[0])
    for batch_size in (1, 3, 64):
        assert score_responses(reward_model, tokenizer(), dialogs, batch_size) == pytest.approx(wanted, abs=1e-5)
        found = score_responses(reward_model, tokenizer(), dialogs, batch_size)
        assert found[3] == found[0]  # equal answers tie to the bit
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


def test_a_response_begins_where_its_prompt_ends_in_every_dialect():
    """torchtune writes a token after the last message, which belongs to neither."""
    meta, torchtune = (
        comparisons(preferences(3), tokenizer(), WINDOW, Counted(), dialect=dialect) for dialect in ("meta", "torchtune")
    )
    for ours, theirs in zip(meta, torchtune, strict=True):
        assert ours.prompt_tokens == theirs.prompt_tokens
        assert ours.response_tokens == theirs.response_tokens


def test_training_ranks_unseen_pairs(tmp_path):
    reward_model = model()
    source = reward_steps(ranked(64), layout(), 16, 2048, epochs=6, seed=0)
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
        batch = reward_steps(ranked(8), layout(), 8, limit, epochs=1, seed=0)[0]
        module = RewardModule(reward_model, OptimizerConfig(), lambda s: 0.0)
        for micro_batch in batch.micro_batches:
            (module.micro_batch_loss(micro_batch)[0] / batch.normalizer).backward()
        return len(batch.micro_batches), torch.cat([p.grad.flatten() for p in reward_model.parameters() if p.grad is not None])

    (one, together), (many, apart) = gradient(100_000), gradient(1)
    assert (one, many) == (1, 8)
    assert (together - apart).norm() < 1e-5 * together.norm()
