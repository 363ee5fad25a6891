from hypothesis import given
from hypothesis import strategies as st

from herd.dialog.packing import pack


def test_best_fit_fills_the_fullest_row_with_room():
    assert pack([6, 5, 4, 3, 2], window=10) == [[0, 2], [1, 3, 4]]


def test_no_sequences_no_rows():
    assert pack([], window=8) == []


@given(st.lists(st.integers(1, 16), max_size=60))
def test_every_sequence_once_and_no_row_too_long(lengths):
    rows = pack(lengths, window=16)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 16 for row in rows)
    # Two rows that fit into one would have been one.
    sums = sorted(sum(lengths[i] for i in row) for row in rows)
    assert len(sums) < 2 or sums[0] + sums[1] > 16
