"""Kappa is scikit-learn's, its standard error what sampling shows, and the degenerate cases say so."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from herd.alignment.quality.agreement import agreement


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=80))
def test_kappa_is_that_of_scikit_learn(pairs) -> None:
    first, second = np.array(pairs).T
    found = agreement(first, second)
    assert found.disagree == pytest.approx(float((first != second).mean()))
    if min(len({*first.tolist()}), len({*second.tolist()})) == 1:  # where scikit-learn says 0 or nan
        assert found.status == "undefined" and found.kappa is None
        return
    assert found.kappa == pytest.approx(cohen_kappa_score(first, second), abs=1e-12)
    assert found.interval[0] <= found.kappa <= found.interval[1]


def test_the_interval_is_as_wide_as_sampling_says() -> None:
    rng = np.random.default_rng(0)
    cells, n = np.array([[0.3, 0.1], [0.15, 0.45]]), 400
    kappas, widths = [], []
    for _ in range(600):
        draw = rng.choice(4, size=n, p=cells.ravel())
        found = agreement(draw // 2, draw % 2)
        kappas.append(found.kappa)
        widths.append((found.interval[1] - found.interval[0]) / (2 * 1.959963984540054))
    assert np.mean(widths) == pytest.approx(np.std(kappas), rel=0.08)


def test_what_has_no_kappa() -> None:
    assert agreement([], []).status == "undefined"
    assert agreement([True, True], [True, True]).reason == "a rater gives all items the same label"
    assert agreement([True, False], [True, False]).kappa == 1.0
    assert agreement([1, 1, 0], [1, 0, 0]).table == [[1, 0], [1, 1]]
