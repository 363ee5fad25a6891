"""Task laws: both recipes recover a known truth, and the interval of a forecast covers what a larger run would measure."""

import math
from typing import Any

import numpy as np
import pytest

from herd.config.errors import UserError
from herd.scaling.tasks.link_shapes import predict_links
from herd.scaling.tasks.task_law import TaskHistory, TaskLawConfig, fit_task_law, trailing_mean

E, A, B, ALPHA, BETA = 0.5, 40.0, 90.0, 0.25, 0.27
CHANCE, CEILING, MIDPOINT, SLOPE = 0.25, 0.95, 0.9, 7.0
LADDER = [(n, d) for n in (2e8, 4e8, 8e8, 1.3e9) for d in (20 * n, 40 * n, 100 * n, 200 * n)]
TARGET = (1.3e10, 5e12)


def surface(n: float, d: float) -> float:
    return E + A / n**ALPHA + B / d**BETA


def accuracy(loss: Any) -> Any:
    return CHANCE + (CEILING - CHANCE) / (1 + np.exp(SLOPE * (np.asarray(loss) - MIDPOINT)))


def ladder(rng: np.random.Generator | None = None, checkpoints: int = 30, noise: float = 0.004) -> list[TaskHistory]:
    """Runs with checkpoints on the way; ``noise`` is shared by all of a run (relative) and drawn again for each accuracy."""
    runs = []
    for n, d in LADDER:
        shift = 1.0 if rng is None else math.exp(noise * rng.normal())
        losses = [surface(n, d * (i + 1) / checkpoints) * shift for i in range(checkpoints)]
        scores = accuracy(losses)
        if rng is not None:
            scores = np.clip(scores + noise * rng.normal(size=checkpoints), 0, 1)
        runs.append(TaskHistory(f"{n:g}-{d:g}", n, d, losses, scores.tolist()))
    return runs


def test_a_noise_free_ladder_gives_the_target_exactly() -> None:
    law = fit_task_law(ladder(), TaskLawConfig(replicates=100, objective="squared_log"))
    assert law.status == "ok" and law.runs == 16
    forecast = law.forecast(parameters=TARGET[0], tokens=TARGET[1])
    assert forecast.loss == pytest.approx(surface(*TARGET), rel=1e-5)
    assert forecast.accuracy == pytest.approx(float(accuracy(surface(*TARGET))), rel=1e-5)
    assert forecast.flops == 6 * TARGET[0] * TARGET[1]
    assert forecast.extrapolation_ratio == pytest.approx(forecast.flops / (6 * 1.3e9 * 2.6e11))


@pytest.mark.slow
def test_the_interval_covers_a_larger_run() -> None:
    covered, widths = 0, []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        law = fit_task_law(ladder(rng, checkpoints=8), TaskLawConfig(replicates=100, seed=seed))
        forecast = law.forecast(parameters=TARGET[0], tokens=TARGET[1])
        loss = surface(*TARGET) * math.exp(0.004 * rng.normal())
        measured = float(accuracy(loss)) + 0.004 * rng.normal()
        low, high = forecast.accuracy_interval
        covered += low <= measured <= high
        widths.append(high - low)
    assert covered >= 10 and np.mean(widths) < 0.2


def test_the_interval_carries_both_steps() -> None:
    rng = np.random.default_rng(2)
    law = fit_task_law(ladder(rng), TaskLawConfig(replicates=200))
    near, far = law.forecast(parameters=1.3e9, tokens=2.6e11), law.forecast(parameters=1e12, tokens=1e15)
    assert near.extrapolation_ratio == pytest.approx(1)
    assert near.accuracy_interval[1] - near.accuracy_interval[0] < far.accuracy_interval[1] - far.accuracy_interval[0]
    at_point = law.link.interval(near.loss, "prediction")
    assert near.accuracy_interval[1] - near.accuracy_interval[0] > 0.8 * (at_point[1] - at_point[0])
    assert far.status == "extrapolated_link" and "the link has points from" in far.reason


def test_the_checkpoints_of_a_run_are_no_independent_points() -> None:
    rng = np.random.default_rng(6)
    runs = [
        TaskHistory(r.run, r.parameters, r.tokens, r.losses, [a + shift for a in r.accuracies])
        for r, shift in zip(ladder(checkpoints=20), 0.03 * rng.normal(size=16), strict=True)
    ]
    law = fit_task_law(runs, TaskLawConfig(replicates=200))
    drawn = predict_links(law.link.kind, law._replicates.links, np.full(200, 0.9))
    low, high = law.link.interval(0.9, confidence=0.6827)
    naive = (high - low) / 2
    # Sixteen runs that each lie 0.03 off know the curve to about 0.03 / 4, however many checkpoints they have.
    assert drawn.std() > 2 * naive and 0.004 < drawn.std() < 0.02


def paper(step: str, rng: np.random.Generator | None = None) -> tuple[list[TaskHistory], list[TaskHistory]]:
    """Llama 3, section 3.2.1: compute-optimal models, one evaluation each; an older family for the link alone."""
    runs = []
    for c in np.geomspace(6e18, 1e22, 10):
        loss = 4.3 - 0.08 * math.log(c / 1e18) if step == "log_linear" else 4.0 * (c / 1e18) ** -0.05
        loss *= 1.0 if rng is None else math.exp(0.003 * rng.normal())
        runs.append(TaskHistory(f"{c:.3g}", 1.0, 1.0, [loss], [float(link(loss))], flops=c))
    family = [TaskHistory(f"llama2-{x}", 1.0, 1.0, [x], [float(link(x))]) for x in (3.3, 3.1, 2.9, 2.75)]
    return runs, family


def link(loss: Any) -> Any:
    return 0.25 + 0.7 / (1 + np.exp(5 * (np.asarray(loss) - 3.3)))


@pytest.mark.parametrize("step", ["power_law", "log_linear"])
def test_the_papers_recipe(step: str) -> None:
    runs, family = paper(step)
    law = fit_task_law(runs, TaskLawConfig(step=step, replicates=100), link_only=family)
    forecast = law.forecast(flops=3.8e25)
    loss = 4.3 - 0.08 * math.log(3.8e25 / 1e18) if step == "log_linear" else 4.0 * 3.8e7**-0.05
    assert forecast.loss == pytest.approx(loss, rel=1e-6)
    assert forecast.accuracy == pytest.approx(float(link(loss)), rel=1e-6)
    assert forecast.extrapolation_ratio == pytest.approx(3800)
    noisy, family = paper(step, np.random.default_rng(0))
    with_noise = fit_task_law(noisy, TaskLawConfig(step=step, replicates=200), link_only=family).forecast(flops=3.8e25)
    assert with_noise.loss_interval[0] < loss < with_noise.loss_interval[1]
    assert with_noise.accuracy_interval[0] <= float(link(loss)) <= with_noise.accuracy_interval[1]


def test_equal_inputs_give_equal_intervals() -> None:
    runs = ladder(np.random.default_rng(4))
    config = TaskLawConfig(replicates=100)
    first, second = (fit_task_law(runs, config).forecast(parameters=1e10, tokens=1e12) for _ in range(2))
    assert first == second


def test_trailing_means_are_shorter_at_the_beginning() -> None:
    np.testing.assert_allclose(trailing_mean([1, 2, 3, 4, 5], 3), [1, 1.5, 2, 3, 4])
    np.testing.assert_allclose(trailing_mean([1, 2], 5), [1, 1.5])
    np.testing.assert_allclose(trailing_mean([3, 1, 2], 1), [3, 1, 2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda runs: [*runs, runs[0]], "stands twice"),
        (lambda runs: [*runs, TaskHistory("x", 1e9, 1e10, [1.0], [0.5, 0.6])], "as many losses"),
        (lambda runs: [*runs, TaskHistory("x", 1e9, 1e10, [float("nan")], [0.5])], "finite and above 0"),
        (lambda runs: [*runs, TaskHistory("x", -1, 1e10, [1.0], [0.5])], "parameters, tokens and FLOPs"),
        (lambda runs: runs[:4], "too few"),
        (lambda runs: [TaskHistory(r.run, r.parameters, r.tokens, r.losses, [0.25] * len(r.losses)) for r in runs], "plateau"),
    ],
)
def test_bad_histories_are_refused(change: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit_task_law(change(ladder()), TaskLawConfig(replicates=100))


def test_bad_settings_are_refused() -> None:
    with pytest.raises(UserError, match="Did you mean 'surface'"):
        TaskLawConfig(step="surfaces")
    with pytest.raises(UserError, match="skip"):
        TaskLawConfig(skip=1.0)
    with pytest.raises(UserError, match="replicates"):
        TaskLawConfig(replicates=10)
    law = fit_task_law(ladder(), TaskLawConfig(replicates=100))
    with pytest.raises(UserError, match="give parameters and tokens"):
        law.forecast(flops=1e24)
    with pytest.raises(UserError, match="above 0"):
        law.forecast(flops=-1.0, parameters=1e9, tokens=1e10)
    runs, _ = paper("power_law")
    with pytest.raises(UserError, match="three different budgets"):
        fit_task_law(runs[:2], TaskLawConfig(step="power_law", replicates=100))
