"""Direct preference optimisation with Llama 3's two changes (section 4.1.4).

Formatting tokens (headers, termination) are left out of the preference term in both responses, and an NLL term on the
chosen response, with its termination tokens, is added:  L = -log sigmoid(h) + 0.2 NLL(chosen).

Chosen and rejected response lie in one row behind their prompt, which is computed once; neither sees the other. The mean
preference pair of the paper (table 6: 757 tokens of context, 284 of a response) takes 1,325 tokens so, and 2,082 in rows of
their own. Log-probabilities under the reference, the model that training starts from, are computed once, before training,
on the same rows; so at the first step policy and reference agree to the bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from herd.config.errors import UserError
from herd.corpus.tokenizer import Tokenizer
from herd.dialog.masks import dpo_mask, nll_mask
from herd.dialog.preferences import Preference
from herd.dialog.render import render_batch
from herd.dialog.rows import Counted, PairLength
from herd.model.transformer import Transformer
from herd.objectives.cross_entropy import token_logprobs
from herd.objectives.dpo import LOSSES, SMOOTHED, dpo_loss
from herd.runs.seeds import stream
from herd.training.meters import Flops, transformer_flops
from herd.training.module import HerdModule, Metrics
from herd.training.sequences import EpochSteps, Group, SequenceRows, TrainingSequence, alone, group_size, one_row, shared_size
from herd.training.steps import StepBatch, Unmade, to_device

ROWS = ("block", "separate")  # the prompt once for both responses, or a copy for each: the same numbers


@dataclass(frozen=True)
class DPOObjective:
    """The loss, with TRL's names."""

    beta: float = 0.1  # strength of the pull towards the reference
    loss_type: str = "sigmoid"  # sigmoid, sigmoid_norm (per token), ipo, hinge, robust
    label_smoothing: float = 0.0  # probability that a preference is wrong (sigmoid, sigmoid_norm: cDPO; robust)
    nll_coefficient: float = 0.2  # weight of the NLL term on the chosen response
    rpo_alpha: float | None = None  # another name of nll_coefficient, TRL's old one
    ld_alpha: float | None = None  # weight of the tokens by which one response is longer than the other (LD-DPO); null = 1
    train_python_tag: bool = False  # whether the tool-call tag counts in the preference term

    def __post_init__(self) -> None:
        LOSSES.get(self.loss_type)  # UserError for an unknown one
        if self.rpo_alpha is not None:
            if self.nll_coefficient not in (type(self).nll_coefficient, self.rpo_alpha):
                raise UserError(
                    f"objective.rpo_alpha {self.rpo_alpha} is another name of nll_coefficient, which is set to "
                    f"{self.nll_coefficient}: give one of them."
                )
            object.__setattr__(self, "nll_coefficient", self.rpo_alpha)
        if self.beta <= 0 or self.nll_coefficient < 0:
            raise UserError(f"objective: beta {self.beta} must be > 0 and nll_coefficient {self.nll_coefficient} >= 0")
        if not 0 <= self.label_smoothing < 0.5:
            raise UserError(f"objective.label_smoothing must be in [0, 0.5), not {self.label_smoothing}")
        if self.label_smoothing and self.loss_type not in SMOOTHED:
            raise UserError(f"objective.label_smoothing has no meaning in {self.loss_type}: use {', '.join(SMOOTHED)}, or 0.")
        if self.ld_alpha is not None and not 0 <= self.ld_alpha <= 1:
            raise UserError(f"objective.ld_alpha must be in [0, 1] or null, not {self.ld_alpha}")


@dataclass(frozen=True)
class DPORows:
    """n pairs in one row of tokens; sequence 2i is the chosen response of pair i, 2i + 1 the rejected one."""

    rows: SequenceRows
    counts: Tensor  # (n, 2) float32, tokens of the preference term


@dataclass(frozen=True)
class DPOBatch:
    """Pairs and what the reference says of them."""

    pairs: DPORows
    reference: Tensor  # (n, 2) float32, log-probabilities of the preference term under the reference


def dpo_pairs(
    preferences: Iterable[Preference],
    tokenizer: Tokenizer,
    window: int,
    objective: DPOObjective,
    counted: Counted,
    dialect: str = "meta",
) -> list[Group]:
    """Preferences -> groups of (chosen, rejected) with their masks; see :func:`fitting_pairs`."""
    return [pair for _, pair in fitting_pairs(preferences, tokenizer, window, objective, counted, dialect)]


def fitting_pairs(
    preferences: Iterable[Preference],
    tokenizer: Tokenizer,
    window: int,
    objective: DPOObjective,
    counted: Counted,
    dialect: str = "meta",
) -> list[tuple[Preference, Group]]:
    """Preferences, each with its group of (chosen, rejected). The edited response, where there is one, is the chosen.

    Counted and dropped: a pair with a response that, with its prompt, does not fit the window or has nothing to train.
    """
    rows = list(preferences)
    dialogs = [row.prompt + r for row in rows for r in (row.best, row.rejected)]
    rendered = iter(render_batch(dialogs, tokenizer, dialect=dialect))
    pairs = []
    for row in rows:
        first = len(row.prompt)
        pair = []
        for _ in range(2):
            dialog = next(rendered)
            preferred = dpo_mask(dialog, first, objective.train_python_tag)
            pair.append(TrainingSequence(dialog.tokens, nll_mask(dialog, first), preferred))
        prompt = int((dialog.messages >= first).argmax())
        chosen, rejected = (len(sequence) - prompt for sequence in pair)
        fits = max(map(len, pair)) <= window
        counted.lengths.append(PairLength(prompt, chosen, rejected, fits, row.prompt_key))
        if not fits:
            counted.drop("too_long")
        elif not all(sequence.preferred.any() for sequence in pair):
            counted.drop("nothing_to_train")
        else:
            pairs.append((row, Group.of(pair, prompt)))
    counted.kept += len(pairs)
    return pairs


def dpo_rows(pairs: Sequence[Group], objective: DPOObjective, row: str = "block") -> DPORows:
    """Lays pairs out in one row, without padding."""
    rows = one_row(pairs if row == "block" else [alone(s) for pair in pairs for s in pair.separate()])
    counts = rows.sum_by_sequence(rows.preferred).view(-1, 2)
    if objective.ld_alpha is not None:
        # LD-DPO (Liu et al. 2024): what lies beyond the shorter response's length counts less in the longer one.
        before = torch.cat((counts.new_zeros(1), counts.flatten().cumsum(0)))[rows.owners]
        beyond = rows.preferred.cumsum(0) - before > counts.min(1).values.repeat_interleave(2)[rows.owners]
        rows = replace(rows, preferred=torch.where(beyond, objective.ld_alpha, 1.0) * rows.preferred)
    return DPORows(rows, counts)


class DPOSteps(EpochSteps):
    """Optimizer steps over fixed groups of pairs.

    A group is a micro-batch; its row never changes, so that log-probabilities of the reference computed on it
    are the ones that the policy would have. Groups are drawn once from `seed`; their order changes with the epoch.
    Where processes could not share a step's groups, each is drawn as for one process and then cut into smaller ones, so
    that a step trains on the same pairs.
    """

    def __init__(
        self,
        pairs: Sequence[Group],
        objective: DPOObjective,
        batch_size: int,
        micro_batch_tokens: int,
        epochs: float,
        seed: int,
        row: str = "block",
        processes: int = 1,
    ) -> None:
        sizes = [len(pair) if row == "block" else sum(map(len, pair.separate())) for pair in pairs]
        size = group_size(batch_size, max(sizes, default=1), micro_batch_tokens)
        order = stream(seed, "dpo groups").permutation(len(pairs))
        drawn = [[int(i) for i in order[at : at + size]] for at in range(0, len(order), size)]
        smaller = shared_size(size, size, processes, batch_size // size)
        cut = [[unit[at : at + smaller] for at in range(0, len(unit), smaller)] for unit in drawn]
        members = [group for unit in cut for group in unit]  # of each group, its pairs
        ends = np.cumsum([len(unit) for unit in cut]).tolist()
        groups_of = [range(end - len(unit), end) for unit, end in zip(cut, ends, strict=True)]
        # Made when they are asked for: a rank lays out no rows but its own.
        self.groups: Sequence[DPORows] = Unmade(
            range(len(members)), lambda numbers: (dpo_rows([pairs[i] for i in members[n]], objective, row) for n in numbers)
        )
        self.reference: list[Tensor] = []  # of each group; set before training
        self._made_from = (members, row, objective.ld_alpha, pairs)
        tokens = [sum(sizes[i] for i in group) for group in members]
        laid_out = [[pair] if row == "block" else [alone(s) for s in pair.separate()] for pair in pairs]
        squares = [sum(part.square for i in group for part in laid_out[i]) for group in members]
        targets = [sum(int(r.trained[1:].sum()) for i in group for r in pairs[i].responses) for group in members]

        def build(step: int, units: list[int]) -> StepBatch:
            assert self.reference, "the reference's log-probabilities come before training"
            groups = [group for unit in units for group in groups_of[unit]]

            def make(numbers: range) -> Iterator[DPOBatch]:
                return (DPOBatch(self.groups[groups[n]], self.reference[groups[n]]) for n in numbers)

            return StepBatch(
                step,
                Unmade(range(len(groups)), make),
                float(sum(len(members[i]) for i in groups)),
                sum(tokens[i] for i in groups),
                sum(squares[i] for i in groups),
                sum(tokens[i] ** 2 for i in groups),  # one row each
                sum(targets[i] for i in groups),
            )

        super().__init__([sum(tokens[i] for i in of) for of in groups_of], batch_size // size, epochs, seed, build)

    def fingerprint(self) -> str:
        """Hash of all that log-probabilities of these groups depend on, but for the model.

        That is what the groups are made from, and the first one as it is made, which stands for how they are made.
        """
        members, row, ld_alpha, pairs = self._made_from
        digest = hashlib.sha256(repr((members, row, ld_alpha)).encode())
        for pair in pairs:
            for array in (pair.prompt, *(a for r in pair.responses for a in (r.tokens, r.trained, r.preferred))):
                digest.update(f"{array.dtype} {array.shape}".encode())
                digest.update(array.tobytes())
        rows = self.groups[0].rows
        digest.update(repr(rows.mask).encode())
        for field in fields(rows):
            value = getattr(rows, field.name)
            if isinstance(value, Tensor):
                digest.update(f"{field.name} {value.dtype} {tuple(value.shape)}".encode())
                digest.update(value.numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class PairScores:
    """What the model says of n pairs, chosen and rejected, (n, 2) each."""

    logps: Tensor  # log-probability summed over the tokens of the preference term
    trained_logps: Tensor  # over all trained tokens, terminators included
    logits: Tensor  # sum over the trained tokens of the mean logit over the vocabulary; detached
    trained: Tensor  # number of trained tokens


def pair_scores(model: Transformer, rows: SequenceRows) -> PairScores:
    """One forward pass over rows of pairs."""
    hidden = rows.at_places(model(rows.tokens, rows.positions, rows.mask))
    weight = model.output_weight
    logprobs = token_logprobs(hidden, weight, rows.targets)
    # The mean over the vocabulary of hidden . weight is hidden . (mean weight): no logits are kept for a metric.
    mean_logits = (hidden.detach() @ weight.detach().mean(0).to(hidden.dtype)).to(logprobs.dtype)
    values = (logprobs * rows.preferred, logprobs, mean_logits, torch.ones_like(logprobs))
    return PairScores(*(rows.sum_by_sequence(value).view(-1, 2) for value in values))


@torch.no_grad()
def reference_logprobs(
    model: Transformer, groups: Sequence[DPORows], device: torch.device | str = "cpu", bf16: bool = False
) -> list[Tensor]:
    """Log-probabilities of the preference term under `model` for each group, computed as training computes them."""
    device = torch.device(device)
    context: AbstractContextManager = torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()
    with context:
        return [pair_scores(model, to_device(group.rows, device)).logps.cpu() for group in groups]


def dpo_terms(model: Transformer, batch: DPOBatch, objective: DPOObjective) -> dict[str, Tensor]:
    """Per pair, (n,) each: the loss and, under TRL's names, nll_loss, rewards/*, logps/* and logits/*."""
    found = pair_scores(model, batch.pairs.rows)
    terms = dpo_loss(
        found.logps, batch.reference, batch.pairs.counts, objective.beta, objective.label_smoothing, objective.loss_type
    )
    # The NLL is a mean over each response's tokens, then over pairs: a long response weighs no more than a short one.
    nll = -found.trained_logps[:, 0] / found.trained[:, 0]
    logps, logits = found.logps.detach(), found.logits / found.trained
    return {
        "loss": terms.losses + objective.nll_coefficient * nll,
        "nll_loss": nll.detach(),
        "rewards/chosen": terms.chosen_rewards,
        "rewards/rejected": terms.rejected_rewards,
        "rewards/margins": terms.chosen_rewards - terms.rejected_rewards,
        "rewards/accuracies": (terms.chosen_rewards > terms.rejected_rewards).float(),
        "logps/chosen": logps[:, 0],
        "logps/rejected": logps[:, 1],
        "logits/chosen": logits[:, 0],
        "logits/rejected": logits[:, 1],
    }


class DPOModule(HerdModule):
    """Mean loss over the pairs of the optimizer step. Metrics carry TRL's names."""

    model: Transformer
    objective: DPOObjective = DPOObjective()

    def micro_batch_loss(self, micro_batch: DPOBatch) -> tuple[Tensor, Metrics]:
        terms = dpo_terms(self.model, micro_batch, self.objective)
        loss = terms.pop("loss").sum()
        return loss, {name: (values.sum(), len(values)) for name, values in terms.items()}

    def step_flops(self, batch: StepBatch) -> Flops:
        """Of the policy; the reference's pass is over before training. A shared prompt counts once."""
        return transformer_flops(self.model.config, batch)


@torch.no_grad()
def heldout_terms(
    policy: Transformer,
    reference: Transformer,
    pairs: Sequence[Group],
    objective: DPOObjective,
    pairs_at_once: int = 16,
) -> dict[str, Tensor]:
    """:func:`dpo_terms` of pairs that were not trained on, (n,) each, in the order given."""
    parts: list[dict[str, Tensor]] = []
    for first in range(0, len(pairs), pairs_at_once):
        group = dpo_rows(pairs[first : first + pairs_at_once], objective)
        parts.append(dpo_terms(policy, DPOBatch(group, pair_scores(reference, group.rows).logps), objective))
    assert parts, "no pairs, no terms"
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def evaluate_dpo(
    policy: Transformer, reference: Transformer, pairs: Sequence[Group], objective: DPOObjective
) -> dict[str, float]:
    """Means of :func:`heldout_terms`."""
    terms = heldout_terms(policy, reference, pairs, objective)
    return {name: float(values.sum()) / len(pairs) for name, values in terms.items()}
