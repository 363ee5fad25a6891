"""What a checkpoint costs training: written by the step itself, and by a thread from a copy.

One model and its AdamW moments (three times the weights), one optimizer step on packed rows between checkpoints. Each side is
measured in turns: a step without a checkpoint, one that writes it, one that hands a copy to the thread; and, for the thread, the
steps after it, which share the machine with it until it is done. Run: ``python benchmarks/training/checkpoint.py``.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from measure import save

from herd.model.counts import parameter_count
from herd.model.family import shape_for
from herd.model.transformer import Transformer
from herd.objectives.cross_entropy import linear_cross_entropy
from herd.training.checkpoint import CheckpointStore
from herd.training.checkpoint_io import StoreIO

VOCABULARY, LENGTH, ROWS, TURNS = 8192, 512, 1, 5


def stepper(model: Transformer, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """One optimizer step on the same random rows."""
    tokens = torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))

    def step() -> None:
        linear_cross_entropy(model(tokens[:, :-1]), model.output_weight, tokens[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def seconds_of(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(parameters: float, folder: Path) -> dict[str, object]:
    """Seconds by which a checkpoint lengthens training, per side, medians over the turns."""
    config = shape_for(parameters, VOCABULARY, LENGTH)
    model = Transformer(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    step = stepper(model, optimizer)
    step()
    sides = {name: StoreIO(CheckpointStore(folder / name, keep=1), background=name == "thread") for name in ("step", "thread")}
    seconds: dict[str, list[float]] = {
        name: [] for name in ("plain step", "step", "thread", "thread, until written", "steps meanwhile")
    }
    steps_meanwhile: list[int] = []

    def checkpoint(name: str, number: int) -> None:
        state = {"global_step": number, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        sides[name].save_checkpoint(state, "")

    for turn in range(TURNS + 1):
        measured = {"plain step": statistics.median(seconds_of(step) for _ in range(3))}
        measured["step"] = seconds_of(partial(checkpoint, "step", turn))
        step()
        measured["thread"] = seconds_of(partial(checkpoint, "thread", turn))
        start, count = time.perf_counter(), 0
        while (thread := sides["thread"]._thread) is not None and thread.is_alive():
            step()
            count += 1
        elapsed = time.perf_counter() - start
        sides["thread"].finish()
        measured["thread, until written"] = measured["thread"] + elapsed
        # What the steps took longer for the thread's share of the machine; on a shared one, mostly its noise.
        measured["steps meanwhile"] = elapsed - count * measured["plain step"]
        if turn:  # the first touches fresh pages
            steps_meanwhile.append(count)
            for name, value in measured.items():
                seconds[name].append(value)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    size = (folder / "step").glob("*.ckpt").__next__().stat().st_size
    return {
        "parameters": parameter_count(config, "total"),
        "checkpoint_bytes": size,
        "threads": torch.get_num_threads(),
        "turns": TURNS,
        "seconds": median,
        "smallest_and_largest": {name: [min(values), max(values)] for name, values in seconds.items()},
        "steps_while_the_thread_writes": statistics.median(steps_meanwhile),
        "training_waits_seconds": {"step": median["step"], "thread": median["thread"]},
        "wait_ratio": median["step"] / median["thread"],
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        results = [compare(parameters, Path(temporary) / f"{parameters:g}") for parameters in (6e6, 3e7)]
    for row in results:
        print(row)
    print(save(__file__, "python benchmarks/training/checkpoint.py", results))
