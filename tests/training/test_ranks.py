"""Several processes on one machine give what one process gives: DDP and FSDP2 over gloo, forked from the test."""

import os
import signal
from pathlib import Path

import pytest
import torch
from pretrain_standin import config as pretrain_config
from pretrain_standin import finished_corpus, write_corpus
from training_standin import Points, Poisoned, Regression, on_two_ranks

from herd.config.errors import UserError
from herd.config.loader import from_dict, to_plain
from herd.model.io import load_model
from herd.runs.metrics import read_metrics
from herd.runs.stage import Artifact, StageRun, execute
from herd.training import pretrain_stage
from herd.training.checkpoint import CheckpointStore, step_of
from herd.training.fit import FitResult, fit
from herd.training.spikes import SpikeConfig
from herd.training.trainer_config import TrainerConfig

# Rows of 8 in micro-batches of 2: two a rank.
STEPS = Points(steps=6, rows=8, micro=2)


def train(folder: Path, module: Regression, **settings) -> None:
    config = TrainerConfig(checkpoint_every_steps=4, log_every_steps=3, **settings)
    fit(module, STEPS, config, StageRun(folder, seed=0))


def double() -> Regression:
    module = Regression()
    module.model.double()
    return module


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_equal_one(tmp_path, strategy):
    def work(rank: int) -> None:
        module = double()
        train(tmp_path / strategy, module, strategy=strategy, devices=2)
        torch.save(module.model.state_dict(), tmp_path / f"rank-{rank}.pt")

    single = double()
    train(tmp_path / "single", single)
    assert on_two_ranks(work) == [0, 0]
    ranks = [torch.load(tmp_path / f"rank-{rank}.pt") for rank in range(2)]
    for name, weight in single.model.state_dict().items():
        assert torch.equal(ranks[0][name], ranks[1][name])
        torch.testing.assert_close(ranks[0][name], weight, rtol=1e-10, atol=1e-12)
    one, two = (read_metrics(tmp_path / run / "metrics.jsonl") for run in ("single", strategy))
    assert [row["step"] for row in two] == [3, 6]
    for key in ("loss", "absolute", "grad_norm", "num_tokens"):
        assert [row[key] for row in two] == pytest.approx([row[key] for row in one], rel=1e-6), key
    assert len(CheckpointStore(tmp_path / strategy / ".scratch/checkpoints").files()) == 1


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_pretrain_through_all_stages(tmp_path, strategy):
    """Stage ends, averaging, RoPE, evaluation and saving with sharded weights; killed once and resumed."""
    inputs = write_corpus(tmp_path / "corpus")
    settings = {"curriculum__tokens": 2048, "trainer__micro_batch_tokens": 64}
    expected = pretrain_stage.run(pretrain_config(**settings), inputs, StageRun(tmp_path / "single", seed=0))
    on_ranks = pretrain_config(**settings, trainer__strategy=strategy, trainer__devices=2)

    def work(rank: int, dies: bool) -> None:
        def before(self, step, plain=pretrain_stage.PretrainModule.before_step):
            if dies and step == 8:
                os._exit(9)
            plain(self, step)

        pretrain_stage.PretrainModule.before_step = before  # in the child alone
        metrics = pretrain_stage.run(on_ranks, inputs, StageRun(tmp_path / "ranks", seed=0))
        assert metrics["loss"] == pytest.approx(expected["loss"], rel=1e-4)

    assert on_two_ranks(lambda rank: work(rank, dies=True)) == [9, 9]
    assert on_two_ranks(lambda rank: work(rank, dies=False)) == [0, 0]
    for folder in ("model", "stages/initial", "stages/annealing"):
        one, two = (load_model(tmp_path / run / folder) for run in ("single", "ranks"))
        assert one.config == two.config
        for (name, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=name)
    rows = [read_metrics(tmp_path / run / "metrics.jsonl") for run in ("single", "ranks")]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    assert [row["loss"] for row in rows[1]] == pytest.approx([row["loss"] for row in rows[0]], rel=1e-4)


def test_devices_without_processes_are_refused(tmp_path):
    with pytest.raises(UserError, match="torchrun --nproc-per-node 2"):
        train(tmp_path, double(), strategy="ddp", devices=2)


def test_a_signal_to_one_rank_stops_all_at_the_same_step(tmp_path):
    def work(rank: int) -> None:
        module = double()
        plain = module.before_step

        def before_step(step: int) -> None:
            plain(step)
            if step == 2 and rank == 1:
                os.kill(os.getpid(), signal.SIGUSR1)

        module.before_step = before_step
        train(tmp_path / "ranks", module, strategy="ddp", devices=2)

    assert on_two_ranks(work) == [75, 75]
    (newest,) = CheckpointStore(tmp_path / "ranks/.scratch/checkpoints").files()
    assert step_of(newest) == 3


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_go_back_before_a_spike_together(tmp_path, strategy):
    spikes = SpikeConfig("rewind", window=4, least=2, sigma=6.0)
    source = Poisoned({9}, 30.0, steps=14, rows=8, micro=2)

    def run(folder: Path, module: Regression, **settings) -> FitResult:
        config = TrainerConfig(checkpoint_every_steps=4, log_every_steps=3, spikes=spikes, **settings)
        return fit(module, source, config, StageRun(folder, seed=0))

    def work(rank: int) -> None:
        module = double()
        assert run(tmp_path / "ranks", module, strategy=strategy, devices=2).left_out == [(8, 10)]
        torch.save(module.model.state_dict(), tmp_path / f"{rank}.pt")

    single = double()
    assert run(tmp_path / "single", single).left_out == [(8, 10)]
    assert on_two_ranks(work) == [0, 0]
    for rank in range(2):
        ranked = torch.load(tmp_path / f"{rank}.pt")
        for name, weight in single.model.state_dict().items():
            torch.testing.assert_close(ranked[name], weight, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_run_the_whole_stage_from_its_entrance(tmp_path, strategy):
    """As torchrun starts them: each rank asks the store for the stage, one makes it, both get it."""
    corpus = finished_corpus(tmp_path / "corpus")
    values = to_plain(pretrain_config(trainer__strategy=strategy, trainer__devices=2, trainer__micro_batch_tokens=64))
    values["model"]["n_layers"] = 1
    values["curriculum"] |= {
        "tokens": 1024,
        "stages": {"initial": {"schedule": {"kind": "constant"}, "ramp": [{"batch": 1.0, "seq_len": 32}]}},
    }
    config = from_dict(pretrain_stage.PretrainConfig, values)

    def work(rank: int) -> None:
        artifact = execute(pretrain_stage.STAGE, config, {"tokens": corpus}, tmp_path / "runs", "run")
        (tmp_path / f"got-{rank}").write_text(str(artifact.path))

    assert on_two_ranks(work) == [0, 0]
    artifact = Artifact.open(tmp_path / "runs/run/pretrain")
    assert {(tmp_path / f"got-{rank}").read_text() for rank in range(2)} == {str(artifact.path)}
    assert [row["step"] for row in read_metrics(artifact / "metrics.jsonl")] == [4]
    assert artifact.metrics["steps"] == 4
    assert load_model(artifact / "model").config.n_layers == 1
    assert on_two_ranks(work) == [0, 0]
