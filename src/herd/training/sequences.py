"""Rendered dialogs packed into rows, and their order over the optimizer steps of a fine-tuning run.

Several sequences share a row; attention, positions and targets stay within each, so a packed row gives the same
numbers as separate padded rows. Responses to one prompt may share it as a :class:`Group`. Nothing is ever cut here: a
dialog that is longer than a row is shortened or dropped, and counted, before it comes.
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
from herd.model.masks import Branches, Documents
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


@dataclass(frozen=True)
class Group:
    """A prompt and the responses to it, in one stretch of a row, where the prompt is computed once for all of them.

    A group without a prompt is a single sequence. Nothing of the prompt is trained, nor is a response's first token, which
    is the start of its header; so every trained token is predicted from its own response.
    """

    prompt: np.ndarray  # (P,) int64
    responses: tuple[TrainingSequence, ...]  # what follows the prompt

    def __post_init__(self) -> None:
        assert len(self.prompt) or len(self.responses) == 1, "several responses need a prompt to share"
        assert len(self.responses) and all(map(len, self.responses)), "a group needs responses, and these tokens"

    def __len__(self) -> int:
        return sum(self.sizes)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Tokens of the prompt, where there is one, and of each response."""
        return tuple(n for n in (len(self.prompt), *map(len, self.responses)) if n)

    @property
    def square(self) -> int:
        """Twice the pairs of tokens that see each other, where no response sees another: the square of its length if alone."""
        prompt = len(self.prompt)
        return sum((prompt + len(r)) ** 2 for r in self.responses) - (len(self.responses) - 1) * prompt**2

    @classmethod
    def of(cls, sequences: Sequence[TrainingSequence], prompt: int) -> Group:
        """Sequences of which the first `prompt` tokens are the same and not trained, as one group."""
        start = sequences[0].tokens[:prompt]
        assert all(np.array_equal(s.tokens[:prompt], start) for s in sequences), "the prompts differ"
        assert not any(s.trained[: prompt + 1].any() for s in sequences), "a token is trained that no response predicts"
        rest = slice(prompt, None)
        return cls(start, tuple(TrainingSequence(s.tokens[rest], s.trained[rest], s.preferred[rest]) for s in sequences))

    def separate(self) -> list[TrainingSequence]:
        """Each response after a copy of the prompt of its own."""
        nothing = np.zeros(len(self.prompt), bool)
        return [
            TrainingSequence(
                np.concatenate((self.prompt, r.tokens)),
                np.concatenate((nothing, r.trained)),
                np.concatenate((nothing, r.preferred)),
            )
            for r in self.responses
        ]


def alone(sequence: TrainingSequence) -> Group:
    """A sequence as a group of its own."""
    return Group(sequence.tokens[:0], (sequence,))


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
    """N sequences (responses, where prompts are shared) packed into B rows of T tokens, with M trained positions in all.

    The trained positions are listed instead of marked, so that the output head is applied to them alone.
    """

    tokens: Tensor  # (B, T) int64
    positions: Tensor  # (B, T) int64, from 0 in each sequence or group; 0 in padding
    lengths: tuple[tuple[int, ...], ...]  # per row: tokens of each sequence or group in it, padding last
    mask: Documents | Branches  # who attends to whom
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
    return pack_groups([alone(s) for s in sequences], window, pad_id)


def pack_groups(groups: Sequence[Group], window: int, pad_id: int, causal: bool = False) -> SequenceRows:
    """Packs groups into rows of `window` tokens as :func:`pack_sequences` does; see :func:`lay_out`."""
    return lay_out(groups, best_fit([len(g) for g in groups], window), window, pad_id, causal)


def one_row(groups: Sequence[Group], causal: bool = False) -> SequenceRows:
    """Lays all groups out end to end in one row, without padding; see :func:`lay_out`."""
    return lay_out(groups, [range(len(groups))], sum(map(len, groups)), 0, causal)


def lay_out(
    groups: Sequence[Group], rows: Sequence[Sequence[int]], window: int, pad_id: int, causal: bool = False
) -> SequenceRows:
    """Lays groups out in the given rows: `rows` holds the indices of each row's members, every index once.

    Sequences are numbered group by group, in each group in the order of its responses.

    Args:
        groups: what to lay out, none longer than `window`.
        rows: indices of the groups of each row.
        window: tokens of a row.
        pad_id: the token of what is left over.
        causal: whether a response sees the responses before it, as if they were one text, and positions run on through the
            group. Llama 3's reward model reads its row so (section 4.1.2); it is an approximation. Otherwise a response sees
            the prompt and itself, and positions restart after the prompt: the numbers are those of rows of their own.
    """
    tokens = np.full((len(rows), window), pad_id, np.int64)
    positions = np.zeros((len(rows), window), np.int64)
    first = np.cumsum([0, *(len(group.responses) for group in groups)])  # number of each group's first sequence
    sizes: list[list[tuple[int, ...]]] = []
    places, targets, owners, preferred = [], [], [], []
    ends = np.zeros(first[-1], np.int64)
    for r, members in enumerate(rows):
        at = 0
        sizes.append([])
        for member in members:
            group, start = groups[member], at
            at += len(group.prompt)
            tokens[r, start:at], positions[r, start:at] = group.prompt, np.arange(at - start)
            for number, response in enumerate(group.responses, start=first[member]):
                size, position = len(response), (at - start if causal else len(group.prompt))
                tokens[r, at : at + size], positions[r, at : at + size] = response.tokens, np.arange(position, position + size)
                trained = np.flatnonzero(response.trained[1:])  # position t reads tokens[t] and predicts tokens[t + 1]
                places.append(r * window + at + trained)
                targets.append(response.tokens[trained + 1])
                owners.append(np.full(len(trained), number))
                preferred.append(response.preferred[trained + 1])
                ends[number] = r * window + at + size - 1
                at += size
            sizes[-1].append(group.sizes)
        assert at <= window, "a row's groups are longer than the row"
        if at < window:
            sizes[-1].append((window - at,))
    lengths = tuple(tuple(sum(group) for group in row) for row in sizes)
    return SequenceRows(
        tokens=torch.from_numpy(tokens),
        positions=torch.from_numpy(positions),
        lengths=lengths,
        mask=Documents(lengths) if causal else Branches(tuple(map(tuple, sizes))).simplest,
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


def shared_size(batch_size: int, most: int, processes: int, parts: int = 1) -> int:
    """Units in a micro-batch: ``most`` if processes can then share a step equally, else as many as make the fewest, evenest
    micro-batches that they can. ``most`` where there are none, which :meth:`StepBatch.check_shares` refuses.

    Args:
        batch_size: units that are cut into micro-batches.
        parts: of the step, with so many units each, that are cut apart.
    """
    for size in range(most, 0, -1):
        count = -(-batch_size // size)
        if parts * count % processes == 0:
            return most if size == most else -(-batch_size // count)
    return most


def group_size(batch_size: int, tokens_each: int, micro_batch_tokens: int) -> int:
    """The largest divisor of `batch_size` such that so many units of `tokens_each` fit a micro-batch; at least 1."""
    fitting = [n for n in range(1, batch_size + 1) if batch_size % n == 0 and n * tokens_each <= micro_batch_tokens]
    return max(fitting, default=1)
