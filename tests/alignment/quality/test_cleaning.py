"""Cleaning rules: what counts as a hit, what is left of the text, and that balanced shares are exact."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.alignment.quality.cleaning import CleaningConfig, CleaningRule, clean, most_kept, phrase_statistics
from herd.alignment.quality.dialogs import Dialog, Ledger
from herd.alignment.quality.patterns import EMOJI, EXCLAMATION, spans
from herd.config.errors import UserError
from herd.dialog.messages import Message, Role


def found(pattern, text: str) -> list[str]:
    return [text[a:b] for a, b in spans(pattern, text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hi 😀 there", [" 😀"]),
        ("👩‍👩‍👧‍👦 family", ["👩‍👩‍👧‍👦"]),  # one picture of four people: one run
        ("done ✅ ❤️", [" ✅ ❤️"]),
        ("flag 🇩🇪 key 1️⃣ thumb 👍🏽", [" 🇩🇪", " 1️⃣", " 👍🏽"]),
        ("a → b, x ≤ y, © 2024, ½, #1, naïve, 漢字, €", []),
        ("`print('😀')` and ```\n🎉\n```", []),
    ],
)
def test_emoji_are_pictures_and_nothing_else(text, expected) -> None:
    assert found(EMOJI, text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes!", ["!"]),
        ("Yes!!! No! !", ["!!!", "! !"]),
        ("a != b, ![picture](x), `!important`, f'{x!r}', !ls", []),
        ("```\nls !! \n``` Great!", ["!"]),
    ],
)
def test_exclamation_marks_are_those_of_prose(text, expected) -> None:
    assert found(EXCLAMATION, text) == expected


def rule(kind: str, action: str = "modify", **values) -> CleaningRule:
    return CleaningRule(kind, action, **values)


@pytest.mark.parametrize(
    ("given", "text", "expected"),
    [
        (rule("opening", phrases=["sure", "here is the answer"]), "Sure! Here is the answer: f(x)", "f(x)"),
        (rule("opening", phrases=["sure"]), "Surely not.", "Surely not."),
        (rule("opening", phrases=["sure"]), "f(x). Sure!", "f(x). Sure!"),
        (rule("opening", phrases=["sure"]), "`sure` is it", "`sure` is it"),
        (rule("phrase", phrases=["I'm sorry"]), "Well, I’m  sorry. No.", "Well, No."),
        (rule("phrase", phrases=["hope this helps", "I hope this helps"]), "f(x) I hope this helps!", "f(x)"),
        (rule("exclamation", replacement="."), "Yes! It is!!!", "Yes. It is."),
        (rule("exclamation", replacement=".", allowed=1), "Yes! It is.", "Yes! It is."),
        (rule("emoji"), "Done 🎉 now 😀", "Done now"),
        (rule("regex", pattern=r"\bdelve\b", replacement="look"), "We delve, `delve`", "We look, `delve`"),
    ],
)
def test_what_is_left_of_an_answer(dialog, given, text, expected) -> None:
    ledger = Ledger()
    [kept] = clean([dialog("d", text)], CleaningConfig({"r": given}), 0, ledger)
    assert kept.answers == [expected]
    assert ledger.modified == ({"r": 1} if text != expected else {})
    assert kept.notes == ({"modified": ["r"]} if text != expected else {})


def test_only_the_assistant_is_cleaned_and_nothing_is_left_empty(dialog) -> None:
    ledger = Ledger()
    config = CleaningConfig({"r": rule("emoji")})
    [kept] = clean([dialog("d", "Yes 😀", question="Why 😀?"), dialog("e", "😀")], config, 0, ledger)
    assert kept.messages == (Message(Role.USER, "Why 😀?"), Message(Role.ASSISTANT, "Yes"))
    assert [(row["id"], row["dropped"]["rule"]) for row in ledger.rows] == [("e", "emptied_by_cleaning")]


def test_a_dialog_goes_for_more_than_what_is_allowed(dialog) -> None:
    ledger = Ledger()
    config = CleaningConfig({"loud": rule("exclamation", "drop", allowed=2)})
    kept = clean([dialog("two", "A! B!"), dialog("three", "A! B! C!"), dialog("spread", "A! B!", "C!")], config, 0, ledger)
    assert [d.id for d in kept] == ["two", "spread"]
    [row] = ledger.rows
    assert row["dropped"] == {"rule": "loud", "why": "an answer has more than 2 of exclamation marks", "limit": 2}


@given(st.integers(0, 300), st.integers(0, 300), st.floats(0, 0.95))
def test_balanced_share_is_the_largest_that_is_allowed(others: int, hits: int, share: float) -> None:
    k = most_kept(others, share)
    kept = min(k, hits)
    assert kept == 0 or kept / (others + kept) <= share * (1 + 1e-12)
    assert (k + 1) / (others + k + 1) > share * (1 - 1e-12)  # one more would be too many


@given(
    st.lists(st.sampled_from(["I'm sorry, no.", "Alas no.", "I'm sorry, alas.", "No."]), min_size=1, max_size=60),
    st.integers(0, 3),
)
def test_all_shares_hold_together_whatever_the_order_of_rows(answers: list[str], seed: int) -> None:
    rules = {
        "alas": rule("phrase", "balance", phrases=["alas"], share=0.3),
        "sorry": rule("phrase", "balance", phrases=["I'm sorry"], share=0.25),
    }
    rows = [Dialog("a", str(i), (Message(Role.USER, "?"), Message(Role.ASSISTANT, text)), {}) for i, text in enumerate(answers)]
    ledger = Ledger()
    kept = clean(rows, CleaningConfig(rules), seed, ledger)
    for each in rules.values():
        assert sum(map(each.hits_dialog, kept)) <= each.share * len(kept)
    assert len(kept) + len(ledger.rows) == len(rows)
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    assert {d.id for d in clean(shuffled, CleaningConfig(rules), seed, Ledger())} == {d.id for d in kept}


def test_statistics_name_the_openings_that_no_rule_knows_yet(dialog) -> None:
    config = CleaningConfig({"emoji": rule("emoji")}, opening_words=2, openings_listed=1)
    report = phrase_statistics([dialog("a", "As an AI, no. 😀"), dialog("b", "As an artist, yes.", "Yes.")], config)
    assert report["openings"] == [{"opening": "as an", "answers": 2, "share": 2 / 3}]
    assert report["rules"] == {"emoji": {"dialogs": 1, "answers": 1}}


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"kind": "emojis", "action": "drop"}, "Did you mean 'emoji'?"),
        ({"kind": "emoji", "action": "remove"}, "no action 'remove'"),
        ({"kind": "phrase", "action": "drop"}, "needs phrases"),
        ({"kind": "regex", "action": "drop", "pattern": "("}, "no regular expression"),
        ({"kind": "emoji", "action": "balance", "share": 1.0}, "share in [0, 1)"),
    ],
)
def test_a_bad_rule_is_refused(values, text) -> None:
    with pytest.raises(UserError, match=re.escape(text)):
        CleaningRule(**values)
