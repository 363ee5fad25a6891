"""A small regression task: a module and a source for the tests of the base, which know nothing of language models."""

import multiprocessing
import os
import warnings
from collections.abc import Callable

import torch
from torch import nn

from herd.training.module import HerdModule, Metrics
from herd.training.optimizer import OptimizerConfig
from herd.training.steps import StepBatch


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
