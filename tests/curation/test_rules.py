"""Deciding from measured statistics, and the presets."""

import pytest

from herd.config.errors import UserError
from herd.config.loader import compose, conf_root, load
from herd.curation.documents import DOMAINS
from herd.curation.rules import RulesConfig, broken, first_broken, measure


def decide(text: str, limits: dict[str, float | None], language: str = "en") -> tuple[str, float, float] | None:
    return first_broken(measure(text, language), language, limits)


def test_first_broken_rule_is_named_with_value_and_limit():
    limits = {"max_mean_word_length": 4.0, "min_words": 3.0}
    assert decide("one two", limits) == ("min_words", 2.0, 3.0)
    assert decide("elephants everywhere always", limits) == ("max_mean_word_length", 25 / 3, 4.0)
    assert decide("one two six", limits) is None
    assert decide("", {}) is None
    both = broken(measure("elephants everywhere", "en"), "en", limits)
    assert [rule for rule, _, _ in both] == ["min_words", "max_mean_word_length"]


def test_limits_are_inclusive_and_null_switches_off():
    assert decide("one two", {"min_words": 2, "max_words": 2}) is None
    assert decide("one two", {"max_words": 1}) == ("max_words", 2.0, 1.0)
    assert decide("one two", {"max_words": None}) is None


def test_english_stop_words_judge_english_only():
    text = "ein deutscher Satz ohne englische Wörter"
    assert decide(text, {"min_stop_words": 2, "min_stop_word_count": 2}, "de") is None
    assert decide(text, {"min_stop_words": 2}) == ("min_stop_words", 0.0, 2.0)


def test_decisions_need_the_scores_alone():
    scores = measure("the same few words and the same few words", "en")
    assert first_broken(dict(scores), "en", {"max_top_2gram": 0.2}) == ("max_top_2gram", scores["top_2gram"], 0.2)


def test_unknown_limits_are_refused_with_the_nearest_name():
    with pytest.raises(UserError, match=r"rules\.general\.max_word'.*max_words"):
        RulesConfig(general={"max_word": 3})
    with pytest.raises(UserError, match=r"line_rules.*'c5'.*c4"):
        RulesConfig(line_rules="c5")


def preset(name: str) -> RulesConfig:
    return load(RulesConfig, compose("curate", [f"rules={name}"]).rules)


@pytest.mark.parametrize("name", sorted(p.stem for p in (conf_root() / "rules").glob("*.yaml") if p.stem != "other_domains"))
def test_presets_load_and_name_each_limit_once(name):
    rules = preset(name)
    assert all(getattr(rules, domain) for domain in DOMAINS)


def test_presets_hold_the_published_limits():
    gopher = preset("gopher").general
    assert [gopher[f"max_duplicate_{n}gram"] for n in range(5, 11)] == [0.15, 0.14, 0.13, 0.12, 0.11, 0.10]
    assert [gopher[f"max_top_{n}gram"] for n in (2, 3, 4)] == [0.2, 0.18, 0.16]
    assert preset("fineweb").general["max_duplicate_line_characters_fineweb"] == 0.01
    assert preset("fineweb_paper").general["max_duplicate_line_characters_fineweb"] == 0.1
    assert preset("fineweb").line_rules == preset("fineweb_paper").line_rules == "c4_fineweb"
    assert (preset("c4").general["min_sentences"], preset("c4_dclm").general["min_sentences"]) == (5, 3)


def test_readings_of_one_limit_decide_differently():
    """A page that says everything twice: all of it is covered by repeated runs, half of it are repeats."""
    sentence = "A quiet morning came over the hills and every bird in the old wood began to sing at once"
    scores = measure(f"{sentence}\n{sentence}", "en")
    assert scores["duplicate_10gram"] == 1.0
    assert 0.2 < scores["duplicate_10gram_datatrove"] < 0.5
    assert first_broken(scores, "en", {"max_duplicate_10gram": 0.5}) is not None
    assert first_broken(scores, "en", {"max_duplicate_10gram_datatrove": 0.5}) is None
