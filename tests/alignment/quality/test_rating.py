"""Quality: the top quartile is numpy's with ties kept, either rater suffices, and their disagreement is what a table shows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from herd.alignment.quality.dialogs import Ledger
from herd.alignment.quality.judges import Verdict, certain
from herd.alignment.quality.rating import RatingConfig, mid_ranks, rate, top_limits
from herd.config.errors import UserError


def config(**values) -> RatingConfig:
    plain = {"reward": "model", "share": 0.25, "within": "all", "keep": "either", "code_topics": []}
    return RatingConfig(**plain | {"general": "{dialog}", "code": "{dialog}"} | values)


@settings(max_examples=30)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=50), st.floats(0.05, 0.95))
def test_the_top_is_numpys_quantile_and_ranks_are_scipys(values: list[int], share: float) -> None:
    numbers = [float(v) for v in values]
    limit = top_limits(numbers, ["x"] * len(values), share)["x"]
    assert limit == np.quantile(numbers, 1 - share)
    top = sum(v >= limit for v in numbers)
    assert top >= 1 and sum(v > limit for v in numbers) <= share * (len(values) - 1) + 1  # more only by ties
    assert mid_ranks(numbers) == pytest.approx((rankdata(numbers) - 0.5) / len(numbers))


def test_either_of_reward_and_judge_suffices_and_both_scores_stay(dialog) -> None:
    dialogs = [dialog(str(i), "x") for i in range(8)]
    rewards = [7.0, 6.0, 1.0, 2.0, 3.0, 4.0, None, None]  # the quartile of six: from 5.5
    verdicts = (
        [certain(0, 3)] * 2 + [certain(2, 3)] * 2 + [certain(1, 3), Verdict((), "asleep"), certain(2, 3), Verdict((), "asleep")]
    )
    ledger = Ledger()
    kept, report = rate(dialogs, rewards, [(3, v) for v in verdicts], config(), ledger)
    assert [d.id for d in kept] == ["0", "1", "2", "3", "6"]
    gone = {row["id"]: row["dropped"] for row in ledger.rows}
    assert gone["4"] == {
        "rule": "low_quality",
        "why": "reward 3 is below the top 25% (from 5.5) and the judge's grade is 2 of 3",
        "value": 3.0,
        "limit": 5.5,
    }
    assert gone["7"] == {"rule": "not_rated", "why": "neither reward nor grade: asleep"}
    assert kept[0].notes == {
        "reward": 7.0,
        "high_reward": True,
        "grade": 1,
        "points": 3,
        "top_grade": False,
        "rating": pytest.approx((5.5 / 6 + 1 / 3) / 2),
    }
    both = report["reward_against_judge"]
    assert (both["items"], both["disagree"], both["table"]) == (5, 0.8, [[1, 2], [2, 0]])
    assert report["grades"] == {"1 of 3": 2, "2 of 3": 1, "3 of 3": 3, "asleep": 2}
    both_needed, _ = rate(dialogs, rewards, [(3, v) for v in verdicts], config(keep="both"), Ledger())
    assert [d.id for d in both_needed] == ["6"]  # of those with one score, that one counts
    everything, _ = rate(dialogs, rewards, [(3, v) for v in verdicts], config(keep="all"), Ledger())
    assert len(everything) == 8


def test_all_that_equal_the_limit_are_good(dialog) -> None:
    dialogs = [dialog(str(i), "x") for i in range(8)]
    kept, report = rate(dialogs, [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0], None, config(), Ledger())
    assert [d.id for d in kept] == ["1", "2", "3", "4", "5"] and report["good_by_reward"] == 5


def test_quartiles_within_sources_differ_from_one_of_all(dialog) -> None:
    dialogs = [dialog(f"{s}{i}", "x", source=s) for s in "ab" for i in range(4)]
    rewards = [0.0, 1.0, 2.0, 3.0, 10.0, 11.0, 12.0, 13.0]
    assert [d.id for d in rate(dialogs, rewards, None, config(), Ledger())[0]] == ["b2", "b3"]
    kept, report = rate(dialogs, rewards, None, config(within="source"), Ledger())
    assert [d.id for d in kept] == ["a3", "b3"] and report["reward_limits"] == {"a": 2.25, "b": 12.25}
    assert report["reward_against_judge"]["status"] == "undefined"


def test_code_has_a_scale_of_two_points(dialog) -> None:
    from herd.alignment.quality.rating import ask_quality

    class Judge:
        def ask(self, questions):
            self.asked = [(q.text, q.answers) for q in questions]
            return [certain(len(q.answers) - 1, len(q.answers)) for q in questions]

    judge = Judge()
    chat, code = dialog("a", "x"), dialog("b", "y")
    code.notes["topic"] = "code"
    settings_ = config(code_topics=["code"], general="G {dialog}", code="C {dialog}")
    assert [(p, v.grade) for p, v in ask_quality([chat, code], settings_, judge)] == [(3, 3), (2, 2)]
    assert judge.asked == [
        ("G [user]\nWhy?\n\n[assistant]\nx", ("1", "2", "3")),
        ("C [user]\nWhy?\n\n[assistant]\ny", ("1", "2")),
    ]


def test_nothing_to_rate_by_is_refused(dialog) -> None:
    with pytest.raises(UserError, match="neither a reward nor a judge"):
        rate([dialog("a", "x")], None, None, config(), Ledger())
    with pytest.raises(UserError, match="must mark the place"):
        config(general="Grade it.")
