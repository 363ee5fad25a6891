"""The reward model's rows: separate, `block` (the prompt once, exact) and `causal` (the paper's), forward and backward.

Comparisons of random tokens, prompts of 757 and responses of 284 tokens on average (the paper's table 6), two or three responses
each. Scoring: K = 16 answers that share their prompt against rows of their own; the scores are compared too.

    python benchmarks/posttraining/reward_rows.py [--processor-time]

``--processor-time`` compares the processor time of one thread, which other work on the same machine moves less.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from measure import save, side_by_side

from herd.dialog.preferences import Grade
from herd.model.config import ModelConfig
from herd.model.counts import parameter_count
from herd.model.heads import RewardModel
from herd.model.transformer import Transformer
from herd.training.optimizer import OptimizerConfig
from herd.training.reward import ROWS, Comparison, RewardModule, RowLayout, reward_batch, score_groups
from herd.training.sequences import Group, TrainingSequence, alone

WINDOW, PROMPT, RESPONSE, SAMPLES = 2048, 757, 284, 16
SHAPE = ModelConfig(dim=128, n_layers=3, n_heads=4, n_kv_heads=2, ffn_dim=384, vocab_size=4096, max_seq_len=WINDOW)


def responses(rng: np.random.Generator, prompt: np.ndarray, count: int) -> tuple[TrainingSequence, ...]:
    """Random responses of 0.5 to 1.5 times the mean length, each after the prompt."""
    made = []
    for length in rng.integers(RESPONSE // 2, RESPONSE * 3 // 2, count):
        tokens = np.concatenate((prompt, rng.integers(0, SHAPE.vocab_size, length)))
        nothing = np.zeros(len(tokens), bool)
        made.append(TrainingSequence(tokens, nothing, nothing))
    return tuple(made)


def prompt(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, SHAPE.vocab_size, rng.integers(PROMPT // 2, PROMPT * 3 // 2))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--processor-time", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    clock = time.process_time if options.processor_time else time.perf_counter
    if options.processor_time:
        torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    backbone = Transformer(SHAPE)
    backbone.init_weights(0)
    model = RewardModel(backbone)
    module = RewardModule(model, OptimizerConfig(), lambda step: 0.0)
    results: dict = {"parameters": parameter_count(SHAPE), "threads": torch.get_num_threads()}

    for count, name in ((2, "pairs"), (3, "triples")):
        data = []
        for _ in range(4):
            start = prompt(rng)
            data.append(Comparison(responses(rng, start, count), len(start), Grade.BETTER))
        batches = {row: reward_batch(data, RowLayout(WINDOW, 0, row)) for row in ROWS}

        def step(row: str, batches: dict = batches) -> float:
            model.zero_grad()
            loss, _ = module.micro_batch_loss(batches[row])
            loss.backward()
            return loss.item()

        sides = {row: (lambda row=row: step(row)) for row in ROWS}
        losses = {row: sides[row]() for row in ROWS}
        seconds = side_by_side(sides, options.repeats, 1, clock)
        results[name] = {
            "comparisons": len(data),
            "tokens": {row: sum(RowLayout(WINDOW, 0, row).tokens(c) for c in data) for row in ROWS},
            "seconds": seconds,
            "times_as_fast": {row: seconds["separate"]["median"] / seconds[row]["median"] for row in ROWS},
            "loss": losses,
        }
        assert abs(losses["block"] - losses["separate"]) < 1e-5 * abs(losses["separate"])
        print(name, results[name]["times_as_fast"])

    start = prompt(rng)
    answers = responses(rng, start, SAMPLES)
    shared, apart = [Group.of(answers, len(start))], [alone(sequence) for sequence in answers]
    found = np.array(score_groups(model, shared, SAMPLES)[0])
    expected = np.array(score_groups(model, apart, SAMPLES))[:, 0]
    sides = {"separate": lambda: score_groups(model, apart, SAMPLES), "shared": lambda: score_groups(model, shared, SAMPLES)}
    seconds = side_by_side(sides, options.repeats, 1, clock)
    results["scoring"] = {
        "answers": SAMPLES,
        "prompt_tokens": len(start),
        "seconds": seconds,
        "times_as_fast": seconds["separate"]["median"] / seconds["shared"]["median"],
        "largest_difference": float(np.abs(found - expected).max()),
    }
    assert results["scoring"]["largest_difference"] < 1e-5
    print("scoring", results["scoring"]["times_as_fast"], results["scoring"]["largest_difference"])
    command = "python benchmarks/posttraining/reward_rows.py" + (" --processor-time" if options.processor_time else "")
    print(save(__file__, command, results))


if __name__ == "__main__":
    main()
