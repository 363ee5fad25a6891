"""The fast substring check against Python's own."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.evaluation.overlap import occurring

letters = st.text(alphabet="ab é", max_size=60)  # few letters: many near misses


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(alphabet="ab é", min_size=1, max_size=20), max_size=8), st.lists(letters, max_size=5))
def test_equals_python(needles: list[str], haystacks: list[str]) -> None:
    expected = [any(needle in haystack for haystack in haystacks) for needle in needles]
    assert occurring(needles, haystacks).tolist() == expected


def test_finds_what_is_planted_at_any_offset_and_the_very_ends() -> None:
    rng = np.random.default_rng(0)
    body = "".join(rng.choice(list("abcdefgh "), size=5000))
    needles = [body[i : i + n] for i, n in ((0, 8), (1, 9), (7, 100), (4970, 30), (2500, 17))]
    assert occurring(needles, [body[:1], body]).all()
    assert not occurring([needle + "Z" for needle in needles], [body]).any()
