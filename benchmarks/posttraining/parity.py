"""DPO and SFT losses of herd and of TRL on the same tiny weights and rows: equal where the definitions agree.

Formatting tokens count in the preference term here, since TRL has no mask for them. What differs on purpose is listed beside it:

- ``sigmoid`` with label smoothing: herd's is cDPO; TRL ignores label_smoothing there (it has ``robust``).
- NLL term: herd's is a mean over each response, then over pairs; TRL's ``sft`` a mean over the batch's tokens.

Differences are relative to the value where it exceeds 1: a log-probability summed over a response is here about -160, of which
float32, TRL's type for it, cannot tell 1e-5.

    python benchmarks/posttraining/parity.py        (needs trl, datasets, accelerate)
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from peers import EOT, HEADER, PAD, VOCABULARY, as_llama, dpo_trainer, groups, trl_batch

from herd.model.config import ModelConfig
from herd.model.transformer import Transformer
from herd.training.dpo import DPOBatch, DPOObjective, dpo_rows, dpo_terms, reference_logprobs
from herd.training.sequences import Group, pack_sequences
from herd.training.sft import rows_nll

SIZES = ((19, 9, 14), (7, 21, 8), (30, 12, 12), (3, 7, 25))
AGREEING: dict[str, dict[str, Any]] = {
    "sigmoid": {},
    "sigmoid, beta 0.5": {"beta": 0.5},
    "sigmoid_norm": {"loss_type": "sigmoid_norm", "beta": 5.0},
    "ipo": {"loss_type": "ipo"},
    "hinge": {"loss_type": "hinge"},
    "robust": {"loss_type": "robust", "label_smoothing": 0.2},
    "ld_alpha": {"ld_alpha": 0.4},
}
METRICS = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected")


def tiny(seed: int) -> Transformer:
    """Two layers of width 32; `seed` 1 is the policy, 0 the reference."""
    config = ModelConfig(
        dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=64, vocab_size=VOCABULARY, max_seq_len=128, tie_embeddings=True
    )
    model = Transformer(config)
    model.init_weights(seed)
    return model


def ours(pairs: list[Group], objective: DPOObjective, row: str = "block") -> dict[str, torch.Tensor]:
    """Per pair: loss, logps and the rest."""
    data = dpo_rows(pairs, objective, row)
    with torch.no_grad():
        return dpo_terms(tiny(1), DPOBatch(data, reference_logprobs(tiny(0), [data])[0]), objective)


def theirs(pairs: list[Group], options: Mapping[str, Any]) -> dict[str, Any]:
    """TRL's loss and metrics over the pairs as one batch, and each response's log-probability."""
    settings = {**options, "loss_type": [options.get("loss_type", "sigmoid")]} if "loss_weights" not in options else options
    trainer = dpo_trainer(as_llama(tiny(1)), as_llama(tiny(0)), pairs, **settings)
    batch = trl_batch(trainer, range(len(pairs)))
    trainer.model.train()
    with torch.no_grad():
        found: dict[str, Any] = {"loss": float(trainer.compute_loss(trainer.model, batch))}
        found["logps"] = torch.stack(trainer.compute_ref_log_probs(trainer.model, batch), 1)
    return found | {name: values[-1] for name, values in trainer._metrics["train"].items()}


def dpo_difference(options: Mapping[str, Any]) -> dict[str, float]:
    """Difference of the loss, of each metric and, the largest, of the log-probabilities of single responses."""
    pairs = groups(SIZES)
    mine = ours(pairs, DPOObjective(nll_coefficient=0.0, **options))
    trl = theirs(pairs, options)
    names = ("loss", *METRICS)
    found = {name: (mine[name].mean(), torch.tensor(trl[name])) for name in names}
    found["logps of each response"] = (torch.stack((mine["logps/chosen"], mine["logps/rejected"]), 1), trl["logps"])
    return {name: float(((a - b).abs() / b.abs().clamp_min(1)).max()) for name, (a, b) in found.items()}


def logits_difference() -> float:
    """Of `logits/chosen` and `logits/rejected`: TRL's are means over the batch's tokens, herd's over each response first."""
    pairs = groups(SIZES)
    mine, trl = ours(pairs, DPOObjective()), theirs(pairs, {})
    counts = torch.tensor([[len(r) - len(HEADER) for r in pair.responses] for pair in pairs])
    of_tokens = [
        float((mine[f"logits/{name}"] * counts[:, i]).sum() / counts[:, i].sum()) for i, name in enumerate(("chosen", "rejected"))
    ]
    return max(abs(of_tokens[0] - trl["logits/chosen"]), abs(of_tokens[1] - trl["logits/rejected"]))


def on_purpose() -> dict[str, dict[str, float]]:
    """What the two define differently, and that the difference is what was meant."""
    pairs = groups(SIZES)
    with_nll = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2]}
    mine, trl = ours(pairs, DPOObjective()), theirs(pairs, with_nll)
    counts = torch.tensor([len(pair.responses[0]) - len(HEADER) for pair in pairs])
    plain = ours(pairs, DPOObjective(nll_coefficient=0.0))["loss"].mean()
    token_mean = plain + 0.2 * (mine["nll_loss"] * counts).sum() / counts.sum()
    smoothed, unsmoothed = (
        ours(pairs, DPOObjective(nll_coefficient=0.0, label_smoothing=0.2)),
        theirs(pairs, {"label_smoothing": 0.2}),
    )
    return {
        "NLL term": {
            "herd, mean over responses": float(mine["loss"].mean()),
            "trl, mean over tokens": trl["loss"],
            "herd's terms averaged as trl does, less trl": abs(float(token_mean) - trl["loss"]),
        },
        "label smoothing 0.2 in sigmoid": {
            "herd, cDPO": float(smoothed["loss"].mean()),
            "trl, which ignores it": unsmoothed["loss"],
            "herd without smoothing, less trl": abs(float(plain) - unsmoothed["loss"]),
        },
    }


def sft_difference() -> float:
    """Of the mean loss over the trained tokens of packed rows (herd) and of a padded batch (TRL's SFTTrainer)."""
    import tempfile

    from datasets import Dataset
    from peers import word_tokenizer
    from trl import SFTConfig, SFTTrainer

    sequences = [s for pair in groups(SIZES) for s in pair.separate()]
    packed = pack_sequences(sequences, 128, PAD)
    with torch.no_grad():
        mine = float(rows_nll(tiny(1), packed)) / len(packed.targets)
    rows = [{"input_ids": s.tokens.tolist(), "completion_mask": s.trained.astype(int).tolist()} for s in sequences]
    config = SFTConfig(
        output_dir=tempfile.mkdtemp(), max_length=None, use_cpu=True, bf16=False, report_to="none", save_strategy="no",
        gradient_checkpointing=False, completion_only_loss=True,
    )  # fmt: skip
    trainer = SFTTrainer(as_llama(tiny(1)), config, train_dataset=Dataset.from_list(rows), processing_class=word_tokenizer())
    batch = trl_batch(trainer, range(len(rows)))
    with torch.no_grad():
        return abs(mine - float(trainer.compute_loss(trainer.model, batch)))


def layouts_difference() -> float:
    """Of every metric between our shared and separate rows."""
    pairs = groups(SIZES)
    shared, apart = ours(pairs, DPOObjective()), ours(pairs, DPOObjective(), "separate")
    return max(float((shared[name] - apart[name]).abs().max()) for name in shared)


def main() -> None:
    import trl
    from measure import save

    results = {
        "trl": trl.__version__,
        "end_of_turn": EOT,
        "difference": {name: dpo_difference(options) for name, options in AGREEING.items()},
        "logits": logits_difference(),
        "sft": sft_difference(),
        "shared_less_separate_rows": layouts_difference(),
        "on_purpose": on_purpose(),
    }
    for name, value in results.items():
        print(name, value)
    print(save(__file__, " ".join(["python benchmarks/posttraining/parity.py", *sys.argv[1:]]), results))


if __name__ == "__main__":
    main()
