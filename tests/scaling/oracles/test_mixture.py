"""Row 12 of the published results: RegMix's mixtures, Spearman correlation on unseen mixtures at 1M and at 60M parameters."""

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from herd.scaling.mixture.law import fit_mixture


def table(path: Path) -> tuple[list[str], np.ndarray]:
    with open(path, encoding="utf-8") as file:
        header, *rows = list(csv.reader(file))
    return header[1:], np.array(rows, dtype=float)[:, 1:]


def pile_cc(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    mixtures = table(folder / f"{split.split('_')[0]}_mixture_{split.split('_')[1]}.csv")[1]
    names, losses = table(folder / f"{split.split('_')[0]}_pile_loss_{split.split('_')[1]}.csv")
    return mixtures / mixtures.sum(axis=1, keepdims=True), losses[:, names.index("metric/the_pile_pile_cc_val_loss")]


@pytest.mark.parametrize(("kind", "at_1m", "at_60m"), [("gbdt", 98.9, 98.5), ("exponential", 96.3, 95.8)])
def test_the_ranks_of_unseen_mixtures(reference_data: Path, kind: str, at_1m: float, at_60m: float) -> None:
    folder = reference_data / "scaling" / "regmix"
    if not folder.is_dir():
        pytest.skip(f"no RegMix data at {folder}")
    law = fit_mixture(*pile_cc(folder, "train_1m"), kind)
    assert law.rows == 512 and law.status == "ok"
    for split, published in (("test_1m", at_1m), ("test_60m", at_60m)):
        mixtures, losses = pile_cc(folder, split)
        found = 100 * stats.spearmanr(law.predict(mixtures), losses).statistic
        assert found == pytest.approx(published, abs=0.3)
    # Cross-validation on the 512 rows alone foretells the rank correlation at the same size.
    assert 100 * law.held_out.spearman == pytest.approx(at_1m, abs=1.0)
