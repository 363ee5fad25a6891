"""The known rule: what it rewards, what it punishes, where the grades begin."""

import pytest

from herd.config.errors import UserError
from herd.dialog.grader import GraderConfig, correctness, flaws, right_kind, token_f1
from herd.dialog.preferences import Grade

GRADER = GraderConfig()
CALL, SIGNATURE, WHAT = "norm([1, 2], 'a')", "norm(x, ord=None)", "Return the norm of x."


@pytest.mark.parametrize(("task", "reference"), [("call", CALL), ("signature", SIGNATURE), ("what", WHAT)])
def test_the_reference_is_perfect_and_nothing_is_worthless(task, reference):
    assert GRADER.score(task, reference, reference) == 1.0
    assert GRADER.score(task, reference, "  ") == 0.0


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("norm( [1,2],  'a' )", 1.0),  # the same call, written otherwise
        ("norm('a', [1, 2])", 0.45),  # right function, both values in wrong places
        ("norm([1, 2], 'b')", 0.9 * 0.75),
        ("scale([1, 2], 'a')", 0.45),
        ("norm([1, 2], x='a')", 0.9 * 0.75),
    ],
)
def test_calls_are_compared_as_calls(answer, score):
    assert correctness("call", CALL, answer) == pytest.approx(score)


@pytest.mark.parametrize(
    ("task", "answer", "kind"),
    [
        ("what", "Return the given file.", True),
        ("what", "norm(1, 2)", False),
        ("what", "Return", False),
        ("signature", "norm(x, ord=None)", True),
        ("signature", "norm(x, ord=None", False),
        ("signature", "Return the norm.", False),
        ("call", "norm(1)", True),
        ("call", "norm", False),
        ("call", "norm(1) or so", False),
    ],
)
def test_the_right_kind_of_answer_counts_though_it_is_wrong(task, answer, kind):
    assert right_kind(task, answer) is kind
    reference = {"what": "Zip two lists.", "signature": "zip(*lists)", "call": "zip([1], [2])"}[task]
    score = GRADER.score(task, reference, answer)
    assert score >= 0.4 if kind else score < 0.4


def test_what_does_not_parse_gets_less_than_what_does():
    assert correctness("call", CALL, "norm([1, 2], 'a'") < correctness("call", CALL, "norm('a', [1, 2])")
    assert correctness("signature", SIGNATURE, "norm(x, ord=None") < correctness("signature", SIGNATURE, "norm(x, ord=No)")


def test_nothing_is_executed(tmp_path):
    target = tmp_path / "made"
    answer = f"__import__('pathlib').Path('{target}').touch()"
    assert correctness("call", CALL, answer) < 0.5
    assert not target.exists()


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (WHAT, []),
        ("Sure! " + WHAT, ["chatter", "exclamation"]),
        ("I'm sorry, but " + WHAT, ["chatter"]),
        ("Return the norm of x. of x. of x.", ["repeated_tail"]),
        ("Return " + "the very long norm, and " * 3 + "so on and on.", ["too_long"]),
        ("Treasure the norm of x.", []),  # "sure" inside a word
    ],
)
def test_flaws_of_form(answer, found):
    assert flaws(WHAT, answer, finished=True) == found


def test_an_unfinished_answer_has_half_its_score():
    assert GRADER.score("what", WHAT, WHAT, finished=False) == 0.5


def test_a_flaw_that_the_reference_has_costs_nothing():
    reference = "Return n! (the factorial), sure sure."
    assert GRADER.score("what", reference, reference) == 1.0


def test_token_f1():
    assert token_f1("a b c d", "a b") == pytest.approx(2 * 2 / 6)
    assert token_f1("a", "b") == 0.0
    assert token_f1("a a", "a") == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("difference", "grade"),
    [
        (0.3, Grade.SIGNIFICANTLY_BETTER),
        (0.29, Grade.BETTER),
        (0.15, Grade.BETTER),
        (0.05, Grade.SLIGHTLY_BETTER),
        (0.01, Grade.MARGINALLY_BETTER),
        (0.0, None),
    ],
)
def test_grades(difference, grade):
    assert GRADER.grade(difference) is grade


def test_settings_are_checked():
    with pytest.raises(UserError, match="factor"):
        GraderConfig(chatter=1.5)
    with pytest.raises(UserError, match="significantly_better > better"):
        GraderConfig(better=0.4)
