"""The mix: shares, bounds, and a choice of documents that depends on nothing but their ids."""

import math
import random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from herd.config.errors import UserError
from herd.curation.mix import (
    DownsamplingConfig,
    WeightsConfig,
    bounded_weights,
    downsampling_report,
    keep_rates,
    keeps,
    mix_report,
    place,
    shares,
    source_weights,
)

NAMES = ("arts", "law", "maths", "science", "sports")
amounts = st.dictionaries(st.sampled_from(NAMES), st.floats(1, 1e9), min_size=1)


def simplex(names: list[str], draw) -> dict[str, float]:
    return shares({name: draw(st.floats(0.01, 1)) for name in names})


@st.composite
def amounts_and_targets(draw):
    found = draw(amounts)
    return found, simplex(sorted(found), draw)


# Down-sampling.


def test_targets_by_hand():
    rates = keep_rates({"arts": 80, "science": 20}, DownsamplingConfig(targets={"arts": 0.5, "science": 0.5}))
    assert rates == {"arts": 0.25, "science": 1.0}


def test_cap_by_hand():
    """arts / (arts + 20) = 0.2 leaves 5 of 80."""
    rates = keep_rates({"arts": 80, "science": 20}, DownsamplingConfig(caps={"arts": 0.2}))
    assert rates == {"arts": pytest.approx(5 / 80), "science": 1.0}


def test_a_class_comes_over_its_cap_when_another_is_lowered():
    """30 of 100 is under a cap of 0.35 until arts shrink."""
    found = {"arts": 60, "sports": 30, "science": 10}
    config = DownsamplingConfig(caps={"arts": 0.35, "sports": 0.35})
    after = downsampling_report(found, keep_rates(found, config), config)["classes"]
    assert after["arts"]["after"] == pytest.approx(0.35) and after["sports"]["after"] == pytest.approx(0.35)
    assert after["science"]["rate"] == 1


def test_reference_allows_some_over_representation():
    found = {"arts": 90, "science": 10}
    config = DownsamplingConfig(reference={"arts": 0.4, "science": 0.6}, most_over_reference=1.5)
    assert downsampling_report(found, keep_rates(found, config), config)["classes"]["arts"]["after"] == pytest.approx(0.6)


@given(amounts_and_targets())
def test_targets_are_met_and_nothing_is_lost_in_vain(drawn):
    found, targets = drawn
    config = DownsamplingConfig(targets=targets, min_rate=0)
    rates = keep_rates(found, config)
    report = downsampling_report(found, rates, config)
    assert all(0 <= rate <= 1 for rate in rates.values())
    assert max(rates.values()) == pytest.approx(1)
    assert math.fsum(c["after"] for c in report["classes"].values()) == pytest.approx(1)
    assert all(report["classes"][name]["after"] == pytest.approx(targets[name], rel=1e-6) for name in found)


@given(amounts, st.dictionaries(st.sampled_from(NAMES), st.floats(0.05, 1)), st.floats(0, 0.5))
def test_caps_hold_and_free_classes_stay_whole(found, caps, min_rate):
    caps = {name: cap for name, cap in caps.items() if name in found}
    config = DownsamplingConfig(caps=caps, min_rate=min_rate)
    try:
        rates = keep_rates(found, config)
    except UserError:
        assert set(caps) == set(found) or math.fsum(caps.values()) >= 1
        return
    after = shares({name: found[name] * rates[name] for name in found})
    assert all(rates[name] == 1 for name in found if name not in caps)
    assert all(min_rate <= rate <= 1 + 1e-9 for rate in rates.values())
    if all(rate > min_rate for rate in rates.values()):
        assert all(after[name] <= cap * (1 + 1e-6) for name, cap in caps.items())
        # Not more than needed: what was lowered stands at its cap.
        assert all(after[name] == pytest.approx(caps[name]) for name in caps if rates[name] < 1 - 1e-6)


@given(amounts, st.floats(1.1, 10))
def test_rates_do_not_depend_on_the_unit(found, factor):
    config = DownsamplingConfig(caps={min(found): 0.5}, min_rate=0)
    assume(len(found) > 1)
    once, scaled = keep_rates(found, config), keep_rates({name: factor * a for name, a in found.items()}, config)
    assert all(once[name] == pytest.approx(scaled[name]) for name in found)


def test_downsampling_refusals():
    with pytest.raises(UserError, match="one of targets"):
        DownsamplingConfig(targets={"a": 1.0}, caps={"a": 0.5})
    with pytest.raises(UserError, match=r"sum to 0\.5"):
        DownsamplingConfig(targets={"a": 0.5})
    with pytest.raises(UserError, match="lie in"):
        DownsamplingConfig(caps={"a": -0.5})
    with pytest.raises(UserError, match="no document is of class x"):
        keep_rates({"a": 1}, DownsamplingConfig(caps={"x": 0.5}))
    with pytest.raises(UserError, match="no share is given for b"):
        keep_rates({"a": 1, "b": 1}, DownsamplingConfig(targets={"a": 1.0}))
    with pytest.raises(UserError, match="raise a cap"):
        keep_rates({"a": 1, "b": 1}, DownsamplingConfig(caps={"a": 0.3, "b": 0.3}))
    assert keep_rates({}, DownsamplingConfig()) == {}
    assert keep_rates({"a": 0, "b": 5}, DownsamplingConfig()) == {"a": 1.0, "b": 1.0}


# The choice of documents.


@given(st.text(max_size=40), st.integers(0, 5), st.floats(0, 1), st.floats(0, 1))
def test_keeping_is_monotone_in_the_rate(name, seed, a, b):
    low, high = sorted((a, b))
    assert keeps(name, low, seed) <= keeps(name, high, seed)
    assert 0 <= place(name, seed) < 1
    assert keeps(name, 1.0, seed) and not keeps(name, 0.0, seed)


def test_keeping_follows_the_rate_whatever_the_order():
    ids = [f"{i:016x}" for i in range(20_000)]
    kept = {i for i in ids if keeps(i, 0.3)}
    assert abs(len(kept) / len(ids) - 0.3) < 4 * math.sqrt(0.3 * 0.7 / len(ids))
    random.Random(0).shuffle(ids)
    assert {i for i in ids if keeps(i, 0.3)} == kept
    other = {i for i in ids if keeps(i, 0.3, seed=1)}
    assert abs(len(kept & other) / len(ids) - 0.09) < 0.01  # another seed chooses independently
    assert place("0123456789abcdef") == 0.342169012249783  # the same on every machine


# Weights and epochs.


def test_weights_of_domains_and_languages():
    tokens = {"general": {"en": 100}, "multilingual": {"de": 90, "hi": 10}}
    config = WeightsConfig(domains={"general": 0.9, "multilingual": 0.1}, language_exponent=0.5)
    weights = source_weights(tokens, config)
    assert weights["general/en"] == pytest.approx(0.9)
    assert weights["multilingual/hi"] == pytest.approx(0.1 * 10**0.5 / (10**0.5 + 90**0.5))
    fixed = source_weights(tokens, WeightsConfig(languages={"multilingual": {"de": 0.5, "hi": 0.5}}))
    assert fixed["multilingual/hi"] == fixed["multilingual/de"] == pytest.approx(0.25)  # half of half the tokens
    with pytest.raises(UserError, match="no document"):
        source_weights(tokens, WeightsConfig(domains={"general": 0.5, "code": 0.5}))
    with pytest.raises(UserError, match="no document"):
        source_weights(tokens, WeightsConfig(languages={"general": {"fr": 1.0}}))
    with pytest.raises(UserError, match="sum to"):
        WeightsConfig(domains={"general": 0.5})


def test_bound_by_hand():
    """b may give 4 x 10 of 100 tokens instead of 60; a and c share the other 60 as 3 to 1."""
    found = bounded_weights({"a": 0.3, "b": 0.6, "c": 0.1}, {"a": 1000, "b": 10, "c": 1000}, budget=100, max_epochs=4)
    assert found.weights == pytest.approx({"a": 0.45, "b": 0.4, "c": 0.15})
    assert found.epochs["b"] == pytest.approx(4)
    assert found.capped == ("b",)
    assert "would be 6 epochs of its 10 tokens; bounded to 4 epochs" in found.statements[0]
    assert "factor of 1.5" in found.statements[1]


@st.composite
def sources(draw):
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
    return simplex(names, draw), {name: draw(st.integers(1, 10**6)) for name in names}


@given(sources(), st.floats(1, 1e8), st.floats(0.5, 10))
def test_bounds_hold_and_weights_sum_to_one(drawn, budget, max_epochs):
    weights, tokens = drawn
    try:
        found = bounded_weights(weights, tokens, budget, max_epochs)
    except UserError:  # the sources cannot fill the budget
        assert max_epochs * sum(tokens.values()) < budget * (1 + 1e-6)
        return
    assert math.fsum(found.weights.values()) == pytest.approx(1)
    assert all(epochs <= max_epochs * (1 + 1e-6) for epochs in found.epochs.values())
    assert all(found.weights[name] * budget == pytest.approx(found.epochs[name] * tokens[name]) for name in tokens)
    free = [name for name in weights if name not in found.capped]
    assert all(found.weights[name] >= weights[name] * (1 - 1e-6) for name in free)  # nobody pays but the capped
    ratios = [found.weights[name] / weights[name] for name in free]
    assert not ratios or max(ratios) == pytest.approx(min(ratios))  # the others keep their proportions
    if not found.capped:
        assert found.weights == pytest.approx(weights) and not found.statements


@given(sources(), st.floats(1, 1e8), st.floats(0.5, 10))
def test_order_of_sources_does_not_matter(drawn, budget, max_epochs):
    weights, tokens = drawn

    def run(order):
        try:
            return bounded_weights({n: weights[n] for n in order}, {n: tokens[n] for n in order}, budget, max_epochs)
        except UserError as error:
            return str(error)

    assert run(sorted(weights)) == run(sorted(weights, reverse=True))


def test_mix_report():
    tokens = {"general": {"en": 1000.0}, "maths": {"en": 10.0}}
    plain = mix_report(tokens, WeightsConfig(domains={"general": 0.5, "maths": 0.5}))
    assert plain == {"weights": {"general/en": 0.5, "maths/en": 0.5}}
    config = WeightsConfig(domains={"general": 0.5, "maths": 0.5}, budget_tokens=200, max_epochs=4)
    report = mix_report(tokens, config)
    assert report["weights"] == pytest.approx({"general/en": 0.8, "maths/en": 0.2})
    assert report["capped"] == ["maths/en"] and len(report["statements"]) == 2
    with pytest.raises(UserError, match="less than the budget"):
        mix_report(tokens, WeightsConfig(budget_tokens=10_000))
