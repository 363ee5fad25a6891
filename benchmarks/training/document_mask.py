"""A training step with the document mask against the same step without it (plainly causal rows), and each way of the mask.

One model of 6M parameters, the same packed rows, in turns. Processor time is compared, on one thread: it is what a machine with
other work distorts least.

    python benchmarks/training/document_mask.py
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from measure import save
from step_vs_transformers import VOCABULARY, WIDTHS, packed_rows

from herd.model.attention import prepare
from herd.model.family import family_member
from herd.model.masks import CAUSAL, Documents, Mask
from herd.model.transformer import Transformer
from herd.objectives.cross_entropy import linear_cross_entropy

TOKENS, TURNS = 2048, 5
WAYS = ("without", "auto", "documents", "sdpa")


def compare(length: int) -> dict[str, Any]:
    """Processor seconds of a forward and backward pass with each mask."""
    rows = packed_rows(length, TOKENS)
    model = Transformer(family_member(WIDTHS[6e6], VOCABULARY, length))

    def step(name: str) -> Callable[[], None]:
        mask: Mask = CAUSAL if name == "without" else Documents(rows.lengths)

        def run() -> None:
            model.attention = "auto" if name == "without" else name
            model.zero_grad()
            linear_cross_entropy(model(rows.tokens, rows.positions, mask), model.output_weight, rows.targets).backward()

        return run

    steps = {name: step(name) for name in WAYS}
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for turn in range(TURNS + 1):
        for name, run in steps.items():
            clock = time.process_time()
            run()
            if turn:
                seconds[name].append(time.process_time() - clock)
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    least = {name: min(times) for name, times in seconds.items()}
    return {
        "length": length,
        "tokens_per_step": TOKENS,
        "documents_per_row": len(rows.lengths[0]),
        "auto_is": type(prepare(Documents(rows.lengths), "auto", "cpu", torch.float32)).__name__,
        "processor_seconds": {"median": middle, "minimum": least},
        "speed_against_without": {
            name: {"median": middle["without"] / middle[name], "minimum": least["without"] / least[name]} for name in WAYS[1:]
        },
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    results = [compare(length) for length in (512, 2048)]
    print(results)
    print(save(__file__, "python benchmarks/training/document_mask.py", results))
