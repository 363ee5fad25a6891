"""K samples of a prompt: herd's paged engine against Hugging Face ``generate(num_return_sequences=K)``, same model and type.

The same weights (exported by ``herd.model.convert``), one prompt, random sampling at temperature 1 without top-p, and stops that
never come, so that all sides draw the same number of tokens. Hugging Face is measured with SDPA and its dynamic and its static
cache; the best counts. A third side says what pages gain: the same model of ours with a contiguous cache of its own for each
sample, the prompt run once and copied K times, as herd sampled before it had pages. It reads K copies of the prompt a step.

    python benchmarks/posttraining/sampling_vs_transformers.py [--processor-time] [--turns N]

Two threads and the wall clock say something on a quiet machine only; ``--processor-time`` compares the processor time of one
thread, which other work moves less. Greedy answers of the sides are compared first.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from measure import save, side_by_side

from herd.generation.choose import SamplingConfig, choose
from herd.generation.engine import PAGE_SIZE, Engine, Request
from herd.generation.sampler import enough, generate
from herd.model.attention import Way, attend
from herd.model.convert import to_hf
from herd.model.counts import parameter_count
from herd.model.family import family_member
from herd.model.masks import CAUSAL
from herd.model.transformer import Transformer

WIDTH, VOCABULARY, WINDOW = 256, 2048, 1024  # the family's member of 6.3M parameters
PROMPT, NEW, K = 757, 128, 16  # tokens, tokens, samples; the mean prompt of the paper's preference data (table 6)
OURS, BEFORE = "herd, pages", "herd, a contiguous cache a sample"
PLAIN = "transformers, dynamic cache"  # what generate(num_return_sequences=K) does unless told otherwise
PEERS = {PLAIN: None, "transformers, static cache": "static"}


class Contiguous:
    """Keys and values of rows of equal length, each row with a copy of its own."""

    def __init__(self, layers: int) -> None:
        self.keys: list[Tensor | None] = [None] * layers
        self.values: list[Tensor | None] = [None] * layers
        self.length = 0

    def room(self, rows: int, capacity: int) -> None:
        """Copy the one row to ``rows`` rows, with room for ``capacity`` positions each."""
        for stored in (self.keys, self.values):
            for i, x in enumerate(stored):
                assert x is not None
                self.length = x.shape[2]
                stored[i] = x.new_zeros(rows, x.shape[1], capacity, x.shape[3])
                stored[i][:, :, : self.length] = x  # type: ignore[index]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, way: Way) -> Tensor:
        if self.keys[layer] is None:
            self.keys[layer], self.values[layer] = k.transpose(1, 2), v.transpose(1, 2)
            return attend(q, k, v, way)
        end = self.length + 1
        for stored, new in ((self.keys, k), (self.values, v)):
            stored[layer][:, :, self.length : end] = new.transpose(1, 2)  # type: ignore[index]
        k, v = (s[layer][:, :, :end].transpose(1, 2) for s in (self.keys, self.values))  # type: ignore[index]
        return attend(q, k, v, CAUSAL)


@torch.inference_mode()
def contiguous(model: Transformer, prompt: Tensor, samples: int, new: int, temperature: float) -> Tensor:
    """``samples`` continuations, (samples, new), each step over as many copies of the prompt."""
    cache = Contiguous(model.config.n_layers)
    logits = model.logits(model(prompt[None], cache=cache)[:, -1]).expand(samples, -1)
    cache.room(samples, len(prompt) + new)
    generator, drawn = torch.Generator().manual_seed(0), []
    for step in range(new):
        drawn.append(choose(logits, torch.rand(samples, generator=generator), temperature, 1.0))
        if step + 1 < new:
            positions = torch.full((samples, 1), len(prompt) + step)
            hidden = model(drawn[-1][:, None], positions, cache=cache)
            cache.length += 1
            logits = model.logits(hidden[:, -1])
    return torch.stack(drawn, 1)


def peer(model: Transformer) -> Any:
    """The same weights as a ``LlamaForCausalLM``."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    state, settings = to_hf(model.state_dict(), model.config)
    theirs = LlamaForCausalLM(LlamaConfig(**{**settings, "attn_implementation": "sdpa"}))
    theirs.load_state_dict(state, strict=False)
    theirs.tie_weights()
    return theirs.eval()


def sides(model: Transformer, prompt: Tensor, samples: int, new: int, temperature: float) -> dict[str, Callable[[], Any]]:
    """name -> a call that draws, and returns (samples, new)."""
    theirs, tokens = peer(model), prompt.tolist()
    how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {"do_sample": False}

    def drawn_by(cache: str | None) -> Tensor:
        more = {} if cache is None else {"cache_implementation": cache}
        with torch.inference_mode():
            ids = theirs.generate(
                prompt[None], num_return_sequences=samples, max_new_tokens=new, min_new_tokens=new, pad_token_id=0, **how, **more
            )
        return ids[:, len(prompt) :]

    def ours() -> Tensor:
        (drawn,) = generate(model, [tokens], samples, SamplingConfig(new, temperature), (), samples)
        return torch.tensor([s.tokens for s in drawn])

    named: dict[str, Callable[[], Any]] = {OURS: ours, BEFORE: lambda: contiguous(model, prompt, samples, new, temperature)}
    return named | {name: lambda cache=cache: drawn_by(cache) for name, cache in PEERS.items()}


def held(model: Transformer, prompt: Tensor) -> dict[str, int]:
    """Bytes of keys and values that the engine holds when its K samples have nearly all their tokens, and what copies would."""
    config = SamplingConfig(NEW, 1.0)
    engine = Engine(model, K, enough(len(prompt), 1, K, config, K))
    engine.submit(Request(tuple(prompt.tolist()), K, config, frozenset()))
    for _ in range(NEW - 1):
        engine.step()
    c = model.config
    position = 2 * c.n_layers * c.n_kv_heads * c.head_dim * engine.storage.keys.element_size()
    return {
        "pages": engine.pool.used * PAGE_SIZE * position,
        "of_them_the_prompt": -(-len(prompt) // PAGE_SIZE) * PAGE_SIZE * position,
        "copies_would_be": K * (len(prompt) + NEW - 1) * position,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processor-time", action="store_true", help="of one thread, instead of the wall clock of two")
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1 if arguments.processor_time else 2)
    model = Transformer(family_member(WIDTH, VOCABULARY, WINDOW)).requires_grad_(False)
    prompt = torch.randint(0, VOCABULARY, (PROMPT,), generator=torch.Generator().manual_seed(0))
    # Initial weights give nearly uniform logits, whose largest hangs on rounding; sharper ones can be compared.
    model.tok_embeddings.weight.mul_(4)
    greedy = {name: call() for name, call in sides(model, prompt, 1, 16, 0.0).items()}
    assert all(torch.equal(x, greedy[OURS]) for x in greedy.values()), f"the sides draw different greedy answers: {greedy}"
    calls = sides(model, prompt, K, NEW, 1.0)
    seconds = side_by_side(calls, arguments.turns, 0, time.process_time if arguments.processor_time else time.perf_counter)
    best = min(PEERS, key=lambda name: seconds[name]["median"])
    results = {
        "clock": "processor time" if arguments.processor_time else "wall clock",
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "parameters": parameter_count(model.config, "total"),
        "prompt": PROMPT,
        "new": NEW,
        "samples": K,
        "dtype": "float32",
        "seconds": seconds,
        "tokens_per_second": {name: K * NEW / value["median"] for name, value in seconds.items()},
        "best_of_transformers": best,
        "ratio_to_transformers": {s: seconds[best][s] / seconds[OURS][s] for s in ("median", "minimum")},
        "ratio_to_their_plain_call": {s: seconds[PLAIN][s] / seconds[OURS][s] for s in ("median", "minimum")},
        "ratio_to_contiguous": {s: seconds[BEFORE][s] / seconds[OURS][s] for s in ("median", "minimum")},
        "bytes_of_keys_and_values": held(model, prompt),
    }
    print({k: v for k, v in results.items() if k != "seconds"})
    print(save(__file__, " ".join(["python benchmarks/posttraining/sampling_vs_transformers.py", *sys.argv[1:]]), results))


if __name__ == "__main__":
    main()
