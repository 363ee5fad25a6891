"""The stages that train, shared by two processes (DDP and FSDP2 over gloo): what one process makes, killed and resumed too."""

import shutil
from collections.abc import Set
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from posttraining import dialogs, preferences, tiny_model, tokenizer
from training_standin import Killed, on_two_ranks

from herd.alignment import dpo_stage, reference_cache, reward_stage, sft_stage
from herd.config.loader import compose
from herd.dialog.rows import write_jsonl
from herd.model.io import load_model, load_reward_model, read_weights, save_model
from herd.model.transformer import Transformer
from herd.recipe.job import make_job
from herd.runs.atomic import write_json
from herd.runs.metrics import read_metrics
from herd.runs.stage import Artifact, Stage, execute
from herd.training.module import HerdModule
from herd.training.rows import field_of

STAGES = (sft_stage.STAGE, reward_stage.STAGE, dpo_stage.STAGE)
# Steps of four micro-batches but for the last of an epoch, which has an odd number: a rank then has one less than the other.
QUICK = [
    "window=96",
    "epochs=1",
    "batch_size=4",
    "optimizer.lr=1e-3",
    "trainer.micro_batch_tokens=96",
    "trainer.log_every_steps=1",
    "trainer.checkpoint_every_steps=2",
    "++trainer.gc_every_steps=0",
]
KILLED_AT = 3


class Ranks:
    """Inputs on disk, and stages run on them by one process or by several."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.configs = {stage.name: make_job(stage.name, compose(stage.name, QUICK)).config for stage in STAGES}
        tokenizer().save(root / "tokens/tokenizer")
        shape = replace(tiny_model().config, tie_embeddings=False, n_layers=1)  # a head that a reward model has no use for
        save_model(Transformer(shape), root / "model/model")
        write_jsonl(root / "rows/dialogs.jsonl", [{"messages": [m.to_dict() for m in one]} for one in dialogs(27)])
        rows = [row.to_dict() for row in preferences(13)]
        write_jsonl(root / "rows/preferences.jsonl", rows)
        write_jsonl(root / "rows/heldout.jsonl", rows[:5])
        for name in ("tokens", "model", "rows"):
            write_json(root / name / "manifest.json", {"stage": name, "address": name, "metrics": {}, "outputs": {}})

    def run(self, stage: Stage, name: str, strategy: str = "single", devices: int = 1, **trainer: int) -> Artifact:
        rows, model = str(self.root / "rows"), str(self.root / "model")
        inputs = {
            "sft": {"base": model, "dialogs": {"seed": rows}},
            "reward": {"base": model, "preferences": {"one": rows}},
            "dpo": {"model": model, "preferences": rows},
        }[stage.name]
        config = self.configs[stage.name]
        config = replace(config, trainer=replace(config.trainer, strategy=strategy, devices=devices, **trainer))
        return execute(stage, config, {"tokens": str(self.root / "tokens"), **inputs}, self.root / name, "run")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> Ranks:
    return Ranks(tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def alone(ranks) -> dict[str, Artifact]:
    return {stage.name: ranks.run(stage, "alone") for stage in STAGES}


# Means over micro-batches of their extremes, as TRL's are.
OF_MICRO_BATCHES = {"min_reward", "max_reward"}


def learnt(artifact: Artifact, without: Set[str] = frozenset()) -> list[dict[str, float]]:
    """Rows of metrics without what a clock or the machine decides."""
    rows = read_metrics(artifact / "metrics.jsonl")
    clocked = {name for row in rows for name in row if (field := field_of(name)) and field.measured}
    return [{name: value for name, value in row.items() if name not in clocked | without} for row in rows]


def assert_equal(one: Artifact, other: Artifact, without: Set[str] = frozenset()) -> None:
    """But for the rounding of sums taken in another order."""
    expected, found = read_weights(one / "model"), read_weights(other / "model")
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-5, msg=name)
    rows, others = learnt(one, without), learnt(other, without)
    assert [row.keys() for row in others] == [row.keys() for row in rows]
    for row, same in zip(rows, others, strict=True):
        assert same == pytest.approx(row, rel=1e-4, abs=1e-5)
    for name, value in one.metrics.items():
        if isinstance(value, float) and name != "seconds":
            assert other.metrics[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_make_what_one_makes(ranks, alone, strategy, monkeypatch):
    def work(rank: int) -> None:
        plain = HerdModule.before_step

        def dies(self, step):
            if step == KILLED_AT:
                raise Killed
            plain(self, step)

        for stage in STAGES:
            HerdModule.before_step = dies
            with pytest.raises(Killed):
                ranks.run(stage, f"{strategy}-both", strategy, 2)
            HerdModule.before_step = plain
            if rank == 0:
                (left,) = (ranks.root / f"{strategy}-both/store").glob(f".partial-{stage.name}-*")
                shutil.copytree(left, ranks.root / f"{strategy}-one/store" / left.name)
            ranks.run(stage, f"{strategy}-both", strategy, 2)

    assert on_two_ranks(work) == [0, 0]
    monkeypatch.setattr(reference_cache, "reference_logprobs", lambda *args: pytest.fail("the reference's numbers are there"))
    for stage in STAGES:
        assert len(learnt(alone[stage.name])) > KILLED_AT
        both = ranks.run(stage, f"{strategy}-both")  # is there
        one = ranks.run(stage, f"{strategy}-one")  # goes on alone from what the killed two have left
        for artifact in (both, one):
            assert_equal(alone[stage.name], artifact)
        if stage.name == "reward":
            load_reward_model(both / "model")
        else:
            load_model(both / "model")


def test_micro_batches_that_hold_a_whole_step_are_cut_for_the_ranks(ranks):
    """As the defaults are: the same pairs, rows and comparisons in a step, so the same result."""
    whole = {"micro_batch_tokens": 8192}
    assert on_two_ranks(lambda rank: [ranks.run(stage, "cut-both", "ddp", 2, **whole) for stage in STAGES] and None) == [0, 0]
    for stage in STAGES:
        assert_equal(ranks.run(stage, "whole", **whole), ranks.run(stage, "cut-both", **whole), OF_MICRO_BATCHES)
