"""DPO: the paper's two masks, the reference, what separate rows would give, and resuming after a kill."""

import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from posttraining import WINDOW, preferences, same_weights, says, tiny_model, tokenizer, user
from training_standin import Child

from herd.alignment.fine_tuning import require_shares
from herd.config.errors import UserError
from herd.dialog.masks import dpo_mask, nll_mask
from herd.dialog.messages import Message, Role
from herd.dialog.preferences import Grade, Preference
from herd.dialog.render import DIALECTS, render
from herd.dialog.rows import Counted
from herd.model.masks import Documents
from herd.model.transformer import Transformer
from herd.runs.stage import StageRun
from herd.training import dpo
from herd.training.dpo import (
    DPOBatch,
    DPOModule,
    DPOObjective,
    DPOSteps,
    dpo_pairs,
    dpo_rows,
    dpo_terms,
    evaluate_dpo,
    reference_logprobs,
)
from herd.training.fit import fit
from herd.training.optimizer import OptimizerConfig
from herd.training.trainer_config import TrainerConfig

OBJECTIVE = DPOObjective()


def pairs(count=9, objective=OBJECTIVE):
    return dpo_pairs(preferences(count), tokenizer(), WINDOW, objective, Counted())


def steps(count=24, epochs=2.0, micro_batch_tokens=300, reference=None, row="block"):
    source = DPOSteps(pairs(count), OBJECTIVE, 8, micro_batch_tokens, epochs, seed=0, row=row)
    source.reference = reference_logprobs(reference or tiny_model(), source.groups)
    return source


def separate(model, prompt, response, mask) -> float:
    """Log-probability of the masked tokens of one response, alone in its row."""
    rendered = render(prompt + response, tokenizer())
    tokens = torch.from_numpy(rendered.tokens)[None]
    logprobs = model.logits(model(tokens)).log_softmax(-1)[0, :-1].gather(1, tokens[0, 1:, None]).squeeze(1)
    return logprobs[torch.from_numpy(mask(rendered, len(prompt))[1:])].sum().item()


def test_g5_at_the_reference_the_loss_is_ln2_and_no_pair_is_right():
    source, model = steps(), tiny_model()
    for step in range(len(source)):
        for batch in source[step].micro_batches:
            terms = dpo_terms(model, batch, DPOObjective(nll_coefficient=0.0))
            assert (terms["loss"] == math.log(2)).all() or torch.allclose(terms["loss"], torch.tensor(math.log(2)))
            assert (terms["rewards/chosen"] == 0).all()  # to the bit
            assert (terms["rewards/rejected"] == 0).all()
            module = DPOModule(model, OptimizerConfig(), lambda s: 0.0)
            assert module.micro_batch_loss(batch)[1]["rewards/accuracies"][0] == 0
            with_nll = dpo_terms(model, batch, OBJECTIVE)
            assert torch.allclose(with_nll["loss"], math.log(2) + 0.2 * with_nll["nll_loss"])


@pytest.mark.parametrize("row", ["block", "separate"])
def test_g7_terms_are_those_of_separate_rows(row):
    policy, reference, data = tiny_model(1), tiny_model(0), dpo_rows(pairs(9), OBJECTIVE, row)
    terms = dpo_terms(policy, DPOBatch(data, reference_logprobs(reference, [data])[0]), OBJECTIVE)
    for i, row in enumerate(preferences(9)):
        chosen, rejected = (
            0.1 * (separate(policy, row.prompt, r, dpo_mask) - separate(reference, row.prompt, r, dpo_mask))
            for r in (row.best, row.rejected)
        )
        count = nll_mask(render(row.prompt + row.best, tokenizer()), len(row.prompt)).sum()
        nll = -separate(policy, row.prompt, row.best, nll_mask) / count
        loss = math.log1p(math.exp(-(chosen - rejected))) + 0.2 * nll
        assert terms["rewards/chosen"][i].item() == pytest.approx(chosen, abs=1e-5)
        assert terms["rewards/rejected"][i].item() == pytest.approx(rejected, abs=1e-5)
        assert terms["rewards/margins"][i].item() == pytest.approx(chosen - rejected, abs=1e-5)
        assert terms["nll_loss"][i].item() == pytest.approx(nll, abs=1e-5)
        assert terms["loss"][i].item() == pytest.approx(loss, abs=1e-5)


def test_the_prompt_is_there_once_and_nothing_is_padding():
    data = pairs(9)
    shared, apart = (dpo_rows(data, OBJECTIVE, row).rows for row in ("block", "separate"))
    prompts = sum(len(pair.prompt) for pair in data)
    assert apart.tokens.numel() - shared.tokens.numel() == prompts
    assert tokenizer().pad_id not in shared.tokens
    assert shared.positions.max() < WINDOW


def test_rows_give_one_gradient():
    def gradient(row):
        model, source = tiny_model(1), steps(8, row=row)
        module = DPOModule(model, OptimizerConfig(), lambda s: 0.0)
        for micro_batch in source[0].micro_batches:
            (module.micro_batch_loss(micro_batch)[0] / source[0].normalizer).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    shared, apart = gradient("block"), gradient("separate")
    assert (shared - apart).norm() < 1e-5 * apart.norm()


def test_g9_one_micro_batch_or_eight_give_one_gradient_on_ragged_lengths():
    def gradient(tokens):
        model, source = tiny_model(1), steps(8, micro_batch_tokens=tokens, reference=tiny_model(0))
        module = DPOModule(model, OptimizerConfig(), lambda s: 0.0)
        for micro_batch in source[0].micro_batches:
            (module.micro_batch_loss(micro_batch)[0] / source[0].normalizer).backward()
        return len(source[0].micro_batches), torch.cat([p.grad.flatten() for p in model.parameters()])

    assert len({len(pair) for pair in pairs(8)}) > 1
    (one, together), (eight, apart) = gradient(100_000), gradient(1)
    assert (one, eight) == (1, 8)
    assert (together - apart).norm() < 1e-5 * apart.norm()


@torch.no_grad()
def test_metrics_are_those_of_the_whole_logits():
    policy, data = tiny_model(1), dpo_rows(pairs(4), OBJECTIVE)
    terms = dpo_terms(policy, DPOBatch(data, torch.zeros(4, 2)), OBJECTIVE)
    rows = data.rows
    logits = policy.logits(policy(rows.tokens, rows.positions, rows.mask)).flatten(0, 1)[rows.places].mean(-1)
    for sequence, name in enumerate(["chosen", "rejected"] * 4):
        found = terms[f"logits/{name}"][sequence // 2]
        assert found.item() == pytest.approx(logits[rows.owners == sequence].mean().item(), abs=1e-5)


def test_ld_alpha_weighs_what_is_longer_than_the_shorter_response():
    rows = [Preference("x", "y", user("Which?"), says("red blue green grey"), says("red."), Grade.BETTER), *preferences(3)]
    plain = dpo_rows(dpo_pairs(rows, tokenizer(), WINDOW, OBJECTIVE, Counted()), OBJECTIVE)
    for alpha in (1.0, 0.3, 0.0):
        objective = DPOObjective(ld_alpha=alpha)
        weighed = dpo_rows(dpo_pairs(rows, tokenizer(), WINDOW, objective, Counted()), objective)
        assert torch.equal(weighed.counts, plain.counts)
        for sequence in range(8):
            mine = (plain.rows.owners == sequence) & (plain.rows.preferred > 0)
            short = int(plain.counts[sequence // 2].min())
            wanted = [1.0] * short + [alpha] * (int(mine.sum()) - short)
            assert weighed.rows.preferred[mine].tolist() == pytest.approx(wanted)
        assert (weighed.rows.preferred[plain.rows.preferred == 0] == 0).all()
    assert plain.counts[0, 0] > plain.counts[0, 1]


def test_the_preference_term_leaves_the_end_of_turn_alone_and_the_nll_does_not():
    chosen, rejected = pairs(1)[0].responses
    eot = tokenizer().eot_id
    for sequence in (chosen, rejected):
        trained = set(np.flatnonzero(sequence.trained)) - set(np.flatnonzero(sequence.preferred))
        assert sequence.tokens[list(trained)].tolist() == [eot]
        assert not sequence.preferred[sequence.tokens == eot].any()
    assert tokenizer().decode(chosen.tokens[chosen.preferred].tolist()) == "The thing is red."  # the edited response


def test_gradient_pushes_chosen_up_and_rejected_down():
    model = tiny_model()
    source = steps(8)
    loss, _ = DPOModule(model, OptimizerConfig(), lambda s: 0.0).micro_batch_loss(source[0].micro_batches[0])
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 1e-3 * parameter.grad
    terms = dpo_terms(model, source[0].micro_batches[0], OBJECTIVE)
    assert (terms["rewards/chosen"] - terms["rewards/rejected"]).mean() > 0
    assert terms["rewards/chosen"].mean() > 0


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (Preference("x", "y", user("a"), says("b"), says("red " * WINDOW), Grade.BETTER), "too_long"),
        (Preference("x", "y", user("long " * WINDOW), says("b"), says("c"), Grade.BETTER), "too_long"),
        (Preference("x", "y", user("a"), says(""), says("c"), Grade.BETTER), "nothing_to_train"),
    ],
)
def test_g10_unusable_pairs_are_dropped_and_counted(row, reason):
    counted = Counted()
    kept = dpo_pairs([row, *preferences(2)], tokenizer(), WINDOW, OBJECTIVE, counted)
    assert len(kept) == 2
    assert counted.to_dict() == {"kept": 2, "dropped": {reason: 1}}


def test_groups_hold_every_pair_once_and_a_step_is_whole():
    source = steps(24, epochs=1.0)
    assert all(len(source[s].micro_batches) > 1 for s in range(len(source)))
    assert sum(source[s].normalizer for s in range(len(source))) == 24
    assert source.tokens_at(len(source)) == sum(len(pair) for pair in pairs(24))


def test_a_step_takes_its_pairs_and_counts_their_tokens():
    """Two groups of four to a step of eight; the rows of a step hold as many tokens as it says."""
    source = steps(24, epochs=1.0)
    assert len(source) == 3 and all(source[s].normalizer == 8 for s in range(3))
    for s in range(3):
        assert source[s].tokens == sum(batch.pairs.rows.tokens.numel() for batch in source[s].micro_batches)


def test_metrics_are_counted_by_pair():
    batch = steps(24)[0].micro_batches[0]
    _, metrics = DPOModule(tiny_model(), OptimizerConfig(), lambda s: 0.0).micro_batch_loss(batch)
    assert {count for _, count in metrics.values()} == {len(batch.reference)} and len(batch.reference) > 1


def test_a_pair_as_long_as_the_window_is_kept():
    longest = max(len(sequence) for sequence in pairs(1)[0].separate())
    counted = Counted()
    assert len(dpo_pairs(preferences(1), tokenizer(), longest, OBJECTIVE, counted)) == 1
    assert dpo_pairs(preferences(1), tokenizer(), longest - 1, OBJECTIVE, counted) == []


def test_a_pair_that_fits_the_model_one_by_one_and_not_together_has_the_loss_of_separate_rows():
    """Positions restart after the prompt, so the shared stretch may be longer than the model's positions."""
    kept = pairs(9)
    longest = max(len(sequence) for pair in kept for sequence in pair.separate())
    kept = dpo_pairs(preferences(9), tokenizer(), longest, OBJECTIVE, Counted())
    assert len(kept) == 9 and min(map(len, kept)) > longest
    short = replace(tiny_model().config, max_seq_len=longest)
    policy, reference = Transformer(short), Transformer(short)
    policy.init_weights(1), reference.init_weights(0)
    losses = []
    for row in ("block", "separate"):
        data = dpo_rows(kept, OBJECTIVE, row)
        losses.append(dpo_terms(policy, DPOBatch(data, reference_logprobs(reference, [data])[0]), OBJECTIVE)["loss"])
    torch.testing.assert_close(*losses, rtol=0, atol=1e-5)


def test_the_tag_of_a_tool_call_counts_where_asked():
    calls = [(Message(Role.ASSISTANT, call=f"search({text})"),) for text in ("red", "blue")]
    row = Preference("x", "y", user("a"), *calls, Grade.BETTER)
    counts = [
        dpo_rows(dpo_pairs([row], tokenizer(), WINDOW, objective, Counted()), objective).counts
        for objective in (OBJECTIVE, DPOObjective(train_python_tag=True))
    ]
    assert (counts[1] - counts[0]).tolist() == [[1, 1]]


def test_settings_are_checked():
    for bad, message in (
        ({"beta": 0.0}, "objective: beta 0.0 must be > 0"),
        ({"nll_coefficient": -1.0}, "nll_coefficient -1.0 >= 0"),
        ({"rpo_alpha": -1.0}, "nll_coefficient -1.0 >= 0"),
        ({"rpo_alpha": 1.0, "nll_coefficient": 0.5}, "rpo_alpha 1.0 is another name of nll_coefficient, which is set to 0.5"),
        ({"label_smoothing": 0.5}, "label_smoothing must be in"),
        ({"label_smoothing": 0.1, "loss_type": "ipo"}, "no meaning in ipo: use sigmoid, sigmoid_norm, robust, or 0"),
        ({"loss_type": "dpo_norm"}, "Unknown loss_type 'dpo_norm'.*Choices: hinge, ipo"),
        ({"ld_alpha": 2.0}, "ld_alpha must be in"),
    ):
        with pytest.raises(UserError, match=message):
            DPOObjective(**bad)
    assert DPOObjective(rpo_alpha=1.0).nll_coefficient == 1.0


def test_the_fingerprint_tells_data_masks_and_rows_apart():
    def made(rows=None, objective=OBJECTIVE, row="block", seed=0, batch=300):
        data = dpo_pairs(rows or preferences(8), tokenizer(), WINDOW, objective, Counted())
        return DPOSteps(data, objective, 8, batch, 1.0, seed, row).fingerprint()

    changed = preferences(8)
    changed[3] = Preference("p", "q", changed[3].prompt, changed[3].chosen, says("pink?"), Grade.BETTER)
    prints = [made(), made(changed), made(objective=DPOObjective(ld_alpha=0.5)), made(row="separate"), made(seed=1),
              made(batch=100)]  # fmt: skip
    assert len(set(prints)) == len(prints)
    assert made() == prints[0]
    assert made(objective=DPOObjective(beta=0.5)) == prints[0]  # the reference does not depend on the loss


def test_the_fingerprint_tells_how_rows_are_laid_out(monkeypatch):
    """The same tokens, seen otherwise."""
    before = steps(8).fingerprint()

    def otherwise(*args):
        made = dpo_rows(*args)
        return replace(made, rows=replace(made.rows, mask=Documents(tuple((sum(row),) for row in made.rows.lengths))))

    monkeypatch.setattr(dpo, "dpo_rows", otherwise)
    assert steps(8).fingerprint() != before


def trained(folder: Path, stop_after: int | None = None):
    """A DPO run; `stop_after` kills the process itself, without a word, after so many steps."""
    model, source = tiny_model(), steps(24, epochs=4.0)
    module = DPOModule(model, OptimizerConfig(lr=3e-3), lambda step: 3e-3 / (1 + step))

    if stop_after is not None:
        before_step = module.before_step

        def die(step: int) -> None:
            if step == stop_after:
                os.kill(os.getpid(), signal.SIGKILL)
            before_step(step)

        module.before_step = die
    config = TrainerConfig(checkpoint_every_steps=2, log_every_steps=1)
    return model, fit(module, source, config, StageRun(folder, seed=0))


def test_training_raises_margins_on_unseen_pairs(tmp_path):
    model, result = trained(tmp_path)
    unseen = pairs(40)[24:]
    scores = evaluate_dpo(model, tiny_model(), unseen, OBJECTIVE)
    assert scores["rewards/accuracies"] >= 0.9
    assert scores["rewards/margins"] > 0
    assert result.last["loss"] < math.log(2) + 0.2 * 6
    assert {"rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "nll_loss"} <= set(result.last)


def test_g13_killed_and_started_again_gives_the_same_bits(tmp_path):
    whole, _ = trained(tmp_path / "whole")
    assert Child(lambda _: trained(tmp_path / "killed", stop_after=7) and None).end() == -signal.SIGKILL
    resumed, result = trained(tmp_path / "killed")
    assert result.resumed_at == 6
    assert same_weights(whole, resumed)
    assert not same_weights(whole, tiny_model())


def test_every_dialect_shares_the_prompt_alone():
    for dialect in DIALECTS.names():
        counted = Counted()
        (pair,) = dpo_pairs(preferences(1), tokenizer(), 9 * WINDOW, OBJECTIVE, counted, dialect)
        chosen, rejected = pair.responses
        assert chosen.tokens[0] == rejected.tokens[0] == tokenizer().start_header_id
        assert pair.prompt[0] == tokenizer().bos_id
        whole = render(preferences(1)[0].prompt + preferences(1)[0].best, tokenizer(), dialect=dialect).tokens
        assert np.array_equal(pair.separate()[0].tokens, whole)


def test_a_short_last_micro_batch_in_the_first_step_is_no_reason_to_refuse_processes():
    def source(seed, processes):
        steps = DPOSteps(pairs(17), OBJECTIVE, 8, 10**6, 1.0, seed=seed, processes=processes)
        steps.reference = [None] * len(steps.groups)
        return steps

    assert any(len(source(seed, 2)[0].micro_batches) == 1 for seed in range(8))
    for seed in range(8):
        require_shares(source(seed, 2), 2)
        with pytest.raises(UserError, match="cannot be shared equally by 16 processes"):
            require_shares(source(seed, 16), 16)
