"""A small regression task: a module and a source for the tests of the base, which know nothing of language models."""

import multiprocessing
import os
import socket
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import nn

from herd.runs.metrics import read_metrics
from herd.runs.stage import StageRun
from herd.training.fit import fit
from herd.training.module import HerdModule, Metrics
from herd.training.optimizer import OptimizerConfig
from herd.training.rows import field_of
from herd.training.steps import StepBatch
from herd.training.trainer_config import TrainerConfig


class Regression(HerdModule):
    """Summed squared error of a two-layer network."""

    def __init__(self, seed: int = 0, lr: float = 1e-2, schedule=None) -> None:
        generator = torch.Generator().manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        for parameter in model.parameters():
            parameter.data.normal_(0, 0.5, generator=generator)
        super().__init__(model, OptimizerConfig(lr=lr), schedule or (lambda step: lr / (1 + step)))
        self.steps_seen: list[int] = []

    def micro_batch_loss(self, micro_batch: torch.Tensor) -> tuple[torch.Tensor, Metrics]:
        micro_batch = micro_batch.to(self.model[0].weight.dtype)
        error = self.model(micro_batch[:, :4])[:, 0] - micro_batch[:, 4]
        return error.square().sum(), {"absolute": (error.detach().abs().sum(), float(len(error)))}

    def before_step(self, step: int) -> None:
        self.steps_seen.append(step)


class Points:
    """``steps`` batches of ``rows`` points, a pure function of the step, in micro-batches of ``micro`` rows (the last
    is ragged).
    """

    def __init__(self, steps: int = 12, rows: int = 10, micro: int = 4) -> None:
        self.steps, self.rows, self.micro = steps, rows, micro

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> StepBatch:
        generator = torch.Generator().manual_seed(1000 + step)
        x = torch.randn(self.rows, 4, generator=generator)
        points = torch.cat([x, (x.sum(1, keepdim=True) * 0.5).sin()], dim=1)
        return StepBatch(step, list(points.split(self.micro)), normalizer=float(self.rows), tokens=self.rows)

    def tokens_at(self, step: int) -> int:
        return step * self.rows


class Poisoned(Points):
    """The points of the ``bad`` steps are multiplied by ``factor``."""

    def __init__(self, bad, factor: float, steps: int = 40, **shape: int) -> None:
        super().__init__(steps, **shape)
        self.bad, self.factor = bad, factor

    def __getitem__(self, step: int) -> StepBatch:
        batch = super().__getitem__(step)
        if step not in self.bad:
            return batch
        return replace(batch, micro_batches=[points * self.factor for points in batch.micro_batches])


class Child:
    """``work(tick)`` in a forked process; it calls ``tick()`` once a step, so that the parent can strike at one.

    Forked, not started anew, because importing torch takes longer than the training does.
    """

    def __init__(self, work: Callable[[Callable[[], None]], None]) -> None:
        reading, writing = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python 3.12 warns of threads that a fork does not copy; none is needed here
            self.process = multiprocessing.get_context("fork").Process(target=self._run, args=(work, writing))
            self.process.start()
        os.close(writing)
        self.ticks = open(reading, "rb", buffering=0)  # noqa: SIM115 (a descriptor; closed in `end`)

    @staticmethod
    def _run(work: Callable[[Callable[[], None]], None], writing: int) -> None:
        torch.set_num_threads(1)
        work(lambda: os.write(writing, b".") and None)

    def wait_for(self, ticks: int) -> int:
        """Block until so many steps have begun, or the process has ended; returns how many have."""
        seen = 0
        while seen < ticks and self.ticks.read(1):
            seen += 1
        return seen

    def end(self) -> int:
        """Wait for the end; the exit code, negative for a signal."""
        self.process.join(timeout=60)
        self.ticks.close()
        assert self.process.exitcode is not None, "the child hangs"
        return self.process.exitcode


def on_two_ranks(work: Callable[[int], None]) -> list[int]:
    """Run ``work(rank)`` in two forked processes, each told its rank as torchrun would; their exit codes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])

    def ranked(rank: int):
        def run(tick):
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
            os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0"}
            work(rank)

        return run

    children = [Child(ranked(rank)) for rank in range(2)]
    return [child.end() for child in children]


def train(folder: Path, source=None, module=None, callbacks=(), **settings):
    """A short fit, by default of 12 steps with checkpoints every 3 and rows of metrics every 4; (module, result)."""
    module = module or Regression()
    # No garbage collection: in a process with so many modules it takes longer than the training.
    config = TrainerConfig(**{"checkpoint_every_steps": 3, "log_every_steps": 4, "gc_every_steps": 0} | settings)
    result = fit(module, Points() if source is None else source, config, StageRun(folder, seed=0), callbacks)
    return module, result


def weights(module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.model.state_dict().items()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    """Equal to the bit."""
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


class Killed(Exception):
    """Stands in for a sudden end."""


def kill_at(step: int) -> pl.Callback:
    """A sudden end before step ``step``."""

    class Kill(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == step:
                raise Killed

    return Kill()


def timeless(folder: Path) -> list[dict]:
    """The rows of metrics without what a clock or the machine's state decides."""
    rows = read_metrics(folder / "metrics.jsonl")
    return [{key: value for key, value in row.items() if not ((field := field_of(key)) and field.measured)} for row in rows]
