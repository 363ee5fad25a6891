"""Plans: cells that spend their budget, rules for learning rate and batch, costs, refusals."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from herd.config.errors import UserError
from herd.config.loader import compose, load
from herd.model.config import ModelConfig
from herd.model.counts import flops_per_token, parameter_count
from herd.runs.stage import execute
from herd.scaling.plan_stage import STAGE, ScalingPlanConfig
from herd.scaling.records.record import Record
from herd.scaling.sweep.plan import PlanConfig, plan_cells, read_plan, vocabulary_of, write_plan
from herd.scaling.sweep.plan_rules import SizeRule, SpeedRule, TokensLaw, TrainingRule

BUDGETS = [1.5e11, 3e11, 6e11, 1.2e12]
CONFIG = PlanConfig(budgets=BUDGETS, sizes=SizeRule(span=6.0), seq_len=256, vocab_size=2048)


def shape_of(overrides: list[str]) -> ModelConfig:
    values = dict(o.removeprefix("model.").split("=") for o in overrides if o.startswith("model."))
    tied = {"true": True, "false": False}[values.pop("tie_embeddings")]
    return ModelConfig(**{k: int(v) for k, v in values.items()}, tie_embeddings=tied, vocab_size=2048, max_seq_len=256)


@pytest.mark.parametrize("convention", ["6N", "6N+attention_causal"])
def test_every_cell_spends_its_budget_on_the_model_that_its_overrides_name(convention: str) -> None:
    plan = plan_cells(dataclasses.replace(CONFIG, flops_convention=convention))
    for cell in plan.cells:
        shape = shape_of(cell.overrides)
        values = dict(o.split("=") for o in cell.overrides)
        assert cell.flops == pytest.approx(cell.budget, rel=0.5 / cell.steps + 1e-9)
        assert cell.flops == pytest.approx(flops_per_token(shape, 256, convention) * int(values["curriculum.tokens"]))
        assert cell.parameters == parameter_count(shape, "6N")
        assert cell.tokens == cell.steps * cell.batch_tokens == int(values["curriculum.tokens"])
        assert int(values["curriculum.batch_tokens"]) == cell.batch_tokens and cell.batch_tokens % 256 == 0
        assert float(values["optimizer.lr"]) == cell.lr


def test_sizes_within_a_budget_are_distinct_ascending_and_about_the_guess() -> None:
    plan = plan_cells(CONFIG)
    for budget in BUDGETS:
        sizes = [cell.parameters for cell in plan.cells if cell.budget == budget]
        assert sizes == sorted(set(sizes)) and len(sizes) == 5
        centre = CONFIG.sizes.centre_parameters * (budget / 1e12) ** 0.5
        assert sizes[0] < centre < sizes[-1]
    assert len({cell.id for cell in plan.cells}) == len(plan.cells)


def test_the_size_rule_spans_what_it_says() -> None:
    sizes = SizeRule(count=5, span=16, centre_parameters=1e5, centre_flops=1e12, centre_exponent=0.5).sizes(4e12)
    assert sizes == pytest.approx([5e4, 1e5, 2e5, 4e5, 8e5])
    assert SizeRule(count=1, span=16, centre_parameters=1e5).sizes(1e12) == [1e5]


def test_learning_rate_falls_with_size_and_the_batch_shrinks_with_the_budget() -> None:
    rule = TrainingRule(lr=3e-3, lr_parameters=3e5, lr_exponent=-0.63, lr_max=6e-3, lr_min=1e-3)
    assert rule.learning_rate(3e5) == 3e-3
    assert rule.learning_rate(1e5) == pytest.approx(6e-3, rel=0.01)
    assert (rule.learning_rate(1e3), rule.learning_rate(1e9)) == (6e-3, 1e-3)
    batches = [rule.batch(c, 1e7, 128) for c in (1e11, 1e12, 1e13, 1e14)]
    assert batches == sorted(set(batches)) and all(b % 128 == 0 for b in batches)


def test_limits_on_steps_move_the_batch() -> None:
    rule = TrainingRule(batch_tokens=1024, batch_min=256, min_steps=100, max_steps=1000)
    assert rule.batch(1e12, 51_200, 128) == 512  # 50 steps of 1,024 would be too few
    assert rule.batch(1e12, 4_096_000, 128) == 4096  # 4,000 steps would be too many
    assert rule.batch(1e12, 1000, 128) == 128  # never below one row


def test_a_total_budget_drops_the_dearest_cells_and_says_so() -> None:
    plan = plan_cells(dataclasses.replace(CONFIG, total_flops=4e12))
    assert plan.flops <= 4e12 < plan_cells(CONFIG).flops
    assert max(cell.budget for cell in plan.cells) < 1.2e12
    lost = {(c.budget, c.parameters) for c in plan_cells(CONFIG).cells} - {(c.budget, c.parameters) for c in plan.cells}
    for budget, parameters in lost:  # each by name, with what it costs and what was left
        line = f"{budget:.3g} FLOPs, {parameters:,.0f} parameters: its {budget:.2g}"
        assert any(dropped.startswith(line) and "beyond total_flops" in dropped for dropped in plan.dropped)


def test_a_limit_on_hours_drops_what_does_not_fit() -> None:
    whole = plan_cells(CONFIG)
    half = plan_cells(dataclasses.replace(CONFIG, total_hours=whole.seconds / 7200))
    assert whole.seconds * 0.2 < half.seconds <= whole.seconds / 2
    assert len(half.cells) + sum("beyond total_hours" in line for line in half.dropped) == len(whole.cells)


def test_costs_follow_the_speed_and_say_what_they_assume() -> None:
    fast = plan_cells(dataclasses.replace(CONFIG, speed=SpeedRule(flops_per_second=6e10)))
    slow = plan_cells(dataclasses.replace(CONFIG, speed=SpeedRule(flops_per_second=3e10)))
    assert slow.seconds == pytest.approx(2 * fast.seconds) == pytest.approx(slow.flops / 3e10)
    eight = SpeedRule("H100", 8, 4e14, 1e15, 0.5, "a paper")
    assert eight.seconds(6.4e15, 10) == pytest.approx(2 + 5)
    says = "8 x H100 a job at 4e+14 FLOPs a second (40.0% of its peak of 1e+15), 500 ms a step beside them; a paper"
    assert eight.describe() == says == plan_cells(dataclasses.replace(CONFIG, speed=eight)).speed


def test_a_finished_sweep_measures_the_speed() -> None:
    cells = [(1e10, 100), (1e11, 300), (3e11, 200)]
    records = [Record(f"{f}", f, 1e5, f / 6e5, f, 3.0, steps=s, seconds=f / 5e9 + 0.02 * s) for f, s in cells]
    speed = SpeedRule().measured(records, "a sweep")
    assert speed.flops_per_second == pytest.approx(5e9) and speed.seconds_per_step == pytest.approx(0.02)
    assert speed.source == "measured on 3 cells of a sweep, mean error 0%"
    with pytest.raises(UserError, match="a sweep has 0 cells with their seconds"):
        SpeedRule().measured([dataclasses.replace(r, seconds=None) for r in records], "a sweep")


def test_seeds_repeat_every_cell() -> None:
    one, three = plan_cells(CONFIG), plan_cells(dataclasses.replace(CONFIG, seeds=[0, 1, 2]))
    assert len({cell.id for cell in three.cells}) == len(three.cells) == 3 * len(one.cells)
    for i, cell in enumerate(three.cells):
        assert cell.overrides == [*one.cells[i // 3].overrides, f"seed={i % 3}"] and cell.seed == i % 3


def test_the_centre_comes_from_a_law() -> None:
    law = TokensLaw(0.299, 0.537)
    rule = SizeRule(count=3, span=4, law=law)
    assert rule.sizes(3.8e25)[1] == pytest.approx(3.8e25 / 6 / (0.299 * 3.8e25**0.537))
    assert rule.centre(3.8e25) == pytest.approx(402e9, rel=0.05)  # the flagship of the paper, whose law has more digits


def test_equal_settings_are_the_same_cell_and_others_are_not() -> None:
    one, same = plan_cells(CONFIG), plan_cells(dataclasses.replace(CONFIG, speed=SpeedRule(flops_per_second=1e9)))
    assert [c.id for c in one.cells] == [c.id for c in same.cells]
    other = plan_cells(dataclasses.replace(CONFIG, overrides=["seed=1"]))
    assert not {c.id for c in one.cells} & {c.id for c in other.cells}


def test_round_trip(tmp_path: Path) -> None:
    plan = plan_cells(CONFIG)
    write_plan(tmp_path / "cells.json", plan)
    assert read_plan(tmp_path / "cells.json") == plan


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[1]", b"\xff\x00", b'{"cells": [{"idd": 1}], "dropped": [], "metric": "loss"}']
)
def test_a_file_that_is_no_plan(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "cells.json"
    path.write_bytes(content)
    with pytest.raises(UserError):
        read_plan(path)
    with pytest.raises(UserError, match="herd scaling-plan"):
        read_plan(tmp_path / "none.json")


def test_refusals() -> None:
    with pytest.raises(UserError, match="vocabulary"):
        plan_cells(dataclasses.replace(CONFIG, vocab_size=0))
    with pytest.raises(UserError, match="no cell left"):
        plan_cells(dataclasses.replace(CONFIG, budgets=[1e6]))
    for change, says in (
        ({"budgets": []}, "budgets"),
        ({"budgets": [1e11, 1e11]}, "each budget once"),
        ({"budgets": [math.nan]}, "above 0"),
        ({"seq_len": 0}, "seq_len"),
        ({"seeds": [1, 1]}, "each seed once"),
        ({"total_hours": 0}, "total_hours"),
    ):
        with pytest.raises(UserError, match=says):
            dataclasses.replace(CONFIG, **change)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="min_steps"):
        TrainingRule(min_steps=10, max_steps=5)
    with pytest.raises(UserError, match="exceed the device's peak"):
        SpeedRule(flops_per_second=2e15, peak_flops_per_second=1e15)
    with pytest.raises(UserError, match="exponent between 0 and 1"):
        TokensLaw(0.3, 1.5)
    with pytest.raises(UserError, match="Unknown FLOP convention"):
        plan_cells(dataclasses.replace(CONFIG, flops_convention="6n"))


@pytest.mark.parametrize(("name", "vocabulary", "points"), [("isoflop_laptop", 1024, 4), ("isoflop_ci", 512, 3)])
def test_presets_have_enough_cells_and_their_curriculum_trains_the_planned_tokens(
    name: str, vocabulary: int, points: int
) -> None:
    from herd.training.curriculum import Curriculum
    from herd.training.pretrain_stage import PretrainConfig

    config = load(PlanConfig, compose("scaling-plan", [f"plan={name}"]).plan)
    plan = plan_cells(config, vocabulary)
    for budget in config.budgets:
        assert sum(cell.budget == budget for cell in plan.cells) >= points
    for cell in (plan.cells[0], plan.cells[-1]):
        composed = OmegaConf.to_container(compose("pretrain", cell.overrides), resolve=True)
        assert isinstance(composed, dict)
        job = load(PretrainConfig, {str(k): v for k, v in composed.items() if k not in ("run", "inputs")})
        trained = Curriculum(job.curriculum, job.mix.weights, job.optimizer.lr)
        assert trained.tokens == pytest.approx(cell.tokens, abs=cell.batch_tokens)
        assert job.optimizer.lr == cell.lr and job.model.dim == shape_of(cell.overrides).dim


def test_every_preset_composes() -> None:
    for path in (Path(__file__).parents[3] / "conf" / "plan").glob("*.yaml"):
        load(PlanConfig, compose("scaling-plan", [f"plan={path.stem}"]).plan)


def test_the_stage_prints_what_a_person_pays_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    execute(STAGE, ScalingPlanConfig(dataclasses.replace(CONFIG, total_flops=4e12)), {}, tmp_path, "test")
    said = capsys.readouterr().err
    assert "1.5e+11 FLOPs: 5 cells of" in said and "with 2 at a time" in said and "FLOPs a second; assumed" in said
    assert said.count("dropped: ") == said.count("beyond total_flops") > 0


def test_the_stage_takes_the_vocabulary_from_the_corpus(tmp_path: Path) -> None:
    config = ScalingPlanConfig(CONFIG)
    artifact = execute(STAGE, config, {}, tmp_path, "test")
    content = json.loads((artifact / "cells.json").read_text())
    assert artifact.metrics["cells"] == len(content["cells"]) == len(plan_cells(CONFIG).cells)
    assert artifact.metrics["hours"] == pytest.approx(plan_cells(CONFIG).seconds / 7200)
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "index.json").write_text('{"vocab_size": 777}')
    assert vocabulary_of(tmp_path) == 777
    with pytest.raises(UserError, match="no tokenized corpus"):
        vocabulary_of(tmp_path / "tokens")
