"""Over-training law, best settings and roll-out in `herd scaling-fit`: fit.json, the screen, figures, and reasons."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from herd.config.errors import UserError
from herd.runs.stage import Artifact
from herd.scaling.records.record import Record
from herd.scaling.study import laws_of
from herd.scaling.validation import ValidationConfig, roll_out

from .conftest import LAPTOP, make_sweep, optimum
from .curves.test_hyperparameters import BUDGETS, best_batch, best_lr, grid
from .test_fit_stage import fit_of, printed


def fit_json(artifact: Artifact) -> dict:  # type: ignore[type-arg]
    return json.loads((artifact / "fit.json").read_text())  # type: ignore[no-any-return]


def figures(artifact: Artifact) -> set[str]:
    return {path.stem for path in (artifact / "figures").iterdir()} - {"isoflop", "tokens_law", "loss_law"}


def tuned_sweep() -> list[Record]:
    """An IsoFLOP sweep of which every cell was trained with five learning rates around the best of its budget."""
    return [
        dataclasses.replace(
            row, cell=f"{row.cell}-{i}", lr=best_lr(row.budget) * 10**u, batch_tokens=1024, loss=row.loss + 0.2 * u**2
        )
        for row in make_sweep(noise=0.001)
        for i, u in enumerate((-0.7, -0.3, 0.0, 0.4, 0.8))
    ]


def test_a_tuned_sweep_gives_every_law(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = fit_of(tmp_path, tuned_sweep(), "target_flops=[8e12]", "validation.roll_out=true")
    fit, text = fit_json(artifact), printed(artifact, capsys)
    lr = fit["settings"]["lr"]
    assert lr["status"] == "ok" and lr["law"]["exponent"] == pytest.approx(-0.125, abs=1e-3)
    assert lr["forecasts"][0]["best"] == pytest.approx(best_lr(8e12), rel=0.01)
    assert lr["forecasts"][0]["extrapolation_ratio"] == pytest.approx(10)
    assert fit["settings"]["batch_tokens"]["status"] == "not_fitted"
    law = fit["overtraining"]
    assert law["status"] == "ok" and law["points"] == 20  # of the hundred rows those with their cell's best rate
    # At the optimum of 8e12 FLOPs the laws of the two kinds say the same.
    at = law["forecasts"][0]
    assert at["loss"] == pytest.approx(optimum(LAPTOP, 8e12)[2], abs=0.02)
    assert at["loss_interval"][0] < at["loss"] < at["loss_interval"][1]
    assert fit["table"]["usable"] == 20 and len(fit["dropped"]) == 80
    assert figures(artifact) == {"overtraining", "lr_law", "roll_out"}
    assert artifact.metrics["settings"] == {"lr": "ok", "batch_tokens": "not_fitted"}
    for part in ("overtrain", "best lr    best = ", "best batch not fitted: one batch per budget and size", "10x the largest"):
        assert part in text


def test_a_grid_of_both_settings_gives_both_laws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = fit_of(tmp_path, grid(), "target_flops=[1e22]", "fallback=ratio", "hyperparameters.against=tokens")
    fit = fit_json(artifact)
    tokens = math.sqrt(1e22 / 6 * 20)  # the grid has 20 tokens per parameter
    for name, best in (("lr", best_lr(1e22)), ("batch_tokens", best_batch(1e22))):
        found = fit["settings"][name]["forecasts"][0]
        assert found["best"] == pytest.approx(best, rel=0.02) and found["tokens"] == pytest.approx(tokens, rel=1e-6)
    assert figures(artifact) == {"lr_law", "batch_law"}
    assert "not fitted: An over-training law has 4 parameters" in printed(artifact, capsys)


def test_a_plain_sweep_says_what_it_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [dataclasses.replace(row, lr=1e-3) for row in make_sweep(noise=0.01)]
    artifact = fit_of(tmp_path, rows, "out=null")
    fit, text = fit_json(artifact), printed(artifact, capsys)
    assert fit["settings"]["lr"]["reason"] == "one learning rate per budget and size: nothing to compare"
    assert "best lr    not fitted: one learning rate per budget and size" in text
    assert "best batch not fitted: no row has batch_tokens" in text
    assert fit["roll_out"] == {"status": "not_asked", "reason": "validation.roll_out is false", "cuts": []}
    assert "oll-out" not in text
    some = [dataclasses.replace(rows[0], lr=None), *rows[1:]]
    assert "columns.lr=COLUMN" in fit_json(fit_of(tmp_path, some))["settings"]["lr"]["reason"]


def test_the_roll_out_in_the_json_is_that_of_the_function(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = make_sweep(noise=0.004, budgets=(1e11, 2e11, 4e11, 8e11, 1.6e12))
    artifact = fit_of(tmp_path, records, "validation.roll_out=true")
    rolled = fit_json(artifact)["roll_out"]
    assert rolled["status"] == "ok" and [cut["cut"] for cut in rolled["cuts"]] == [4e11, 8e11]
    expected = roll_out(records, 4e11, laws_of(artifact).config)
    for told, score in zip(rolled["cuts"][0]["scores"], expected.scores, strict=True):
        assert (told["law"], told["status"], told["error"], told["coverage"]) == (
            score.law, score.status, score.error, score.coverage,
        )  # fmt: skip
        assert [one["covered"] for one in told["predictions"]] == [one.covered for one in score.predictions]
    text = printed(artifact, capsys)
    assert "Roll-out: fitted up to a cut, measured above it" in text and "decisions" in text
    one = fit_json(fit_of(tmp_path, records, "validation.roll_out=true", "validation.cuts=[2e11]"))["roll_out"]
    assert [cut["cut"] for cut in one["cuts"]] == [2e11]


def test_three_budgets_are_too_few_to_roll_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = make_sweep(noise=0.004, budgets=BUDGETS[:3])
    artifact = fit_of(tmp_path, records, "validation.roll_out=true")
    rolled = fit_json(artifact)["roll_out"]
    assert rolled["status"] == "not_possible" and "The table has 3 budgets" in rolled["reason"]
    assert "roll-out: The table has 3 budgets" in printed(artifact, capsys)
    with pytest.raises(UserError, match="No usable run above the cut"):
        fit_of(tmp_path, records, "validation.roll_out=true", "validation.cuts=[1e30]")
    with pytest.raises(UserError, match=r"validation\.cuts"):
        ValidationConfig(cuts=[-1.0])


def test_cuts_leave_three_budgets_to_fit_and_one_to_predict() -> None:
    for count in (4, 5, 9, 40):
        budgets = [10.0 ** (11 + i) for i in range(count)]
        cuts = ValidationConfig().cuts_of(make_sweep(budgets=budgets, factors=(1.0,)))
        assert len(cuts) == min(4, count - 3) and cuts == sorted(cuts)
        assert cuts[0] >= budgets[2] and cuts[-1] == budgets[-2]
    assert ValidationConfig(most=1).cuts_of(make_sweep(budgets=budgets)) == [budgets[-2]]
