"""Packed dialogs: the same numbers as separate rows, assistant-only targets, bad rows counted."""

import math

import numpy as np
import pytest
import torch
from posttraining import WINDOW, dialogs, says, tiny_model, tokenizer, user

from herd.config.errors import UserError
from herd.dialog.masks import sft_mask
from herd.dialog.messages import Message, Role
from herd.dialog.render import render
from herd.dialog.rows import Counted
from herd.runs.stage import StageRun
from herd.training.fit import fit
from herd.training.optimizer import OptimizerConfig
from herd.training.sequences import EpochSteps, fit_window, group_size, pack_sequences, shared_size
from herd.training.sft import SFTModule, resample, rows_nll, sft_loss, sft_sequences, sft_steps
from herd.training.steps import StepBatch
from herd.training.trainer_config import TrainerConfig


def sequences(count=10):
    return sft_sequences(dialogs(count), tokenizer(), WINDOW, Counted())


def separate_nll(model, messages) -> tuple[float, int]:
    """One dialog alone, no packing, the plain way: logits, log-softmax, the masked tokens after the first."""
    rendered = render(messages, tokenizer())
    tokens = torch.from_numpy(rendered.tokens)[None]
    logprobs = model.logits(model(tokens)).log_softmax(-1)[0, :-1].gather(1, tokens[0, 1:, None]).squeeze(1)
    mask = torch.from_numpy(sft_mask(rendered)[1:])
    return -logprobs[mask].sum().item(), int(mask.sum())


def test_g8_packed_loss_is_the_separate_rows_loss():
    model, packed = tiny_model(), pack_sequences(sequences(), WINDOW, tokenizer().pad_id)
    assert len(packed.tokens) < 10  # several dialogs share a row
    alone = [separate_nll(model, d) for d in dialogs(10)]
    assert rows_nll(model, packed).item() == pytest.approx(sum(nll for nll, _ in alone), rel=1e-5)
    assert len(packed.targets) == sum(count for _, count in alone)


def test_each_sequence_of_a_packed_row_has_its_own_targets():
    parts = sequences(10)
    packed = pack_sequences(parts, WINDOW, tokenizer().pad_id)
    assert packed.tokens.shape[1] == WINDOW
    flat = packed.tokens.flatten()
    for i, sequence in enumerate(parts):
        # What is trained of sequence i, and the token before each of these.
        mine = packed.owners == i
        trained = np.flatnonzero(sequence.trained)
        assert packed.targets[mine].tolist() == sequence.tokens[trained].tolist()
        assert flat[packed.places[mine]].tolist() == sequence.tokens[trained - 1].tolist()
        assert flat[packed.ends[i]] == sequence.tokens[-1] == tokenizer().eot_id
        assert packed.positions.flatten()[packed.ends[i]] == len(sequence) - 1
    assert all(sum(row) == WINDOW for row in packed.lengths)
    assert (packed.tokens == tokenizer().pad_id).sum() == packed.tokens.numel() - sum(map(len, parts))


def test_targets_are_the_assistants_words_and_its_end_of_turn():
    one = sft_sequences([user("Say red.") + says("red.")], tokenizer(), WINDOW, Counted())
    packed = pack_sequences(one, WINDOW, tokenizer().pad_id)
    assert tokenizer().decode(packed.targets.tolist()) == "red.<|eot_id|>"


def test_g9_accumulation_over_micro_batches_gives_the_same_gradient():
    def gradient(micro_batch_rows):
        model = tiny_model()
        source = sft_steps(sequences(), WINDOW, tokenizer().pad_id, 8, micro_batch_rows, epochs=1, seed=0)
        batch = source[0]
        for rows in batch.micro_batches:
            (rows_nll(model, rows) / batch.normalizer).backward()
        return len(batch.micro_batches), torch.cat([p.grad.flatten() for p in model.parameters()])

    (one, together), (many, apart) = gradient(8), gradient(1)
    assert one == 1
    assert many > 1
    assert (together - apart).norm() < 1e-5 * together.norm()


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (user("hello"), "no_assistant_turn"),
        (user("hello") + says(" "), "empty_response"),
        (user("long " * WINDOW) + says("red."), "prompt_too_long"),
        (
            (Message(Role.USER, "a"), Message(Role.IPYTHON, "7"), Message(Role.ASSISTANT, "b")),
            "tool_result_without_call",
        ),
    ],
)
def test_g10_a_dialog_with_nothing_to_train_is_dropped_and_counted(messages, reason):
    counted = Counted()
    kept = sft_sequences([messages, *dialogs(2)], tokenizer(), WINDOW, counted)
    assert len(kept) == counted.kept == 2
    assert counted.dropped == {reason: 1}
    loss = rows_nll(tiny_model(), pack_sequences(kept, WINDOW, tokenizer().pad_id))
    assert math.isfinite(loss.item())


def test_g11_truncation_leaves_something_to_train():
    counted = Counted()
    answer = user("hello") + says("red " * WINDOW)
    (kept,) = sft_sequences([answer], tokenizer(), WINDOW, counted)
    assert len(kept) == WINDOW
    assert kept.trained.any()
    assert counted.dropped == {"truncated": 1}
    rendered = render(user("hello") + says("red."), tokenizer())
    first = int(np.flatnonzero(sft_mask(rendered))[0])
    # A window that ends right before the first trained token keeps nothing; one token more keeps one.
    assert fit_window(rendered, sft_mask(rendered), first) == (None, "prompt_too_long")
    cut, note = fit_window(rendered, sft_mask(rendered), first + 1)
    assert note == "truncated"
    assert sft_mask(cut).sum() == 1


def test_a_dialog_as_long_as_the_window_is_whole_and_its_first_token_is_no_target():
    rendered = render(user("hello") + says("red."), tokenizer())
    assert fit_window(rendered, sft_mask(rendered), len(rendered)) == (rendered, None)
    first_alone = np.arange(len(rendered)) == 0
    assert fit_window(rendered, first_alone, 100) == (None, "nothing_to_train")
    first_and_last = first_alone | (np.arange(len(rendered)) == len(rendered) - 1)
    assert fit_window(rendered, first_and_last, len(rendered) - 1) == (None, "prompt_too_long")


def test_the_loss_is_a_mean_over_tokens_whatever_the_batch():
    model, data = tiny_model(), sequences(5)
    nlls, counts = zip(*(separate_nll(model, messages) for messages in dialogs(5)), strict=True)
    for batch_size in (2, 64):
        found = sft_loss(model, data, WINDOW, tokenizer().pad_id, batch_size)
        assert found == pytest.approx(sum(nlls) / sum(counts), rel=1e-5)


@pytest.mark.parametrize(("weight", "total"), [(2.0, 20), (0.5, 5), (1.0, 10), (2.3, 23), (0.0, 0)])
def test_weights_repeat_and_subsample_a_source(weight, total):
    data = sequences(10)
    drawn = resample(data, weight, seed=3, label="seed")
    times = [sum(d is s for d in drawn) for s in data]
    assert len(drawn) == sum(times) == total
    assert set(times) <= {int(weight), int(weight) + 1}
    again = resample(data, weight, seed=3, label="seed")
    assert all(a is b for a, b in zip(drawn, again, strict=True))  # a resumed run draws the same
    if weight == 0.5:
        picks = {tuple(s.tokens.tolist() for s in resample(data, weight, seed, label)).__repr__()
                 for seed in (3, 4) for label in ("seed", "round-1")}  # fmt: skip
        assert len(picks) == 4


def test_nothing_left_is_refused():
    with pytest.raises(UserError, match="no row is left"):
        sft_steps([], WINDOW, 0, 2, 2, epochs=1, seed=0)


def test_every_epoch_sees_every_row_once_in_another_order():
    seen: list[list[int]] = []
    source = EpochSteps([10] * 7, 3, 2, seed=0, build=lambda step, units: StepBatch(step, [units], 1.0, 10 * len(units)))
    for step in range(len(source)):
        seen.append(source[step].micro_batches[0])
    assert len(source) == 6
    first, second = ([unit for step in epoch for unit in step] for epoch in (seen[:3], seen[3:]))
    assert sorted(first) == sorted(second) == list(range(7))
    assert first != second
    assert [source.tokens_at(step) for step in range(7)] == [0, 30, 60, 70, 100, 130, 140]
    assert source[4].micro_batches == source[4].micro_batches


def test_the_order_is_that_of_the_seed_and_epochs_are_rounded_to_steps():
    def source(seed=0, epochs=1.0):
        return EpochSteps([10] * 7, 3, epochs, seed, build=lambda step, units: StepBatch(step, [units], 1.0, 10 * len(units)))

    assert [source(0).units_of(s) for s in range(3)] != [source(1).units_of(s) for s in range(3)]
    assert [len(source(epochs=epochs)) for epochs in (0.1, 0.6, 1.6, 2)] == [1, 2, 5, 6]


def test_micro_batches_are_cut_so_that_processes_share_them_equally():
    assert [shared_size(4, 16, processes) for processes in (1, 2, 4)] == [16, 2, 1]
    assert shared_size(5, 5, 2) == 3  # 3 + 2
    assert shared_size(16, 4, 2) == 4  # four of four, as for one process
    assert shared_size(8, 8, 4, parts=2) == 4
    assert (shared_size(4, 4, 3), shared_size(2, 2, 4)) == (4, 2)  # there is none: refused when the step is made


def test_group_size_divides_the_batch_and_fits():
    assert group_size(12, tokens_each=100, micro_batch_tokens=600) == 6
    assert group_size(12, tokens_each=100, micro_batch_tokens=500) == 4
    assert group_size(12, tokens_each=1000, micro_batch_tokens=500) == 1
    assert group_size(7, tokens_each=1, micro_batch_tokens=500) == 7


def test_training_learns_to_copy_the_colour(tmp_path):
    model, data = tiny_model(), sequences(32)
    source = sft_steps(data, WINDOW, tokenizer().pad_id, 4, 2, epochs=12, seed=0)
    before = sft_loss(model, data, WINDOW, tokenizer().pad_id)
    module = SFTModule(model, OptimizerConfig(lr=1e-2), lambda step: 1e-2)
    result = fit(module, source, TrainerConfig(log_every_steps=4), StageRun(tmp_path, seed=0))
    after = sft_loss(model, data, WINDOW, tokenizer().pad_id)
    assert after < 0.5 * before
    assert result.tokens == source.tokens_at(len(source))
