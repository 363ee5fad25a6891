"""Annealing appraisal: pairing removes a seed's luck, intervals cover, what cannot be told is said."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from herd.config.errors import UserError
from herd.config.loader import compose, data_root
from herd.recipe.job import make_job
from herd.runs.stage import Inputs, Stage, StageRun, execute
from herd.scaling import mix_anneal_stage
from herd.scaling.mixture.annealing import gather_documents, gather_seeds, rank_by_documents, rank_by_seeds
from herd.training.pretrain_stage import PretrainConfig

TRUTH = {"default": 4.0, "maths": 3.95, "code": 3.99, "noise": 4.05}


def runs(seeds: int = 3, noise: float = 0.004, luck: float = 0.1, seed: int = 0) -> dict[str, dict[int, float]]:
    rng = np.random.default_rng(seed)
    of_seed = luck * rng.normal(size=seeds)
    return {name: {s: loss + of_seed[s] + noise * rng.normal() for s in range(seeds)} for name, loss in TRUTH.items()}


def test_candidates_are_ranked_and_told_apart() -> None:
    appraisal = rank_by_seeds(runs())
    assert [c.name for c in appraisal.candidates] == ["maths", "code", "noise"]
    by_name = {c.name: c for c in appraisal.candidates}
    assert by_name["maths"].status == "better" and by_name["noise"].status == "worse"
    assert by_name["maths"].best_probability > 0.99 and appraisal.status == "ok" and appraisal.units == 3
    for name, candidate in by_name.items():
        assert candidate.gain_interval[0] < TRUTH["default"] - TRUTH[name] < candidate.gain_interval[1]


def test_two_candidates_are_students_paired_test() -> None:
    losses = {name: values for name, values in runs(seeds=6).items() if name in ("default", "maths")}
    gain = np.array([losses["default"][s] - losses["maths"][s] for s in range(6)])
    interval = stats.ttest_1samp(gain, 0).confidence_interval(0.95)
    (candidate,) = rank_by_seeds(losses).candidates
    assert candidate.gain == pytest.approx(gain.mean())
    np.testing.assert_allclose(candidate.gain_interval, (interval.low, interval.high), rtol=1e-9)


def test_intervals_cover() -> None:
    hits = 0
    for seed in range(200):
        for candidate in rank_by_seeds(runs(noise=0.02, seed=seed)).candidates:
            hits += candidate.gain_interval[0] < TRUTH["default"] - TRUTH[candidate.name] < candidate.gain_interval[1]
    assert 0.92 < hits / 600 < 0.98


def test_a_seeds_luck_counts_for_nobody() -> None:
    first, second = rank_by_seeds(runs(luck=0.0)), rank_by_seeds(runs(luck=5.0))
    for a, b in zip(first.candidates, second.candidates, strict=True):
        assert a.gain == pytest.approx(b.gain) and a.gain_interval == pytest.approx(b.gain_interval)


def test_noise_is_undecided() -> None:
    appraisal = rank_by_seeds(runs(noise=0.5))
    assert appraisal.status == "undecided" and "add seeds" in appraisal.reason


def test_documents_are_paired() -> None:
    rng = np.random.default_rng(1)
    tokens = rng.integers(50, 500, 300).astype(float)
    hard = rng.normal(4, 1, 300)  # documents differ far more than candidates
    nll = {name: tokens * (hard + loss - 4 + 0.02 * rng.normal(size=300)) for name, loss in TRUTH.items()}
    appraisal = rank_by_documents(nll, tokens)
    assert appraisal.pairing == "document" and appraisal.candidates[0].name == "maths"
    for candidate in appraisal.candidates:
        low, high = candidate.gain_interval
        assert low < TRUTH["default"] - TRUTH[candidate.name] < high and high - low < 0.02
    assert appraisal.noise > 0.03  # unpaired, the documents alone would hide every gain
    with pytest.raises(UserError, match="at least 20 documents"):
        rank_by_documents({k: v[:5] for k, v in nll.items()}, tokens[:5])


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ({"maths": {0: 1.0, 1: 1.0}}, "No runs of the default mix"),
        ({"default": {0: 1.0, 1: 1.0}}, "at least one candidate"),
        ({"default": {0: 1.0, 1: 1.0}, "maths": {0: 1.0}}, "run the same for all"),
        ({"default": {0: 1.0}, "maths": {0: 1.0}}, "One seed"),
        ({"default": {0: 1.0, 1: 1.0}, "maths": {0: 1.0, 1: float("nan")}}, "not finite"),
    ],
)
def test_bad_runs_are_refused(losses: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        rank_by_seeds(losses)


@functools.cache
def composed_sweep() -> tuple[Any, list[dict[str, float]]]:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.override_parser.overrides_parser import OverridesParser

    with initialize_config_dir(config_dir=str(data_root() / "conf"), version_base="1.3"):
        composed = hydra_compose(
            "pretrain", [f"hydra.searchpath=[file://{data_root()}]", "+sweeps=anneal_laptop"], return_hydra_config=True
        )
    key = "curriculum.stages.anneal.mix"
    parsed = OverridesParser.create().parse_override(f"{key}={composed.hydra.sweeper.params[key]}")
    return composed, [dict(mix) for mix in parsed.value().list]


def test_the_sweep_is_the_papers_recipe(tmp_path: Path) -> None:
    composed, mixes = composed_sweep()
    default = dict(composed.mix.weights)
    assert mixes[0] == default
    for name, mix in zip(default, mixes[1:], strict=True):
        wanted = {source: 0.7 * share + 0.3 * (source == name) for source, share in default.items()}
        assert mix == pytest.approx(wanted)


def run_sweep(folder: Path, documents: bool = True, checkpoints: tuple[str, ...] = ("half", "half")) -> Path:
    """Three candidates and two seeds as the sweep composes them, from a checkpoint, with made-up losses."""
    _, mixes = composed_sweep()
    starts = {
        name: execute(Stage("pretrain", 1, PretrainConfig, lambda c, i, r: {}, "x"), half_config(name), {}, folder, "study", name)
        for name in set(checkpoints)
    }
    for number, (seed, mix) in enumerate([(s, m) for s in (0, 1) for m in mixes[:3]]):
        overrides = ["curriculum=anneal", f"seed={seed}", *(f"+curriculum.stages.anneal.mix.{k}={v}" for k, v in mix.items())]
        job = make_job("pretrain", compose("pretrain", overrides))

        def run(config: PretrainConfig, inputs: Inputs, stage_run: StageRun, seed: int = seed, mix: Any = mix) -> dict[str, Any]:
            losses = {domain: 4.0 + 0.1 * seed - 0.2 * share for domain, share in mix.items()}
            if documents:
                rng = np.random.default_rng(3)
                lines = ["domain,document,nll,tokens"]
                for domain, loss in losses.items():
                    for i in range(30):
                        tokens = int(rng.integers(20, 200))
                        lines.append(f"{domain},{i},{tokens * (loss + rng.normal())!r},{tokens}")
                (stage_run.folder / "heldout_documents.csv").write_text("\n".join(lines) + "\n")
            return {"loss_by_domain": losses, "start": {"stage": "initial", "tokens": 10, "moments": True}}

        stage = Stage("pretrain", 1, PretrainConfig, run, "synthetic", optional=("start",))
        execute(stage, job.config, {"start": starts[checkpoints[seed]].path}, folder, "study", f"anneal/{number}")
    return folder / "study" / "anneal"


def half_config(name: str) -> PretrainConfig:
    return make_job("pretrain", compose("pretrain", ["+experiment=half_laptop", f"seed={len(name)}"])).config  # type: ignore[no-any-return]


def test_runs_of_the_sweep_are_gathered_by_candidate(tmp_path: Path) -> None:
    folder = run_sweep(tmp_path)
    losses = gather_seeds(folder)
    assert set(losses) == {"default", "general", "maths"} and set(losses["maths"]) == {0, 1}
    assert losses["default"][1] - losses["default"][0] == pytest.approx(0.1)
    only = gather_seeds(folder, {"maths": 1.0})
    assert only["default"][0] - only["maths"][0] == pytest.approx(0.2 * 0.225)
    assert rank_by_seeds(only).candidates[0].name == "maths"
    with pytest.raises(UserError, match="Did you mean 'maths'"):
        gather_seeds(folder, {"math": 1.0})
    with pytest.raises(UserError, match="no curriculum stage 'cooldown'"):
        gather_seeds(folder, stage="cooldown")


def test_documents_count_by_their_domains_weight(tmp_path: Path) -> None:
    """Each document is its domain's mean loss plus luck that all candidates share, so gains are those of the domains exactly."""
    folder = run_sweep(tmp_path)
    nll, tokens = gather_documents(folder)
    assert tokens.sum() == pytest.approx(1.0) and len(tokens) == 4 * 30  # shares of the default mix
    by_seed = gather_seeds(folder)
    for name, values in nll.items():
        gain = nll["default"].sum() - values.sum()
        assert gain == pytest.approx(np.mean([by_seed["default"][s] - by_seed[name][s] for s in (0, 1)]))
    one = gather_documents(folder, {"code": 2.0})[1]
    assert len(one) == 30 and one.sum() == pytest.approx(2.0)
    with pytest.raises(UserError, match="Did you mean 'code'"):
        gather_documents(folder, {"cod": 1.0})
    path = (folder / "3").resolve() / "heldout_documents.csv"
    path.write_text(path.read_text().replace("general,0,", "general,99,", 1))
    with pytest.raises(UserError, match="scored on different documents"):
        gather_documents(folder)
    with pytest.raises(UserError, match="eval_documents=true, or pair by seeds"):
        gather_documents(run_sweep(tmp_path / "without", documents=False))
    with pytest.raises(UserError, match="anneal 2 different checkpoints"):
        gather_seeds(run_sweep(tmp_path / "mixed", checkpoints=("half", "other")))


@pytest.mark.usefixtures("pictures")
def test_the_command_ranks_prints_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_sweep(tmp_path)
    for overrides, pairing in (([], "seed"), (["pairing=document"], "document")):
        job = make_job("mix-anneal", compose("mix-anneal", [f"runs={folder}", f"run.root={tmp_path}", *overrides]))
        artifact = job.execute()
        capsys.readouterr()
        mix_anneal_stage.show(artifact)
        text = capsys.readouterr().out
        told = json.loads((artifact / "anneal.json").read_text())
        assert told["pairing"] == pairing and told["units"] == {"seed": 2, "document": 120}[pairing]
        assert [one["name"] for one in told["candidates"]] == ["general", "maths"]
        low, high = told["candidates"][0]["gain_interval"]
        assert low <= told["candidates"][0]["gain"] <= high
        assert "annealed from the end of stage 'initial', 10 tokens in, with its optimizer's moments" in text
        assert f"[{low:+.4f}, {high:+.4f}]" in text and (artifact / "figures" / "annealing.png").stat().st_size > 5000
    with pytest.raises(UserError, match="Did you mean 'document'"):
        make_job("mix-anneal", compose("mix-anneal", ["pairing=documents"]))
