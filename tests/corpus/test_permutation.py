"""The shuffle that is never written down: every number once, and none near where it was."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.corpus.permutation import Permutation


@given(count=st.integers(1, 3000), seed=st.integers(0, 5))
def test_every_number_stands_in_one_place(count: int, seed: int) -> None:
    order = Permutation.of(count, seed, "rows")
    whole = order(np.arange(count))
    assert sorted(whole.tolist()) == list(range(count))
    some = np.array([count - 1, 0, count // 2])
    assert (order(some) == whole[some]).all()


def test_seeds_and_names_give_other_orders() -> None:
    orders = [Permutation.of(100, *names)(np.arange(100)).tolist() for names in ((0, "a"), (1, "a"), (0, "b"), (0, "a", 1))]
    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.parametrize("count", [1000, 1024, 1025, 4097])
def test_places_are_as_random_as_a_shuffle(count: int) -> None:
    """Correlation with the place, fixed points and kept neighbours: of 200 orders, against what chance gives."""
    orders = np.stack([Permutation.of(count, seed, "rows")(np.arange(count)) for seed in range(200)])
    correlation = np.array([np.corrcoef(np.arange(count), order)[0, 1] for order in orders])
    assert abs(correlation.mean()) < 4 / np.sqrt(200 * count)
    assert correlation.std() == pytest.approx(1 / np.sqrt(count), rel=0.25)
    assert (orders == np.arange(count)).sum(axis=1).mean() == pytest.approx(1, abs=0.35)  # Poisson of mean 1
    assert (np.abs(np.diff(orders, axis=1)) == 1).sum(axis=1).mean() == pytest.approx(2, abs=0.5)


def test_order_is_the_one_of_earlier_versions_and_far_numbers_are_in_reach() -> None:
    """A change here silently changes every training run: raise the version of the stages that read a mixture."""
    assert Permutation.of(8, 0, "rows")(np.arange(8)).tolist() == [2, 3, 4, 6, 7, 1, 5, 0]
    far = Permutation.of(2**40 + 7, 0, "rows")(2**40 + np.arange(7))
    assert len(set(far.tolist())) == 7
    assert far.min() >= 0 and far.max() < 2**40 + 7
