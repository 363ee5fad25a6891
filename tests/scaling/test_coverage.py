"""Do 95% intervals of the surface hold the truth 95 times in 100? 200 synthetic sweeps with a known surface."""

import numpy as np
import pytest

from herd.scaling.fit_json import surface_json
from herd.scaling.surface.batch import SurfaceBatch
from herd.scaling.surface.bootstrap import bootstrap_surface
from herd.scaling.surface.fit import fit_surface
from herd.scaling.surface.profile import profile_surface

from .conftest import make_sweep
from .surface.test_fit import CHINCHILLA

SWEEPS = 200
TARGET = 1e23  # FLOPs, 33 times the largest budget
QUANTITIES = {"a": "a", "b": "b", "ln D*": lambda batch: np.log(batch.optimal_tokens(TARGET))}


def truth(quantity) -> float:  # type: ignore[no-untyped-def]
    E, A, B, a, b = CHINCHILLA
    batch = SurfaceBatch(*(np.array([x]) for x in (E, np.log(A), np.log(B), a, b)))
    return float((getattr(batch, quantity) if isinstance(quantity, str) else quantity(batch))[0])


def columns(seed: int, noise: float = 0.005):  # type: ignore[no-untyped-def]
    """Eight budgets of seven sizes, the loss off by half a percent."""
    cells = make_sweep(truth=CHINCHILLA, budgets=np.geomspace(6e18, 3e21, 8).tolist(), factors=np.geomspace(0.25, 4, 7).tolist())
    n, d, y = (np.array([getattr(cell, name) for cell in cells]) for name in ("parameters", "tokens", "loss"))
    return n, d, y * np.exp(noise * np.random.default_rng(seed).normal(size=len(y)))


def test_printed_intervals_cover_with_few_runs() -> None:
    """Sixteen runs leave eleven degrees of freedom: normal quantiles would hold 90 to 91%."""
    held = dict.fromkeys(("E", "A", "B", "a", "b"), 0)
    budgets, factors = np.geomspace(6e18, 3e21, 4).tolist(), [0.25, 0.6, 1.7, 4.0]
    cells = make_sweep(truth=CHINCHILLA, budgets=budgets, factors=factors)
    n, d, y = (np.array([getattr(cell, name) for cell in cells]) for name in ("parameters", "tokens", "loss"))
    for seed in range(SWEEPS):
        noise = np.exp(0.003 * np.random.default_rng(seed).normal(size=len(y)))
        surface = fit_surface(n, d, y * noise, "squared_log", check=False)
        intervals = surface_json(surface, 0.95)["intervals"]
        for name, known in zip(held, CHINCHILLA, strict=True):
            held[name] += intervals[name][0] <= known <= intervals[name][1]
    print({name: count / SWEEPS for name, count in held.items()})
    assert all(0.92 <= count / SWEEPS <= 0.985 for count in held.values()), held


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["huber_log", "squared_log"])
def test_profile_intervals_cover(objective: str) -> None:
    held = {"a": 0, "b": 0, "tokens": 0}
    for seed in range(SWEEPS):
        data = columns(seed)
        surface = fit_surface(*data, objective, check=False)
        for name in held:
            profile = profile_surface(surface, *data, name, TARGET if name == "tokens" else None)
            known = truth(name) if name != "tokens" else np.exp(truth(QUANTITIES["ln D*"]))
            assert profile.status == "ok"
            held[name] += profile.interval[0] <= known <= profile.interval[1]
    print(objective, {name: count / SWEEPS for name, count in held.items()})
    # 200 sweeps scatter by 1.5% about 95%; 500 others held 96.2, 94.8 and 94.2% (squared_log).
    assert all(0.90 <= count / SWEEPS <= 0.99 for count in held.values()), held


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["huber_log", "squared_log"])
def test_bootstrap_intervals_cover(objective: str) -> None:
    held = dict.fromkeys(QUANTITIES, 0)
    for seed in range(SWEEPS):
        n, d, y = columns(seed)
        found = bootstrap_surface(fit_surface(n, d, y, objective, check=False), n, d, y, replicates=400, seed=seed)
        assert found.status == "ok"
        for name, quantity in QUANTITIES.items():
            low, high = found.interval(quantity)
            held[name] += low <= truth(quantity) <= high
    print(objective, {name: count / SWEEPS for name, count in held.items()})
    assert all(0.90 <= count / SWEEPS <= 0.98 for count in held.values()), held
