"""What a step of SFT, DPO or a reward model costs, against a count by hand over the tokens that see each other."""

import numpy as np
import pytest
import torch
from posttraining import tiny_model

from herd.dialog.preferences import Grade
from herd.model.heads import RewardModel
from herd.runs.metrics import read_metrics
from herd.runs.stage import StageRun
from herd.training.dpo import DPOModule, DPOObjective, DPOSteps
from herd.training.fit import fit
from herd.training.meters import Flops
from herd.training.optimizer import OptimizerConfig
from herd.training.reward import Comparison, RewardModule, RowLayout, reward_steps
from herd.training.sequences import EpochSteps, Group, TrainingSequence
from herd.training.sft import SFTModule, sft_steps
from herd.training.trainer_config import TrainerConfig

# Of the tiny model: 2 layers of width 32 with 2 heads, 1 of them with keys and values, feed-forward of 64.
BLOCKS = 2 * (32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64)
PAIR_OF_TOKENS = 2 * 2 * 3 * 2 * 32  # scores and values, a multiply-add, forward and twice backward, layers, width


def sequence(tokens: int, trained: int = 0) -> TrainingSequence:
    """The last ``trained`` tokens have targets."""
    mask = np.arange(tokens) >= tokens - trained
    return TrainingSequence(np.full(tokens, 5), mask, mask)


def by_hand(tokens: int, predicted: int, vocab: int, rows: list[int], seen: float) -> Flops:
    """``seen``: pairs of tokens that see each other, where a token sees half of itself."""
    matrices = 6 * (tokens * BLOCKS + predicted * vocab * 32)
    square = sum(n * n for n in rows)
    return Flops(*(matrices + PAIR_OF_TOKENS * pairs for pairs in (square, square / 2, seen)))


def triangle(tokens: int) -> float:
    return tokens * tokens / 2


def check(flops: Flops | None, expected: Flops) -> None:
    assert flops is not None
    for name in ("full", "causal", "document"):
        assert getattr(flops, name) == pytest.approx(getattr(expected, name), rel=1e-12), name


@pytest.mark.parametrize("row", ["block", "separate"])
def test_dpo_counts_a_shared_prompt_once_and_the_reference_not_at_all(row):
    model = tiny_model()
    pair = Group(np.full(20, 5), (sequence(8, 5), sequence(12, 9)))
    source = DPOSteps([pair], DPOObjective(), 1, 100, 1.0, 0, row)
    source.reference = [torch.zeros(1, 2)]
    flops = DPOModule(model, OptimizerConfig(), lambda s: 0.0).step_flops(source[0])
    if row == "block":  # each response sees the prompt and itself
        seen = triangle(20) + 20 * 8 + triangle(8) + 20 * 12 + triangle(12)
        check(flops, by_hand(40, 14, model.config.vocab_size, [40], seen))
    else:
        check(flops, by_hand(60, 14, model.config.vocab_size, [60], triangle(28) + triangle(32)))


@pytest.mark.parametrize(
    ("row", "tokens", "seen"),
    [
        ("block", 22, triangle(10) + 10 * 4 + triangle(4) + 10 * 5 + triangle(5) + 10 * 3 + triangle(3)),
        ("causal", 22, triangle(22)),
        ("separate", 42, triangle(14) + triangle(15) + triangle(13)),
    ],
)
def test_the_reward_model_has_a_scalar_head_and_no_vocabulary(row, tokens, seen):
    model = RewardModel(tiny_model())
    data = [Comparison(tuple(sequence(10 + n) for n in (4, 5, 3)), 10, Grade.BETTER)] * 2
    source = reward_steps(data, RowLayout(64, 0, row), 2, 64, 1.0, 0)
    flops = RewardModule(model, OptimizerConfig(), lambda s: 0.0).step_flops(source[0])
    # Both comparisons; each token, padding aside, in a row of 64. The scalar head is a vocabulary of one.
    expected = by_hand(2 * tokens, 2 * tokens, 1, [], 2 * seen)
    check(flops, Flops(*(expected.document + PAIR_OF_TOKENS * (p - 2 * seen) for p in (128 * tokens, 64 * tokens, 2 * seen))))


def test_sft_counts_the_head_where_it_is_applied():
    model = tiny_model()
    source = sft_steps([sequence(30, 10), sequence(20, 20)], 64, 0, 1, 1, 1.0, 0)
    flops = SFTModule(model, OptimizerConfig(), lambda s: 0.0).step_flops(source[0])
    # The first token of a sequence is never a target; 14 tokens of padding see each other.
    check(flops, by_hand(64, 29, model.config.vocab_size, [64], triangle(30) + triangle(20) + triangle(14)))


def test_a_run_reports_its_utilisation(tmp_path):
    source = DPOSteps([Group(np.full(6, 5), (sequence(8, 5), sequence(9, 7)))] * 2, DPOObjective(), 2, 100, 2.0, 0)
    with_reference(source)
    config = TrainerConfig(log_every_steps=1, peak_tflops=1.0)
    fit(DPOModule(tiny_model(), OptimizerConfig(), lambda s: 0.0), source, config, StageRun(tmp_path, seed=0))
    row = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert row["flops_per_second"] > 0 and 0 < row["mfu_document"] < row["mfu_causal"] < row["mfu_full"]


def with_reference(source: DPOSteps) -> DPOSteps:
    source.reference = [torch.zeros(len(group.counts), 2) for group in source.groups]
    return source


def sources() -> dict[str, EpochSteps]:
    data = [Comparison(tuple(sequence(10 + i % 3 + n) for n in (4, 5, 3)), 10, Grade.BETTER) for i in range(8)]
    return {
        "reward": reward_steps(data, RowLayout(64, 0, "block"), 4, 40, 1.0, 0),
        "sft": sft_steps([sequence(40 + i, 10) for i in range(8)], 64, 0, 4, 1, 1.0, 0),
        "dpo": with_reference(
            DPOSteps([Group(np.full(6, 5), (sequence(8, 5), sequence(9, 7)))] * 8, DPOObjective(), 4, 1, 1.0, 0)
        ),
    }


@pytest.mark.parametrize("kind", ["reward", "sft", "dpo"])
def test_a_rank_makes_no_rows_but_its_own(kind, monkeypatch):
    """The same ones as if it made all; figures of the step are those of all ranks."""
    from herd.training import dpo, reward, sft

    made: list[int] = []
    module, name = {"reward": (reward, "reward_batch"), "sft": (sft, "lay_out"), "dpo": (dpo, "dpo_rows")}[kind]
    plain = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args, **settings: made.append(1) or plain(*args, **settings))
    source = sources()[kind]
    made.clear()  # for the reference
    whole = list(source[1].micro_batches)
    assert len(whole) == len(made) == 4
    rows_of = {"reward": lambda one: one.rows, "sft": lambda one: one, "dpo": lambda one: one.pairs.rows}
    for rank in range(2):
        made.clear()
        share = source[1].for_rank(rank, 2)
        assert len(made) == 2
        for mine, same in zip(share.micro_batches, whole[rank::2], strict=True):
            a, b = (rows_of[kind](one) for one in (mine, same))
            assert torch.equal(a.tokens, b.tokens) and torch.equal(a.ends, b.ends) and a.lengths == b.lengths
            assert kind != "reward" or torch.equal(mine.better, same.better)
        assert (share.normalizer, share.tokens, share.squares) == (source[1].normalizer, source[1].tokens, source[1].squares)
