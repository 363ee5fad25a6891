"""What a length limit takes from preference pairs: counted, and told when it takes sides."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.alignment import dpo_stage, reward_stage
from herd.alignment.length_limit import length_limit, told
from herd.dialog.rows import PairLength
from herd.recipe.graph import closing

WINDOW = 20


def pair(chosen: int, rejected: int, prompt: int = 4, key: object = None) -> PairLength:
    fits = prompt + max(chosen, rejected) <= WINDOW
    return PairLength(prompt, chosen, rejected, fits, key if key is not None else object())


def test_the_difference_has_newcombes_interval() -> None:
    """56 of 70 less 48 of 80: Newcombe 1998, table II, method 10, gives 0.0524 to 0.3339."""
    gone = [pair(30, 5)] * 56 + [pair(5, 30)] * 14
    left = [pair(6, 5)] * 48 + [pair(5, 6)] * 32
    unlike = [p._replace(prompt_key=i) for i, p in enumerate([*gone, *left])]
    found = length_limit(unlike, WINDOW)
    assert found.longer_difference == pytest.approx(0.2)
    assert found.longer_interval == pytest.approx([0.0524, 0.3339], abs=1e-4)
    assert (found.status, found.over) == ("one_sided", {"chosen": 56, "rejected": 14, "both": 0})


def test_sides_and_means_are_those_of_the_pairs() -> None:
    found = length_limit([pair(17, 3), pair(3, 18), pair(2, 2, prompt=19), pair(4, 6), pair(5, 5)], WINDOW)
    assert found.over == {"chosen": 1, "rejected": 1, "both": 1}
    assert (found.dropped, found.share, found.gone.pairs, found.left.pairs) == (3, 3 / 5, 3, 2)
    assert (found.gone.chosen_tokens, found.gone.rejected_tokens, found.gone.prompt_tokens) == (22 / 3, 23 / 3, 9)
    assert (found.left.chosen_longer, found.gone.chosen_longer) == (0.25, 0.5)
    assert found.status == "ok"


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30), st.integers(0, 3)), max_size=30))
def test_the_parts_make_the_whole(rows: list[tuple[int, int, int]]) -> None:
    found = length_limit([pair(chosen, rejected, key=key) for chosen, rejected, key in rows], WINDOW)
    assert found.gone.pairs + found.left.pairs == found.pairs == len(rows)
    assert sum(found.over.values()) == found.dropped
    if rows:
        assert found.all.chosen_tokens == pytest.approx(np.mean([chosen for chosen, _, _ in rows]))
    if found.longer_interval is not None:
        low, high = found.longer_interval
        assert low <= found.longer_difference <= high


def test_nothing_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    cut = length_limit([pair(30, 5, key=i) for i in range(30)] + [pair(5, 6, key=-i) for i in range(1, 91)], WINDOW)
    whole = length_limit([pair(5, 6)], WINDOW)
    metrics = told("dpo", {"train": cut, "heldout": whole}, aloud=True)
    assert capsys.readouterr().err == (
        "dpo: 30 of 120 pairs (25.0%) are longer than window=20 and dropped (too long: chosen 30): the chosen response is the "
        "longer in 100% of the dropped and 0% of the kept: one-sided, raise window where the model has the positions\n"
    )
    assert metrics["length_limit"]["heldout"]["reason"] == "nothing is dropped"
    for stage in (dpo_stage.STAGE, reward_stage.STAGE):
        assert "dropped_too_long 30, dropped_too_long_share 0.25 [0.1811, 0.3344]" in closing("dpo", metrics, stage.headline)
    none = told("dpo", {"train": whole, "heldout": cut}, aloud=True)
    assert closing("dpo: done", none | {"heldout_pairs": 0}, dpo_stage.STAGE.headline) == "dpo: done (heldout_pairs 0)"
    told("dpo", {"train": cut, "heldout": whole}, aloud=False)
    assert not capsys.readouterr().err
