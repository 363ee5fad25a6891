"""One optimizer step on packed documents: herd against Hugging Face ``LlamaForCausalLM``, same shape, weights, rows and loss.

Both sides get fused AdamW, the same rows packed with documents of mixed length, and the same threads. Hugging Face is measured
in each way it has of keeping documents apart, and the best counts: SDPA with a 4-D boolean or additive mask, eager attention,
one row at a time with position ids alone (it then finds the documents itself), and ``torch.compile``. FlexAttention has no
backward pass on a CPU, and FlashAttention needs a GPU. herd is measured as it is by default and compiled by block.

Each side is a process of its own, as its user would have it: what one does to the C library's heap (herd has it keep what is
freed, herd.runs.heap; a side of its own goes without) does nothing to the other. They step in turns, the others waiting. Memory
is the peak of another process for each side, less what it held before its first step's data and model.

    python benchmarks/training/step_vs_transformers.py [--compiled] [--processor-time] [--bf16]

Two threads and the wall clock say something on a quiet machine only: with other work on the same cores, threads wait for each
other at every small operation. ``--processor-time`` then compares the processor time of one thread, which other work moves less.
``--compiled`` adds the compiled sides at the first shape, where the sides are nearest to each other (minutes of compilation). The
result is written after each case, so that what was measured is kept.

bf16 is autocast on both sides. Where a processor has no such arithmetic, torch multiplies bf16 matrices some hundred times slower
than fp32 ones, which herd gets around (herd.products); so Hugging Face takes a single step there, its first, and stands beside
itself in fp32, the fastest that it can do on such a processor. ``--bf16`` measures these cases alone, into a file of their own;
the last one takes Hugging Face five minutes on a quiet core.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
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
from herd.products import CPU_MULTIPLIES_BF16
from herd.training.engine import EngineConfig, engine

VOCABULARY, TOKENS, THREADS = 2048, 2048, 2
WIDTHS = {6e6: 256, 3e7: 448}  # members of herd.model.family: 6.3M and 29.7M parameters
HEAP_AS_IT_COMES = "herd, heap as it comes"
OURS = {"herd": EngineConfig(), "herd, compiled by block": EngineConfig(compile="block"), HEAP_AS_IT_COMES: EngineConfig()}
PEERS = ("sdpa, boolean mask", "sdpa, additive mask", "eager, additive mask", "sdpa, row by row", "sdpa, boolean mask, compiled")
SLOW = "eager, additive mask"  # about three times as long as the others, so one step will do
IN_FP32 = "sdpa, boolean mask, in fp32"  # beside cases in bf16


@dataclass(frozen=True)
class Case:
    """One shape to compare at."""

    parameters: float  # a key of WIDTHS
    length: int  # tokens of a row
    turns: int
    precision: str = "fp32"
    sides: tuple[str, ...] = ("herd", *PEERS[:2], PEERS[3])
    tokens: int = TOKENS  # of a step
    memory: bool = True  # whether to measure its peak too


CASES = (
    Case(6e6, 512, 5, sides=("herd", HEAP_AS_IT_COMES, *PEERS[:4])),
    Case(3e7, 512, 5, sides=("herd", HEAP_AS_IT_COMES, *PEERS[:2])),
    Case(6e6, 2048, 3, sides=("herd", *PEERS[:2])),
    Case(3e7, 2048, 2, sides=("herd", PEERS[0])),
    *(
        Case(parameters, length, 5, "bf16", ("herd", PEERS[0], IN_FP32), length, memory=parameters == 6e6 and length == 512)
        for parameters, length in ((6e6, 512), (3e7, 512), (6e6, 2048), (3e7, 2048))
    ),
)


def number_of(case: Case) -> int:
    """Which of the cases has this shape and type, for another process."""
    return [(c.parameters, c.length, c.precision) for c in CASES].index((case.parameters, case.length, case.precision))


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


def packed_rows(length: int, tokens_per_step: int = TOKENS, seed: int = 0) -> Rows:
    """Rows of documents of log-normal length (median 90 tokens, mean 124), the last of a row cut; ``tokens_per_step`` in all."""
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(tokens_per_step // length):
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
            mask = {} if "row by row" in way or "no mask" in way else {"attention_mask": allowed}
            logits = forward(input_ids=rows.tokens[part], position_ids=rows.positions[part], **mask).logits
            yield F.cross_entropy(logits.flatten(0, 1).float(), rows.targets[part].flatten(), reduction="sum") / rows.count

    return stepper(model, losses, autocast)


@contextmanager
def side(name: str, config: ModelConfig, rows: Rows, autocast: bool) -> Iterator[Callable[[], float]]:
    """One side, ready to step."""
    if name not in OURS:
        yield their_step(config, rows, autocast and name != IN_FP32, name)
        return
    step, model = our_step(config, rows, autocast)
    # Kept on for as long as the side lives: the engine hangs on this model alone.
    with engine(model, OURS[name], "cpu"):
        yield step


def peak_memory(name: str, case: Case) -> float:
    """MB that a process of its own needs at most for two steps of one side (one in bf16), beyond what its imports take."""
    command = [sys.executable, __file__, "--memory", name, "--case", str(number_of(case))]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def memory_of(name: str, case: Case) -> float:
    """The measurement of :func:`peak_memory`, in the process that it starts."""
    rows, config = packed_rows(case.length, case.tokens), family_member(WIDTHS[case.parameters], VOCABULARY, case.length)
    import transformers.models.llama.modeling_llama  # noqa: F401  # for both: it loads much that torch loads at the first step

    before = peak_of_this_process()
    with side(name, config, rows, case.precision == "bf16") as step:
        for _ in range(2 if case.precision == "fp32" else 1):
            step()
    return peak_of_this_process() - before


def peak_of_this_process() -> float:
    """MB. Not by getrusage, whose peak a process inherits from the one that started it."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 1024


class Remote:
    """A side in a process of its own: called, it makes a step there, and ``seconds`` is what all its steps have taken.

    ``loss`` and ``first`` are of the first step, in which it compiles and fills its caches.
    """

    def __init__(self, name: str, number: int, alone: bool) -> None:
        command = [sys.executable, __file__, "--side", name, "--case", str(number), *(["--processor-time"] if alone else [])]
        # A variable of glibc's own, at its default: herd then leaves the heap to its user.
        heap = {"MALLOC_PERTURB_": "0"} if name == HEAP_AS_IT_COMES else {}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **heap}
        )
        self.seconds = 0.0
        self.loss, self.first = self._answer()

    def __call__(self) -> None:
        time.sleep(0.1)  # until the other side's threads no longer wait for work
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        self.seconds += self._answer()[1]

    def _answer(self) -> tuple[float, float]:
        assert self.process.stdout is not None
        loss, seconds = self.process.stdout.readline().split()
        return float(loss), float(seconds)

    def __enter__(self) -> "Remote":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def serve(name: str, case: Case, clock: Callable[[], float]) -> None:
    """What a :class:`Remote` talks to: a step at the start and for each line, its loss and seconds as the answer."""
    rows, config = packed_rows(case.length, case.tokens), family_member(WIDTHS[case.parameters], VOCABULARY, case.length)
    with side(name, config, rows, case.precision == "bf16") as step:
        for _ in chain(("step",), sys.stdin):
            start = clock()
            loss = step()
            print(loss, clock() - start, flush=True)


def compare(case: Case, alone: bool) -> dict[str, Any]:
    """All sides of a case in turns, after checking that they give the same loss; ``alone``: processor time of one thread."""
    config, rows = family_member(WIDTHS[case.parameters], VOCABULARY, case.length), packed_rows(case.length, case.tokens)
    with ExitStack() as stack:
        steps = {name: stack.enter_context(Remote(name, number_of(case), alone)) for name in case.sides}
        losses = {name: step.loss for name, step in steps.items()}
        first = {name: step.first for name, step in steps.items()}
        spread = max(losses.values()) - min(losses.values())
        assert spread < (1e-4 if case.precision == "fp32" else 2e-2), f"the sides compute different losses: {losses}"
        once = {SLOW: steps.pop(SLOW)} if SLOW in steps else {}
        seconds = {}
        if case.precision == "bf16" and not CPU_MULTIPLIES_BF16:
            for name in [name for name in steps if name in PEERS]:
                seconds[name] = dict.fromkeys(("median", "minimum", "maximum"), first[name])
                del steps[name]

        def in_turns(remotes: dict[str, Remote], turns: int, warmup: int) -> dict[str, dict[str, float]]:
            # The clock is the sum of what the sides themselves have measured: it moves while one of them steps.
            return side_by_side(dict(remotes), turns, warmup, lambda: sum(r.seconds for r in remotes.values()))

        seconds |= in_turns(steps, case.turns, 1) | in_turns(once, 1, 0)
    ours, peers = [n for n in seconds if n in OURS], [n for n in seconds if n in PEERS]

    def fastest(names: list[str], statistic: str) -> float:
        return min(seconds[name][statistic] for name in names)

    best = min(peers, key=lambda name: seconds[name]["median"])
    return {
        "parameters": parameter_count(config, "6N"),
        "length": case.length,
        "precision": case.precision,
        "tokens_per_step": case.tokens,
        "documents_per_row": float(np.mean([len(row) for row in rows.lengths])),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "loss_spread": spread,
        "seconds": seconds,
        "tokens_per_second": {name: case.tokens / value["median"] for name, value in seconds.items()},
        "best_of_transformers": best,
        # How many times the tokens a second: medians of the turns, and best turns.
        "ratio_default": {s: fastest(peers, s) / seconds["herd"][s] for s in ("median", "minimum")},
        "ratio_best": {s: fastest(peers, s) / fastest(ours, s) for s in ("median", "minimum")},
        "ratio_to_fp32": {s: seconds[IN_FP32][s] / seconds["herd"][s] for s in ("median", "minimum")}
        if IN_FP32 in seconds
        else None,
        "peak_memory_mb": {n: peak_memory(n, case) for n in ("herd", PEERS[0], IN_FP32) if n in seconds} if case.memory else None,
    }


def product_rate(dtype: torch.dtype, size: int) -> float:
    """GFLOP/s of a square matrix product: what a step's speed is to be seen against."""
    a = torch.randn(size, size).to(dtype)
    seconds = side_by_side({"product": lambda: torch.mm(a, a)}, repeats=5)["product"]["median"]  # type: ignore[dict-item, func-returns-value]
    return 2 * size**3 / seconds / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", help="only the peak memory of this side, in MB")
    parser.add_argument("--side", help="only this side, a step for each line of the standard input")
    parser.add_argument("--case", type=int, default=0, help="which of the cases, with --memory and --side")
    parser.add_argument("--compiled", action="store_true", help="also compiled, at the first shape")
    parser.add_argument("--bf16", action="store_true", help="only the cases in bf16")
    parser.add_argument("--processor-time", action="store_true", help="of one thread, instead of the wall clock of two")
    arguments = parser.parse_args()
    torch.set_num_threads(1 if arguments.processor_time else THREADS)
    if arguments.memory:
        print(memory_of(arguments.memory, CASES[arguments.case]))
        return
    if arguments.side:
        serve(arguments.side, CASES[arguments.case], time.process_time if arguments.processor_time else time.perf_counter)
        return
    rates = {"fp32": product_rate(torch.float32, 2048), "bf16": product_rate(torch.bfloat16, 256)}
    kind = "processor time" if arguments.processor_time else "wall clock"
    results: dict[str, Any] = {"clock": kind, "product_gflops": rates, "steps": []}
    script, cases = Path(__file__), list(CASES)
    if arguments.compiled:
        cases[0] = replace(cases[0], sides=(*OURS, *PEERS))
    if arguments.bf16:
        script, cases = script.with_stem(f"{script.stem}_bf16"), [case for case in cases if case.precision == "bf16"]
    for case in cases:
        row = compare(case, arguments.processor_time)
        print({k: v for k, v in row.items() if k != "seconds"}, flush=True)
        results["steps"].append(row)
        path = save(str(script), " ".join(["python benchmarks/training/step_vs_transformers.py", *sys.argv[1:]]), results)
    print(path)


if __name__ == "__main__":
    main()
