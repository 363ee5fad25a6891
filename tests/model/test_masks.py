"""Every mask against a plain masked softmax, float64."""

import math

import pytest
import torch

from herd.model.masks import CAUSAL, Causal, Dense, Documents, Mask, attend


def plain(q, k, v, allowed):
    """Masked softmax, written out: (B, T, H, d), (B, S, KV, d), allowed (B, T, S)."""
    group = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
    scores = torch.einsum("bthd,bshd->bhts", q, k) / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(~allowed[:, None], -math.inf).softmax(-1)
    return torch.einsum("bhts,bshd->bthd", weights, v)


def by_hand(lengths):
    """The document mask from its definition, one pair of positions at a time."""
    rows = []
    for row in lengths:
        document = [i for i, n in enumerate(row) for _ in range(n)]
        rows.append([[s <= t and document[s] == document[t] for s in range(sum(row))] for t in range(sum(row))])
    return torch.tensor(rows)


DENSE_ROWS = ((3, 5, 1, 7), (8, 2, 4, 2))  # many short documents: one masked call
GROUPED_ROWS = ((150, 150), (150, 150), (300,))  # few long ones: a call for each length


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("lengths", [DENSE_ROWS, GROUPED_ROWS, ((6,), (6,))], ids=["dense", "grouped", "one_per_row"])
def test_documents_equal_plain_softmax_with_gradients(lengths, kv_heads):
    torch.manual_seed(0)
    total = sum(lengths[0])
    q = torch.randn(len(lengths), total, 4, 8, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(len(lengths), total, kv_heads, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight = torch.randn(len(lengths), total, 4, 8, dtype=torch.float64)
    expected = plain(q, k, v, by_hand(lengths))
    found = attend(q, k, v, Documents(lengths))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for a, b in zip(
        torch.autograd.grad((found * weight).sum(), (q, k, v)),
        torch.autograd.grad((expected * weight).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_both_ways_of_documents_are_taken():
    assert Documents(DENSE_ROWS).prefers_dense
    assert not Documents(GROUPED_ROWS).prefers_dense
    assert Documents(((6,), (6,))).one_per_row


@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (1, 9), (4, 9)])
def test_causal_aligns_queries_with_the_last_keys(queries, keys):
    torch.manual_seed(1)
    q = torch.randn(2, queries, 4, 8, dtype=torch.float64)
    k, v = (torch.randn(2, keys, 2, 8, dtype=torch.float64) for _ in range(2))
    allowed = by_hand(((keys,),))[:, keys - queries :].expand(2, -1, -1)
    torch.testing.assert_close(attend(q, k, v, CAUSAL), plain(q, k, v, allowed), rtol=0, atol=1e-12)


def test_dense_takes_any_mask():
    torch.manual_seed(2)
    q, k, v = torch.randn(2, 6, 4, 8).double(), torch.randn(2, 7, 2, 8).double(), torch.randn(2, 7, 2, 8).double()
    allowed = torch.rand(2, 6, 7) < 0.5
    allowed[..., 3] = True
    torch.testing.assert_close(attend(q, k, v, Dense(allowed)), plain(q, k, v, allowed), rtol=0, atol=1e-12)
    shared: Mask = Dense(allowed[:1])
    expected = plain(q, k, v, allowed[:1].expand(2, -1, -1))
    torch.testing.assert_close(attend(q, k, v, shared), expected, rtol=0, atol=1e-12)


def test_documents_mask_as_a_tensor():
    assert torch.equal(Documents(DENSE_ROWS).allowed(), by_hand(DENSE_ROWS))


def test_grouping_puts_documents_of_equal_length_together():
    grouping = Documents(((1, 2, 1), (2, 1, 1))).grouping()
    assert grouping.mask.groups == ((2, 2), (4, 1))
    tokens = torch.tensor([[10, 20, 21, 30], [40, 41, 50, 60]])
    assert grouping.apply(tokens).flatten().tolist() == [20, 21, 40, 41, 10, 30, 50, 60]
    assert torch.equal(grouping.undo(grouping.apply(tokens)), tokens)


def test_lengths_are_checked():
    with pytest.raises(AssertionError, match="unequal length"):
        Documents(((3, 2), (4,)))
    with pytest.raises(AssertionError, match="without tokens"):
        Documents(((3, 0),))
    assert isinstance(CAUSAL, Causal)
