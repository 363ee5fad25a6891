"""Published IsoFLOP results (scaling oracles 1 to 4 and 10, and the parabola's known bias).

Llama 3: "The Llama 3 Herd of Models", figures 2 and 3. Five set-ups: Porian et al. 2024, "Resolving Discrepancies in
Compute-Optimal Scaling of Language Models". Bias: the surface of Hoffmann et al. 2022 with its published constants.
"""

import csv

import numpy as np
import pytest

from herd.scaling.curves.isoflop import IsoFLOPConfig, fit_isoflop
from herd.scaling.curves.jackknife import jackknife_budgets
from herd.scaling.curves.power_law import fit_power_law
from herd.scaling.forecast import forecast
from herd.scaling.laws import Laws, LawsConfig, fit_laws
from herd.scaling.records.readers import read_table

from ..conftest import make_sweep, optimum

# The published optimal tokens of the Llama 3 IsoFLOP figure, billions, budgets ascending.
BUDGETS = (6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21, 1e22)
VERTICES = (4.408, 5.135, 7.558, 11.533, 15.321, 25.309, 40.965, 54.601, 98.165, 238.24)
HOFFMANN = (1.69, 406.4, 410.7, 0.34, 0.28)  # E, A, B, a, b as printed


def test_rows_1_to_4_from_the_published_vertices_alone() -> None:
    law = fit_power_law(BUDGETS, np.array(VERTICES) * 1e9)
    assert law.exponent == pytest.approx(0.53678, abs=5e-4)
    assert law.coefficient == pytest.approx(0.29936, abs=1.5e-3)
    assert law.exponent_interval == pytest.approx((0.4948, 0.5787), abs=1e-3)
    assert law.interval(3.8e25) == pytest.approx((9.56e12, 27.12e12), rel=0.01)
    assert law.predict(3.8e25) == pytest.approx(16.10e12, rel=1e-3)
    assert law.predict(4.0e25) == pytest.approx(16.55e12, rel=1e-3)
    assert 3.8e25 / 6 / law.predict(3.8e25) == pytest.approx(393.3e9, rel=1e-3)
    assert 4.0e25 / 6 / law.predict(4.0e25) == pytest.approx(402.8e9, rel=1e-3)
    assert law.extrapolation_ratio(3.8e25) == pytest.approx(3800)


@pytest.fixture(scope="module")
def llama(reference_data) -> Laws:  # type: ignore[no-untyped-def]
    path = reference_data / "scaling" / "llama3-isoflop" / "llama_3_isoflops.csv"
    records = read_table(path, {"parameters": "params"}, {"condition": "raw_loss"})
    assert len(records) == 133
    return fit_laws(records, LawsConfig(replicates=200))


def test_row_1_alpha_and_a(llama: Laws) -> None:
    assert llama.tokens is not None
    assert llama.tokens.exponent == pytest.approx(0.53678, abs=5e-4)
    assert llama.tokens.coefficient == pytest.approx(0.29936, abs=1.5e-3)


def test_row_2_vertices(llama: Laws) -> None:
    assert [c.budget for c in llama.curves] == pytest.approx(BUDGETS)
    assert [c.tokens / 1e9 for c in llama.vertices] == pytest.approx(VERTICES, rel=5e-3)


def test_row_2_in_log_parameters_is_the_same_optimum(llama: Laws) -> None:
    """D = C / 6N on every row, so a parabola in log N is the mirror image of that in log D."""
    curves = fit_isoflop(llama.records, IsoFLOPConfig(x="parameters"))
    assert [c.tokens / 1e9 for c in curves] == pytest.approx(VERTICES, rel=5e-3)
    assert [6 * c.tokens * c.parameters for c in curves] == pytest.approx(BUDGETS, rel=1e-6)
    assert [c.log10_tokens_se for c in curves] == pytest.approx([c.log10_tokens_se for c in llama.curves], rel=1e-6)


def test_row_3_flagship(llama: Laws) -> None:
    at = {c: forecast(llama, c) for c in (3.8e25, 4.0e25)}
    assert at[3.8e25].tokens == pytest.approx(16.10e12, rel=1e-3)
    assert at[3.8e25].parameters == pytest.approx(393.3e9, rel=1e-3)
    assert at[4.0e25].tokens == pytest.approx(16.55e12, rel=1e-3)
    assert at[4.0e25].parameters == pytest.approx(402.8e9, rel=1e-3)
    assert at[3.8e25].extrapolation_ratio == pytest.approx(3800)


def test_row_4_intervals_and_jackknife(llama: Laws) -> None:
    assert llama.tokens is not None
    assert llama.tokens.exponent_interval == pytest.approx((0.4948, 0.5787), abs=1e-3)
    assert forecast(llama, 3.8e25).tokens_interval == pytest.approx((9.56e12, 27.12e12), rel=0.01)
    without = {row.budget: row for row in jackknife_budgets(llama, 3.8e25).left_out}
    assert without[1e22].exponent == pytest.approx(0.5108, abs=5e-4)
    assert without[6e18].exponent == pytest.approx(0.5562, abs=5e-4)


@pytest.mark.parametrize(
    ("config", "exponent"),
    [
        ("rw|base|long|kaplan|kaplan|train", 0.8353),
        ("rw|base|long|kaplan|standard|val", 0.7065),
        ("rw|base|short|kaplan|standard|val", 0.6020),
        ("rw|base|short|chinchilla|standard|val", 0.5715),
        ("rw|tuned|short|const|standard|val", 0.4969),
    ],
)
def test_row_10_weighted_exponents_of_five_set_ups(reference_data, config: str, exponent: float) -> None:  # type: ignore[no-untyped-def]
    folder = reference_data / "scaling" / "formll-resolving-scaling-law-discrepancies"

    def rows(name: str) -> list[dict[str, str]]:
        with (folder / name).open(encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if row["source_file"] == "summary_df" and row["config"] == config]

    published = rows("published_fits.csv")[0]
    pairs = [row for row in rows("optimal_pairs.csv") if row["n_star_log_std"]]  # one pair is published without an error
    flops, size, error = (np.array([float(row[name]) for row in pairs]) for name in ("flops", "n_star", "n_star_log_std"))
    law = fit_power_law(flops, size, errors=error, method="wls")
    assert law.exponent == pytest.approx(exponent, abs=5e-4)
    assert law.exponent == pytest.approx(float(published["weighted"]), abs=1e-9)
    assert law.coefficient == pytest.approx(float(published["n_coef"]), rel=1e-6)
    assert fit_power_law(flops, size).exponent == pytest.approx(float(published["basic"]), abs=1e-9)


@pytest.mark.parametrize(("span", "bias"), [(2, -0.33), (4, -1.30), (8, -2.90), (16, -5.10)])
def test_the_parabola_shifts_the_intercept_and_not_the_exponent(span: float, bias: float) -> None:
    """Five budgets of 15 sizes, centred on the true optimum: D*(1e24) is off by what is known, the exponent is exact."""
    rows = make_sweep(budgets=np.geomspace(1e17, 1e21, 5), factors=np.geomspace(1 / span, span, 15), truth=HOFFMANN)
    _, tokens, _ = optimum(HOFFMANN, 1e24)
    off = {}
    for curve in ("parabola", "akima"):
        curves = fit_isoflop(rows, IsoFLOPConfig(curve=curve))
        law = fit_power_law([c.budget for c in curves], [c.tokens for c in curves])
        assert law.exponent == pytest.approx(0.34 / 0.62, abs=1e-9 if curve == "parabola" else 1e-6)
        off[curve] = 100 * (law.predict(1e24) / tokens - 1)
    assert off["parabola"] == pytest.approx(bias, abs=0.006)
    assert abs(off["akima"]) < 0.1 * abs(bias)  # an interpolant bends with the curve


def test_centres_that_drift_bias_a_parabolas_exponent_and_not_an_interpolants() -> None:
    """Sweeps of +-16x whose centre moves from the optimum to 4 times the optimum over the five budgets."""
    rows = [
        row
        for i, budget in enumerate(np.geomspace(1e17, 1e21, 5))
        for row in make_sweep(budgets=[budget], factors=np.geomspace(1 / 16, 16, 15) * 4 ** (i / 4), truth=HOFFMANN)
    ]
    off = {}
    for curve in ("parabola", "akima"):
        curves = fit_isoflop(rows, IsoFLOPConfig(curve=curve))
        off[curve] = fit_power_law([c.budget for c in curves], [c.tokens for c in curves]).exponent - 0.34 / 0.62
    assert off["parabola"] == pytest.approx(0.0114, abs=1e-3)
    assert abs(off["akima"]) < 1e-3
