"""One optimizer step of a 1B Llama on one GPU: 8,192 tokens, bf16. herd, Hugging Face and, where installed, torchtitan's model.

Every side gets Llama 3.2 1B's shape (tied head; torchtitan's copy stores a matrix more, multiplies by none), the same tokens,
fused AdamW and bf16 autocast over fp32 weights. The row is one document of 8,192 tokens, so that no side is hindered by a mask
it lacks; herd's ways of the document mask follow on rows packed with documents of mixed length. MFU counts 6N plus the causal
half of attention over the GPU's dense bf16 peak, for fp8 too. Times are CUDA events, without synchronisation between steps.

    python benchmarks/training/gpu_step.py [--sides "herd;transformers, compiled"] [--steps 20]
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from measure import save
from step_vs_transformers import packed_rows

from herd.model.config import ModelConfig
from herd.model.counts import flops_per_token, parameter_count
from herd.model.masks import CAUSAL, Documents, Mask
from herd.model.transformer import Transformer
from herd.objectives.cross_entropy import linear_cross_entropy
from herd.training.devices import known_peak
from herd.training.engine import EngineConfig, engine

LENGTH = 8192
SHAPE = ModelConfig(
    dim=2048, n_layers=16, n_heads=32, n_kv_heads=8, ffn_dim=8192, vocab_size=128256, max_seq_len=LENGTH, tie_embeddings=True
)
OURS = {
    "herd": EngineConfig(),
    "herd, compiled by block": EngineConfig(compile="block"),
    "herd, compiled, fp8 tensorwise": EngineConfig(compile="block", fp8="tensorwise"),
    "herd, compiled, fp8 rowwise": EngineConfig(compile="block", fp8="rowwise"),
    "herd, compiled, recompute block": EngineConfig(compile="block", recompute="block"),
}
PACKED = {
    "documents, varlen": EngineConfig(compile="block", attention="varlen"),
    "documents, flex": EngineConfig(compile="block", attention="flex"),
    "documents, one call each length": EngineConfig(compile="block", attention="documents"),
}
PEERS = ("transformers", "transformers, compiled", "torchtitan, compiled")


def our_loss(model: Transformer, tokens: Tensor, positions: Tensor | None, mask: Mask) -> Tensor:
    return linear_cross_entropy(model(tokens, positions, mask), model.output_weight, tokens.roll(-1, 1)) / tokens.numel()


def transformers_model() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    from herd.model.convert import to_hf

    with torch.device("meta"):
        _, settings = to_hf(Transformer(SHAPE).state_dict(), SHAPE)
    return LlamaForCausalLM(LlamaConfig(**{**settings, "attn_implementation": "sdpa", "use_cache": False}))


def torchtitan_model() -> nn.Module:
    """torchtitan's own Llama of this shape, from whatever release is installed."""
    from torchtitan.models.llama3.model.args import TransformerModelArgs
    from torchtitan.models.llama3.model.model import Transformer as Titan

    return Titan(
        TransformerModelArgs(
            dim=SHAPE.dim,
            n_layers=SHAPE.n_layers,
            n_heads=SHAPE.n_heads,
            n_kv_heads=SHAPE.n_kv_heads,
            vocab_size=SHAPE.vocab_size,
            max_seq_len=LENGTH,
            ffn_dim_multiplier=1.5,  # with multiple_of 256: 8,192
            multiple_of=256,
            rope_theta=SHAPE.rope_theta,
        )
    )


def measure(model: nn.Module, loss: Callable[[], Tensor], steps: int) -> dict[str, float]:
    """Milliseconds of a step (median) and the peak of memory in GB."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    torch.cuda.reset_peak_memory_stats()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    for step in range(-5, steps + 1):
        if step >= 0:
            marks[step].record()
        with torch.autocast("cuda", torch.bfloat16):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    times = [a.elapsed_time(b) for a, b in pairwise(marks)]
    return {"milliseconds": statistics.median(times), "memory_gb": torch.cuda.max_memory_allocated() / 1e9, "loss": value.item()}


def compare(name: str, steps: int) -> dict[str, Any]:
    """One side; a peer that is not installed, or whose layout is another, is named with the reason."""
    generator = torch.Generator("cuda").manual_seed(0)
    tokens = torch.randint(0, SHAPE.vocab_size, (1, LENGTH), device="cuda", generator=generator)
    with ExitStack() as stack:
        if name in PEERS:
            try:
                model = (torchtitan_model() if name.startswith("torchtitan") else transformers_model()).to("cuda")
            except (ImportError, TypeError) as error:
                return {"side": name, "not_measured": str(error)}
            forward = torch.compile(model) if name.endswith("compiled") else model

            def loss() -> Tensor:
                result = forward(tokens)
                logits = result if isinstance(result, Tensor) else result.logits
                return F.cross_entropy(logits.flatten(0, 1).float(), tokens.roll(-1, 1).flatten())
        else:
            ours = Transformer(SHAPE).to("cuda")
            model, mask, positions = ours, CAUSAL, None
            if name in PACKED:
                rows = packed_rows(LENGTH, LENGTH)
                mask, positions = Documents(rows.lengths), rows.positions.to("cuda")
            stack.enter_context(engine(ours, (OURS | PACKED)[name], "gpu"))

            def loss() -> Tensor:
                return our_loss(ours, tokens, positions, mask)

        found = measure(model, loss, steps)
    rate = LENGTH / found["milliseconds"] * 1000
    peak = known_peak(torch.cuda.get_device_name(), "bf16")
    flops = flops_per_token(SHAPE, LENGTH, "6N+attention_causal")
    mfu = None if peak is None or name in PACKED else rate * flops / peak
    return {"side": name, **found, "tokens_per_second": rate, "mfu_causal": mfu}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", default=";".join((*OURS, *PACKED, *PEERS)), help="names, separated by semicolons")
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("gpu_step.py needs a GPU with about 40 GB; torch sees none here. Nothing was measured.")
    results = []
    for name in arguments.sides.split(";"):
        results.append(compare(name, arguments.steps))
        print(results[-1], flush=True)
        torch.cuda.empty_cache()
        torch._dynamo.reset()
    table = {
        "parameters": parameter_count(SHAPE, "6N"),
        "length": LENGTH,
        "device": torch.cuda.get_device_name(),
        "sides": results,
    }
    print(save(__file__, "python benchmarks/training/gpu_step.py", table))


if __name__ == "__main__":
    main()
