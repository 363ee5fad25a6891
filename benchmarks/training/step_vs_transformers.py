"""One optimizer step on packed documents: herd against Hugging Face ``LlamaForCausalLM``, same shape, weights, rows and loss.

Both sides get fp32, fused AdamW and the same packed rows of documents of mixed length. Hugging Face gets the document mask as a
4-D additive mask with SDPA attention, since its position-id route needs flash-attention. Run: ``make bench``.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from measure import save, side_by_side
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from herd.model.convert import to_hf
from herd.model.counts import parameter_count
from herd.model.family import shape_for
from herd.model.masks import Documents
from herd.model.transformer import Transformer
from herd.objectives.cross_entropy import linear_cross_entropy

VOCABULARY, LENGTH, ROWS = 2048, 512, 8


def packed_lengths(generator: np.random.Generator) -> tuple[tuple[int, ...], ...]:
    """Rows of documents of log-normal length (median 90 tokens), each row filled to ``LENGTH``."""
    rows = []
    for _ in range(ROWS):
        lengths: list[int] = []
        while sum(lengths) < LENGTH:
            lengths.append(min(int(generator.lognormal(4.5, 0.8)) + 2, LENGTH - sum(lengths)))
        rows.append(tuple(lengths))
    return tuple(rows)


def compare(parameters: float) -> dict[str, object]:
    """Tokens a second of both sides and their ratio, after checking that both give the same loss."""
    generator = np.random.default_rng(0)
    lengths = packed_lengths(generator)
    tokens = torch.from_numpy(generator.integers(0, VOCABULARY, (ROWS, LENGTH)))
    positions = torch.tensor([[p for n in row for p in range(n)] for row in lengths])
    document = torch.tensor([[i for i, n in enumerate(row) for _ in range(n)] for row in lengths])
    targets = tokens.roll(-1, 1)
    targets[:, -1] = -100
    targets[:, :-1][document[:, 1:] != document[:, :-1]] = -100
    count = int((targets != -100).sum())

    config = shape_for(parameters, VOCABULARY, LENGTH)
    ours = Transformer(config)
    ours.init_weights(0)
    state, settings = to_hf(ours.state_dict(), config)
    theirs = LlamaForCausalLM(LlamaConfig(**{**settings, "attn_implementation": "sdpa", "use_cache": False}))
    theirs.load_state_dict(state, strict=False)
    theirs.tie_weights()

    same = document[:, :, None] == document[:, None, :]
    allowed = (same & torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril())[:, None]
    additive = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    mask = Documents(lengths)

    def our_loss() -> Tensor:
        return linear_cross_entropy(ours(tokens, positions, mask), ours.output_weight, targets) / count

    def their_loss() -> Tensor:
        logits = theirs(input_ids=tokens, position_ids=positions, attention_mask=additive).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    difference = abs(float(our_loss()) - float(their_loss()))
    assert difference < 1e-4, f"the two sides compute different losses ({difference})"

    def stepper(model: torch.nn.Module, loss: "object") -> "object":
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            loss().backward()  # type: ignore[operator]
            optimizer.step()

        return step

    seconds = side_by_side({"herd": stepper(ours, our_loss), "transformers": stepper(theirs, their_loss)})  # type: ignore[dict-item]
    speed = {name: ROWS * LENGTH / value["median"] for name, value in seconds.items()}
    return {
        "parameters": parameter_count(config, "6N"),
        "tokens_per_step": ROWS * LENGTH,
        "threads": torch.get_num_threads(),
        "loss_difference": difference,
        "seconds": seconds,
        "tokens_per_second": speed,
        "ratio": speed["herd"] / speed["transformers"],
    }


if __name__ == "__main__":
    logging.set_verbosity_error()
    results = [compare(parameters) for parameters in (3e5, 1.2e6, 6e6)]
    for row in results:
        print({key: row[key] for key in ("parameters", "tokens_per_second", "ratio")})
    print(save(__file__, "python benchmarks/training/step_vs_transformers.py", results))
