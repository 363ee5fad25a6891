"""Likelihoods from shared rows against one plain forward pass a choice."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from herd.config.errors import UserError
from herd.corpus.tokenizer import Tokenizer
from herd.evaluation import scoring
from herd.evaluation.heldout import document_nll
from herd.evaluation.scoring import LanguageModel, Request, encode_choices, encode_pairs, score
from herd.runs.seeds import stream

MakeLM = Callable[..., LanguageModel]


def random_requests(count: int, vocab_size: int, longest: int = 30) -> list[Request]:
    rng = stream(0, "requests")

    def ids(most: int) -> tuple[int, ...]:
        return tuple(int(i) for i in rng.integers(0, vocab_size, size=int(rng.integers(1, most))))

    return [Request(ids(longest), tuple(ids(9) for _ in range(int(rng.integers(1, 6))))) for _ in range(count)]


@torch.inference_mode()
def naive(lm: LanguageModel, context: tuple[int, ...], choice: tuple[int, ...]) -> tuple[float, bool]:
    tokens = torch.tensor([[*context, *choice]])[:, :-1]
    logprobs = lm.model.logits(lm.model(tokens)).double().log_softmax(-1)[0]
    at = range(len(context) - 1, len(context) + len(choice) - 1)
    total = sum(float(logprobs[i, t]) for i, t in zip(at, choice, strict=True))
    return total, all(int(logprobs[i].argmax()) == t for i, t in zip(at, choice, strict=True))


@pytest.mark.parametrize("batch_tokens", [1, 200, 10**6])
@pytest.mark.parametrize("dense_limit", [0, 40, 4096])
def test_shared_rows_equal_one_row_a_choice(
    make_lm: MakeLM, monkeypatch: pytest.MonkeyPatch, batch_tokens: int, dense_limit: int
) -> None:
    monkeypatch.setattr(scoring, "_DENSE_LIMIT", dense_limit)
    monkeypatch.setattr(scoring, "_LOGIT_CELLS", 10_000)  # several chunks of logits
    lm = make_lm()
    lm.batch_tokens = batch_tokens
    requests = random_requests(25, lm.model.config.vocab_size)
    for request, found in zip(requests, score(lm, requests), strict=True):
        expected = [naive(lm, request.context, choice) for choice in request.choices]
        assert found.logprobs == pytest.approx([e[0] for e in expected], abs=2e-4)
        assert found.greedy.tolist() == [e[1] for e in expected]


def test_greedy_says_what_greedy_decoding_writes(make_lm: MakeLM) -> None:
    lm = make_lm()
    context, written = [5, 6, 7], []
    with torch.inference_mode():
        for _ in range(4):
            written.append(int(lm.model.logits(lm.model(torch.tensor([context + written])))[0, -1].argmax()))
    other = [*written[:3], (written[3] + 1) % 100]
    [found] = score(lm, [Request(tuple(context), (tuple(written), tuple(other)))])
    assert found.greedy.tolist() == [True, False]
    assert found.logprobs[0] > found.logprobs[1]


def test_a_long_context_loses_its_beginning_but_keeps_the_first_token(make_lm: MakeLM) -> None:
    lm = make_lm(max_seq_len=24)
    vocab_size = lm.model.config.vocab_size
    context = tuple(int(i) for i in stream(1, "long").integers(0, vocab_size, size=60))
    choices = ((1, 2, 3, 4), (5,))
    [found] = score(lm, [Request(context, choices)])
    kept = (context[0], *context[-20:])  # 24 + 1 - 4 = 21 places: the last token of a choice is predicted, never read
    assert found.logprobs == pytest.approx([naive(lm, kept, c)[0] for c in choices], abs=2e-4)


def test_a_choice_longer_than_the_model_is_refused(make_lm: MakeLM) -> None:
    with pytest.raises(UserError, match="9 tokens does not fit into the 8 positions of 'short'"):
        score(make_lm("short", max_seq_len=8), [Request((1,), (tuple(range(9)),))])
    assert len(score(make_lm("short", max_seq_len=8), [Request((1,), (tuple(range(8)),))])) == 1


@pytest.mark.parametrize(
    ("context", "continuation", "read"),
    [
        ("compute the matrix \n", "along the axis", "compute the matrix \n"),
        ("compute the matrix ", "along the axis", "compute the matrix"),  # a word begins with its blank
        ("f(x)\n\n", "Return the axis", "f(x)\n\n"),  # ")" and a blank line are one token
        ("f(x", ")\n\nReturn", "f(x"),
        ("", "the axis", ""),
        ("caf\u00e9 \u4e16", "\u754c", "caf\u00e9 \u4e16"),
    ],
)
def test_pairs_are_cut_at_a_border_of_tokens(tokenizer: Tokenizer, context: str, continuation: str, read: str) -> None:
    ((before, after),) = encode_pairs(tokenizer, [(context, continuation)])
    assert before[0] == tokenizer.bos_id
    assert before[1:] + after == tokenizer.encode(context + continuation)  # as the model has read it
    assert tokenizer.decode(before[1:]) == read


@given(context=st.text(max_size=12), choices=st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=4))
def test_choices_share_their_context_and_lose_no_byte(tokenizer: Tokenizer, context: str, choices: list[str]) -> None:
    (request,) = encode_choices(tokenizer, [(context, choices)])
    for choice, ids in zip(choices, request.choices, strict=True):
        whole = [*request.context[1:], *ids]
        assert tokenizer.decode(whole) == context + choice
        assert whole == tokenizer.encode(context + choice)
        assert tokenizer.token_bytes[list(request.context[1:])].sum() <= len(context.encode())


def test_nll_of_documents_equals_one_window_at_a_time(make_lm: MakeLM) -> None:
    lm = make_lm()
    lm.batch_tokens = 100
    vocab_size = lm.model.config.vocab_size
    rng = stream(2, "documents")
    documents = [rng.integers(0, vocab_size, size=n) for n in (2, 17, 33, 34, 100)]
    window = 16
    expected = []
    for document in documents:
        total = 0.0
        for start in range(0, len(document) - 1, window):
            piece = document[start : start + window + 1]
            total -= naive(lm, (int(piece[0]),), tuple(int(t) for t in piece[1:]))[0]
        expected.append(total)
    found = document_nll(lm, documents, window)
    assert found == pytest.approx(expected, rel=1e-5)
    assert lm.tokens_read == sum(len(d) - 1 for d in documents)
    assert np.isfinite(found).all()
