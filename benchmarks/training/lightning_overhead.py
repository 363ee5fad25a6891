"""What Lightning and everything hung on it (judging the step, meters, rows of metrics, display, data loader) add to a step.

The same model, batches, fused AdamW, clipping and schedule run under ``herd.training.fit`` and in a bare loop, in turns, on one
thread. Compared is processor time, since a difference of a few percent drowns in the wall clock of a machine with other work.
Beside a step of 1M parameters stands one of a model that costs next to nothing: the difference there is the overhead itself.

    python benchmarks/training/lightning_overhead.py
"""

import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from measure import save
from step_vs_transformers import VOCABULARY, Rows, packed_rows

from herd.model.config import ModelConfig
from herd.model.counts import parameter_count
from herd.model.family import shape_for
from herd.model.masks import Documents
from herd.model.transformer import Transformer
from herd.objectives.cross_entropy import linear_cross_entropy
from herd.runs.stage import StageRun
from herd.training.fit import fit
from herd.training.module import HerdModule, Metrics
from herd.training.optimizer import OptimizerConfig, build_optimizer
from herd.training.steps import StepBatch
from herd.training.trainer_config import TrainerConfig

LENGTH, OPTIMIZER = 256, OptimizerConfig(lr=1e-3)
TINY = ModelConfig(
    dim=8, n_layers=1, n_heads=1, n_kv_heads=1, ffn_dim=16, vocab_size=VOCABULARY, max_seq_len=LENGTH, tie_embeddings=True
)


def schedule(step: int) -> float:
    """Linear to zero, far away."""
    return OPTIMIZER.lr * (1 - step / 10_000)


def summed_loss(model: Transformer, rows: Rows) -> Tensor:
    """Summed cross-entropy of one batch."""
    hidden = model(rows.tokens, rows.positions, Documents(rows.lengths))
    return linear_cross_entropy(hidden, model.output_weight, rows.targets)


class Batches:
    """A few batches over and over."""

    def __init__(self, rows: list[Rows], steps: int) -> None:
        self.rows, self.steps = rows, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> StepBatch:
        rows = self.rows[step % len(self.rows)]
        return StepBatch(step, [rows], normalizer=float(rows.count), tokens=rows.tokens.numel())

    def tokens_at(self, step: int) -> int:
        return step * self.rows[0].tokens.numel()


class Module(HerdModule):
    """The model under Lightning."""

    def micro_batch_loss(self, micro_batch: Rows) -> tuple[Tensor, Metrics]:
        return summed_loss(self.model, micro_batch), {}  # type: ignore[arg-type]


class Clock(pl.Callback):
    """Processor time at the end of each step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.times.append(time.process_time())


def under_lightning(config: ModelConfig, source: Batches, trainer: TrainerConfig) -> tuple[list[float], Tensor]:
    """Seconds of each step but the first, and the final output weight."""
    clock, module = Clock(), Module(Transformer(config), OPTIMIZER, schedule)
    with tempfile.TemporaryDirectory() as folder:
        fit(module, source, trainer, StageRun(Path(folder), seed=0), [clock])
    return [b - a for a, b in pairwise(clock.times)], module.model.output_weight.detach()  # type: ignore[union-attr, return-value]


def bare(config: ModelConfig, source: Batches, trainer: TrainerConfig) -> tuple[list[float], Tensor]:
    """The same without anything around it; the loss stays on the device, unread."""
    model, times = Transformer(config), []
    optimizer = build_optimizer(model.parameters(), OPTIMIZER)
    for step in range(len(source)):
        batch = source[step]
        loss = summed_loss(model, batch.micro_batches[0])
        (loss / batch.normalizer).backward()
        nn.utils.clip_grad_norm_(model.parameters(), trainer.gradient_clip)
        for group in optimizer.param_groups:
            group["lr"] = schedule(step)
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.process_time())
    return [b - a for a, b in pairwise(times)], model.output_weight.detach()


def compare(config: ModelConfig, tokens: int, steps: int, turns: int) -> dict[str, Any]:
    """Medians of both sides over all steps of all turns."""
    source = Batches([packed_rows(LENGTH, tokens, seed) for seed in range(4)], steps)
    trainer = TrainerConfig(checkpoint_every_steps=0)
    sides, seconds, weights = {"lightning": under_lightning, "bare": bare}, {"lightning": [], "bare": []}, {}
    for _ in range(turns):
        for name, side in sides.items():
            times, weights[name] = side(config, source, trainer)
            seconds[name] += times
    torch.testing.assert_close(weights["lightning"], weights["bare"], rtol=1e-4, atol=1e-5)
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "parameters": parameter_count(config, "6N"),
        "tokens_per_step": tokens,
        "steps": steps * turns,
        "milliseconds": {name: 1000 * value for name, value in middle.items()},
        "overhead_milliseconds": 1000 * (middle["lightning"] - middle["bare"]),
        "overhead_percent": 100 * (middle["lightning"] / middle["bare"] - 1),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    nothing = compare(TINY, LENGTH, steps=200, turns=3)
    results = {"next_to_nothing": nothing, "steps": []}
    for tokens, steps in ((1024, 25), (4096, 8)):
        row = compare(shape_for(1e6, VOCABULARY, LENGTH), tokens, steps, turns=2)
        row["share_of_the_overhead_itself_percent"] = 100 * nothing["overhead_milliseconds"] / row["milliseconds"]["bare"]
        results["steps"].append(row)
    print(results)
    print(save(__file__, "python benchmarks/training/lightning_overhead.py", results))
