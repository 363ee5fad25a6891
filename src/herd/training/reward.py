"""The reward model: the backbone with a scalar head, trained to rank responses (section 4.1.2).

Each response is a sequence of its own (prompt and response), packed with others under the document mask; its score is
read at its last real token. Edited responses make triples, edited > chosen > rejected.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from herd.config.errors import UserError, nearest
from herd.corpus.tokenizer import Tokenizer
from herd.dialog.masks import sft_mask
from herd.dialog.messages import Message, Role
from herd.dialog.preferences import Grade, Preference
from herd.dialog.render import Rendered, render_batch
from herd.dialog.rows import Counted
from herd.model.heads import RewardModel
from herd.model.masks import Documents
from herd.objectives.ranking import centering_loss, ranking_loss
from herd.training.module import HerdModule, Metrics
from herd.training.sequences import EpochSteps, SequenceRows, TrainingSequence, group_size, pack_sequences
from herd.training.steps import StepBatch

# By how much the better reward should lead, by grade: Llama 2, table 27. Llama 3 found no gain at scale and drops it.
MARGINS = {"none": (0.0, 0.0, 0.0, 0.0), "small": (1.0, 2 / 3, 1 / 3, 0.0), "large": (3.0, 2.0, 1.0, 0.0)}


@dataclass(frozen=True)
class RewardObjective:
    """The loss: -log sigmoid(better - worse - margin) + c (better + worse)^2."""

    margin: str = "none"  # none (Llama 3) | small | large: by grade, as Llama 2 (table 27); edited over chosen has no grade: 0
    center_rewards_coefficient: float = 0.0  # c, draws the mean reward to 0; 0 = off (TRL suggests 0.01)

    def __post_init__(self) -> None:
        if self.margin not in MARGINS:
            raise UserError(
                f"objective.margin: unknown `{self.margin}`; use {', '.join(MARGINS)}.{nearest(self.margin, list(MARGINS))}"
            )
        if not self.center_rewards_coefficient >= 0:
            raise UserError(f"objective.center_rewards_coefficient must be >= 0, not {self.center_rewards_coefficient}")

    def margin_of(self, grade: Grade) -> float:
        """The margin between chosen and rejected of this grade."""
        return MARGINS[self.margin][list(Grade).index(grade)]


@dataclass(frozen=True)
class Comparison:
    """Two or three responses to one prompt, best first, each with its prompt."""

    responses: tuple[TrainingSequence, ...]  # [edited,] chosen, rejected
    prompt_tokens: int  # with which each of them begins
    grade: Grade  # of chosen over rejected

    @property
    def tokens(self) -> int:
        return sum(map(len, self.responses))

    @property
    def response_tokens(self) -> tuple[int, ...]:
        """Tokens of each response alone, its header and end included."""
        return tuple(len(sequence) - self.prompt_tokens for sequence in self.responses)


# Which two responses an ordered pair compares; the names of its accuracy. The first is TRL's.
ORDERS = ("accuracy", "accuracy/edited_chosen", "accuracy/edited_rejected")


@dataclass(frozen=True)
class RewardBatch:
    """Packed responses, and every ordered pair of them that is compared.

    A comparison weighs 1 in all: its one pair, or each of the three of edited > chosen > rejected with 1/3. The paper
    states that order, not how its pairs are weighted.
    """

    rows: SequenceRows
    better: Tensor  # (P,) int64, index of a sequence
    worse: Tensor  # (P,) int64
    weights: Tensor  # (P,) float32
    margins: Tensor  # (P,) float32
    orders: Tensor  # (P,) int64, index into ORDERS


def comparisons(preferences: Iterable[Preference], tokenizer: Tokenizer, window: int, counted: Counted) -> list[Comparison]:
    """Preferences -> ranked responses; one with a response that does not fit the window is dropped and counted.

    A cut response would be scored in the middle of a sentence, so nothing is cut here.
    """
    rows = list(preferences)
    ranked = [[r for r in (row.edited, row.chosen, row.rejected) if r is not None] for row in rows]
    rendered = iter(render_batch([row.prompt + r for row, rs in zip(rows, ranked, strict=True) for r in rs], tokenizer))
    kept = []
    for row, responses in zip(rows, ranked, strict=True):
        dialogs = [next(rendered) for _ in responses]
        if max(map(len, dialogs)) > window:
            counted.drop("too_long")
        else:
            prompt_tokens = int((dialogs[0].messages < len(row.prompt)).sum())
            kept.append(Comparison(tuple(map(_scored, dialogs)), prompt_tokens, row.grade))
    counted.kept += len(kept)
    return kept


def _scored(rendered: Rendered) -> TrainingSequence:
    # The reward model predicts no token; the score is read at the sequence's end, which is the response's.
    assert sft_mask(rendered)[-1], "the response must end the sequence"
    nothing = sft_mask(rendered) & False
    return TrainingSequence(rendered.tokens, nothing, nothing)


def reward_batch(group: Sequence[Comparison], window: int, pad_id: int, objective: RewardObjective | None = None) -> RewardBatch:
    """Packs the responses of some comparisons."""
    objective = objective or RewardObjective()
    pairs: list[tuple[int, int, float, float, int]] = []
    first = 0
    for comparison in group:
        places = range(first, first + len(comparison.responses))
        first = places.stop
        edited = len(places) == 3
        ordered = list(combinations(places, 2))  # (chosen, rejected), or edited-chosen, edited-rejected, chosen-rejected
        for order, pair in zip((1, 2, 0) if edited else (0,), ordered, strict=True):
            # An edit only betters the chosen response, so it leads the rejected one by the grade at least.
            margin = 0.0 if order == 1 else objective.margin_of(comparison.grade)
            pairs.append((*pair, 1 / len(ordered), margin, order))
    better, worse, weights, margins, orders = (torch.tensor(column) for column in zip(*pairs, strict=True))
    rows = pack_sequences([s for comparison in group for s in comparison.responses], window, pad_id)
    return RewardBatch(rows, better, worse, weights, margins, orders)


def reward_steps(
    data: Sequence[Comparison],
    window: int,
    pad_id: int,
    batch_size: int,
    micro_batch_tokens: int,
    epochs: float,
    seed: int,
    objective: RewardObjective | None = None,
) -> EpochSteps:
    """Optimizer steps of `batch_size` comparisons."""
    tokens = [comparison.tokens for comparison in data]
    size = group_size(batch_size, max(tokens, default=1), micro_batch_tokens)

    def build(step: int, units: list[int]) -> StepBatch:
        groups = [units[i : i + size] for i in range(0, len(units), size)]
        micro_batches = [reward_batch([data[i] for i in group], window, pad_id, objective) for group in groups]
        return StepBatch(step, micro_batches, float(len(units)), sum(tokens[i] for i in units))

    return EpochSteps(tokens, batch_size, epochs, seed, build)


def scores_of(model: RewardModel, rows: SequenceRows) -> Tensor:
    """Score of each sequence at its last real token, (N,)."""
    scores: Tensor = model(rows.tokens, rows.positions, Documents(rows.lengths))
    return scores.flatten()[rows.ends]


class RewardModule(HerdModule):
    """Mean loss over the comparisons of the optimizer step.

    Metrics carry TRL's names: accuracy and margin (chosen over rejected, a tie is no hit), min_reward, mean_reward,
    max_reward (the extremes are means over micro-batches, as TRL's are); triples add the accuracy of their other orders.
    """

    model: RewardModel
    objective: RewardObjective = RewardObjective()

    def micro_batch_loss(self, micro_batch: RewardBatch) -> tuple[Tensor, Metrics]:
        scores = scores_of(self.model, micro_batch.rows)
        better, worse = scores[micro_batch.better], scores[micro_batch.worse]
        losses = ranking_loss(better, worse, micro_batch.margins)
        if self.objective.center_rewards_coefficient:
            losses = losses + self.objective.center_rewards_coefficient * centering_loss(better, worse)
        leads, rewards = (better - worse).detach(), scores.detach()
        metrics: Metrics = {
            "min_reward": (rewards.min(), 1.0),
            "mean_reward": (rewards.sum(), len(rewards)),
            "max_reward": (rewards.max(), 1.0),
        }
        for order, name in enumerate(ORDERS):
            among = micro_batch.orders == order
            metrics[name] = (((leads > 0) & among).sum(), among.sum())
        metrics["margin"] = (leads[micro_batch.orders == 0].sum(), metrics["accuracy"][1])
        return (losses * micro_batch.weights).sum(), metrics


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
    reward_model: RewardModel, tokenizer: Tokenizer, rows: Sequence[Sequence[Message]], batch_size: int = 64
) -> list[float]:
    """Reward of the last response of each dialog (prompt and response as messages), in order.

    UserError when a dialog is longer than the model reads, or does not end with an assistant's message.
    """
    window = reward_model.backbone.config.max_seq_len
    for i, messages in enumerate(rows):
        if not messages or messages[-1].role is not Role.ASSISTANT:
            raise UserError(f"dialog {i} does not end with an assistant's message, which the reward is read after; add one")
    sequences = [_scored(rendered) for rendered in render_batch(rows, tokenizer)]
    for i, sequence in enumerate(sequences):
        if len(sequence) > window:
            raise UserError(f"dialog {i} has {len(sequence)} tokens, the reward model reads at most {window}; shorten it")
    return score_sequences(reward_model, sequences, tokenizer.pad_id, batch_size)
