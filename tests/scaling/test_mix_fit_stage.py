"""`herd mix-fit`: tables, gathered runs, what it writes, and its refusals."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from herd.cli import main
from herd.config.errors import UserError
from herd.config.loader import compose, data_root
from herd.recipe.job import make_job
from herd.runs.stage import Artifact, Inputs, Stage, StageRun, execute
from herd.scaling.mix_fit_stage import STAGE, MixFitConfig
from herd.scaling.mixture.records import gather_mixtures, read_mixtures, write_mixtures
from herd.training.pretrain_stage import PretrainConfig

from .conftest import run_script

SOURCES = ("general", "maths", "code")
PRIOR = ("++prior.general=0.6", "++prior.maths=0.2", "++prior.code=0.2")
T = {"maths": np.array([0.3, -1.2, 0.1]), "code": np.array([0.4, 0.2, -1.5])}


def shares(count: int = 14) -> np.ndarray:
    return np.random.default_rng(2).dirichlet([3, 2, 1.5], count)


def write_table(path: Path, prefixes: tuple[str, str] = ("mix/", "loss/"), noise: float = 0.003) -> Path:
    rng = np.random.default_rng(4)
    mix, loss = prefixes
    lines = [",".join(["run", *(mix + s for s in SOURCES), *(loss + d for d in T), "parameters"])]
    for i, row in enumerate(shares()):
        losses = [2 + np.exp(row @ t) + noise * rng.normal() for t in T.values()]
        lines.append(",".join(map(str, [f"run-{i}", *row, *losses, 1e6 * (1 + i % 2)])))
    path.write_text("\n".join(lines) + "\n")
    return path


def mix_fit(root: Path, *overrides: str) -> Artifact:
    return make_job("mix-fit", compose("mix-fit", [f"run.root={root}", *overrides])).execute()


@pytest.mark.usefixtures("pictures")
def test_a_table_becomes_laws_a_proposal_and_figures(tmp_path: Path) -> None:
    table = write_table(tmp_path / "mixes.csv")
    artifact = mix_fit(tmp_path / "runs", f"table={table}", *PRIOR, "replicates=30")
    fit = json.loads((artifact / "mix_fit.json").read_text())
    proposal = fit["proposal"]
    assert proposal["status"] == "ok" and sum(proposal["mix"].values()) == pytest.approx(1)
    assert proposal["mix"]["maths"] > 0.2 and proposal["mix"]["code"] > 0.2 and proposal["kl"] == pytest.approx(0.1, rel=0.02)
    mixes = [np.array([proposal[which][name] for name in SOURCES]) for which in ("prior", "mix")]
    true_gain = np.subtract(*(np.mean([np.exp(mix @ t) for t in T.values()]) for mix in mixes))
    low, high = proposal["gain_interval"]
    assert low < true_gain < high
    assert set(fit["laws"]) == {"maths", "code"} and fit["laws"]["code"]["held_out"]["folds"] == 14
    assert fit["laws"]["code"]["held_out"]["spearman"] > 0.95
    assert artifact.metrics["gain_interval"] == [low, high] and artifact.metrics["mixtures"] == 14
    for name in ("held_out", "proposal"):
        assert (artifact / "figures" / f"{name}.png").stat().st_size > 5000
    back = read_mixtures(str(artifact / "mixtures.csv"))
    np.testing.assert_array_equal(back.losses, read_mixtures(str(table)).losses)


def test_the_screen_shows_every_law_the_mix_and_the_gain_with_interval_and_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_table(tmp_path / "mixes.csv")
    command = ["mix-fit", f"table={table}", *PRIOR, "replicates=30", f"run.root={tmp_path}/runs", f"out={tmp_path}/out"]
    main([*command, "max_epochs=4", "budget_tokens=1e9", *(f"++available_tokens.{name}=1e9" for name in SOURCES)])
    text = capsys.readouterr().out
    fit = json.loads((tmp_path / "out" / "mix_fit.json").read_text())
    proposal = fit["proposal"]
    rows = [line.split() for line in text.splitlines()]
    for domain, law in fit["laws"].items():
        held = law["held_out"]
        numbers = [f"{held['spearman']:.3f}", f"{held['rmse']:.4f}", f"{held['r2']:.3f}"]
        assert [domain, law["kind"], *numbers, law["status"]] in rows
    for source in SOURCES:
        (row,) = [row for row in rows if row[:2] == [source, f"{proposal['prior'][source]:.4f}"]]
        low, high = proposal["mix_interval"][source]
        assert row[2:] == [f"{proposal['mix'][source]:.4f}", f"[{low:.4f},", f"{high:.4f}]", f"{proposal['epochs'][source]:.3g}"]
    low, high = proposal["gain_interval"]
    assert f"gain {proposal['gain']:.4f} [{low:.4f}, {high:.4f}] (95%; {proposal['status']}" in text


def test_a_foreign_table_has_its_own_prefixes(tmp_path: Path) -> None:
    table = write_table(tmp_path / "regmix.csv", ("train_", "metric/"))
    artifact = mix_fit(
        tmp_path / "runs", f"table={table}", "mix_prefix=train_", "loss_prefix=metric/", "kind=linear", "replicates=10"
    )
    fit = json.loads((artifact / "mix_fit.json").read_text())
    assert fit["sources"] == list(SOURCES) and set(fit["laws"]) == set(T)
    assert fit["proposal"]["prior"]["maths"] == pytest.approx(shares().mean(axis=0)[1])
    joint = mix_fit(tmp_path / "runs", f"table={table}", "mix_prefix=train_", "loss_prefix=metric/", "size=parameters",
                    "replicates=5")  # fmt: skip
    assert json.loads((joint / "mix_fit.json").read_text())["laws"]["code"]["size"] == 2e6


def pretrained(root: Path, node: str, mix: dict[str, float], tokens: int = 100_000) -> Artifact:
    """What `herd pretrain` would leave for a mix, with losses by the known law."""

    def run(config: PretrainConfig, inputs: Inputs, stage_run: StageRun) -> dict[str, Any]:
        row = np.array([mix[name] for name in SOURCES])
        losses = {domain: float(2 + np.exp(row @ t)) for domain, t in T.items()}
        return {"loss_by_domain": losses, "tokens": tokens, "parameters_6N": 1000}

    stage = Stage("pretrain", 1, PretrainConfig, run, "synthetic")
    job = make_job("pretrain", compose("pretrain", [f"mix.weights={json.dumps(mix).replace(chr(34), '')}", "curriculum=cosine"]))
    return execute(stage, job.config, {}, root, "study", node)


def test_our_own_runs_are_gathered(tmp_path: Path) -> None:
    for i, row in enumerate(shares(8)):
        mix = dict(zip(SOURCES, row.tolist(), strict=True)) | {"multilingual": 0.0}
        pretrained(tmp_path, f"mix/{i}", mix)
    folder = tmp_path / "study" / "mix"
    table = gather_mixtures(folder)
    assert table.runs == tuple("01234567") and table.sources == ("code", "general", "maths")
    np.testing.assert_allclose(table.shares, shares(8)[:, [2, 0, 1]])
    artifact = mix_fit(tmp_path, f"runs={folder}", "replicates=10")
    fit = json.loads((artifact / "mix_fit.json").read_text())
    assert fit["laws"]["code"]["parameters"]["c"] == pytest.approx(2, abs=1e-3)
    again = mix_fit(tmp_path, f"runs={folder}", "replicates=10")
    assert again.path == artifact.path
    pretrained(tmp_path, "mix/9", dict(zip([*SOURCES, "multilingual"], [0.5, 0.25, 0.25, 0.0], strict=True)), tokens=50_000)
    with pytest.raises(UserError, match=r"Run '9' .* saw 50,000 tokens, the others 100,000"):
        gather_mixtures(folder)


def test_write_and_read_agree(tmp_path: Path) -> None:
    table = read_mixtures(str(write_table(tmp_path / "a.csv")))
    write_mixtures(tmp_path / "b.csv", table)
    back = read_mixtures(str(tmp_path / "b.csv"))
    assert (back.runs, back.sources, back.domains) == (table.runs, table.sources, table.domains)
    for name in ("shares", "losses"):
        np.testing.assert_array_equal(getattr(back, name), getattr(table, name))
    np.testing.assert_array_equal(back.extra["parameters"], table.extra["parameters"])


def test_the_sweeps_compose() -> None:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.override_parser.overrides_parser import OverridesParser

    with initialize_config_dir(config_dir=str(data_root() / "conf"), version_base="1.3"):
        composed = hydra_compose(
            "pretrain", [f"hydra.searchpath=[file://{data_root()}]", "+sweeps=mix_laptop"], return_hydra_config=True
        )
    assert composed.hydra.sweep.dir.endswith("mix_laptop")
    parsed = OverridesParser.create().parse_override(f"mix.weights={composed.hydra.sweeper.params['mix.weights']}")
    mixes = [json.loads(text) if isinstance(text, str) else text for text in parsed.sweep_iterator()]
    assert len(mixes) == 12


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run,a,b\nx,1,2\n", "no column that begins with 'mix/'"),
        ("run,mix/a,mix/b\nx,0.5,0.5\n", "no column that begins with 'loss/'"),
        ("run,mix/a,mix/b,loss/c\nx,0.5,half,2\n", "line 2: mix/b 'half' is not a number"),
        ("run,mix/a,mix/b,loss/c\n", "no rows"),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_mixtures(str(tmp_path / "t.csv"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "give table=FILE, or runs=FOLDER"),
        (["table=nowhere.csv"], "No table of mixtures 'nowhere.csv'"),
        (["runs=nowhere"], "No folder of runs 'nowhere'"),
        (["runs=EMPTY"], "holds no finished `herd pretrain`"),
        (["table=x.csv", "max_kl=null"], "would extrapolate"),
        (["table=x.csv", "kind=trees"], "Unknown mixture law 'trees'"),
        (["table=TABLE", "size=params"], "Did you mean 'parameters'"),
    ],
)
def test_bad_requests_are_refused(tmp_path: Path, overrides: list[str], message: str) -> None:
    table = write_table(tmp_path / "mixes.csv")
    (tmp_path / "empty").mkdir()
    replaced = [o.replace("TABLE", str(table)).replace("EMPTY", str(tmp_path / "empty")) for o in overrides]
    with pytest.raises(UserError, match=message):
        mix_fit(tmp_path / "runs", *replaced)


def test_the_stage_reads_nothing_but_its_table() -> None:
    assert STAGE.inputs == () and MixFitConfig(table="x").kind == "exponential"


def test_the_notebook_runs_and_is_the_script(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import jupytext

    write_table(tmp_path / "mixtures.csv")
    script = data_root() / "notebooks" / "data_mix.py"
    monkeypatch.setenv("HERD_RUN_FOLDER", str(tmp_path))
    monkeypatch.setenv("HERD_FIGURES_FOLDER", str(tmp_path / "figures"))
    run_script(script)
    said = capsys.readouterr().out
    assert said.count("KL up to") == 3 and "no annealing runs" in said
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {"held_out", "proposal"}
    notebook = jupytext.read(script.with_suffix(".ipynb"))
    assert all(not cell.get("outputs") for cell in notebook.cells)
    assert [cell.source for cell in notebook.cells] == [cell.source for cell in jupytext.read(script).cells]
