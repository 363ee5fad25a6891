"""Schedules against their closed forms; the curriculum's plan: exact tokens, continuity, purity, the paper's
numbers.
"""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from herd.config.errors import UserError
from herd.config.loader import conf_root, load
from herd.model.config import ModelConfig, RopeScaling
from herd.training.curriculum import Curriculum, CurriculumConfig, RampStep, StageConfig, plan_summary
from herd.training.gates import GateConfig
from herd.training.pretrain import rope_by_stage
from herd.training.schedule import SCHEDULES, ScheduleConfig, step_schedule

MIX = {"general": 0.75, "code": 0.25}


def preset(name: str, **changes) -> CurriculumConfig:
    """A curriculum of conf/, as Hydra composes it."""
    node = OmegaConf.load(conf_root() / "curriculum" / f"{name}.yaml")
    for parent in node.pop("defaults", []):
        if parent != "_self_":
            base = OmegaConf.load(conf_root() / "curriculum" / f"{parent}.yaml")
            base.pop("defaults", None)
            node = OmegaConf.merge(base, node)
    if name == "ci":
        node = OmegaConf.merge(OmegaConf.load(conf_root() / "curriculum" / "cosine.yaml"), node)
    return load(CurriculumConfig, OmegaConf.merge(node, changes))


def simple(tokens=6400, batch_tokens=64, **schedule) -> Curriculum:
    """One stage of 100 equal steps."""
    stage = StageConfig(schedule=ScheduleConfig(**schedule), ramp=[RampStep(seq_len=16)])
    return Curriculum(CurriculumConfig(tokens, batch_tokens, {"initial": stage}), MIX, lr=2.0)


def test_cosine_is_its_closed_form():
    curriculum = simple(kind="cosine", warmup_steps=10, final=0.1)
    for step in range(10):
        assert curriculum.learning_rate(step) == pytest.approx(2.0 * (step + 1) / 10)
    for step in range(10, 100):
        share = 0.1 + 0.9 * (1 + math.cos(math.pi * (step - 10) / 90)) / 2
        assert curriculum.learning_rate(step) == pytest.approx(2.0 * share)


def test_linear_reaches_zero_after_the_last_step():
    curriculum = simple(kind="linear", start=0.5, final=0.0)
    assert curriculum.learning_rate(0) == pytest.approx(1.0)
    assert curriculum.learning_rate(50) == pytest.approx(0.5)
    assert curriculum.learning_rate(99) == pytest.approx(0.01)


def test_wsd_is_flat_then_falls():
    curriculum = simple(kind="wsd", warmup_share=0.05, decay_share=0.2, final=0.0)
    rates = [curriculum.learning_rate(step) for step in range(100)]
    assert rates[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert rates[5:80] == pytest.approx([2.0] * 75)
    falling = rates[82:]
    assert [a - b for a, b in pairwise(falling)] == pytest.approx([2.0 / 0.2 / 95] * 17)


def test_constant_and_warmup_share():
    curriculum = simple(kind="constant", warmup_share=0.04, start=0.5)
    assert [curriculum.learning_rate(step) for step in (0, 1, 2, 3, 4, 99)] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


def test_schedule_by_steps_ignores_batch_growth():
    ramp = [RampStep(0.0, 0.5, 16), RampStep(0.5, 1.0, 16)]
    stage = StageConfig(schedule=ScheduleConfig(horizon_steps=1000, final=0.0), ramp=ramp)
    curriculum = Curriculum(CurriculumConfig(6400, 64, {"initial": stage}), MIX, lr=1.0)
    assert curriculum.steps == 150
    for step in (0, 60, 120):
        assert curriculum.learning_rate(step) == pytest.approx((1 + math.cos(math.pi * step / 1000)) / 2)


def test_beyond_its_horizon_a_schedule_stays_where_it_ended_and_before_it_stands_where_it_came():
    over = simple(kind="cosine", final=0.1, horizon_steps=50)
    assert [over.learning_rate(step) for step in (50, 75, 99)] == pytest.approx([0.2] * 3)
    assert over.share_after("initial") == pytest.approx(0.1)
    assert simple(kind="linear", final=0.0, horizon_steps=400).share_after("initial") == pytest.approx(0.75)
    assert step_schedule(ScheduleConfig("linear", final=0.0, horizon_steps=400), 2.0, 100)(99) == pytest.approx(
        2 * (1 - 99 / 400)
    )


def test_step_schedule_is_the_same_function():
    schedule = ScheduleConfig(kind="cosine", warmup_steps=10, final=0.1)
    by_step, by_curriculum = step_schedule(schedule, 2.0, 100), simple(kind="cosine", warmup_steps=10, final=0.1)
    for step in range(100):
        assert by_step(step) == pytest.approx(by_curriculum.learning_rate(step))


@st.composite
def curricula(draw) -> CurriculumConfig:
    stages = {}
    for i in range(draw(st.integers(1, 4))):
        starts = sorted(draw(st.sets(st.floats(0.01, 0.99), max_size=3)))
        ramp = [
            RampStep(start, draw(st.sampled_from([0.25, 0.5, 1.0, 2.0])), draw(st.sampled_from([16, 32, 64])))
            for start in [0.0, *starts]
        ]
        warmup = draw(st.sampled_from([{}, {"warmup_steps": 2}, {"warmup_share": 0.1}]))
        schedule = ScheduleConfig(draw(st.sampled_from(SCHEDULES.names())), **warmup, final=draw(st.floats(0, 1)))
        average = draw(st.integers(0, 3))
        stages[f"s{i}"] = StageConfig(draw(st.floats(0.1, 2)), schedule, ramp, average_checkpoints=average)
    return CurriculumConfig(draw(st.integers(20_000, 200_000)), 512, stages)


@given(curricula())
def test_every_token_is_counted_once(config):
    curriculum = Curriculum(config, MIX, lr=1e-3)
    tokens = 0
    for step in range(curriculum.steps):
        phase, first, count = curriculum.rows(step)
        assert curriculum.tokens_at(step) == tokens
        assert first == (step - curriculum.phases[phase].first_step) * count
        tokens += count * curriculum.phases[phase].seq_len
    assert tokens == curriculum.tokens == curriculum.tokens_at(curriculum.steps)
    assert tokens == sum(phase.rows * phase.seq_len for phase in curriculum.mixture_phases())
    assert list(curriculum.stage_ends().values())[-1] == curriculum.steps
    for name, stage in config.stages.items():
        largest = max(ramp.batch for ramp in stage.ramp) * config.batch_tokens
        assert abs(curriculum.stage_tokens()[name] - stage.share * config.tokens) <= largest / 2 + 1


@given(curricula())
def test_learning_rate_follows_tokens_over_ramps(config):
    """Between one step and the next the rate moves as far as the tokens do, whatever the batch does."""
    stages = {n: replace(s, schedule=ScheduleConfig("cosine", final=0.0)) for n, s in config.stages.items()}
    curriculum = Curriculum(replace(config, stages=stages), MIX, lr=1.0)
    end = 0
    for name, total in curriculum.stage_tokens().items():
        first, end = end, curriculum.stage_ends()[name]
        start = curriculum.tokens_at(first)
        for step in range(first, end):
            share = (curriculum.tokens_at(step) - start) / total
            assert curriculum.learning_rate(step) == pytest.approx((1 + math.cos(math.pi * share)) / 2)


@given(curricula())
def test_learning_rate_stays_within_its_bounds(config):
    curriculum = Curriculum(config, MIX, lr=1.0)
    for step in range(curriculum.steps):
        schedule = config.stages[curriculum.phase(step).stage].schedule
        assert 0 < curriculum.learning_rate(step) <= max(schedule.start, schedule.final)


@given(curricula())
def test_averages_end_with_their_stage(config):
    curriculum = Curriculum(config, MIX, lr=1.0)
    points = curriculum.averaged_after()
    for name, stage in config.stages.items():
        own = [step for step, stage_name in points.items() if stage_name == name]
        assert len(own) <= stage.average_checkpoints
        if stage.average_checkpoints:
            assert max(own) == curriculum.stage_ends()[name]


def test_laptop_preset_has_the_papers_stages():
    curriculum = Curriculum(preset("laptop"), {"general": 1.0}, lr=3e-3)
    curriculum.check_lengths(256)
    assert list(curriculum.stage_ends()) == ["initial", "long_512", "long_1024", "annealing"]
    assert [phase.seq_len for phase in curriculum.phases] == [128, 256, 512, 1024, 1024]
    later = sum(tokens for stage, tokens in curriculum.stage_tokens().items() if stage != "initial")
    assert 0.2 <= later / curriculum.stage_tokens()["initial"] <= 0.25
    assert curriculum.phases[-1].weights["code"] == 0.239
    initial_end = curriculum.learning_rate(curriculum.stage_ends()["initial"] - 1)
    assert initial_end == pytest.approx(3e-4, rel=0.01)
    assert curriculum.learning_rate(curriculum.stage_ends()["initial"]) == pytest.approx(3e-4)


def test_cells_and_flagship_share_their_initial_stage():
    sizes = {"tokens": 400_000, "batch_tokens": 4096}
    assert preset("cosine", **sizes).stages["initial"] == preset("laptop", **sizes).stages["initial"]


def test_ci_preset_is_small():
    assert Curriculum(preset("ci"), {"general": 1.0}, lr=1e-3).steps < 100


def test_405b_preset_carries_the_papers_numbers():
    curriculum = Curriculum(preset("llama3_405b"), {"general": 1.0}, lr=8e-5)
    first, second, third, *rest = curriculum.phases
    assert (first.seq_len, first.batch_tokens) == (4096, 4 * 2**20)
    assert (second.seq_len, second.batch_tokens) == (8192, 8 * 2**20)
    assert (third.seq_len, third.batch_tokens) == (8192, 16 * 2**20)
    assert second.first_token == pytest.approx(252e6, rel=0.01)
    assert third.first_token == pytest.approx(2.87e12, rel=1e-5)
    assert curriculum.stage_tokens()["initial"] == pytest.approx(15.6e12, rel=1e-5)
    assert curriculum.learning_rate(7_999) == pytest.approx(8e-5)
    assert curriculum.learning_rate(3_999) == pytest.approx(4e-5)
    long_context = [phase for phase in rest if phase.stage.startswith("long")]
    assert len(long_context) == 6
    assert long_context[-1].seq_len == 131_072
    assert sum(phase.tokens for phase in long_context) == pytest.approx(800e9, rel=1e-3)
    assert rest[-1].stage == "annealing"
    assert rest[-1].tokens == pytest.approx(40e6, rel=0.06)
    assert curriculum.learning_rate(curriculum.steps - 1) < 8e-8


def test_cosine_over_1_200_000_steps_ends_at_8e_7():
    stage = preset("llama3_405b").stages["initial"]
    rate = step_schedule(stage.schedule, 8e-5, 1_200_000)
    assert rate(7_999) == pytest.approx(8e-5)
    assert rate(1_199_999) == pytest.approx(8e-7, rel=1e-3)


def test_plan_summary_names_what_moves():
    rows = plan_summary(preset("laptop"), {"general": 1.0}, 3e-3)
    assert [row["stage"] for row in rows] == ["initial", "initial", "long_512", "long_1024", "annealing"]
    assert [row["rope_factor"] for row in rows] == [None, None, 2.0, 4.0, None]
    assert sum(row["tokens"] for row in rows) == rows[-1]["first_token"] + rows[-1]["tokens"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_tokens": 1000}, "no whole number of rows of 16"),
        ({"tokens": 20}, "less than one batch"),
        ({"tokens": 0}, "must be 1 or more"),
        ({"stages": {}}, "stages is empty"),
    ],
)
def test_impossible_plans_are_refused(changes, message):
    values = {"tokens": 6400, "batch_tokens": 64, "stages": {"initial": StageConfig(ramp=[RampStep(seq_len=16)])}}
    with pytest.raises(UserError, match=message):
        Curriculum(CurriculumConfig(**values | changes), MIX, lr=1.0)


def test_rows_longer_than_rope_are_refused():
    curriculum = simple()
    curriculum.check_lengths(16)
    with pytest.raises(UserError, match="rows of 16 tokens, the model's positions end at 8"):
        curriculum.check_lengths(8)
    extended = StageConfig(ramp=[RampStep(seq_len=32)], rope_scaling=RopeScaling(2.0, original_max_seq_len=16))
    Curriculum(CurriculumConfig(6400, 64, {"long": extended}), MIX, lr=1.0).check_lengths(16)
    rebased = replace(extended, rope_scaling=None, rope_theta=8e6)
    Curriculum(CurriculumConfig(6400, 64, {"long": rebased}), MIX, lr=1.0).check_lengths(16)


def test_shorter_rows_leave_the_longest_position_where_it_was():
    stages = {
        "initial": StageConfig(ramp=[RampStep(seq_len=64)]),
        "short": StageConfig(ramp=[RampStep(seq_len=16)], rope_theta=1e6),
        "again": StageConfig(ramp=[RampStep(seq_len=64)]),
    }
    Curriculum(CurriculumConfig(640, 64, stages), MIX, 1.0).check_lengths(64)


def test_more_averaged_points_than_steps_are_those_steps():
    stages = {"annealing": StageConfig(ramp=[RampStep(seq_len=16)], average_checkpoints=5)}
    assert sorted(Curriculum(CurriculumConfig(128, 64, stages), MIX, 1.0).averaged_after()) == [1, 2]


def test_a_warm_up_that_its_stage_cannot_hold_is_refused():
    assert simple(kind="constant", warmup_steps=100).learning_rate(99) == 2.0
    assert simple(kind="cosine", warmup_steps=400, horizon_steps=1000).learning_rate(99) == pytest.approx(0.5)
    with pytest.raises(UserError, match=r"'initial' has 100 steps, and its schedule warms up over 101: lower warmup_steps"):
        simple(kind="constant", warmup_steps=101)


def test_each_stage_keeps_the_rope_that_those_before_it_set():
    scaling = RopeScaling(2.0, original_max_seq_len=16)
    stages = {
        "initial": StageConfig(ramp=[RampStep(seq_len=16)]),
        "based": StageConfig(ramp=[RampStep(seq_len=32)], rope_theta=8e6),
        "scaled": StageConfig(ramp=[RampStep(seq_len=64)], rope_scaling=scaling),
        "annealing": StageConfig(ramp=[RampStep(seq_len=32)]),
    }
    model = ModelConfig(dim=8, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=16, vocab_size=8, max_seq_len=16, rope_theta=1e4)
    assert rope_by_stage(Curriculum(CurriculumConfig(6400, 64, stages), MIX, lr=1.0), model) == {
        "initial": (1e4, None, 16),
        "based": (8e6, None, 32),
        "scaled": (8e6, scaling, 64),
        "annealing": (8e6, scaling, 64),
    }


@pytest.mark.parametrize(
    "bad",
    [
        lambda: StageConfig(share=0),
        lambda: StageConfig(rope_theta=1.0),
        lambda: StageConfig(ramp=[RampStep(start=0.5)]),
        lambda: StageConfig(mix={"general": 0.5}),
        lambda: RampStep(start=1.0),
        lambda: ScheduleConfig(kind="cosin"),
        lambda: ScheduleConfig(warmup_steps=3, warmup_share=0.1),
    ],
)
def test_bad_stages_are_refused(bad):
    with pytest.raises(UserError):
        bad()


GATE = {"gate": GateConfig(extend=0.5)}


def test_an_extension_leaves_the_warm_up_before_it_as_it_was():
    stages = {
        "initial": StageConfig(ramp=[RampStep(seq_len=16)]),
        "long": StageConfig(schedule=ScheduleConfig("constant", warmup_share=0.5), ramp=[RampStep(seq_len=32)], **GATE),
    }
    plain, extended = (Curriculum(CurriculumConfig(640, 64, stages), MIX, 1.0, n) for n in ({}, {"long": 2}))
    assert extended.steps == plain.steps + 10
    assert [extended.learning_rate(step) for step in range(plain.steps)] == [plain.learning_rate(s) for s in range(plain.steps)]


def test_an_extension_has_the_batch_that_it_counts():
    """Also where the last point of the ramp is too short for a step of its own."""
    ramp = [RampStep(0.0, 1.0, 16), RampStep(0.99, 2.0, 32)]
    stages = {
        "initial": StageConfig(ramp=[RampStep(seq_len=16)]),
        "long": StageConfig(schedule=ScheduleConfig("constant"), ramp=ramp, **GATE),
    }
    curriculum = Curriculum(CurriculumConfig(640, 64, stages), MIX, 1.0, {"long": 1})
    assert [phase.batch_tokens for phase in curriculum.phases] == [64, 64, 128]
    assert curriculum.tokens == sum(phase.tokens for phase in curriculum.phases)
