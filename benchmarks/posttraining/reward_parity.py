"""The reward loss and its gradient against TRL's RewardTrainer: the same tiny weights, the same rows, with and without options.

TRL computes its loss with ``RewardTrainer.compute_loss`` on a ``LlamaForSequenceClassification`` and its own padded batch, herd
on packed rows, separate and sharing their prompt. Gradients are compared parameter by parameter under Hugging Face's names.

    python benchmarks/posttraining/reward_parity.py
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from measure import save

from herd.dialog.preferences import Grade
from herd.model.config import ModelConfig
from herd.model.convert import CLASSIFIER, hf_config, hf_names, tensor_to_hf
from herd.model.heads import RewardModel
from herd.model.transformer import Transformer
from herd.training.optimizer import OptimizerConfig
from herd.training.reward import Comparison, RewardModule, RewardObjective, RowLayout, reward_batch
from herd.training.sequences import TrainingSequence

PAD, VOCABULARY, WINDOW = 0, 64, 128
SHAPE = ModelConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=64, vocab_size=VOCABULARY, max_seq_len=WINDOW)
CASES = {
    "plain": RewardObjective(),
    "centred": RewardObjective(center_rewards_coefficient=0.01),
    "margin": RewardObjective(margin="large"),
}


def some_comparisons(count: int = 6) -> list[Comparison]:
    """Pairs of random tokens of mixed length, one of every grade in turn. The pad is none of the tokens."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(count):
        prompt = rng.integers(1, VOCABULARY, rng.integers(3, 20))
        responses = []
        for length in rng.integers(2, 25, 2):
            tokens = np.concatenate((prompt, rng.integers(1, VOCABULARY, length)))
            nothing = np.zeros(len(tokens), bool)
            responses.append(TrainingSequence(tokens, nothing, nothing))
        made.append(Comparison(tuple(responses), len(prompt), list(Grade)[i % 4]))
    return made


def ours(model: RewardModel, data: list[Comparison], objective: RewardObjective, row: str) -> dict[str, Any]:
    """Mean loss, gradient by Hugging Face's names, and metrics."""
    module = RewardModule(model, OptimizerConfig(), lambda step: 0.0)
    module.objective = objective
    model.zero_grad()
    loss, metrics = module.micro_batch_loss(reward_batch(data, RowLayout(WINDOW, PAD, row), objective))
    (loss / len(data)).backward()
    names = hf_names(SHAPE, CLASSIFIER)
    gradient = {
        names[name]: tensor_to_hf(p.grad, name, SHAPE)
        for name, p in model.named_parameters()
        if name in names and p.grad is not None
    }
    means = {name: float(total) / float(n) for name, (total, n) in metrics.items() if float(n)}
    return {"loss": loss.item() / len(data), "gradient": gradient, "metrics": means}


def theirs(model: RewardModel, data: list[Comparison], objective: RewardObjective) -> dict[str, Any]:
    """The same by TRL."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast
    from trl import RewardConfig, RewardTrainer

    config = LlamaConfig(**(hf_config(SHAPE, CLASSIFIER) | {"num_labels": 1, "pad_token_id": PAD}))
    classifier = LlamaForSequenceClassification(config)
    names = hf_names(SHAPE, CLASSIFIER)
    state = {names[name]: tensor_to_hf(t, name, SHAPE) for name, t in model.state_dict().items() if name in names}
    classifier.load_state_dict(state)
    words = {f"w{i}": i for i in range(VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w1")), pad_token="w0", eos_token="w2"
    )
    rows = []
    for comparison in data:
        chosen, rejected = (sequence.tokens.tolist() for sequence in comparison.responses)
        row = {"chosen_ids": chosen, "rejected_ids": rejected}
        rows.append(row | ({"margin": objective.margin_of(comparison.grade)} if objective.margin != "none" else {}))
    with tempfile.TemporaryDirectory() as folder:
        arguments = RewardConfig(
            output_dir=folder,
            per_device_train_batch_size=len(data),
            center_rewards_coefficient=objective.center_rewards_coefficient or None,
            max_length=None,
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            disable_dropout=True,
        )
        trainer = RewardTrainer(classifier, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
        batch = trainer.data_collator(rows)
        classifier.train()
        loss = trainer.compute_loss(classifier, batch)
        loss.backward()
        metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    gradient = {name: p.grad for name, p in classifier.named_parameters() if p.grad is not None}
    return {"loss": loss.item(), "gradient": gradient, "metrics": metrics}


def compare() -> dict[str, Any]:
    """case -> row -> differences."""
    backbone = Transformer(SHAPE)
    backbone.init_weights(0)
    with torch.no_grad():  # large weights: rewards far from each other, so that agreement says something
        for parameter in backbone.parameters():
            parameter.mul_(2.0)
    model, data = RewardModel(backbone, 0), some_comparisons()
    results: dict[str, Any] = {}
    for case, objective in CASES.items():
        peer = theirs(model, data, objective)
        results[case] = {"loss": peer["loss"], "metrics": peer["metrics"]}
        for row in ("separate", "block"):
            mine = ours(model, data, objective, row)
            assert mine["gradient"].keys() == peer["gradient"].keys()
            norm = torch.cat([g.flatten() for g in peer["gradient"].values()]).norm()
            off = torch.cat([(mine["gradient"][n] - g).flatten() for n, g in peer["gradient"].items()]).norm()
            results[case][row] = {
                "loss_difference": abs(mine["loss"] - peer["loss"]),
                "gradient_difference_relative": float(off / norm),
                "metrics_difference": {
                    name: abs(mine["metrics"][name] - peer["metrics"][name])
                    for name in ("accuracy", "margin", "min_reward", "mean_reward", "max_reward")
                },
            }
    return results


def main() -> None:
    import trl

    results = {"trl": trl.__version__, "cases": compare()}
    for case, found in results["cases"].items():
        for row in ("separate", "block"):
            assert found[row]["loss_difference"] < 1e-5 and found[row]["gradient_difference_relative"] < 1e-5
            print(case, row, found[row])
    print(save(__file__, "python benchmarks/posttraining/reward_parity.py", results))


if __name__ == "__main__":
    main()
