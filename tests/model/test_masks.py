"""Document masks: their tensors, their grouping by length, and what is refused."""

import pytest
import torch

from herd.model.masks import CAUSAL, Causal, Documents

DENSE_ROWS = ((3, 5, 1, 7), (8, 2, 4, 2))  # many short documents: one masked call
GROUPED_ROWS = ((150, 150), (150, 150), (300,))  # few long ones: a call for each length


def test_the_cheaper_way_is_known_from_the_lengths():
    assert Documents(DENSE_ROWS).prefers_dense
    assert not Documents(GROUPED_ROWS).prefers_dense
    assert Documents(((6,), (6,))).one_per_row


def test_documents_mask_as_a_tensor():
    rows = []
    for row in DENSE_ROWS:
        document = [i for i, n in enumerate(row) for _ in range(n)]
        rows.append([[s <= t and document[s] == document[t] for s in range(sum(row))] for t in range(sum(row))])
    assert torch.equal(Documents(DENSE_ROWS).allowed(), torch.tensor(rows))
    assert Documents(((1, 2), (3,))).ids().tolist() == [[0, 1, 1], [0, 0, 0]]


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
