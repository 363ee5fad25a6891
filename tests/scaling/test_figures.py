"""Figures: what was used, dropped and refused is told apart; an extrapolation is marked as one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

import herd.scaling
from herd.scaling import figures
from herd.scaling.forecast import forecast
from herd.scaling.laws import LawsConfig, fit_laws

from .conftest import make_sweep


def axes_of() -> "figures.Axes":
    return Figure().add_subplot()


@pytest.fixture(scope="module")
def laws():  # type: ignore[no-untyped-def]
    rows = make_sweep(noise=0.01)
    rows[3] = replace(rows[3], status="failed", loss=float("nan"), error="boom")
    rows[6] = replace(rows[6], status="diverged", loss=9.0, error="above")
    rows += make_sweep(noise=0.0, budgets=(1.6e12,), factors=(4.0, 6.0, 8.0, 12.0))  # all above the optimum
    return fit_laws(rows, LawsConfig(replicates=100))


def test_used_dropped_and_refused_points_look_different(laws) -> None:  # type: ignore[no-untyped-def]
    axes = figures.isoflop_curves(laws, axes_of())
    markers = [(line.get_marker(), line.get_markerfacecolor()) for line in axes.lines]
    assert sum(marker == "*" for marker, _ in markers) == 4  # optima; the fifth budget has none
    assert ("o", "none") in markers and any(marker == "x" for marker, _ in markers)  # diverged, and failed without a loss
    assert sum(line.get_linestyle() == ":" for line in axes.lines) == 1
    note = axes.texts[0].get_text()
    assert "not used" in note and "no optimum" in note and "band: 95%" in note
    assert axes.get_ylabel() == "held-out loss (nats/token)"


def test_an_extrapolation_is_shaded_and_says_how_far(laws) -> None:  # type: ignore[no-untyped-def]
    target = forecast(laws, 1.6e14)
    for draw in (figures.tokens_law, figures.loss_law):
        axes = draw(laws, axes_of(), target)
        assert [text.get_text() for text in axes.texts] == ["extrapolation: 100x the largest budget"]
        assert not draw(laws, axes_of(), forecast(laws, 1e12)).texts
    labels = figures.tokens_law(laws, axes_of(), target).get_legend_handles_labels()[1]
    assert "budget without optimum" in labels and "surface's optimum" in labels


def test_the_band_of_a_parabola_is_the_textbooks() -> None:
    rows = make_sweep(noise=0.02, budgets=(1e11, 2e11))
    curve = fit_laws(rows, LawsConfig(replicates=100)).curves[0]
    half = figures._parabola_band(curve, np.array([2e6]), 0.95)
    x, y = curve.log10_x, np.array([point[2] for point in curve.points])
    import scipy.stats

    coefficients, covariance = np.polyfit(x, y, 2, cov=True)
    at = np.array([np.log10(2e6) ** 2, np.log10(2e6), 1.0])
    assert half is not None
    assert float(half[0]) == pytest.approx(scipy.stats.t.ppf(0.975, 2) * np.sqrt(at @ covariance @ at), rel=1e-4)
    assert float(curve.loss_at(np.array([2e6]))[0]) == pytest.approx(float(np.polyval(coefficients, np.log10(2e6))))


@pytest.mark.usefixtures("pictures")
def test_residuals_and_files(laws, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    axes = figures.residuals(laws, axes_of())
    assert sum(len(line.get_xdata()) for line in axes.lines if line.get_marker() == "o") == 22
    paths = figures.save_all(laws, None, tmp_path)
    assert [path.stem for path in paths] == ["isoflop", "tokens_law", "loss_law"] and all(p.stat().st_size > 5000 for p in paths)


@pytest.mark.usefixtures("pictures")
def test_runs_without_budgets_are_drawn_too(tmp_path: Path) -> None:
    rows = [replace(row, budget=row.flops * (1 + i / 50), flops=row.flops * (1 + i / 50)) for i, row in enumerate(make_sweep())]
    alone = fit_laws(rows, LawsConfig(replicates=100))
    assert alone.tokens is None and len(figures.save_all(alone, None, tmp_path)) == 3
    axes = figures.isoflop_curves(alone, axes_of())
    assert axes.get_legend() is None and "dark to light" in axes.texts[0].get_text() and "☆" not in axes.texts[0].get_text()
    far = forecast(alone, 1e14, fallback="surface")
    drawn = figures.tokens_law(alone, axes_of(), far)
    (best,) = [line for line in drawn.lines if line.get_label() == "surface's optimum"]
    at = np.interp(np.log(1e14), np.log(best.get_xdata()), np.log(best.get_ydata()))
    assert at == pytest.approx(np.log(far.tokens), abs=1e-3)
    note = next(text for text in drawn.texts if text.get_text().startswith("extrapolation"))
    assert note.get_window_extent().x1 <= drawn.get_window_extent().x1 + 1


def test_the_package_hands_out_its_functions() -> None:
    for name in herd.scaling.__all__:
        assert callable(getattr(herd.scaling, name))
    with pytest.raises(AttributeError, match="has no attribute 'fit_law'"):
        herd.scaling.fit_law  # noqa: B018
