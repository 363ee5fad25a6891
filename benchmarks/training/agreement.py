"""Does a model of ours give Hugging Face's ``LlamaForCausalLM`` numbers? Logits, generation, training, and the way back.

The models of a finished run are exported by ``herd export`` and loaded by the Auto classes. Logits are compared on held-out text
in rows as long as the model reads, with float64 beside both, since Hugging Face computes the angles of RoPE in float32. Training
is compared step by step: ``herd pretrain`` itself against a plain loop over Hugging Face's model from the exported weights.

    python benchmarks/training/agreement.py runs/laptop
"""

import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from measure import save
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from herd.config.loader import compose
from herd.corpus.mixture import Mixture
from herd.corpus.packing import PackedRows
from herd.corpus.shards import TokenShards
from herd.corpus.tokenizer import Tokenizer
from herd.generation.sampler import SamplingConfig, generate
from herd.interchange.export import ExportConfig
from herd.interchange.export import run as export
from herd.interchange.import_stage import STAGE as IMPORT
from herd.interchange.import_stage import ImportConfig
from herd.model.counts import parameter_count
from herd.model.hf_folder import write_hf_folder
from herd.model.io import load_model, open_model, save_model
from herd.model.transformer import Transformer
from herd.recipe.job import make_job
from herd.runs.locate import find_tokenizer
from herd.runs.metrics import read_metrics
from herd.runs.stage import Artifact, Inputs, StageRun, execute
from herd.training import pretrain_stage
from herd.training.curriculum import Curriculum
from herd.training.pretrain import PretrainSource
from herd.training.pretrain_stage import PretrainConfig

PROMPT_TOKENS, NEW_TOKENS = 64, 64


def document_mask(rows: PackedRows) -> Tensor:
    """(B, 1, T, T) additive mask: within each document, causal."""
    documents = torch.tensor([[i for i, n in enumerate(row) for _ in range(n)] for row in rows.lengths])
    same = documents[:, :, None] == documents[:, None, :]
    allowed = same & torch.ones(same.shape[1:], dtype=torch.bool).tril()
    return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)[:, None]


def trajectory(config: PretrainConfig, inputs: Inputs, folder: Path, control: bool = False) -> dict[str, Any]:
    """The losses of ``herd pretrain`` and of a plain loop over Hugging Face's model: same start, rows, AdamW and clipping.

    ``control`` repeats the loop with Hugging Face's eager attention: how far rounding alone drives two equal trainings apart.
    """
    start = Transformer(config.model)
    start.init_weights(config.seed)
    save_model(start, folder / "start")
    write_hf_folder(folder / "hf", open_model(folder / "start"), 10**9, {})
    theirs = AutoModelForCausalLM.from_pretrained(folder / "hf", attn_implementation="sdpa")

    pretrain_stage.run(config, inputs, StageRun(folder / "run", seed=config.seed))
    ours = [row["loss"] for row in read_metrics(folder / "run/metrics.jsonl")]

    shards = TokenShards(inputs["tokens"] / "tokens")
    settled = pretrain_stage.settled(config, shards, None)
    curriculum = Curriculum(settled.curriculum, settled.mix.weights, settled.optimizer.lr)
    mixture = Mixture(shards, "train", curriculum.mixture_phases(), settled.seed)
    source = PretrainSource(mixture, curriculum, config.trainer.micro_batch_tokens)
    losses = plain_loop(theirs, source, curriculum, settled)
    others = {}
    if control:
        eager = AutoModelForCausalLM.from_pretrained(folder / "hf", attn_implementation="eager")
        again = plain_loop(eager, source, curriculum, settled)
        others["transformers_eager_against_sdpa"] = [abs(a - b) / b for a, b in zip(again, losses, strict=True)]
    others["herd_against_transformers_sdpa"] = [abs(a - b) / b for a, b in zip(ours, losses, strict=True)]
    assert len(ours) == len(losses), "every step is logged: trainer.log_every_steps=1"
    return {
        "steps": len(losses),
        "tokens_per_step": source[0].tokens,
        "sequence": source.mixture.phases[0].seq_len,
        "parameters": parameter_count(config.model, "total"),
        "rope_scaling": config.model.rope_scaling is not None,
        "first_and_last_loss": {"herd": [ours[0], ours[-1]], "transformers": [losses[0], losses[-1]]},
        "largest_relative_difference_of_loss": {name: max(values) for name, values in others.items()},
        "relative_difference_at_steps": {n: {f"{i}": v[i - 1] for i in (1, 10, 25, len(v))} for n, v in others.items()},
    }


def plain_loop(model: torch.nn.Module, source: PretrainSource, curriculum: Curriculum, config: PretrainConfig) -> list[float]:
    """Loss of each step."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": config.optimizer.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    betas = (config.optimizer.betas[0], config.optimizer.betas[1])
    optimizer = torch.optim.AdamW(groups, lr=config.optimizer.lr, betas=betas, eps=config.optimizer.eps)
    losses = []
    for step in range(len(source)):
        batch = source[step]
        total = 0.0
        for rows in batch.micro_batches:
            logits = model(input_ids=rows.tokens, position_ids=rows.positions, attention_mask=document_mask(rows)).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows.targets.flatten(), reduction="sum")
            (loss / batch.normalizer).backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.trainer.gradient_clip)
        for group in optimizer.param_groups:
            group["lr"] = curriculum.learning_rate(step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total / batch.normalizer)
    return losses


@torch.no_grad()
def logits_and_generation(folder: Path, shards: TokenShards, work: Path) -> dict[str, Any]:
    """One exported model beside ours, on held-out text."""
    export(ExportConfig(model=str(folder), out=str(work / "hf"), tokenizer=str(find_tokenizer(folder)), overwrite=True))
    theirs = AutoModelForCausalLM.from_pretrained(work / "hf", attn_implementation="eager")
    ours, exact = load_model(folder), load_model(folder).double()
    length = ours.config.max_seq_len
    stream = np.concatenate([np.asarray(shards.source("heldout", d).tokens[: 2 * length]) for d in shards.domains("heldout")])
    rows = torch.from_numpy(stream[: len(stream) // length * length].astype(np.int64)).view(-1, length)
    mine, other, truth = ours.logits(ours(rows)), theirs(rows).logits, exact.logits(exact(rows))
    largest = truth.abs().max().item()

    prompts = [row[:PROMPT_TOKENS].tolist() for row in rows]
    tokenizer = Tokenizer.load(work / "hf")
    drawn = generate(ours, prompts, 1, SamplingConfig(NEW_TOKENS, temperature=0.0), tokenizer.stop_ids)
    same = 0
    for prompt, (sample,) in zip(prompts, drawn, strict=True):
        found = theirs.generate(torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False)
        same += found[0, len(prompt) :].tolist() == sample.tokens

    imported = execute(IMPORT, ImportConfig(source=str(work / "hf")), {}, work / "runs", "back")
    back = all(
        (imported / "model" / name).read_bytes() == (folder / name).read_bytes() for name in ("config.json", "model.safetensors")
    )
    scaling = ours.config.rope_scaling
    return {
        "parameters": parameter_count(ours.config, "total"),
        "positions": length,
        "original_positions": scaling.original_max_seq_len if scaling else length,
        "rows": len(rows),
        "largest_logit": largest,
        "largest_difference": (mine - other).abs().max().item(),
        "largest_difference_over_largest_logit": (mine - other).abs().max().item() / largest,
        "herd_to_float64": (mine - truth).abs().max().item(),
        "transformers_to_float64": (other - truth).abs().max().item(),
        "greedy_samples_equal": f"{same} of {len(prompts)}, {NEW_TOKENS} tokens at most",
        "import_of_export_is_equal_bit_for_bit": back,
    }


def main(run: Path) -> None:
    """Compare, print and save."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    inputs = Inputs({"tokens": Artifact.open(run / "tokenize")}, {})
    shards = TokenShards(inputs["tokens"] / "tokens")
    results: dict[str, Any] = {}
    for name in ("pretrain/stages/initial", "pretrain/model", "round-2/average/model"):
        with tempfile.TemporaryDirectory() as work:
            results[name] = logits_and_generation((run / name).resolve(), shards, Path(work))
        print(name, results[name])
    for lr, scaled in product((3e-4, 3e-3), (False, True)):  # the default, and one at which rounding grows fast
        scaling = "{factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_seq_len: 64}" if scaled else "null"
        keys = [
            "curriculum=cosine", "curriculum.tokens=42500", "curriculum.batch_tokens=1024", "model=1m", f"optimizer.lr={lr}",
            f"model.vocab_size={shards.vocab_size}", f"model.rope_scaling={scaling}", "trainer.log_every_steps=1",
            "trainer.micro_batch_tokens=2048", "eval_tokens=2000",
        ]  # fmt: skip
        config = make_job("pretrain", compose("pretrain", keys)).config
        with tempfile.TemporaryDirectory() as work:
            name = f"training, learning rate {lr:g}{', scaled RoPE' if scaled else ''}"
            results[name] = trajectory(config, inputs, Path(work), control=True)
        print(name, results[name])
    print(save(__file__, "python benchmarks/training/agreement.py runs/laptop", results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
