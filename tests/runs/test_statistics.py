"""Intervals against the paper's printed ones (evaluation reference, CI fixtures) and against scipy."""

import numpy as np
import pytest
from scipy import stats

from herd.runs.seeds import stream
from herd.runs.statistics import bootstrap_mean, bootstrap_ratio, clustered_wilson, paired, wald_half_width, wilson

# (benchmark, score in percent, examples, half-width as the paper prints it)
PRINTED = [
    ("HumanEval", 37.2, 164, 7.4), ("HumanEval", 72.6, 164, 6.8), ("MBPP", 47.6, 500, 4.4), ("MBPP+", 72.8, 378, 4.5),
    ("GSM8K", 57.2, 1319, 2.7), ("MATH", 20.3, 5000, 1.1), ("ARC-C", 79.7, 1172, 2.3), ("PIQA", 81.0, 1838, 1.8),
    ("SIQA", 49.5, 1954, 2.2), ("OBQA", 45.0, 500, 4.4), ("Winogrande", 75.7, 1767, 2.0), ("SQuADv2", 77.0, 11873, 0.8),
    ("RACE", 54.3, 4934, 1.4), ("BBH", 64.2, 6511, 1.2), ("QuALITY", 95.2, 21, 9.1), ("GMAT", 56.0, 25, 19.5),
    ("LSAT", 53.9, 397, 4.9), ("En.MC", 65.1, 229, 6.2), ("BFCL", 76.1, 1760, 2.0), ("Nexus", 38.5, 544, 4.1),
    ("DROP", 59.5, 9536, 1.0), ("CSQA", 75.0, 1140, 2.5),
]  # fmt: skip


@pytest.mark.parametrize(("name", "score", "n", "printed"), PRINTED)
def test_wald_is_the_papers_interval(name: str, score: float, n: int, printed: float) -> None:
    assert round(100 * wald_half_width(score / 100, n), 1) == printed


def test_wald_on_the_two_rows_where_the_example_count_matters() -> None:
    assert round(100 * wald_half_width(0.750, 1221), 2) == 2.43  # CSQA: the paper prints 2.5
    assert round(100 * wald_half_width(0.757, 1267), 1) == 2.4  # Winogrande with its usual count


@pytest.mark.parametrize(("k", "n"), [(0, 21), (1, 40), (20, 40), (39, 40), (21, 21), (372, 1000)])
def test_wilson_equals_scipy(k: int, n: int) -> None:
    expected = stats.binomtest(k, n).proportion_ci(method="wilson")
    assert wilson(k / n, n).to_list() == pytest.approx([expected.low, expected.high], abs=2e-5)  # 1.96 for 1.95996


def test_wilson_does_not_collapse_where_wald_does() -> None:
    assert wald_half_width(1.0, 25) == 0.0
    assert wilson(1.0, 25).high == 1.0
    assert 0.8 < wilson(1.0, 25).low < 0.9
    assert wilson(0.0, 25).low == 0.0
    assert 0.1 < wilson(0.0, 25).high < 0.2


def test_paired_uses_the_discordant_examples_alone() -> None:
    first = np.array([1] * 60 + [0] * 20 + [1] * 15 + [0] * 5)
    second = np.array([1] * 60 + [0] * 20 + [0] * 15 + [1] * 5)
    result = paired(first, second, stream(0, "test"))
    assert (result.only_first, result.only_second) == (15, 5)
    assert result.difference == pytest.approx(0.10)
    assert result.p_value == pytest.approx(2 * sum(stats.binom.pmf(k, 20, 0.5) for k in range(6)))
    assert result.interval.low < 0.10 < result.interval.high
    # Pairing is what makes it sharp: unpaired, the same accuracies would differ by 0.10 with twice the width and more.
    unpaired = np.sqrt(0.75 * 0.25 / 100 + 0.65 * 0.35 / 100) * 2 * 1.96
    assert result.interval.high - result.interval.low < unpaired
    mirrored = paired(second, first, stream(0, "test"))
    assert mirrored.difference == pytest.approx(-0.10)
    assert mirrored.p_value == pytest.approx(result.p_value)


def test_two_equal_models_do_not_differ() -> None:
    outcomes = np.arange(50) % 3 == 0
    result = paired(outcomes, outcomes, stream(1, "test"))
    assert (result.difference, result.p_value, result.interval.to_list()) == (0.0, 1.0, [0.0, 0.0])


def test_bootstrap_has_the_width_of_the_normal_interval_and_is_reproducible() -> None:
    values = np.random.default_rng(3).normal(2.0, 1.0, size=400)
    interval = bootstrap_mean(values, stream(7, "boot"), resamples=4000)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.06)
    assert interval == bootstrap_mean(values, stream(7, "boot"), resamples=4000)


def test_bootstrap_of_a_ratio_draws_numerator_and_denominator_together() -> None:
    tokens = np.random.default_rng(5).integers(10, 1000, size=60)
    interval = bootstrap_ratio(3.5 * tokens, tokens, stream(2, "ratio"))
    assert interval.to_list() == pytest.approx([3.5, 3.5])  # the same nats a token in every document: no spread


def test_clusters_of_one_are_plain_wilson() -> None:
    values = [1.0] * 14 + [0.0] * 6
    assert clustered_wilson(values, range(20)) == wilson(0.7, 20)
    assert clustered_wilson([1.0] * 6, [1, 1, 1, 2, 2, 2]) == wilson(1.0, 2)  # no variance seen: two examples


def test_copies_of_an_example_are_no_new_evidence() -> None:
    values, copies = [1.0] * 14 + [0.0] * 6, 5
    once = wilson(0.7, 20)
    again = clustered_wilson(np.repeat(values, copies), np.repeat(range(20), copies).tolist())
    assert again.low == pytest.approx(once.low, abs=6e-3)
    assert again.high == pytest.approx(once.high, abs=6e-3)
    apart = clustered_wilson(np.repeat(values, copies), range(100))
    assert apart.high - apart.low < 0.5 * (again.high - again.low)


def test_clustered_interval_covers_at_its_level() -> None:
    """150 prompts of four pairs each; what a prompt's pairs have in common moves their chance by +-0.35."""
    rng = np.random.default_rng(1)
    prompts = np.repeat(np.arange(150), 4).tolist()
    covered = 0
    for _ in range(400):
        chance = np.repeat(rng.choice([0.25, 0.95], size=150), 4)
        interval = clustered_wilson((rng.random(600) < chance).astype(float), prompts)
        covered += interval.low <= 0.6 <= interval.high
    assert 0.92 <= covered / 400 <= 0.98
