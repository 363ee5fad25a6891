"""The mean of models against the best of them, where the answer is known."""

import numpy as np
import pytest

from herd.alignment.members import Measure, against_best


def measure(values, higher=True, weights=None) -> Measure:
    values = np.asarray(values, dtype=float)
    return Measure(values, np.ones_like(values) if weights is None else np.asarray(weights, float), range(len(values)), higher)


def test_a_clear_winner_and_a_clear_loser_are_told() -> None:
    rng = np.random.default_rng(0)
    hits = (rng.random((3, 400)) < [[0.5], [0.55], [0.8]]).astype(float)
    members = {"a": measure(hits[0]), "b": measure(hits[1])}
    found = against_best("accuracy", measure(hits[2]), members)
    assert (found.status, found.best_member) == ("better", "b")
    assert found.difference == pytest.approx(hits[2].mean() - hits[1].mean())
    worse = against_best("accuracy", measure(hits[0]), {"b": measure(hits[1]), "c": measure(hits[2])})
    assert (worse.status, worse.best_member) == ("worse", "c")
    assert "use c" in worse.reason and worse.interval[1] < 0


def test_lower_is_better_turns_the_sign_and_weights_count() -> None:
    # Nats and tokens: 1.0 nats a token for the mean, 2.0 and 3.0 for the members.
    tokens = np.arange(1, 31)
    found = against_best(
        "loss",
        measure(1.0 * tokens, False, tokens),
        {"a": measure(2.0 * tokens, False, tokens), "b": measure(3.0 * tokens, False, tokens)},
    )
    assert (found.status, found.best_member, found.difference) == ("better", "a", 1.0)
    assert found.interval == pytest.approx([1.0, 1.0])


def test_equal_models_are_not_told_apart_and_the_luck_of_the_choice_counts() -> None:
    rng = np.random.default_rng(1)
    hits = (rng.random((9, 200)) < 0.6).astype(float)
    members = {str(i): measure(hits[i]) for i in range(1, 9)}
    found = against_best("accuracy", measure(hits[0]), members)
    assert found == against_best("accuracy", measure(hits[0]), members)
    # The best of eight equals is lucky on any resample: the interval reaches further down than that of the one chosen.
    alone = against_best("accuracy", measure(hits[0]), {found.best_member: members[found.best_member]})
    assert found.interval[0] <= alone.interval[0]
    assert found.difference == alone.difference


def test_the_best_member_is_the_rival_wherever_it_stands() -> None:
    hits = (np.random.default_rng(2).random((2, 400)) < [[0.3], [0.8]]).astype(float)
    poor, good = measure(hits[0]), measure(hits[1])
    for members in ({"poor": poor, "good": good}, {"good": good, "poor": poor}):
        found = against_best("accuracy", good, members)
        assert (found.best_member, found.status, found.interval) == ("good", "no_difference_seen", [0.0, 0.0])
