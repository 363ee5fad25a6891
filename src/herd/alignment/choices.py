"""A language model that chooses one of several answers: by the probability that it gives to each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from herd.corpus.tokenizer import Tokenizer
from herd.curation.classifiers.calibration import softmax
from herd.dialog.masks import sft_mask
from herd.dialog.messages import Message, Role
from herd.dialog.render import render_batch
from herd.model.transformer import Transformer
from herd.training.sequences import TrainingSequence, pack_sequences
from herd.training.sft import sequence_logprobs


def as_dialogs(question: str, answers: Sequence[str]) -> list[tuple[Message, ...]]:
    """The question with each of the answers."""
    return [(Message(Role.USER, question), Message(Role.ASSISTANT, answer)) for answer in answers]


def longest(question: str, answers: Sequence[str], tokenizer: Tokenizer, dialect: str = "meta") -> int:
    """Tokens of the question with its longest answer."""
    return max(map(len, render_batch(as_dialogs(question, answers), tokenizer, dialect=dialect)))


@torch.no_grad()
def choice_probabilities(
    model: Transformer,
    tokenizer: Tokenizer,
    questions: Sequence[str],
    answers: Sequence[str],
    batch_size: int,
    dialect: str = "meta",
) -> np.ndarray:
    """(questions, answers) float64, rows sum to 1: that of an answer's tokens, its end of turn included, over the sum of all.

    What is beyond the model's window is cut, so callers see to it that questions fit (:func:`longest`).
    """
    window = model.config.max_seq_len
    dialogs = [dialog for question in questions for dialog in as_dialogs(question, answers)]
    rendered = render_batch(dialogs, tokenizer, dialect=dialect)
    sequences = [TrainingSequence(r.tokens[:window], m[:window], m[:window]) for r in rendered for m in [sft_mask(r)]]
    totals: list[float] = []
    for first in range(0, len(sequences), batch_size):
        group = sequences[first : first + batch_size]
        rows = pack_sequences(group, max(map(len, group)), tokenizer.pad_id)
        totals += sequence_logprobs(model, rows).tolist()
    return softmax(np.array(totals, np.float64).reshape(len(questions), len(answers)))
