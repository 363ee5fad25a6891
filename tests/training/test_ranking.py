"""How well scores rank pairs, on pairs whose answer is known."""

import numpy as np
import pytest

from herd.runs.statistics import wilson
from herd.training.ranking import paired_interval, ranking_accuracy


def test_a_judge_of_length_is_no_better_than_length() -> None:
    lengths = np.array([[9, 1], [8, 2], [7, 3], [6, 4], [2, 8], [5, 5]])
    found = ranking_accuracy(lengths, lengths, range(6))
    assert found.accuracy == 4 / 6  # the tie is no hit
    assert found.accuracy_interval == wilson(4 / 6, 6).to_list()
    assert (found.length_accuracy, found.length_prefers) == (4.5 / 6, "longer")
    assert found.over_length == pytest.approx(-0.5 / 6)
    assert found.like_length is not None and (found.like_length.pairs, found.like_length.share) == (1, 0.0)
    assert found.margin == pytest.approx(14 / 6)


def test_length_may_favour_the_shorter_and_pairs_of_like_length_are_told_apart() -> None:
    lengths = [[100, 105], [100, 300], [50, 200], [100, 80]]
    found = ranking_accuracy([[1, 0], [0, 1], [1, 0], [1, 0]], lengths, ["a", "b", "a", "c"])
    assert (found.accuracy, found.length_accuracy, found.length_prefers) == (0.75, 0.75, "shorter")
    assert found.like_length is not None and (found.like_length.pairs, found.like_length.share) == (1, 1.0)
    assert (found.pairs, found.prompts) == (4, 3)
    assert ranking_accuracy([[1, 0]], [[10, 99]], ["a"]).like_length is None


def test_paired_interval_draws_prompts_and_repeats_itself() -> None:
    differences = np.repeat([1.0, 0.0, 0.0, -1.0, 1.0, 1.0, 0.0, 1.0], 10)
    prompts = np.repeat(range(8), 10).tolist()
    wide, narrow = paired_interval(differences, prompts), paired_interval(differences, range(80))
    assert wide == paired_interval(differences, prompts)
    assert wide.low < narrow.low < 0.375 < narrow.high < wide.high


def test_lengths_are_alike_up_to_a_tenth_of_their_mean():
    lengths = [[100, 110], [110, 100], [100, 112], [112, 100]]  # 0.095 and 0.113 of the mean apart
    found = ranking_accuracy([[1, 0], [0, 1], [1, 0], [1, 0]], lengths, "abcd")
    assert found.like_length is not None
    assert (found.like_length.pairs, found.like_length.share) == (2, 0.5)


def test_pairs_of_one_prompt_are_one_in_every_interval():
    rng = np.random.default_rng(0)
    scores, lengths, prompts = rng.normal(size=(30, 2)), rng.integers(1, 99, (30, 2)), list(range(30))
    once = ranking_accuracy(scores, lengths, prompts)
    thrice = ranking_accuracy(np.repeat(scores, 3, 0), np.repeat(lengths, 3, 0), np.repeat(prompts, 3).tolist())
    assert thrice.over_length_interval == pytest.approx(once.over_length_interval)
    assert thrice.accuracy_interval == pytest.approx(once.accuracy_interval, abs=0.01)
    assert (thrice.pairs, thrice.prompts) == (90, 30)
