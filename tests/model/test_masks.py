"""Document masks: their tensors, their grouping by length, and what is refused."""

import pytest
import torch

from herd.model.masks import CAUSAL, Branches, Causal, Documents, allowed

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
    assert torch.equal(allowed(Documents(DENSE_ROWS)), torch.tensor(rows))
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


def test_branches_see_the_prompt_and_themselves():
    seen = allowed(Branches((((2, 1, 2), (1,)), ((1, 2, 1, 1), (1,)))))
    rows = [
        # prompt, first response, second response, then a document of its own
        [[1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 0, 0], [1, 1, 0, 1, 1, 0], [0, 0, 0, 0, 0, 1]],
        [[1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [1, 0, 0, 1, 0, 0], [1, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 1]],
    ]
    assert seen.int().tolist() == rows


def test_branches_are_grouped_by_shape():
    mask = Branches((((2, 1, 2), (3,)), ((2, 1, 2), (1, 2)), ((2, 1, 1, 1), (3,))))
    assert mask.simplest is mask
    assert Branches((((2, 1), (3,)),)).simplest == Documents(((3, 3),))
    grouping = mask.grouping()
    assert grouping.mask.trunks == ((6, 3),)
    assert grouping.mask.later == ((2, 2, 2), (2, 2, 1))
    # The prompts of the later responses, where their trunks have come to lie.
    assert grouping.mask.prompts.tolist() == [0, 1, 6, 7, 12, 13, 12, 13]
    tokens = torch.arange(24).view(3, 8)
    assert grouping.apply(tokens).flatten().tolist()[18:] == [3, 4, 11, 12, 19, 20]
    assert torch.equal(grouping.undo(grouping.apply(tokens)), tokens)


def test_branches_know_the_cheaper_way():
    assert Branches((((3, 2, 4), (2, 1, 4)),)).prefers_dense
    assert not Branches((((300, 100, 120), (250, 90, 80)),)).prefers_dense


def test_sizes_of_branches_are_checked():
    with pytest.raises(AssertionError, match="unequal length"):
        Branches((((3, 2),), ((4,),)))
    with pytest.raises(AssertionError, match="without tokens"):
        Branches((((3, 0, 2),),))
