"""Groups of responses that share their prompt: in one row the numbers of separate rows."""

import numpy as np
import pytest
import torch
from posttraining import tiny_model
from torch import Tensor

from herd.model.masks import Branches, Documents
from herd.training.sequences import Group, SequenceRows, TrainingSequence, one_row, pack_groups, pack_sequences

SIZES = ((9, (5, 7)), (4, (3, 8, 6)), (6, (5,)), (9, (7, 5)))  # prompts and their responses
WINDOW, PAD = 48, 7


def groups(sizes=SIZES, seed: int = 0) -> list[Group]:
    """Random tokens; of each response all but the first two are trained, all but its last preferred."""
    generator = np.random.default_rng(seed)
    made = []
    for prompt, responses in sizes:
        start = generator.integers(20, 300, prompt)
        sequences = []
        for n in responses:
            tokens = np.concatenate((start, generator.integers(20, 300, n)))
            trained = np.arange(prompt + n) >= prompt + 2
            sequences.append(TrainingSequence(tokens, trained, trained & (np.arange(prompt + n) < prompt + n - 1)))
        made.append(Group.of(sequences, prompt))
    return made


def logprobs(model: torch.nn.Module, rows: SequenceRows) -> Tensor:
    """Log-probability of each trained token, (M,)."""
    logits = model.logits(rows.at_places(model(rows.tokens, rows.positions, rows.mask)))
    return logits.log_softmax(-1).gather(1, rows.targets[:, None]).squeeze(1)


def separate(data: list[Group]) -> list[TrainingSequence]:
    return [s for group in data for s in group.separate()]


def test_a_group_is_its_sequences():
    (group,) = groups(SIZES[:1])
    assert len(group) == 21
    assert group.sizes == (9, 5, 7)
    again = Group.of(group.separate(), 9)
    for a, b in zip(again.responses, group.responses, strict=True):
        assert np.array_equal(a.tokens, b.tokens)
        assert np.array_equal(a.preferred, b.preferred)


@pytest.mark.parametrize("attention", ["sdpa", "documents"])
def test_g7_shared_prompts_give_the_numbers_of_separate_rows(attention):
    model, data = tiny_model().double(), groups()
    model.attention = attention
    wanted = torch.cat([logprobs(model, pack_sequences([s], len(s), PAD)) for s in separate(data)])
    for rows in (one_row(data), pack_groups(data, WINDOW, PAD)):
        order = torch.argsort(rows.owners, stable=True)
        torch.testing.assert_close(logprobs(model, rows)[order], wanted, rtol=0, atol=1e-12)
        gradient = torch.autograd.grad(logprobs(model, rows).sum(), model.parameters())
        for a, b in zip(gradient, torch.autograd.grad(wanted.sum(), model.parameters(), retain_graph=True), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    assert rows.tokens.shape[1] == WINDOW
    assert (rows.tokens == PAD).sum() == rows.tokens.numel() - sum(map(len, data))
    assert one_row(data).tokens.shape == (1, sum(map(len, data)))


@torch.no_grad()
def test_changing_one_response_changes_nothing_of_the_other():
    model, data = tiny_model(), groups()
    before = one_row(data)
    for changed, other in ((0, 1), (1, 0)):
        tokens = before.tokens.clone()
        tokens[0, before.ends[changed] - 1] += 1
        moved = logprobs(model, before) - logprobs(model, SequenceRows(**{**vars(before), "tokens": tokens}))
        assert (moved[before.owners == changed] != 0).any()
        assert (moved[before.owners == other] == 0).all()  # to the bit
        assert (moved[before.owners > 1] == 0).all()


@torch.no_grad()
def test_causal_rows_are_one_text_and_only_their_first_responses_are_exact():
    model, data = tiny_model(), groups(SIZES[:2])
    rows = one_row(data, causal=True)
    assert rows.mask == Documents(((21, 21),))
    assert rows.positions.tolist() == [[*range(21), *range(21)]]
    wanted = torch.cat([logprobs(model, pack_sequences([s], len(s), PAD)) for s in separate(data)])
    off = (logprobs(model, rows) - wanted).abs()
    first = (rows.owners == 0) | (rows.owners == 2)
    assert off[first].max() < 1e-5
    assert off[~first].min() > 1e-5


def test_positions_and_places_of_a_packed_group():
    rows = pack_groups(groups(SIZES[:2]), WINDOW, PAD)
    assert rows.mask == Branches((((9, 5, 7), (4, 3, 8, 6), (6,)),))
    assert rows.positions[0].tolist() == [
        *range(14), *range(9, 16), *range(7), *range(4, 12), *range(4, 10), *[0] * 6
    ]  # fmt: skip
    assert rows.ends.tolist() == [13, 20, 27, 35, 41]
    sequences = separate(groups(SIZES[:2]))
    for i, sequence in enumerate(sequences):
        assert rows.targets[rows.owners == i].tolist() == sequence.tokens[sequence.trained].tolist()


def test_what_is_no_group_is_refused():
    (group,) = groups(SIZES[:1])
    first, second = group.separate()
    with pytest.raises(AssertionError, match="prompts differ"):
        Group.of([first, second], 10)
    with pytest.raises(AssertionError, match="no response predicts"):
        Group.of([first], 11)
    with pytest.raises(AssertionError, match="need a prompt"):
        Group(group.prompt[:0], group.responses)
