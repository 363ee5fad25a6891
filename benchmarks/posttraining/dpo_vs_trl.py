"""One DPO optimizer step on a CPU: herd with shared prompts, herd with separate rows, TRL's DPOTrainer; pairs a second.

Prompts of 757 and responses of 284 tokens on average, as in the preference data of the Llama 3 paper (table 6); log-normal
lengths from a fixed seed, scaled to those means. Same model shape, weights, rows and fused AdamW; log-probabilities of the
reference are there beforehand on every side. TRL's side is `DPOTrainer.training_step` over micro-batches of one or two pairs
(padded, as it does it), without gradient checkpointing, of which the faster counts. herd's side is the loss and metrics of
`DPOModule` over micro-batches of one pair.

Memory is the peak of a process of its own for each side, less what it held before model and data.

    python benchmarks/posttraining/dpo_vs_trl.py [--processor-time] [--turns 3]

With other work on the same cores, ``--processor-time`` compares the processor time of one thread, which other work moves less.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from peers import VOCABULARY, as_llama, dpo_trainer, groups, trl_batch

from herd.model.counts import parameter_count
from herd.model.family import family_member
from herd.model.transformer import Transformer
from herd.training.dpo import DPOBatch, DPOModule, DPOObjective, dpo_rows, reference_logprobs
from herd.training.optimizer import OptimizerConfig
from herd.training.sequences import Group

PAIRS, WIDTH, LONGEST = 4, 256, 4096
MEANS = {"prompt": 757, "response": 284}
OBJECTIVE = DPOObjective(nll_coefficient=0.0)  # TRL's own loss
# side -> pairs in a micro-batch
SIDES = {"herd, block": 1, "herd, separate": 1, "trl, 1 pair": 1, "trl, 2 pairs": 2}


def pairs(seed: int = 0) -> list[Group]:
    """The pairs of one step."""
    generator = np.random.default_rng(seed)

    def lengths(mean: int, shape: tuple[int, ...]) -> np.ndarray:
        drawn = generator.lognormal(0.0, 0.4, shape)
        return np.maximum(8, np.rint(drawn * mean / drawn.mean()).astype(int))

    prompts, responses = lengths(MEANS["prompt"], (PAIRS,)), lengths(MEANS["response"], (PAIRS, 2))
    return groups([(int(p), int(c), int(r)) for p, (c, r) in zip(prompts, responses, strict=True)], seed)


def model() -> Transformer:
    return Transformer(family_member(WIDTH, VOCABULARY, LONGEST))


def our_step(row: str, size: int) -> Callable[[], float]:
    """One optimizer step, returns the loss."""
    policy, data = model(), pairs()
    rows = [dpo_rows(data[at : at + size], OBJECTIVE, row) for at in range(0, PAIRS, size)]
    batches = [DPOBatch(*both) for both in zip(rows, reference_logprobs(policy, rows), strict=True)]
    module = DPOModule(policy, OptimizerConfig(), lambda step: 0.0)
    module.objective = OBJECTIVE
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6, fused=True)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for batch in batches:
            loss, _ = module.micro_batch_loss(batch)
            (loss / PAIRS).backward()
            total += float(loss.detach()) / PAIRS
        optimizer.step()
        return total

    return step


def trl_step(size: int) -> Callable[[], float]:
    """The same with TRL's trainer."""
    ours = model()
    llama, reference = as_llama(ours), reference_logprobs(ours, [dpo_rows(pairs(), OBJECTIVE)])[0]
    trainer = dpo_trainer(
        llama, as_llama(ours), pairs(), per_device_train_batch_size=size, gradient_accumulation_steps=PAIRS // size
    )
    # As after precompute_ref_log_probs, whose pass over the data is left out: the values are herd's.
    trainer.precompute_ref_logps, trainer.ref_model = True, None
    trainer.current_gradient_accumulation_steps = PAIRS // size
    batches = [trl_batch(trainer, range(at, at + size)) for at in range(0, PAIRS, size)]
    for batch, known in zip(batches, reference.split(size), strict=True):
        batch["ref_chosen_logps"], batch["ref_rejected_logps"] = known.unbind(1)
    optimizer = torch.optim.AdamW(llama.parameters(), lr=1e-6, fused=True)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        total = sum(float(trainer.training_step(trainer.model, batch)) for batch in batches)
        optimizer.step()
        return total

    return step


def side(name: str) -> Callable[[], float]:
    who, row = name.split(", ")[:2]
    return our_step(row, SIDES[name]) if who == "herd" else trl_step(SIDES[name])


def peak_of_this_process() -> float:
    """MB; not by getrusage, whose peak a process inherits from the one that started it."""
    with open("/proc/self/status") as status:
        lines = dict(line.split(":", 1) for line in status)
    return int(lines["VmHWM"].split()[0]) / 1024


def peak_memory(name: str) -> float:
    """MB that a process of its own needs at most for a step of one side, beyond what its imports take."""
    command = [sys.executable, __file__, "--memory", name]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def memory_of(name: str) -> float:
    """The measurement of :func:`peak_memory`, in the process that it starts."""
    if name.startswith("trl"):
        import datasets  # noqa: F401
        from trl import DPOTrainer  # noqa: F401
    before = peak_of_this_process()
    side(name)()
    return peak_of_this_process() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", help="only the peak memory of this side, in MB")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--processor-time", action="store_true", help="of one thread, instead of the wall clock of two")
    arguments = parser.parse_args()
    torch.set_num_threads(1 if arguments.processor_time else 2)
    if arguments.memory:
        print(memory_of(arguments.memory))
        return
    import trl
    from measure import save, side_by_side

    steps = {name: side(name) for name in SIDES}
    losses = {name: step() for name, step in steps.items()}
    assert max(losses.values()) - min(losses.values()) < 1e-4, losses
    clock = time.process_time if arguments.processor_time else time.perf_counter
    seconds = side_by_side(steps, arguments.turns, 0, clock)
    rates = {name: PAIRS / value["median"] for name, value in seconds.items()}
    fastest = max((name for name in SIDES if name.startswith("trl")), key=rates.__getitem__)
    data = pairs()
    print(rates, flush=True)
    results: dict[str, Any] = {
        "clock": "processor time" if arguments.processor_time else "wall clock",
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "trl": trl.__version__,
        "parameters": parameter_count(family_member(WIDTH, VOCABULARY, LONGEST), "6N"),
        "tokens": [list(pair.sizes) for pair in data],
        "tokens_computed": {"shared": sum(map(len, data)), "separate": sum(len(s) for p in data for s in p.separate())},
        "loss": losses,
        "seconds": seconds,
        "pairs_per_second": rates,
        "fastest_of_trl": fastest,
        "times_trl": {s: seconds[fastest][s] / seconds["herd, block"][s] for s in ("median", "minimum")},
        "times_separate": {s: seconds["herd, separate"][s] / seconds["herd, block"][s] for s in ("median", "minimum")},
        "peak_memory_mb": {name: peak_memory(name) for name in SIDES},
    }
    for name, value in results.items():
        print(name, value)
    print(save(__file__, " ".join(["python benchmarks/posttraining/dpo_vs_trl.py", *sys.argv[1:]]), results))


if __name__ == "__main__":
    main()
