"""Log-likelihoods of continuations, the measure behind multiple choice and the needle task.

Choices of one context stand in one row behind it, each blind to the others (the mask lets a choice see the context and
itself; positions restart after the context), so that a long context is computed once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from herd.config.errors import UserError
from herd.corpus.tokenizer import Tokenizer
from herd.model.masks import CAUSAL, Dense
from herd.model.transformer import Transformer

_LOGIT_CELLS = 2**20  # logits held at once, rows x vocabulary: 4 MB, what a core keeps in its cache
_DENSE_LIMIT = 4096  # row length up to which a (T, T) mask is made; longer contexts are repeated for each choice


@dataclass(frozen=True)
class Request:
    """One context and its possible continuations, as token ids. No part is empty."""

    context: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        assert all((self.context, self.choices, *self.choices)), "a context and continuations need a token at least"


@dataclass(frozen=True)
class Likelihood:
    """Of each of K choices: the summed log-probability in nats, and whether greedy decoding would write it."""

    logprobs: np.ndarray  # (K,) float64
    greedy: np.ndarray  # (K,) bool


@dataclass
class LanguageModel:
    """A checkpoint under test."""

    label: str
    model: Transformer
    device: torch.device
    tokens_read: int = 0  # forward tokens, for the cost in the manifest
    batch_tokens: int = 4096  # tokens (padding included) of one forward batch

    @property
    def max_seq_len(self) -> int:
        """Longest row that the model was trained for."""
        return int(self.model.config.max_seq_len)


def encode_pairs(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
    """(context, continuation) texts to ids; contexts begin with ``<|begin_of_text|>``, even empty ones.

    The two are encoded as one text, as the model has read it, and cut at the last border of tokens within the context: a
    token that holds the end of the context and the beginning of the continuation belongs to the continuation. (Cutting at
    the length of the context encoded alone, as is often done, loses or repeats characters where the border merges, as
    ``)`` and a blank line do.)
    """
    wholes = tokenizer.encode_batch([context + continuation for context, continuation in pairs])
    encoded = []
    for (context, _), whole in zip(pairs, wholes, strict=True):
        ends = np.cumsum(tokenizer.token_bytes[whole])
        cut = int(np.searchsorted(ends, len(context.encode("utf-8")), side="right"))
        encoded.append(([tokenizer.bos_id, *whole[:cut]], whole[cut:]))
    return encoded


def encode_choices(tokenizer: Tokenizer, questions: Sequence[tuple[str, Sequence[str]]]) -> list[Request]:
    """(context, choices) texts to requests; a token that only some choices merge with the context moves to every choice."""
    pairs = iter(encode_pairs(tokenizer, [(context, choice) for context, choices in questions for choice in choices]))
    requests = []
    for _, choices in questions:
        parts = [next(pairs) for _ in choices]
        shared = next((i for i, ids in enumerate(zip(*(c for c, _ in parts), strict=False)) if len(set(ids)) > 1), None)
        size = min(len(context) for context, _ in parts) if shared is None else shared
        rests = tuple((*context[size:], *continuation) for context, continuation in parts)
        requests.append(Request(tuple(parts[0][0][:size]), rests))
    return requests


@torch.inference_mode()
def score(lm: LanguageModel, requests: Sequence[Request]) -> list[Likelihood]:
    """Likelihoods of every choice of every request, in order.

    A context that does not fit is cut at its beginning, as lm-eval does; its first token (begin of text) stays.

    Raises:
        UserError: a choice alone is longer than the model reads.
    """
    fitted = [_fit(request, lm) for request in requests]
    logprobs = [np.zeros(len(request.choices)) for request in fitted]
    greedy = [np.zeros(len(request.choices), dtype=bool) for request in fitted]
    rows = [_Row(i, first, part) for i, request in enumerate(fitted) for first, part in _rows(request)]
    rows.sort(key=lambda row: row.length)
    for batch in batches([row.length for row in rows], lm.batch_tokens):
        members = rows[batch.start : batch.stop]
        for row, scored in zip(members, _score_rows(lm, [row.request for row in members]), strict=True):
            for k, (total, written) in enumerate(scored, row.first):
                logprobs[row.index][k], greedy[row.index][k] = total, written
    return [Likelihood(*found) for found in zip(logprobs, greedy, strict=True)]


@dataclass(frozen=True)
class _Row:
    """What one row holds: choices of one request, from the choice ``first`` on."""

    index: int
    first: int
    request: Request

    @property
    def length(self) -> int:
        return _row_length(self.request)


def _fit(request: Request, lm: LanguageModel) -> Request:
    longest = max(map(len, request.choices))
    room = lm.max_seq_len + 1 - longest  # the last token is predicted, never read
    if room < 1:
        raise UserError(
            f"evaluate: a text of {longest} tokens does not fit into the {lm.max_seq_len} positions of '{lm.label}': "
            "lower documentation_choice.max_characters."
        )
    if len(request.context) <= room:
        return request
    tail = request.context[len(request.context) - room + 1 :] if room > 1 else ()
    return Request((request.context[0], *tail), request.choices)


def _row_length(request: Request) -> int:
    return len(request.context) + sum(map(len, request.choices))


def _rows(request: Request) -> Iterator[tuple[int, Request]]:
    """One row for all choices, or one for each when the shared row would be too long for a dense mask."""
    if _row_length(request) <= _DENSE_LIMIT:
        yield 0, request
    else:
        for k, choice in enumerate(request.choices):
            yield k, Request(request.context, (choice,))


def batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[range]:
    """Consecutive rows (sorted by length) whose padded size stays within ``batch_tokens``; at least one row each."""
    first = 0
    for i, length in enumerate(lengths):
        if i > first and (i - first + 1) * length > batch_tokens:
            yield range(first, i)
            first = i
    if first < len(lengths):
        yield range(first, len(lengths))


def _score_rows(lm: LanguageModel, requests: Sequence[Request]) -> list[list[tuple[float, bool]]]:
    width = max(map(_row_length, requests))
    tokens = torch.zeros(len(requests), width, dtype=torch.long)
    positions = torch.zeros(len(requests), width, dtype=torch.long)
    segment = torch.full((len(requests), width), -1, dtype=torch.long)  # 0 context, 1.. choices, -1 padding
    places: list[int] = []  # where a prediction is read, as an index into the flattened (rows x width)
    targets: list[int] = []
    for row, request in enumerate(requests):
        n = len(request.context)
        tokens[row, :n] = torch.tensor(request.context)
        positions[row, :n] = torch.arange(n)
        segment[row, :n] = 0
        start = n
        for k, choice in enumerate(request.choices, 1):
            end = start + len(choice)
            tokens[row, start:end] = torch.tensor(choice)
            positions[row, start:end] = torch.arange(n, n + len(choice))
            segment[row, start:end] = k
            # The context's last token predicts the choice's first; each of its tokens predicts the next.
            places += [row * width + n - 1, *range(row * width + start, row * width + end - 1)]
            targets += choice
            start = end
    # A row with one choice is causal as it stands; padding lies behind it and is never read.
    mask = CAUSAL if all(len(r.choices) == 1 for r in requests) else Dense(_allowed(segment).to(lm.device))
    # The last token of each choice is never read, and may lie one past the model's length: any position will do.
    hidden = lm.model(tokens.to(lm.device), positions=positions.clamp(max=lm.max_seq_len - 1).to(lm.device), mask=mask)
    lm.tokens_read += int((segment >= 0).sum())
    logprobs, greedy = _read(lm.model, hidden.flatten(0, 1)[torch.tensor(places, device=lm.device)], targets)
    scored, at = [], 0
    for request in requests:
        row_scores = []
        for choice in request.choices:
            part = slice(at, at + len(choice))
            row_scores.append((float(logprobs[part].sum()), bool(greedy[part].all())))
            at += len(choice)
        scored.append(row_scores)
    return scored


def _allowed(segment: Tensor) -> Tensor:
    """(B, T, T) bool: a token sees the context, its own choice, and nothing that comes later; padding sees itself."""
    width = segment.shape[1]
    query, key = segment[:, :, None], segment[:, None, :]
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    return causal & ((key == 0) | (key == query))


def _read(model: Transformer, hidden: Tensor, targets: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Log-probability of each target, float64, and whether it is the most likely token; hidden is (n, dim)."""
    wanted = torch.tensor(targets, device=hidden.device)
    logprobs, greedy = [], []
    step = max(1, _LOGIT_CELLS // model.output_weight.shape[0])
    for first in range(0, len(targets), step):
        logits = model.logits(hidden[first : first + step]).float()
        part = wanted[first : first + step]
        at_target = logits.gather(1, part[:, None]).squeeze(1)
        logprobs.append((at_target - logits.logsumexp(dim=1)).double())
        greedy.append(logits.argmax(dim=1) == part)
    return torch.cat(logprobs).cpu().numpy(), torch.cat(greedy).cpu().numpy()
