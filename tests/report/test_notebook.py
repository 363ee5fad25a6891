"""The scaling notebook, executed for real on a fit of a synthetic sweep, and what happens when a notebook fails."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from herd.config.errors import UserError
from herd.config.loader import compose
from herd.recipe.job import make_job
from herd.report import notebook
from herd.report.notebook import execute_notebook, figures_of, link_stages
from herd.report.run_data import RunData
from herd.report.stage import STAGE, ReportConfig, has_study
from herd.runs.stage import Artifact, execute
from herd.scaling.fit_stage import STAGE as FIT
from herd.scaling.records.record import Record, write_table

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def fit(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """`herd scaling-fit` on 20 cells of L = 1.9 + 60 / N^0.35 + 180 / D^0.33 with a little noise."""
    root = tmp_path_factory.mktemp("scaling")
    rng = np.random.default_rng(0)
    records = []
    for flops in (1e11, 2e11, 4e11, 8e11):
        for i, parameters in enumerate(np.geomspace(0.3, 3.0, 5) * 4e4 * (flops / 2e11) ** 0.5):
            parameters = float(parameters)
            tokens = flops / 6 / parameters
            loss = 1.9 + 60 / parameters**0.35 + 180 / tokens**0.33 + 0.003 * float(rng.normal())
            records.append(Record(f"{flops:g}-{i}", flops, parameters, tokens, flops, loss))
    write_table(root / "table.csv", records)
    config = make_job(
        "scaling-fit", compose("scaling-fit", [f"table={root / 'table.csv'}", "flagship_flops=4e12", "replicates=200"])
    ).config
    return execute(FIT, config, {}, root, "test", "fit")


def test_the_report_shows_the_notebooks_figures(fit: Artifact, tmp_path: Path) -> None:
    config = ReportConfig(seed=0, title="t", notebook="scaling_laws", chat_samples=0)
    artifact = execute(STAGE, config, {"stages": {"fit": fit.path}}, tmp_path, "report")
    shown = {path.stem for path in (artifact / "figures").iterdir()}
    assert {"isoflop_curves", "compute_optimal_tokens", "compute_optimal_loss_forecast_and_measured"} <= shown
    for name in shown:
        assert (artifact / f"figures/{name}.png").read_bytes().startswith(PNG)
    html = (artifact / "index.html").read_text(encoding="utf-8")
    assert 'id="figure-isoflop_curves"' in html
    assert f"{fit.metrics['predicted_loss']:.3f}" in html


def test_a_failing_notebook_is_named_with_its_error(fit: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks/bad.py").write_text('# %%\nimport os\nraise KeyError(os.environ["HERD_RUN_FOLDER"])\n')
    monkeypatch.setattr(notebook, "data_root", lambda: tmp_path)
    folder = link_stages({"fit": fit}, tmp_path / "run")
    with pytest.raises(UserError, match=rf"notebooks/bad\.py failed on this run: KeyError: '{folder}'"):
        execute_notebook("bad", folder)
    with pytest.raises(UserError, match="No notebook"):
        execute_notebook("absent", folder)


def test_a_fit_without_its_table_is_no_study(fit: Artifact, tmp_path: Path) -> None:
    assert has_study(RunData({"fit": fit}))
    assert not has_study(RunData({"fit": Artifact(tmp_path, fit.manifest)}))
    assert not has_study(RunData({}))


def test_links_follow_labels_with_folders(fit: Artifact, tmp_path: Path) -> None:
    folder = link_stages({"fit": fit, "round-1/dpo": fit}, tmp_path / "run")
    link_stages({"fit": fit}, tmp_path / "run")  # again, as after an interruption
    assert (folder / "round-1/dpo/manifest.json").is_file()
    assert (folder / "fit").resolve() == fit.path


def test_figures_take_the_heading_before_them() -> None:
    def cell(kind: str, source: str, *outputs: dict) -> "SimpleNamespace":
        made = SimpleNamespace(cell_type=kind, source=source)
        made.get = lambda name, default: list(outputs)
        return made

    image = {"data": {"image/png": "iVBORw0KGgo="}}
    cells = [
        cell("markdown", "# One\ntwo words\n"),
        cell("code", "", {"text": "no image"}, image),
        cell("markdown", "no heading"),
        cell("code", "", image),
        cell("markdown", "## Zwei: drei"),
        cell("code", "", image),
    ]
    found = figures_of(SimpleNamespace(cells=cells))
    assert [(f.name, f.title, f.caption) for f in found] == [
        ("one", "One", "two words"), ("one_2", "One", "two words"), ("zwei_drei", "Zwei: drei", ""),
    ]  # fmt: skip
    assert all(f.image == PNG for f in found)
