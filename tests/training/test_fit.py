"""The base module and the trainer's assembly: accumulation, resume, checkpoints, metrics, and a clean process
afterwards.
"""

import gc
import logging
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_standin import Killed, Points, Regression, assert_same, kill_at, timeless, train, weights

from herd.config.errors import UserError
from herd.runs.metrics import read_metrics
from herd.training.garbage import collected_on_demand
from herd.training.spikes import Diverged
from herd.training.steps import Filler, step_loader
from herd.training.trainer_config import TrainerConfig


def test_one_training_step_is_one_optimizer_step(tmp_path):
    module, result = train(tmp_path)
    assert module.steps_seen == list(range(12))
    assert (result.steps, result.tokens, result.resumed_at) == (12, 120, 0)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [4, 8, 12]
    assert [row["num_tokens"] for row in rows] == [40, 80, 120]
    assert rows[-1]["learning_rate"] == 1e-2 / 12
    assert {"loss", "grad_norm", "absolute", "tokens_per_second"} <= rows[0].keys()


def test_metrics_are_means_over_the_interval(tmp_path):
    frozen = Regression(schedule=lambda step: 0.0)
    module, _ = train(tmp_path, module=frozen)
    source = Points()
    squares, absolutes = [], []
    for step in range(4):
        points = torch.cat(source[step].micro_batches)
        error = module.model(points[:, :4])[:, 0] - points[:, 4]
        squares.append(error.square().mean().item())
        absolutes.append(error.abs().mean().item())
    first = read_metrics(tmp_path / "metrics.jsonl")[0]
    assert first["loss"] == pytest.approx(sum(squares) / 4, rel=1e-5)
    assert first["absolute"] == pytest.approx(sum(absolutes) / 4, rel=1e-5)


@pytest.mark.parametrize("micro", [1, 3, 7])
def test_accumulation_does_not_change_the_result(tmp_path, micro):
    whole, _ = train(tmp_path / "whole", Points(micro=10))
    parts, _ = train(tmp_path / "parts", Points(micro=micro))
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(tensor, weights(parts)[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("step", [1, 3, 4, 8, 11])
def test_resume_gives_the_same_bits(tmp_path, step):
    straight, _ = train(tmp_path / "straight")
    with pytest.raises(Killed):
        train(tmp_path / "killed", callbacks=[kill_at(step)])
    resumed, result = train(tmp_path / "killed")
    assert result.resumed_at == step // 3 * 3
    assert resumed.steps_seen == list(range(step // 3 * 3, 12))
    assert_same(weights(straight), weights(resumed))
    assert timeless(tmp_path / "straight") == timeless(tmp_path / "killed")


def test_a_finished_fit_can_be_asked_again(tmp_path):
    first, _ = train(tmp_path)
    again, result = train(tmp_path)
    assert result.resumed_at == 12
    assert again.steps_seen == []
    assert_same(weights(first), weights(again))


def test_workers_change_nothing(tmp_path):
    alone, _ = train(tmp_path / "alone")
    helped, _ = train(tmp_path / "helped", num_workers=2)
    assert_same(weights(alone), weights(helped))


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_starts_anywhere_in_order(workers):
    steps = [batch.step for batch in step_loader(Points(steps=11), first=4, num_workers=workers)]
    assert steps == list(range(4, 11))


def test_ranks_share_a_step(tmp_path):
    batch = Points(rows=8, micro=2)[0]
    shares = [batch.for_rank(rank, 2) for rank in range(2)]
    assert torch.equal(shares[1].micro_batches[1], batch.micro_batches[3])
    assert {share.normalizer for share in shares} == {8.0}


def test_a_rank_that_has_less_gets_a_filler():
    batch = Points(rows=8, micro=2)[0]
    shares = [batch.for_rank(rank, 3).micro_batches for rank in range(3)]
    assert [len(share) for share in shares] == [2, 2, 2]
    assert [type(share[1]) for share in shares] == [torch.Tensor, Filler, Filler]
    assert isinstance(batch.for_rank(4, 5).micro_batches[0], Filler)
    assert not replace(batch, micro_batches=[]).for_rank(1, 2).micro_batches
    with pytest.raises(UserError, match=r"cannot be shared equally by 3 processes \(a step has 4 micro-batches"):
        batch.check_shares(3)
    batch.check_shares(2)


def test_checkpoint_of_another_run_is_refused(tmp_path):
    with pytest.raises(Killed):
        train(tmp_path, callbacks=[kill_at(5)])
    with pytest.raises(UserError, match=r"another run .different: steps, tokens"):
        train(tmp_path, Points(steps=20))


def test_divergence_stops_the_run(tmp_path):
    with pytest.raises(Diverged, match=r"diverged: in 5 steps in a row .* not finite.*last is step 5"):
        train(tmp_path, module=Regression(schedule=lambda step: float("nan")))


def test_gradient_is_clipped(tmp_path):
    free, _ = train(tmp_path / "free", gradient_clip=0.0)
    clipped, result = train(tmp_path / "clipped", gradient_clip=1e-4)
    assert result.last["grad_norm"] > 1e-2  # reported before clipping
    assert any(not torch.equal(a, b) for a, b in zip(weights(free).values(), weights(clipped).values(), strict=True))


def test_process_is_left_as_it_was(tmp_path):
    def state():
        return (
            signal.getsignal(signal.SIGTERM),
            signal.getsignal(signal.SIGUSR1),
            signal.getsignal(signal.SIGINT),
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            threading.active_count(),
            dict(os.environ),
            (gc.isenabled(), gc.get_freeze_count()),
            logging.getLogger("pytorch_lightning").level,
            torch.random.get_rng_state().tolist(),
        )

    gc.unfreeze()  # conftest.py has frozen what the imports made
    module = Regression()
    before = state()
    train(tmp_path, module=module, threads=2 if torch.get_num_threads() == 1 else 1, gc_every_steps=5)
    assert state() == before
    assert not (tmp_path / "lightning_logs").exists()
    assert not Path("lightning_logs").exists()
    gc.freeze()
    with collected_on_demand(1):
        pass
    assert gc.get_freeze_count()  # of what a caller froze


def test_metrics_reach_wandb_offline(tmp_path):
    from herd.training.logger import WandbConfig

    train(tmp_path, wandb=WandbConfig(mode="offline", group="g", tags=["t"]))
    (record,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    content = record.read_bytes()
    for name in (b"grad_norm", b"learning_rate", b"num_tokens", b"tokens_per_second"):
        assert name in content
    train(tmp_path / "second", wandb=WandbConfig(mode="offline"))
    assert len(list((tmp_path / "second/wandb").glob("offline-run-*"))) == 1


@pytest.mark.parametrize(
    "settings",
    [{"precision": "fp8"}, {"devices": 0}, {"log_every_steps": 0}, {"accelerator": "tpu"}, {"strategy": "zero"}],
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(UserError, match=r"trainer"):
        TrainerConfig(**settings)


def test_no_data_is_refused(tmp_path):
    with pytest.raises(UserError, match="no step to train on"):
        train(tmp_path, Points(steps=0))


def test_several_devices_need_a_way_to_share(tmp_path):
    with pytest.raises(UserError, match=r"2 devices need parallel@trainer=ddp"):
        train(tmp_path, devices=2)
