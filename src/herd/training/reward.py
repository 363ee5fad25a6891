"""The reward model: the backbone with a scalar head, trained to rank responses (section 4.1.2).

Each response is a sequence of its own (prompt and response), packed with others under the document mask; its score is
read at its last real token. Edited responses make triples, edited > chosen > rejected. No margin.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from herd.config.errors import UserError
from herd.corpus.tokenizer import Tokenizer
from herd.dialog.masks import reward_position, sft_mask
from herd.dialog.messages import Message
from herd.dialog.preferences import Preference
from herd.dialog.render import Rendered, render_batch
from herd.dialog.rows import Counted
from herd.model.heads import RewardModel
from herd.model.masks import Documents
from herd.objectives.ranking import ranking_loss, triple_loss
from herd.training.module import HerdModule, Metrics
from herd.training.sequences import EpochSteps, SequenceRows, TrainingSequence, group_size, pack_sequences
from herd.training.steps import StepBatch

Comparison = tuple[TrainingSequence, ...]  # responses to one prompt, best first: two or three


@dataclass(frozen=True)
class RewardBatch:
    """Packed responses and which of them are compared."""

    rows: SequenceRows
    pairs: Tensor  # (n, 2) int64, sequence indices: chosen, rejected
    triples: Tensor  # (m, 3) int64: edited, chosen, rejected


def comparisons(
    preferences: Iterable[Preference], tokenizer: Tokenizer, window: int, counted: Counted, dialect: str = "meta"
) -> list[Comparison]:
    """Preferences -> ranked responses; one with a response that does not fit the window is dropped and counted.

    A cut response would be scored in the middle of a sentence, so nothing is cut here.
    """
    rows = list(preferences)
    ranked = [[r for r in (row.edited, row.chosen, row.rejected) if r is not None] for row in rows]
    dialogs = [row.prompt + r for row, rs in zip(rows, ranked, strict=True) for r in rs]
    rendered = iter(render_batch(dialogs, tokenizer, dialect=dialect))
    kept = []
    for responses in ranked:
        sequences = tuple(_scored(next(rendered)) for _ in responses)
        if max(map(len, sequences)) > window:
            counted.drop("too_long")
        else:
            kept.append(sequences)
    counted.kept += len(kept)
    return kept


def _scored(rendered: Rendered) -> TrainingSequence:
    # The reward model predicts no token; the score is read at the sequence's end, which is the response's.
    rendered = rendered[: reward_position(rendered) + 1]
    nothing = sft_mask(rendered) & False
    return TrainingSequence(rendered.tokens, nothing, nothing)


def reward_batch(group: Sequence[Comparison], window: int, pad_id: int) -> RewardBatch:
    """Packs the responses of some comparisons."""
    indices: dict[int, list[list[int]]] = {2: [], 3: []}
    at = 0
    for responses in group:
        indices[len(responses)].append(list(range(at, at + len(responses))))
        at += len(responses)
    rows = pack_sequences([s for responses in group for s in responses], window, pad_id)
    pairs, triples = (torch.tensor(indices[n], dtype=torch.int64).reshape(-1, n) for n in (2, 3))
    return RewardBatch(rows, pairs, triples)


def reward_steps(
    data: Sequence[Comparison],
    window: int,
    pad_id: int,
    batch_size: int,
    micro_batch_tokens: int,
    epochs: float,
    seed: int,
) -> EpochSteps:
    """Optimizer steps of `batch_size` comparisons."""
    tokens = [sum(map(len, responses)) for responses in data]
    size = group_size(batch_size, max(tokens, default=1), micro_batch_tokens)

    def build(step: int, units: list[int]) -> StepBatch:
        groups = [units[i : i + size] for i in range(0, len(units), size)]
        micro_batches = [reward_batch([data[i] for i in group], window, pad_id) for group in groups]
        return StepBatch(step, micro_batches, float(len(units)), sum(tokens[i] for i in units))

    return EpochSteps(tokens, batch_size, epochs, seed, build)


def scores_of(model: RewardModel, rows: SequenceRows) -> Tensor:
    """Score of each sequence at its last real token, (N,)."""
    scores: Tensor = model(rows.tokens, rows.positions, Documents(rows.lengths))
    return scores.flatten()[rows.ends]


class RewardModule(HerdModule):
    """Mean over comparisons of -log sigmoid(better - worse); a triple counts as its three ordered pairs' mean.

    Metrics carry TRL's names: accuracy, margin (chosen less rejected), mean_reward.
    """

    model: RewardModel

    def micro_batch_loss(self, micro_batch: RewardBatch) -> tuple[Tensor, Metrics]:
        scores = scores_of(self.model, micro_batch.rows)
        pairs, triples = scores[micro_batch.pairs], scores[micro_batch.triples]
        loss = ranking_loss(pairs[:, 0], pairs[:, 1]).sum() + triple_loss(*triples.unbind(1)).sum()
        margins = torch.cat((pairs[:, 0] - pairs[:, 1], triples[:, 1] - triples[:, 2])).detach()
        metrics: Metrics = {
            "accuracy": ((margins > 0).sum(), len(margins)),
            "margin": (margins.sum(), len(margins)),
            "mean_reward": (scores.detach().sum(), len(scores)),
        }
        return loss, metrics


@torch.no_grad()
def score_sequences(model: RewardModel, sequences: Sequence[TrainingSequence], pad_id: int, batch_size: int) -> list[float]:
    """Scores in the order given; sequences of like length are scored together."""
    order = sorted(range(len(sequences)), key=lambda i: (len(sequences[i]), i))
    device = model.head.weight.device
    scores = [0.0] * len(sequences)
    for first in range(0, len(order), batch_size):
        group = order[first : first + batch_size]
        members = [sequences[i] for i in group]
        rows = pack_sequences(members, max(map(len, members)), pad_id)
        moved = model(rows.tokens.to(device), rows.positions.to(device), Documents(rows.lengths))
        for i, score in zip(group, moved.flatten()[rows.ends.to(device)].tolist(), strict=True):
            scores[i] = score
    return scores


def score_responses(
    reward_model: RewardModel,
    tokenizer: Tokenizer,
    rows: Sequence[Sequence[Message]],
    batch_size: int = 64,
    dialect: str = "meta",
) -> list[float]:
    """Reward of the last response of each dialog (prompt and response as messages), in order.

    UserError when a dialog is longer than the model reads.
    """
    window = reward_model.backbone.config.max_seq_len
    sequences = [_scored(rendered) for rendered in render_batch(rows, tokenizer, dialect=dialect)]
    for i, sequence in enumerate(sequences):
        if len(sequence) > window:
            raise UserError(f"dialog {i} has {len(sequence)} tokens, the reward model reads at most {window}; shorten it")
    return score_sequences(reward_model, sequences, tokenizer.pad_id, batch_size)
