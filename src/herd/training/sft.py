"""Supervised fine-tuning: cross-entropy on the assistant's tokens of packed dialogs (section 4.1.3)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from herd.corpus.packing import best_fit
from herd.corpus.tokenizer import Tokenizer
from herd.dialog.masks import sft_mask
from herd.dialog.messages import Message, reject_reason
from herd.dialog.render import render_batch
from herd.dialog.rows import Counted
from herd.model.transformer import Transformer
from herd.objectives.cross_entropy import linear_cross_entropy, token_logprobs
from herd.runs.seeds import stream
from herd.training.meters import Flops, transformer_flops
from herd.training.module import HerdModule, Metrics
from herd.training.sequences import (
    EpochSteps,
    SequenceRows,
    TrainingSequence,
    alone,
    fit_window,
    lay_out,
    pack_sequences,
    shared_size,
)
from herd.training.steps import StepBatch, Unmade


def sft_sequences(
    dialogs: Iterable[Sequence[Message]], tokenizer: Tokenizer, window: int, counted: Counted, dialect: str = "meta"
) -> list[TrainingSequence]:
    """Dialogs -> sequences of at most `window` tokens with assistant-only targets; the others are counted by reason."""
    usable = []
    for messages in dialogs:
        reason = reject_reason(messages)
        if reason:
            counted.drop(reason)
        else:
            usable.append(messages)
    sequences = []
    for rendered in render_batch(usable, tokenizer, dialect=dialect):
        kept, note = fit_window(rendered, sft_mask(rendered), window)
        if note:
            counted.drop(note)  # "truncated" is counted here too, though its beginning is kept
        if kept is not None:
            mask = sft_mask(kept)
            sequences.append(TrainingSequence(kept.tokens, mask, mask))
    counted.kept += len(sequences)
    return sequences


def resample(sequences: Sequence[TrainingSequence], weight: float, seed: int, label: str) -> list[TrainingSequence]:
    """Each sequence `weight` times an epoch: as often as its whole part, and a drawn share of them once more for the rest.

    Section 4.2.3 of the paper: good sources repeat for several epochs, others are down-sampled. What is drawn is a function of
    seed and label alone and fixed for the run; round(weight x number) sequences come back, in their order.
    """
    whole, extra = int(weight), round(weight * len(sequences)) - int(weight) * len(sequences)
    drawn = set(stream(seed, "sft weights", label).permutation(len(sequences))[:extra].tolist())
    return [s for i, s in enumerate(sequences) for _ in range(whole + (i in drawn))]


def sft_steps(
    sequences: Sequence[TrainingSequence],
    window: int,
    pad_id: int,
    batch_rows: int,
    micro_batch_rows: int,
    epochs: float,
    seed: int,
    processes: int = 1,
) -> EpochSteps:
    """Optimizer steps of `batch_rows` packed rows, which processes can share, in micro-batches of `micro_batch_rows` at most.

    Rows are packed once; their order changes with the epoch.
    """
    micro_batch_rows = shared_size(batch_rows, micro_batch_rows, processes)
    rows = best_fit([len(s) for s in sequences], window)
    targets = [sum(int(sequences[i].trained[1:].sum()) for i in row) for row in rows]
    padding = [window - sum(len(sequences[i]) for i in row) for row in rows]
    row_squares = [sum(len(sequences[i]) ** 2 for i in row) + rest**2 for row, rest in zip(rows, padding, strict=True)]

    def micro_batch(group: list[int]) -> SequenceRows:
        members = [sequences[i] for unit in group for i in rows[unit]]
        ends = np.cumsum([len(rows[unit]) for unit in group])
        local = [list(range(end - len(rows[unit]), end)) for unit, end in zip(group, ends, strict=True)]
        return lay_out([alone(s) for s in members], local, window, pad_id)

    def build(step: int, units: list[int]) -> StepBatch:
        groups = [units[i : i + micro_batch_rows] for i in range(0, len(units), micro_batch_rows)]
        micro_batches = Unmade(range(len(groups)), lambda numbers: [micro_batch(groups[i]) for i in numbers])
        predicted, squares = sum(targets[i] for i in units), sum(row_squares[i] for i in units)
        tokens = len(units) * window
        return StepBatch(step, micro_batches, float(predicted), tokens, squares, tokens * window, predicted)

    return EpochSteps([window] * len(rows), batch_rows, epochs, seed, build)


class SFTModule(HerdModule):
    """Sum of -log p over the assistant's tokens, divided by their number in the whole optimizer step."""

    model: Transformer

    def micro_batch_loss(self, micro_batch: SequenceRows) -> tuple[Tensor, Metrics]:
        return rows_nll(self.model, micro_batch), {}

    def step_flops(self, batch: StepBatch) -> Flops:
        return transformer_flops(self.model.config, batch)


def rows_nll(model: Transformer, rows: SequenceRows) -> Tensor:
    """Summed negative log-likelihood of the trained tokens, nats."""
    hidden = model(rows.tokens, rows.positions, rows.mask)
    return linear_cross_entropy(rows.at_places(hidden), model.output_weight, rows.targets)


def sequence_logprobs(model: Transformer, rows: SequenceRows) -> Tensor:
    """Summed log-probability of each sequence's trained tokens, (N,), nats."""
    hidden = model(rows.tokens, rows.positions, rows.mask)
    return rows.sum_by_sequence(token_logprobs(rows.at_places(hidden), model.output_weight, rows.targets))


@torch.no_grad()
def sft_loss(model: Transformer, sequences: Sequence[TrainingSequence], window: int, pad_id: int, batch_size: int = 64) -> float:
    """Mean negative log-likelihood of the trained tokens, nats a token; NaN-free: needs at least one sequence."""
    assert sequences, "no sequences, no loss"
    total, targets = 0.0, 0
    for first in range(0, len(sequences), batch_size):
        rows = pack_sequences(sequences[first : first + batch_size], window, pad_id)
        total += float(rows_nll(model, rows))
        targets += len(rows.targets)
    return total / targets
