"""Rendered dialogs packed into rows, and their order over the optimizer steps of a fine-tuning run.

Several sequences share a row; attention, positions and targets stay within each, so a packed row gives the same
numbers as separate padded rows. Nothing is ever cut here: a dialog that is longer than a row is shortened or dropped,
and counted, before it comes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from herd.config.errors import UserError
from herd.corpus.packing import best_fit
from herd.dialog.render import Rendered
from herd.runs.seeds import stream
from herd.training.steps import StepBatch


@dataclass(frozen=True)
class TrainingSequence:
    """One dialog as tokens, with what is trained of it. mask[t] is about predicting tokens[t]."""

    tokens: np.ndarray  # (T,) int64
    trained: np.ndarray  # (T,) bool, has a target
    preferred: np.ndarray  # (T,) bool, counts in a preference term; a subset of `trained`

    def __len__(self) -> int:
        return len(self.tokens)


def fit_window(rendered: Rendered, trained: np.ndarray, window: int) -> tuple[Rendered | None, str | None]:
    """Cuts a dialog to `window` tokens from its end: (dialog, what happened to it as a word to count or None).

    A dialog of which nothing trained would be left is dropped: (None, reason). Its first token is never a target.
    """
    if not trained[1:].any():
        return None, "nothing_to_train"
    if len(rendered) <= window:
        return rendered, None
    if not trained[1:window].any():
        return None, "prompt_too_long"
    return rendered[:window], "truncated"


@dataclass(frozen=True)
class SequenceRows:
    """N sequences packed into B rows of T tokens, with M trained positions in all.

    The trained positions are listed instead of marked, so that the output head is applied to them alone.
    """

    tokens: Tensor  # (B, T) int64
    positions: Tensor  # (B, T) int64, from 0 in each sequence; 0 in padding
    lengths: tuple[tuple[int, ...], ...]  # per row: tokens of each sequence in it, padding last
    places: Tensor  # (M,) int64, trained positions in the flattened rows
    targets: Tensor  # (M,) int64, the token to predict at each
    owners: Tensor  # (M,) int64, the sequence that each belongs to
    preferred: Tensor  # (M,) float32, 1 where it counts in a preference term
    ends: Tensor  # (N,) int64, place of each sequence's last token

    def at_places(self, hidden: Tensor) -> Tensor:
        """(B, T, dim) hidden states -> those of the trained positions, (M, dim)."""
        return hidden.flatten(0, 1)[self.places]

    def sum_by_sequence(self, values: Tensor) -> Tensor:
        """(M,) values summed over each sequence, (N,)."""
        return values.new_zeros(len(self.ends)).index_add(0, self.owners, values)


def pack_sequences(sequences: Sequence[TrainingSequence], window: int, pad_id: int) -> SequenceRows:
    """Packs sequences into rows of `window` tokens, longest first, each into the fullest row with room for it."""
    return lay_out(sequences, best_fit([len(s) for s in sequences], window), window, pad_id)


def lay_out(sequences: Sequence[TrainingSequence], rows: Sequence[Sequence[int]], window: int, pad_id: int) -> SequenceRows:
    """Lays sequences out in the given rows: `rows` holds the indices of each row's members, every index once."""
    tokens = np.full((len(rows), window), pad_id, np.int64)
    positions = np.zeros((len(rows), window), np.int64)
    lengths, places, targets, owners, preferred = [], [], [], [], []
    ends = np.zeros(len(sequences), np.int64)
    for r, members in enumerate(rows):
        at, parts = 0, []
        for member in members:
            sequence, size = sequences[member], len(sequences[member])
            tokens[r, at : at + size], positions[r, at : at + size] = sequence.tokens, np.arange(size)
            trained = np.flatnonzero(sequence.trained[1:])  # position t reads tokens[t] and predicts tokens[t + 1]
            places.append(r * window + at + trained)
            targets.append(sequence.tokens[trained + 1])
            owners.append(np.full(len(trained), member))
            preferred.append(sequence.preferred[trained + 1])
            ends[member] = r * window + at + size - 1
            parts.append(size)
            at += size
        if at < window:
            parts.append(window - at)
        lengths.append(tuple(parts))
    return SequenceRows(
        tokens=torch.from_numpy(tokens),
        positions=torch.from_numpy(positions),
        lengths=tuple(lengths),
        places=_joined(places, np.int64),
        targets=_joined(targets, np.int64),
        owners=_joined(owners, np.int64),
        preferred=_joined(preferred, np.float32),
        ends=torch.from_numpy(ends),
    )


def _joined(parts: list[np.ndarray], dtype: type) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(dtype))


class EpochSteps:
    """Units (packed rows, comparisons) in a new order each epoch; the data of a step are a pure function of its index.

    Args:
        unit_tokens: input tokens of each unit.
        units_per_step: units in one optimizer step; the last step of an epoch may have fewer.
        epochs: passes over the units; a fraction stops within an epoch.
        seed: of the order.
        build: (step, indices of its units) -> the batch.
    """

    def __init__(
        self,
        unit_tokens: Sequence[int],
        units_per_step: int,
        epochs: float,
        seed: int,
        build: Callable[[int, list[int]], StepBatch],
    ) -> None:
        if not unit_tokens:
            raise UserError("no row is left to train on: every one was dropped")
        self.count, self.units_per_step, self.seed, self.build = len(unit_tokens), units_per_step, seed, build
        self.steps_per_epoch = math.ceil(self.count / units_per_step)
        self.steps = max(1, round(epochs * self.steps_per_epoch))
        sizes = np.asarray(unit_tokens, dtype=np.int64)
        self.cumulative = np.cumsum([0, *(int(sizes[self.units_of(step)].sum()) for step in range(self.steps))])

    def __len__(self) -> int:
        return self.steps

    def units_of(self, step: int) -> list[int]:
        """Indices of the units of one step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = stream(self.seed, "fine-tuning order", epoch).permutation(self.count)
        return [int(i) for i in order[place * self.units_per_step : (place + 1) * self.units_per_step]]

    def __getitem__(self, step: int) -> StepBatch:
        return self.build(step, self.units_of(step))

    def tokens_at(self, step: int) -> int:
        """Input tokens before `step`."""
        return int(self.cumulative[step])


def group_size(batch_size: int, tokens_each: int, micro_batch_tokens: int) -> int:
    """The largest divisor of `batch_size` such that so many units of `tokens_each` fit a micro-batch; at least 1."""
    fitting = [n for n in range(1, batch_size + 1) if batch_size % n == 0 and n * tokens_each <= micro_batch_tokens]
    return max(fitting, default=1)
