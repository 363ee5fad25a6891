"""The reward model: the backbone with a scalar head, trained to rank responses (section 4.1.2).

A score is read at the last real token of its response. Edited responses make triples, edited > chosen > rejected. The
responses to a prompt are laid out in one of three ways:

- ``separate``: each after a copy of the prompt of its own.
- ``block``: the prompt once, and each response sees it and itself; the same numbers, of fewer tokens.
- ``causal``: the prompt and its responses as one text, where a response also sees those before it. The paper does this, with
  the responses shuffled, and calls it an approximation that loses no accuracy. A score then depends on what came before.

Rows of several comparisons are packed under the document mask in each of them. Responses that each fit the window behind their
prompt, but not all in one row, get as many rows as they need, each with the prompt: in `block` the numbers stay the same, in
`causal` a response then sees those before it in its own row alone, and two that lie apart are both read as they are when scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from herd.config.errors import UserError, nearest
from herd.corpus.packing import best_fit
from herd.corpus.tokenizer import Tokenizer
from herd.dialog.masks import reward_position, sft_mask
from herd.dialog.messages import Message, Role
from herd.dialog.preferences import Grade, Preference
from herd.dialog.render import Rendered, render_batch
from herd.dialog.rows import Counted, PairLength
from herd.model.heads import RewardModel
from herd.objectives.ranking import centering_loss, ranking_loss
from herd.runs.seeds import stream
from herd.training.meters import Flops, transformer_flops
from herd.training.module import HerdModule, Metrics, without_output_head
from herd.training.optimizer import OptimizerConfig
from herd.training.sequences import (
    EpochSteps,
    Group,
    SequenceRows,
    TrainingSequence,
    alone,
    group_size,
    one_row,
    pack_groups,
    shared_size,
)
from herd.training.steps import StepBatch, Unmade

# By how much the better reward should lead, by grade: Llama 2, table 27. Llama 3 found no gain at scale and drops it.
MARGINS = {"none": (0.0, 0.0, 0.0, 0.0), "small": (1.0, 2 / 3, 1 / 3, 0.0), "large": (3.0, 2.0, 1.0, 0.0)}

ROWS = ("separate", "block", "causal")


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


def comparisons(
    preferences: Iterable[Preference],
    tokenizer: Tokenizer,
    window: int,
    counted: Counted,
    dialect: str = "meta",
) -> list[Comparison]:
    """Preferences -> ranked responses that, each with its prompt, fit the window.

    A cut response would be scored in the middle of a sentence, so nothing is cut here. Of a triple with an edited or chosen
    response that is too long, the other is compared with the rejected one (`counted.in_part`); a preference without two such
    responses is dropped and counted.
    """
    rows = list(preferences)
    ranked = [[r for r in (row.edited, row.chosen, row.rejected) if r is not None] for row in rows]
    answered = [row.prompt + r for row, rs in zip(rows, ranked, strict=True) for r in rs]
    rendered = iter(render_batch(answered, tokenizer, dialect=dialect))
    kept = []
    for preference, responses in zip(rows, ranked, strict=True):
        *better, rejected = [next(rendered) for _ in responses]
        prompt_tokens = _prompt_tokens(rejected, len(preference.prompt))
        readable = [dialog for dialog in better if len(dialog) <= window]
        best, fits = (readable or better)[0], bool(readable) and len(rejected) <= window
        lengths = len(best) - prompt_tokens, len(rejected) - prompt_tokens
        counted.lengths.append(PairLength(prompt_tokens, *lengths, fits, preference.prompt_key))
        if fits:
            kept.append(Comparison(tuple(map(_scored, [*readable, rejected])), prompt_tokens, preference.grade))
            counted.in_part += len(readable) < len(better)
        else:
            counted.drop("too_long")
    counted.kept += len(kept)
    return kept


def _prompt_tokens(rendered: Rendered, messages: int) -> int:
    """Tokens before the message of index `messages`."""
    return int((rendered.messages >= messages).argmax())


def _scored(rendered: Rendered) -> TrainingSequence:
    # The reward model predicts no token; the score is read at the sequence's end, which is the response's.
    rendered = rendered[: reward_position(rendered) + 1]
    nothing = sft_mask(rendered) & False
    return TrainingSequence(rendered.tokens, nothing, nothing)


@dataclass(frozen=True)
class RowLayout:
    """How comparisons become packed rows."""

    window: int  # tokens of a packed row
    pad_id: int
    row: str = "block"  # separate | block | causal

    def shared(self, comparison: Comparison) -> list[list[int]]:
        """Which responses lie behind one prompt: as many as the window has room for, whatever their order."""
        if self.row == "separate":
            return [[i] for i in range(len(comparison.responses))]
        return best_fit(comparison.response_tokens, self.window - comparison.prompt_tokens)

    def apart(self, comparison: Comparison) -> bool:
        """Whether responses that were to share a row do not fit it together."""
        return self.row != "separate" and len(self.shared(comparison)) > 1

    def groups(self, comparison: Comparison, order: Sequence[int]) -> tuple[list[Group], list[int]]:
        """The comparison's responses, those behind one prompt in the order given; and which response each sequence is."""
        groups: list[Group] = []
        laid: list[int] = []
        for members in self.shared(comparison):
            own = [i for i in order if i in members]
            responses = [comparison.responses[i] for i in own]
            groups.append(Group.of(responses, comparison.prompt_tokens) if len(own) > 1 else alone(responses[0]))
            laid += own
        return groups, laid

    def tokens(self, comparison: Comparison) -> int:
        """Tokens that the comparison takes in its rows."""
        return sum(map(len, self._in_rank(comparison)))

    def square(self, comparison: Comparison) -> int:
        """Twice the pairs of its tokens that see each other: in a causal row each sees all before it."""
        return sum(len(group) ** 2 if self.row == "causal" else group.square for group in self._in_rank(comparison))

    def _in_rank(self, comparison: Comparison) -> list[Group]:
        return self.groups(comparison, range(len(comparison.responses)))[0]


def reward_batch(
    data: Sequence[Comparison],
    layout: RowLayout,
    objective: RewardObjective | None = None,
    orders: Sequence[np.ndarray] | None = None,
) -> RewardBatch:
    """Packs the responses of some comparisons, each comparison's in its order of `orders`, else best first."""
    objective = objective or RewardObjective()
    groups: list[Group] = []
    pairs: list[tuple[int, int, float, float, int]] = []
    first = 0
    for number, comparison in enumerate(data):
        count = len(comparison.responses)
        order = np.arange(count) if orders is None else orders[number]
        laid_out, laid = layout.groups(comparison, order.tolist())
        groups += laid_out
        places = [first + int(place) for place in np.argsort(laid)]  # of the responses, best first
        first += count
        ordered = list(combinations(places, 2))  # (chosen, rejected), or edited-chosen, edited-rejected, chosen-rejected
        for kind, pair in zip((1, 2, 0) if count == 3 else (0,), ordered, strict=True):
            # An edit only betters the chosen response, so it leads the rejected one by the grade at least.
            margin = 0.0 if kind == 1 else objective.margin_of(comparison.grade)
            pairs.append((*pair, 1 / len(ordered), margin, kind))
    better, worse, weights, margins, kinds = (torch.tensor(column) for column in zip(*pairs, strict=True))
    rows = pack_groups(groups, layout.window, layout.pad_id, causal=layout.row == "causal")
    return RewardBatch(rows, better, worse, weights, margins, kinds)


def reward_steps(
    data: Sequence[Comparison],
    layout: RowLayout,
    batch_size: int,
    micro_batch_tokens: int,
    epochs: float,
    seed: int,
    objective: RewardObjective | None = None,
    processes: int = 1,
) -> EpochSteps:
    """Optimizer steps of `batch_size` comparisons, which processes can share."""
    tokens = [layout.tokens(comparison) for comparison in data]
    size = shared_size(batch_size, group_size(batch_size, max(tokens, default=1), micro_batch_tokens), processes)

    def build(step: int, units: list[int]) -> StepBatch:
        shuffle = stream(seed, "response order", step)
        orders = [shuffle.permutation(len(data[i].responses)) for i in units]
        starts = range(0, len(units), size)

        def make(numbers: range) -> list[RewardBatch]:
            parts = [slice(starts[n], starts[n] + size) for n in numbers]
            return [reward_batch([data[i] for i in units[part]], layout, objective, orders[part]) for part in parts]

        total = sum(tokens[i] for i in units)
        squares = sum(layout.square(data[i]) for i in units)
        micro_batches = Unmade(range(len(starts)), make)
        return StepBatch(step, micro_batches, float(len(units)), total, squares, total * layout.window, predicted=0)

    return EpochSteps(tokens, batch_size, epochs, seed, build)


def scores_of(model: RewardModel, rows: SequenceRows) -> Tensor:
    """Score of each sequence at its last real token, (N,)."""
    scores: Tensor = model(rows.tokens, rows.positions, rows.mask)
    return scores.flatten()[rows.ends]


class RewardModule(HerdModule):
    """Mean loss over the comparisons of the optimizer step.

    Metrics carry TRL's names: accuracy and margin (chosen over rejected, a tie is no hit), min_reward, mean_reward,
    max_reward (the extremes are means over micro-batches, as TRL's are); triples add the accuracy of their other orders.
    """

    model: RewardModel
    objective: RewardObjective = RewardObjective()

    def __init__(self, model: RewardModel, optimizer: OptimizerConfig, schedule: Callable[[int], float]) -> None:
        super().__init__(without_output_head(model), optimizer, schedule)

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

    def step_flops(self, batch: StepBatch) -> Flops:
        """Of the backbone without its output head, and of the scalar head. A shared prompt counts once."""
        head = 6.0 * self.model.head.weight.numel() * batch.tokens
        return transformer_flops(self.model.backbone.config, batch) + Flops(head, head, head)


@torch.no_grad()
def score_groups(model: RewardModel, groups: Sequence[Group], batch_size: int) -> list[list[float]]:
    """Scores of each group's responses, in the order given; groups of like length are scored together, end to end.

    Args:
        batch_size: responses scored together; a group that has more is scored in parts, each with the prompt.
    """
    parts = [
        (i, first, Group(group.prompt, group.responses[first : first + batch_size]))
        for i, group in enumerate(groups)
        for first in range(0, len(group.responses), batch_size)
    ]
    parts.sort(key=lambda part: len(part[2]))
    device = model.head.weight.device
    scores = [[0.0] * len(group.responses) for group in groups]
    for batch in _batches(parts, batch_size):
        rows = one_row([group for _, _, group in batch])
        found = iter(model(rows.tokens.to(device), rows.positions.to(device), rows.mask).flatten()[rows.ends.to(device)].tolist())
        for i, first, group in batch:
            for place in range(len(group.responses)):
                scores[i][first + place] = next(found)
    return scores


_Part = tuple[int, int, Group]  # index of a group, first of its responses taken, these with the prompt


def _batches(parts: Sequence[_Part], batch_size: int) -> Iterator[list[_Part]]:
    """Neighbours together, as many as have `batch_size` responses; at least one."""
    batch: list[_Part] = []
    count = 0
    for part in parts:
        responses = len(part[2].responses)
        if batch and count + responses > batch_size:
            yield batch
            batch, count = [], 0
        batch.append(part)
        count += responses
    if batch:
        yield batch


def score_if_read(
    reward_model: RewardModel,
    tokenizer: Tokenizer,
    rows: Sequence[Sequence[Message]],
    batch_size: int = 64,
    dialect: str = "meta",
) -> list[float | None]:
    """:func:`score_responses`, with None for a dialog that is longer than the model reads.

    A sampled answer may be: its text, encoded again, can be several times the tokens that were sampled (bytes that are no
    character become three each).
    """
    window = reward_model.backbone.config.max_seq_len
    read = [i for i, r in enumerate(render_batch(rows, tokenizer, dialect=dialect)) if len(r) <= window]
    scores: list[float | None] = [None] * len(rows)
    found = score_responses(reward_model, tokenizer, [rows[i] for i in read], batch_size, dialect)
    for i, score in zip(read, found, strict=True):
        scores[i] = score
    return scores


def score_responses(
    reward_model: RewardModel,
    tokenizer: Tokenizer,
    rows: Sequence[Sequence[Message]],
    batch_size: int = 64,
    dialect: str = "meta",
) -> list[float]:
    """Reward of the last message of each dialog, in order; dialogs that differ in it alone share what is before it.

    UserError when a dialog is longer than the model reads, or does not end with an assistant's message.
    """
    window = reward_model.backbone.config.max_seq_len
    for i, messages in enumerate(rows):
        if not messages or messages[-1].role is not Role.ASSISTANT:
            raise UserError(f"dialog {i} does not end with an assistant's message, which the reward is read after; add one")
    # Equal answers are scored once: apart, they could differ by rounding and one would seem the better.
    same_prompt: dict[tuple[Message, ...], dict[Message, list[int]]] = {}
    for i, messages in enumerate(rows):
        same_prompt.setdefault(tuple(messages[:-1]), {}).setdefault(messages[-1], []).append(i)
    dialogs = render_batch(rows, tokenizer, dialect=dialect)
    for i, dialog in enumerate(dialogs):
        if len(dialog) > window:
            raise UserError(f"dialog {i} has {len(dialog)} tokens, the reward model reads at most {window}; shorten it")
    groups = []
    for prompt, answers in same_prompt.items():
        distinct = [dialogs[members[0]] for members in answers.values()]
        groups.append(Group.of([_scored(dialog) for dialog in distinct], _prompt_tokens(distinct[0], len(prompt))))
    scores = [0.0] * len(rows)
    for answers, found in zip(same_prompt.values(), score_groups(reward_model, groups, batch_size), strict=True):
        for members, score in zip(answers.values(), found, strict=True):
            for i in members:
                scores[i] = score
    return scores
