"""Direct preference optimisation with Llama 3's two changes (section 4.1.4).

Formatting tokens (headers, termination) are left out of the preference term in both responses, and an NLL term on the
chosen response, with its termination tokens, is added:  L = -log sigmoid(h) + 0.2 NLL(chosen).

Log-probabilities under the reference, the model that training starts from, are computed once, before training, on the
same packed rows; so at the first step policy and reference agree to the bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from herd.config.errors import UserError
from herd.corpus.tokenizer import Tokenizer
from herd.dialog.masks import dpo_mask, nll_mask
from herd.dialog.preferences import Preference
from herd.dialog.render import render_batch
from herd.dialog.rows import Counted
from herd.model.transformer import Transformer
from herd.objectives.cross_entropy import token_logprobs
from herd.objectives.dpo import dpo_loss
from herd.runs.seeds import stream
from herd.training.module import HerdModule, Metrics
from herd.training.sequences import EpochSteps, SequenceRows, TrainingSequence, group_size, pack_sequences
from herd.training.steps import StepBatch, to_device

Pair = tuple[TrainingSequence, TrainingSequence]  # chosen, rejected


@dataclass(frozen=True)
class DPOObjective:
    """The loss."""

    beta: float = 0.1  # strength of the pull towards the reference
    label_smoothing: float = 0.0  # probability that a preference is wrong (cDPO)
    nll_coefficient: float = 0.2  # weight of the NLL term on the chosen response (TRL's old `rpo_alpha`)
    train_python_tag: bool = False  # whether the tool-call tag counts in the preference term

    def __post_init__(self) -> None:
        if self.beta <= 0 or self.nll_coefficient < 0:
            raise UserError(f"objective: beta {self.beta} must be > 0 and nll_coefficient {self.nll_coefficient} >= 0")
        if not 0 <= self.label_smoothing < 0.5:
            raise UserError(f"objective.label_smoothing must be in [0, 0.5), not {self.label_smoothing}")


@dataclass(frozen=True)
class DPOBatch:
    """n pairs as 2n packed sequences, the chosen ones first."""

    rows: SequenceRows
    reference: Tensor  # (2n,) float32, log-probabilities of the preference term under the reference


def dpo_pairs(
    preferences: Iterable[Preference],
    tokenizer: Tokenizer,
    window: int,
    objective: DPOObjective,
    counted: Counted,
    dialect: str = "meta",
) -> list[Pair]:
    """Preferences -> pairs with their masks. The edited response, where there is one, is the chosen one.

    Counted and dropped: a pair with a response that does not fit the window or has nothing to train.
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
        if max(map(len, pair)) > window:
            counted.drop("too_long")
        elif not all(sequence.preferred.any() for sequence in pair):
            counted.drop("nothing_to_train")
        else:
            pairs.append((pair[0], pair[1]))
    counted.kept += len(pairs)
    return pairs


class DPOSteps(EpochSteps):
    """Optimizer steps over fixed groups of pairs.

    A group is a micro-batch; its packed rows never change, so that log-probabilities of the reference computed on them
    are the ones that the policy would have. Groups are drawn once from `seed`; their order changes with the epoch.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        window: int,
        pad_id: int,
        batch_size: int,
        micro_batch_tokens: int,
        epochs: float,
        seed: int,
    ) -> None:
        longest = max((sum(map(len, pair)) for pair in pairs), default=1)
        size = group_size(batch_size, longest, micro_batch_tokens)
        order = stream(seed, "dpo groups").permutation(len(pairs))
        drawn = [[pairs[int(i)] for i in order[at : at + size]] for at in range(0, len(order), size)]
        self.groups = [
            pack_sequences([pair[0] for pair in group] + [pair[1] for pair in group], window, pad_id) for group in drawn
        ]
        self.reference: list[Tensor] = []  # of each group; set before training
        tokens = [sum(len(s) for pair in group for s in pair) for group in drawn]

        def build(step: int, units: list[int]) -> StepBatch:
            assert self.reference, "the reference's log-probabilities come before training"
            micro_batches = [DPOBatch(self.groups[i], self.reference[i]) for i in units]
            pairs_in_step = sum(len(batch.reference) // 2 for batch in micro_batches)
            return StepBatch(step, micro_batches, float(pairs_in_step), sum(tokens[i] for i in units))

        super().__init__(tokens, batch_size // size, epochs, seed, build)


def sequence_logprobs(model: Transformer, rows: SequenceRows) -> tuple[Tensor, Tensor]:
    """Summed log-probability of each sequence, (N,) twice: over the preference term's tokens, over all trained ones."""
    hidden = model(rows.tokens, rows.positions, rows.mask)
    logprobs = token_logprobs(rows.at_places(hidden), model.output_weight, rows.targets)
    return rows.sum_by_sequence(logprobs * rows.preferred), rows.sum_by_sequence(logprobs)


@torch.no_grad()
def reference_logprobs(
    model: Transformer, groups: Sequence[SequenceRows], device: torch.device | str = "cpu", bf16: bool = False
) -> list[Tensor]:
    """Log-probabilities of the preference term under `model` for each group, computed as training computes them."""
    context: AbstractContextManager = torch.autocast(str(device), torch.bfloat16) if bf16 else nullcontext()
    with context:
        return [sequence_logprobs(model, to_device(rows, torch.device(device)))[0].cpu() for rows in groups]


def dpo_terms(model: Transformer, batch: DPOBatch, objective: DPOObjective) -> dict[str, Tensor]:
    """Per pair, (n,) each: loss, nll_loss, rewards/chosen, rewards/rejected, logps/chosen, logps/rejected."""
    rows, n = batch.rows, len(batch.reference) // 2
    logps, trained_logps = sequence_logprobs(model, rows)
    terms = dpo_loss(logps[:n], logps[n:], batch.reference[:n], batch.reference[n:], objective.beta, objective.label_smoothing)
    # The NLL is a mean over each response's tokens, then over pairs: a long response weighs no more than a short one.
    lengths = rows.sum_by_sequence(torch.ones_like(rows.preferred))[:n]
    nll = -trained_logps[:n] / lengths
    return {
        "loss": terms.losses + objective.nll_coefficient * nll,
        "nll_loss": nll.detach(),
        "rewards/chosen": terms.chosen_rewards,
        "rewards/rejected": terms.rejected_rewards,
        "logps/chosen": logps[:n].detach(),
        "logps/rejected": logps[n:].detach(),
    }


class DPOModule(HerdModule):
    """Mean loss over the pairs of the optimizer step. Metrics carry TRL's names."""

    model: Transformer
    objective: DPOObjective = DPOObjective()

    def micro_batch_loss(self, micro_batch: DPOBatch) -> tuple[Tensor, Metrics]:
        terms = dpo_terms(self.model, micro_batch, self.objective)
        loss = terms.pop("loss").sum()
        margins = terms["rewards/chosen"] - terms["rewards/rejected"]
        terms |= {"rewards/margins": margins, "rewards/accuracies": (margins > 0).float()}
        return loss, {name: (values.sum(), len(values)) for name, values in terms.items()}


@torch.no_grad()
def evaluate_dpo(
    policy: Transformer,
    reference: Transformer,
    pairs: Sequence[Pair],
    window: int,
    pad_id: int,
    objective: DPOObjective,
) -> dict[str, float]:
    """Implicit rewards on pairs that were not trained on: TRL's rewards/*, nll_loss and loss, means over the pairs."""
    sums: dict[str, float] = {}
    for first in range(0, len(pairs), 32):
        group = pairs[first : first + 32]
        rows = pack_sequences([pair[0] for pair in group] + [pair[1] for pair in group], window, pad_id)
        terms = dpo_terms(policy, DPOBatch(rows, sequence_logprobs(reference, rows)[0]), objective)
        margins = terms["rewards/chosen"] - terms["rewards/rejected"]
        terms |= {"rewards/margins": margins, "rewards/accuracies": (margins > 0).float()}
        for name, values in terms.items():
            sums[name] = sums.get(name, 0.0) + float(values.sum())
    return {name: total / len(pairs) for name, total in sums.items()}
