"""Train a document encoder on labels that may be distributions: cross-entropy against what the labeller stated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from herd.corpus.tokenizer import Tokenizer
from herd.model.encoder import DocumentEncoder
from herd.training.module import HerdModule, Metrics, without_output_head
from herd.training.optimizer import OptimizerConfig
from herd.training.sequences import EpochSteps, SequenceRows, TrainingSequence, group_size, pack_sequences, shared_size
from herd.training.steps import StepBatch, Unmade


@dataclass(frozen=True)
class EncoderBatch:
    """Packed documents and what is to be said of each."""

    rows: SequenceRows
    targets: Tensor  # (N, classes) float32, rows sum to 1


def encoder_sequences(texts: Sequence[str], tokenizer: Tokenizer, window: int) -> list[TrainingSequence]:
    """Documents as ``<|begin_of_text|>`` and their first ``window - 1`` tokens; nothing is predicted."""
    # A token stands for one character at least but for a few per mille, so what lies far behind the window is not encoded.
    ids = tokenizer.encode_batch([text[: 64 * window] for text in texts])
    sequences = []
    for found in ids:
        tokens = np.array([tokenizer.bos_id, *found[: window - 1]], np.int64)
        nothing = np.zeros(len(tokens), bool)
        sequences.append(TrainingSequence(tokens, nothing, nothing))
    return sequences


def encoder_steps(
    sequences: Sequence[TrainingSequence],
    targets: np.ndarray,
    window: int,
    pad_id: int,
    batch_size: int,
    micro_batch_tokens: int,
    epochs: float,
    seed: int,
    processes: int = 1,
) -> EpochSteps:
    """Optimizer steps of `batch_size` documents, which processes can share; targets are (documents, classes)."""
    assert len(sequences) == len(targets)
    sizes = [len(sequence) for sequence in sequences]
    size = shared_size(batch_size, group_size(batch_size, max(sizes, default=1), micro_batch_tokens), processes)
    wanted = torch.from_numpy(np.asarray(targets, np.float32))

    def build(step: int, units: list[int]) -> StepBatch:
        groups = [units[i : i + size] for i in range(0, len(units), size)]

        def make(numbers: range) -> Iterator[EncoderBatch]:
            for group in (groups[n] for n in numbers):
                yield EncoderBatch(pack_sequences([sequences[i] for i in group], window, pad_id), wanted[group])

        return StepBatch(step, Unmade(range(len(groups)), make), float(len(units)), sum(sizes[i] for i in units))

    return EpochSteps(sizes, batch_size, epochs, seed, build)


class EncoderModule(HerdModule):
    """Mean over documents of the cross-entropy between stated and predicted classes."""

    model: DocumentEncoder

    def __init__(self, model: DocumentEncoder, optimizer: OptimizerConfig, schedule: Callable[[int], float]) -> None:
        super().__init__(without_output_head(model), optimizer, schedule)

    def micro_batch_loss(self, micro_batch: EncoderBatch) -> tuple[Tensor, Metrics]:
        rows = micro_batch.rows
        logits = self.model(rows.tokens, rows.positions, rows.lengths, rows.ends)
        loss = -(micro_batch.targets * log_softmax(logits, dim=1)).sum()
        right = (logits.argmax(dim=1) == micro_batch.targets.argmax(dim=1)).sum()
        return loss, {"accuracy": (right, len(micro_batch.targets))}


@torch.no_grad()
def encoder_logits(
    encoder: DocumentEncoder, sequences: Sequence[TrainingSequence], pad_id: int, batch_tokens: int = 8192
) -> np.ndarray:
    """(documents, classes) float64 in the order given; documents of like length are read together."""
    order = sorted(range(len(sequences)), key=lambda i: (len(sequences[i]), i))
    device = encoder.bias.device
    found = np.zeros((len(sequences), len(encoder.classes)))
    while order:
        longest = len(sequences[order[0]])
        group: list[int] = []
        while order and (not group or (len(group) + 1) * max(longest, len(sequences[order[0]])) <= batch_tokens):
            longest = max(longest, len(sequences[order[0]]))
            group.append(order.pop(0))
        rows = pack_sequences([sequences[i] for i in group], longest, pad_id)
        logits = encoder(rows.tokens.to(device), rows.positions.to(device), rows.lengths, rows.ends.to(device))
        found[group] = logits.double().cpu().numpy()
    return found
