"""Rule-made flaws: each does what it says, and each costs."""

import numpy as np
import pytest

from herd.alignment.flaws import FLAWS, add_flaws, split_arguments
from herd.config.errors import UserError
from herd.dialog.grader import GraderConfig

GRADER = GraderConfig()
CALL, SIGNATURE, WHAT = "norm([1, 2], 'a')", "norm(x, ord=None)", "Return the norm of x."


@pytest.mark.parametrize("flaw", FLAWS.names())
@pytest.mark.parametrize(("task", "reference"), [("call", CALL), ("signature", SIGNATURE), ("what", WHAT)])
def test_every_flaw_costs(task, reference, flaw):
    for seed in range(5):
        answer = add_flaws(reference, "scale(7, 'b', 3)", [flaw], np.random.default_rng(seed))
        if answer != reference:
            assert GRADER.score(task, reference, answer) < 1.0, (flaw, answer)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        ("a", ["a"]),
        ("a, [1, 2], 'x,y', f(b, c)", ["a", "[1, 2]", "'x,y'", "f(b, c)"]),
        ("x, y={'a': 1, 'b': 2}", ["x", "y={'a': 1, 'b': 2}"]),
    ],
)
def test_split_arguments(text, parts):
    assert split_arguments(text) == parts


def test_flaws_do_what_they_say():
    def one(name, answer=CALL):
        return add_flaws(answer, "other", [name], np.random.default_rng(0))

    assert one("swapped_arguments") == "norm('a', [1, 2])"
    assert one("missing_parenthesis") == CALL[:-1]
    assert one("missing_parenthesis", "Do (it)") == "Do (it)"
    assert CALL.startswith(one("truncated"))
    assert one("wrong_function") == "other"
    assert one("chatter").endswith(CALL)
    assert one("exclamation").startswith(CALL)
    with pytest.raises(UserError, match="truncated"):
        one("truncate")
