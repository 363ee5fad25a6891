"""Annealing appraisal: pairing removes a seed's luck, intervals cover, what cannot be told is said."""

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
from herd.scaling.mixture.annealing import gather_seeds, rank_by_documents, rank_by_seeds
from herd.training.curriculum import Curriculum
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


def test_runs_of_the_sweep_are_gathered_by_candidate(tmp_path: Path) -> None:
    _, mixes = composed_sweep()
    stages = {"tokens": 40_000, "batch_tokens": 1024}
    for number, (seed, mix) in enumerate([(s, m) for s in (0, 1) for m in mixes[:3]]):
        anneal = (
            "{share: 0.3, schedule: {kind: linear, warmup_steps: 0, warmup_share: 0.0, start: 0.55, final: 0.0, "
            "decay_share: 0.2, horizon_steps: 0}, ramp: [{start: 0.0, batch: 1.0, seq_len: 256}], "
            "rope_scaling: null, average_checkpoints: 0, "
            f"mix: {json.dumps(mix).replace(chr(34), '')}}}"
        )
        overrides = ["curriculum=cosine", f"seed={seed}", *(f"curriculum.{k}={v}" for k, v in stages.items())]
        job = make_job("pretrain", compose("pretrain", [*overrides, f"+curriculum.stages.anneal={anneal}"]))

        def run(config: PretrainConfig, inputs: Inputs, stage_run: StageRun, seed: int = seed, mix: Any = mix) -> dict[str, Any]:
            losses = {domain: 4.0 + 0.1 * seed - 0.2 * share for domain, share in mix.items()}
            return {"loss_by_domain": losses}

        execute(Stage("pretrain", 1, PretrainConfig, run, "synthetic"), job.config, {}, tmp_path, "study", f"anneal/{number}")
        curriculum = Curriculum(job.config.curriculum, job.config.mix.weights, 1.0)
        assert (
            curriculum.learning_rate(curriculum.steps - 1) < 0.05 < curriculum.learning_rate(curriculum.stage_ends()["initial"])
        )
    losses = gather_seeds(tmp_path / "study" / "anneal")
    assert set(losses) == {"default", "general", "maths"} and set(losses["maths"]) == {0, 1}
    assert losses["default"][1] - losses["default"][0] == pytest.approx(0.1)
    only = gather_seeds(tmp_path / "study" / "anneal", {"maths": 1.0})
    assert only["default"][0] - only["maths"][0] == pytest.approx(0.2 * 0.225)
    assert rank_by_seeds(only).candidates[0].name == "maths"
    with pytest.raises(UserError, match="Did you mean 'maths'"):
        gather_seeds(tmp_path / "study" / "anneal", {"math": 1.0})
    with pytest.raises(UserError, match="no curriculum stage 'cooldown'"):
        gather_seeds(tmp_path / "study" / "anneal", stage="cooldown")
