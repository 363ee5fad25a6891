"""For orientation: one optimizer step of whole causal rows, herd beside litgpt and Hugging Face: same shape, weights, rows, loss.

litgpt keeps no documents apart, so each row of 512 tokens is one document here, and nobody gains from a mask; what packed
documents cost is in ``step_vs_transformers.py``.

    python benchmarks/training/step_vs_litgpt.py [--processor-time]     # needs: pip install litgpt transformers
"""

import sys
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from step_vs_transformers import THREADS, VOCABULARY, Rows, our_step, product_rate, stepper, their_step

from herd.model.config import ModelConfig
from herd.model.convert import to_hf
from herd.model.counts import parameter_count
from herd.model.family import family_member
from herd.model.transformer import Transformer

ROWS, LENGTH, WIDTH = 8, 512, 256


def whole_rows() -> Rows:
    """Rows of one document each."""
    tokens = torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    targets = tokens.roll(-1, 1)
    targets[:, -1] = -100
    return Rows(tokens, torch.arange(LENGTH).expand(ROWS, LENGTH), targets, ((LENGTH,),) * ROWS)


def litgpt_step(config: ModelConfig, rows: Rows) -> Callable[[], float]:
    from litgpt.model import GPT, Config

    model = GPT(
        Config(
            block_size=LENGTH,
            n_layer=config.n_layers,
            n_embd=config.dim,
            n_head=config.n_heads,
            n_query_groups=config.n_kv_heads,
            intermediate_size=config.ffn_dim,
            padded_vocab_size=config.vocab_size,
            rope_base=int(config.rope_theta),
            rotary_percentage=1.0,
            norm_class_name="RMSNorm",
            norm_eps=config.norm_eps,
            mlp_class_name="LLaMAMLP",
            parallel_residual=False,
            bias=False,
        )
    )
    state, _ = to_hf(Transformer(config).state_dict(), config)
    theirs = {"transformer.wte.weight": state["model.embed_tokens.weight"], "transformer.ln_f.weight": state["model.norm.weight"]}
    theirs["lm_head.weight"] = theirs["transformer.wte.weight"]
    names = {"norm_1": "input_layernorm", "norm_2": "post_attention_layernorm", "attn.proj": "self_attn.o_proj"}
    names |= {"mlp.fc_1": "mlp.gate_proj", "mlp.fc_2": "mlp.up_proj", "mlp.proj": "mlp.down_proj"}
    for i in range(config.n_layers):
        for name, hf in names.items():
            theirs[f"transformer.h.{i}.{name}.weight"] = state[f"model.layers.{i}.{hf}.weight"]
        parts = [state[f"model.layers.{i}.self_attn.{p}_proj.weight"] for p in "qkv"]
        theirs[f"transformer.h.{i}.attn.qkv.weight"] = torch.cat(parts)
    model.load_state_dict(theirs)
    model.lm_head.weight = model.transformer.wte.weight

    def losses() -> Iterator[torch.Tensor]:
        logits = model(rows.tokens)
        yield F.cross_entropy(logits.flatten(0, 1), rows.targets.flatten(), reduction="sum") / rows.count

    return stepper(model, losses, autocast=False)


def main() -> None:
    from measure import save, side_by_side

    processor_time = "--processor-time" in sys.argv
    torch.set_num_threads(1 if processor_time else THREADS)
    config, rows = family_member(WIDTH, VOCABULARY, LENGTH), whole_rows()
    sides = {
        "herd": our_step(config, rows, False)[0],
        "litgpt": litgpt_step(config, rows),
        "transformers, sdpa, no mask": their_step(config, rows, False, "sdpa, no mask"),
        "transformers, eager": their_step(config, rows, False, "eager, additive mask"),
    }
    losses = {name: step() for name, step in sides.items()}
    assert max(losses.values()) - min(losses.values()) < 1e-4, f"the sides compute different losses: {losses}"
    seconds = side_by_side(sides, 5, 0, time.process_time if processor_time else time.perf_counter)
    results = {
        "clock": "processor time" if processor_time else "wall clock",
        "threads": torch.get_num_threads(),
        "parameters": parameter_count(config, "6N"),
        "tokens_per_step": ROWS * LENGTH,
        "product_gflops": product_rate(torch.float32, 2048),
        "losses": losses,
        "seconds": seconds,
        "tokens_per_second": {name: ROWS * LENGTH / value["median"] for name, value in seconds.items()},
    }
    print(results)
    print(save(__file__, " ".join(["python benchmarks/training/step_vs_litgpt.py", *sys.argv[1:]]), results))


if __name__ == "__main__":
    main()
