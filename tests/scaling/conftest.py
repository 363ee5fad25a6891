"""Synthetic sweeps with a known truth."""

import runpy
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from herd.scaling.records.record import Record

Truth = tuple[float, float, float, float, float]  # E, A, B, a, b
LAPTOP: Truth = (1.9, 60.0, 180.0, 0.35, 0.33)


def optimum(truth: Truth, flops: float) -> tuple[float, float, float]:
    """Compute-optimal parameters, tokens and loss of a surface under C = 6ND, in closed form (Hoffmann et al., eq. 4)."""
    E, A, B, a, b = truth
    n = (a * A / (b * B)) ** (1 / (a + b)) * (flops / 6) ** (b / (a + b))
    d = flops / 6 / n
    return n, d, E + A / n**a + B / d**b


def make_sweep(
    noise: float = 0.0,
    seed: int = 0,
    budgets: Sequence[float] = (1e11, 2e11, 4e11, 8e11),
    factors: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0),
    truth: Truth = LAPTOP,
) -> list[Record]:
    """Cells at multiples of the optimal tokens of each budget."""
    rng = np.random.default_rng(seed)
    E, A, B, a, b = truth
    records = []
    for c in budgets:
        _, best, _ = optimum(truth, c)
        for i, factor in enumerate(factors):
            d = best * factor
            n = c / 6 / d
            loss = E + A / n**a + B / d**b + noise * rng.normal()
            records.append(Record(cell=f"{c:g}-{i}", budget=c, parameters=n, tokens=d, flops=c, loss=loss))
    return records


@pytest.fixture
def sweep() -> Callable[..., list[Record]]:
    return make_sweep


def run_script(path: Path) -> None:
    """A notebook's script in this process: a new one takes seconds for its imports."""
    plt.switch_backend("agg")
    with plt.rc_context():
        runpy.run_path(str(path), run_name="__main__")
    plt.close("all")


@pytest.fixture
def pictures() -> None:
    """For tests that look into the pictures."""


@pytest.fixture(autouse=True)
def _empty_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are built, but not drawn unless a test asks for `pictures`: that takes four times as long as the fits."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda _, path, **__: Path(path).write_bytes(b""))
