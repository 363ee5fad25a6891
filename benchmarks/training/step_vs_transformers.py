"""One optimizer step on packed documents: herd against Hugging Face ``LlamaForCausalLM``, same shape, weights, rows and loss.

Both sides get fused AdamW, the same rows packed with documents of mixed length, and the same threads. Hugging Face is measured
in each way it has of keeping documents apart, and the best counts: SDPA with a 4-D boolean or additive mask, eager attention,
one row at a time with position ids alone (it then finds the documents itself), and ``torch.compile``. FlexAttention has no
backward pass on a CPU, and FlashAttention needs a GPU. herd is measured as it is by default and compiled by block.

Memory is the peak of a process of its own for each side, less what it held before its first step's data and model.

    python benchmarks/training/step_vs_transformers.py

Compiled sides are measured at rows of 512 only: with rows of 2,048 the full square of masked attention decides, which
compilation does not touch. The result is written after each case, so that what was measured is kept.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from measure import save, side_by_side

from herd.model.config import ModelConfig
from herd.model.counts import parameter_count
from herd.model.family import family_member
from herd.model.masks import Documents
from herd.model.transformer import Transformer
from herd.objectives.cross_entropy import linear_cross_entropy
from herd.training.engine import EngineConfig, engine

VOCABULARY, TOKENS, THREADS = 2048, 2048, 2
WIDTHS = {6e6: 256, 3e7: 448}  # members of herd.model.family: 6.3M and 29.7M parameters
# (parameters, length of a row, precision, compiled sides too, turns)
CASES = (
    (6e6, 512, "fp32", True, 9),
    (3e7, 512, "fp32", True, 5),
    (6e6, 2048, "fp32", False, 5),
    (3e7, 2048, "fp32", False, 3),
    (6e6, 512, "bf16", False, 3),
)
OURS = {"herd": EngineConfig(), "herd, compiled by block": EngineConfig(compile="block")}
PEERS = ("sdpa, boolean mask", "sdpa, additive mask", "eager, additive mask", "sdpa, row by row", "sdpa, boolean mask, compiled")


@dataclass(frozen=True)
class Rows:
    """One batch of packed documents."""

    tokens: Tensor  # (B, T) int64
    positions: Tensor  # (B, T) int64, from 0 in each document
    targets: Tensor  # (B, T) int64, -100 at the last token of a document
    lengths: tuple[tuple[int, ...], ...]

    @property
    def count(self) -> int:
        """Targets that count."""
        return int((self.targets != -100).sum())

    @property
    def document(self) -> Tensor:
        """Index of each position's document within its row, (B, T)."""
        return Documents(self.lengths).ids()


def packed_rows(length: int, seed: int = 0) -> Rows:
    """``TOKENS`` tokens in rows of documents of log-normal length (median 90 tokens, mean 124), the last one of a row cut."""
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(TOKENS // length):
        lengths: list[int] = []
        while sum(lengths) < length:
            lengths.append(min(int(generator.lognormal(4.5, 0.8)) + 2, length - sum(lengths)))
        rows.append(tuple(lengths))
    tokens = torch.from_numpy(generator.integers(0, VOCABULARY, (len(rows), length)))
    positions = torch.tensor([[p for n in row for p in range(n)] for row in rows])
    targets = tokens.roll(-1, 1)
    targets[:, -1] = -100
    targets[:, :-1][positions[:, 1:] == 0] = -100
    return Rows(tokens, positions, targets, tuple(rows))


def stepper(model: nn.Module, losses: Callable[[], Iterator[Tensor]], autocast: bool) -> Callable[[], float]:
    """One optimizer step over the parts of a batch; returns the loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            for loss in losses():
                loss.backward()
                total += loss.item()
        optimizer.step()
        return total

    return step


def our_step(config: ModelConfig, rows: Rows, autocast: bool) -> tuple[Callable[[], float], Transformer]:
    model = Transformer(config)
    mask = Documents(rows.lengths)

    def losses() -> Iterator[Tensor]:
        yield linear_cross_entropy(model(rows.tokens, rows.positions, mask), model.output_weight, rows.targets) / rows.count

    return stepper(model, losses, autocast), model


def their_step(config: ModelConfig, rows: Rows, autocast: bool, way: str) -> Callable[[], float]:
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    from herd.model.convert import to_hf

    logging.set_verbosity_error()
    state, settings = to_hf(Transformer(config).state_dict(), config)
    attention = "eager" if way.startswith("eager") else "sdpa"
    model = LlamaForCausalLM(LlamaConfig(**{**settings, "attn_implementation": attention, "use_cache": False}))
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    forward = torch.compile(model) if way.endswith("compiled") else model
    same = rows.document[:, :, None] == rows.document[:, None, :]
    length = rows.tokens.shape[1]
    allowed = (same & torch.ones(length, length, dtype=torch.bool).tril())[:, None]
    if "additive" in way:
        kind = torch.bfloat16 if autocast else torch.float32
        allowed = torch.zeros(allowed.shape, dtype=kind).masked_fill(~allowed, torch.finfo(kind).min)

    def losses() -> Iterator[Tensor]:
        parts = range(rows.tokens.shape[0]) if "row by row" in way else [slice(None)]
        for part in parts:
            part = slice(part, part + 1) if isinstance(part, int) else part
            mask = {} if "row by row" in way else {"attention_mask": allowed}
            logits = forward(input_ids=rows.tokens[part], position_ids=rows.positions[part], **mask).logits
            yield F.cross_entropy(logits.flatten(0, 1).float(), rows.targets[part].flatten(), reduction="sum") / rows.count

    return stepper(model, losses, autocast)


@contextmanager
def side(name: str, config: ModelConfig, rows: Rows, autocast: bool) -> Iterator[Callable[[], float]]:
    """One side, ready to step."""
    if name not in OURS:
        yield their_step(config, rows, autocast, name)
        return
    step, model = our_step(config, rows, autocast)
    # Kept on for as long as the side lives: the engine hangs on this model alone.
    with engine(model, OURS[name], "cpu"):
        yield step


def peak_memory(name: str, parameters: float, length: int, precision: str) -> float:
    """MB that a process of its own needs at most for two steps of one side, beyond what its imports take."""
    command = [sys.executable, __file__, "--memory", name, "--parameters", str(parameters), "--length", str(length)]
    done = subprocess.run([*command, "--precision", precision], capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def memory_of(name: str, parameters: float, length: int, precision: str) -> float:
    """The measurement of :func:`peak_memory`, in the process that it starts."""
    rows, config = packed_rows(length), family_member(WIDTHS[parameters], VOCABULARY, length)
    if name not in OURS:
        import transformers.models.llama.modeling_llama  # noqa: F401
    (torch.ones(8, 8) @ torch.ones(8, 8)).sum()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with side(name, config, rows, precision == "bf16") as step:
        step()
        step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def compare(parameters: float, length: int, precision: str, compiled: bool, repeats: int) -> dict[str, Any]:
    """All sides in turns, after checking that they give the same loss."""
    rows, config = packed_rows(length), family_member(WIDTHS[parameters], VOCABULARY, length)
    names = [name for name in (*OURS, *PEERS) if compiled or "compiled" not in name]
    with ExitStack() as stack:
        steps = {name: stack.enter_context(side(name, config, rows, precision == "bf16")) for name in names}
        losses = {name: step() for name, step in steps.items()}
        spread = max(losses.values()) - min(losses.values())
        assert spread < (1e-4 if precision == "fp32" else 2e-2), f"the sides compute different losses: {losses}"
        slow = steps.pop("eager, additive mask")
        seconds = side_by_side(steps, repeats=repeats, warmup=1)
        start = time.perf_counter()
        slow()  # several times slower than all others: once will do
        seconds["eager, additive mask"] = {"once": time.perf_counter() - start}
    speed = {name: TOKENS / value["median"] for name, value in seconds.items() if "median" in value}
    best = max((name for name in speed if name in PEERS), key=speed.__getitem__)
    best_eager = max((name for name in speed if name in PEERS and "compiled" not in name), key=speed.__getitem__)
    ours = max((name for name in speed if name in OURS), key=speed.__getitem__)
    memory = {name: peak_memory(name, parameters, length, precision) for name in {"herd", ours, best_eager, best}}
    return {
        "parameters": parameter_count(config, "6N"),
        "length": length,
        "precision": precision,
        "tokens_per_step": TOKENS,
        "documents_per_row": float(np.mean([len(row) for row in rows.lengths])),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "loss_spread": spread,
        "seconds": seconds,
        "tokens_per_second": speed,
        "best_of_transformers": best,
        "best_of_transformers_eager": best_eager,
        "ratio_eager_to_eager": speed["herd"] / speed[best_eager],
        "ratio_eager_to_best": speed["herd"] / speed[best],
        "ratio_best_to_best": speed[ours] / speed[best],
        "peak_memory_mb": memory,
    }


def product_rate(dtype: torch.dtype) -> float:
    """GFLOP/s of a product of two 2,048 x 2,048 matrices: what the step's speed is to be seen against."""
    a = torch.randn(2048, 2048).to(dtype)
    seconds = side_by_side({"product": lambda: torch.mm(a, a)}, repeats=5)["product"]["median"]  # type: ignore[dict-item, func-returns-value]
    return 2 * 2048**3 / seconds / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", help="only the peak memory of this side, in MB")
    parser.add_argument("--parameters", type=float, choices=tuple(WIDTHS), default=6e6)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    if arguments.memory:
        print(memory_of(arguments.memory, arguments.parameters, arguments.length, arguments.precision))
        return
    results: dict[str, Any] = {"gflops": {"fp32": product_rate(torch.float32), "bf16": product_rate(torch.bfloat16)}, "steps": []}
    for case in CASES:
        row = compare(*case)
        print({k: v for k, v in row.items() if k != "seconds"}, flush=True)
        results["steps"].append(row)
        path = save(__file__, "python benchmarks/training/step_vs_transformers.py", results)
    print(path)


if __name__ == "__main__":
    main()
