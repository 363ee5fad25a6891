"""Steps that would do harm, not finite or far above those before: what they leave untouched, and that a resume decides alike."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_standin import Killed, Points, Poisoned, Regression, assert_same, kill_at, timeless, train, weights

from herd.config.errors import UserError
from herd.runs.metrics import read_metrics
from herd.training.checkpoint import CheckpointStore
from herd.training.rewind import LeftOut
from herd.training.spikes import Diverged, SpikeConfig, StepGuard, guarded_step

SPIKES = {"window": 8, "least": 4, "sigma": 6.0}


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_left_out_touches_neither_weights_nor_state(fused):
    weight = torch.nn.Parameter(torch.ones(5))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=fused, foreach=None)

    def step(gradient: float, leave_out: float):
        weight.grad = torch.full((5,), gradient)
        guarded_step(optimizer, torch.tensor(leave_out))
        return weight.detach().clone(), {k: v.clone() for k, v in optimizer.state[weight].items()}

    before, state = step(1.0, 0.0)
    after, kept = step(math.nan, 1.0)
    assert torch.equal(before, after)
    assert_same(state, kept)
    moved, counted = step(1.0, 0.0)
    assert not torch.equal(moved, after)
    assert counted["step"] == 2


def test_a_step_that_is_not_finite_is_as_if_its_data_were_left_out(tmp_path):
    poisoned, _ = train(tmp_path / "nan", Poisoned({5, 9}, math.nan, 12))
    without, result = train(tmp_path / "without", Points(), left_out=[[5, 6], [9, 10]])
    assert_same(weights(poisoned), weights(without))
    assert result.tokens == 100
    rows = [read_metrics(tmp_path / run / "metrics.jsonl") for run in ("nan", "without")]
    assert [row["nonfinite_steps"] for row in rows[0]] == [0, 1, 2]
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]  # means over the steps that count
    assert all(math.isfinite(row["absolute"]) for row in rows[0])


def test_several_in_a_row_end_the_run(tmp_path):
    train(tmp_path / "enough", Poisoned({3, 4, 5, 6}, math.inf, 12))
    with pytest.raises(Diverged, match="in 5 steps in a row") as caught:
        train(tmp_path / "too many", Poisoned({3, 4, 5, 6, 7}, math.inf, 12))
    assert "\n" not in str(caught.value)


def test_a_spike_is_left_out(tmp_path):
    policy = SpikeConfig("skip_step", **SPIKES)
    skipped, _ = train(tmp_path / "skipped", Poisoned({20}, 30.0), spikes=policy)
    without, _ = train(tmp_path / "without", Points(40), left_out=[[20, 21]])
    hit, _ = train(tmp_path / "hit", Poisoned({20}, 30.0))
    assert_same(weights(skipped), weights(without))
    assert any(not torch.equal(a, b) for a, b in zip(weights(skipped).values(), weights(hit).values(), strict=True))
    counts = {row["step"]: row["spike_steps"] for row in read_metrics(tmp_path / "skipped/metrics.jsonl")}
    assert counts[20] == 0 and counts[24] == counts[40] == 1
    assert "spike_steps" not in read_metrics(tmp_path / "hit/metrics.jsonl")[-1]


@pytest.mark.parametrize("killed_at", [19, 20, 21, 23])
@pytest.mark.parametrize("policy", ["skip_step", "rewind"])
def test_resume_across_a_spike_decides_the_same(tmp_path, policy, killed_at):
    spikes = SpikeConfig(policy, **SPIKES)

    def run(folder, callbacks=()):
        return train(folder, Poisoned({20}, 30.0), callbacks=callbacks, spikes=spikes)

    straight, expected = run(tmp_path / "straight")
    with pytest.raises(Killed):
        run(tmp_path / "killed", [kill_at(killed_at)])
    resumed, result = run(tmp_path / "killed")
    assert_same(weights(straight), weights(resumed))
    assert result.left_out == expected.left_out
    assert timeless(tmp_path / "straight") == timeless(tmp_path / "killed")


def test_rewind_goes_back_and_on_without_the_data(tmp_path, capsys):
    spikes = SpikeConfig("rewind", **SPIKES, skip_after=2)
    rewound, result = train(tmp_path / "rewound", Poisoned({20}, 30.0), spikes=spikes)
    assert result.left_out == [(18, 23)]
    assert result.tokens == 350
    message = capsys.readouterr().err
    assert "Spike at step 20: back to the checkpoint of step 18, and on without the data of the steps 18 to 22." in message
    replayed, again = train(tmp_path / "replayed", Points(40), left_out=[[18, 23]])
    assert again.left_out == result.left_out
    assert_same(weights(rewound), weights(replayed))
    rows = read_metrics(tmp_path / "rewound/metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(4, 41, 4))
    assert [row["loss"] for row in rows] == [row["loss"] for row in read_metrics(tmp_path / "replayed/metrics.jsonl")]


def test_rewind_before_the_first_checkpoint_goes_to_the_start(tmp_path):
    spikes = SpikeConfig("rewind", window=4, least=2, sigma=6.0)
    rewound, result = train(tmp_path / "rewound", Poisoned({5}, 30.0, 12), spikes=spikes, checkpoint_every_steps=0)
    assert result.left_out == [(0, 6)]
    replayed, _ = train(tmp_path / "replayed", Points(12), left_out=[[0, 6]])
    assert_same(weights(rewound), weights(replayed))


def test_rewind_goes_back_as_far_as_asked(tmp_path):
    spikes = SpikeConfig("rewind", **SPIKES, rewind_steps=4)
    _, result = train(tmp_path, Poisoned({20}, 30.0), spikes=spikes, keep_checkpoints=4)
    assert result.left_out == [(15, 21)]


def test_rewinds_are_counted(tmp_path):
    spikes = SpikeConfig("rewind", **SPIKES, max_rewinds=1)
    with pytest.raises(Diverged, match="spike at step 30, and the run has gone back 1 times") as caught:
        train(tmp_path, Poisoned({20, 30}, 30.0), spikes=spikes)
    assert "\n" not in str(caught.value)


def test_steps_in_a_row_that_are_not_finite_rewind_too(tmp_path):
    spikes = SpikeConfig("rewind", **SPIKES)
    rewound, result = train(tmp_path / "rewound", Poisoned(range(20, 26), math.nan), spikes=spikes)
    assert result.left_out == [(24, 26)]  # four were left out as they came, the others by going back
    assert all(torch.isfinite(weight).all() for weight in weights(rewound).values())


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(0.5, 1.5) | st.sampled_from([9.0, 40.0, math.inf, math.nan]), min_size=1, max_size=60),
    st.integers(2, 6),
    st.integers(0, 6),
)
def test_guard_equals_a_plain_loop(losses, least, extra):
    config = SpikeConfig("skip_step", window=least + extra, least=least, sigma=3.0, in_row=4)
    guard, history, in_row, diverged = StepGuard(config), [], 0, None
    for step, loss in enumerate(losses):
        left_out = bool(guard.judge(torch.tensor(loss), torch.tensor(1.0), step))
        recent = history[-config.window :]
        expected = not math.isfinite(loss)
        if math.isfinite(loss):
            value = loss
            if len(recent) >= least:
                mean = sum(recent) / len(recent)
                deviation = math.sqrt(sum((x - mean) ** 2 for x in recent) / len(recent))
                height = mean + 3 * deviation + 1e-5 * mean
                if abs(loss - height) < 1e-3:
                    return  # too close for float32
                expected, value = loss > height, min(loss, height)
            history.append(value)
        assert left_out == expected
        in_row = in_row + 1 if expected else 0
        diverged = step if in_row == 4 and diverged is None else diverged
        assert guard.look().diverged_at == diverged


def test_a_new_level_begins_a_new_window():
    guard = StepGuard(SpikeConfig("skip_step", **SPIKES))
    for step in range(10):
        assert not guard.judge(torch.tensor(1.0 + 0.01 * (step % 3)), torch.tensor(1.0), step)
    assert guard.judge(torch.tensor(3.0), torch.tensor(1.0), 10)
    guard.forget()
    assert not guard.judge(torch.tensor(3.0), torch.tensor(1.0), 11)


def test_the_first_of_several_spikes_is_told():
    guard = StepGuard(SpikeConfig("rewind", **SPIKES))
    for step in range(14):
        guard.judge(torch.tensor(9.0 if step in (11, 13) else 1.0), torch.tensor(1.0), step)
    assert (guard.look().first_spike, guard.look().spikes) == (11, 2)


def test_gradient_norm_is_watched_too():
    guard = StepGuard(SpikeConfig("skip_step", **SPIKES))
    for step in range(10):
        guard.judge(torch.tensor(1.0), torch.tensor(0.5 + 0.01 * (step % 3)), step)
    assert guard.judge(torch.tensor(1.0), torch.tensor(5.0), 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": "rewnd"}, "trainer.spikes.policy 'rewnd'"),
        ({"least": 1}, "least = 1 must be 2 or more"),
        ({"window": 8}, "window = 8 no less than it"),
        ({"sigma": 0.0}, "sigma must exceed 0"),
        ({"max_rewinds": -1}, "max_rewinds = -1"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        SpikeConfig(**changes)


@pytest.mark.parametrize("span", [[3, 3], [-1, 2], [1]])
def test_spans_without_steps_are_refused(tmp_path, span):
    with pytest.raises(UserError, match=r"trainer.left_out"):
        train(tmp_path, left_out=[span])


def test_regression_learns_without_interference(tmp_path):
    plain, _ = train(tmp_path / "plain", Points(40))
    watched, _ = train(tmp_path / "watched", Points(40), Regression(), spikes=SpikeConfig("skip_step", **SPIKES))
    assert_same(weights(plain), weights(watched))


def test_a_window_that_nobody_filled_calls_nothing_a_spike():
    """A run goes on with another policy: what was not watched is not known."""
    idle = StepGuard(SpikeConfig("none", **SPIKES))
    for step in range(10):
        idle.judge(torch.tensor(1.0), torch.tensor(1.0), step)
    watching = StepGuard(SpikeConfig("skip_step", **SPIKES))
    watching.load_state_dict(idle.state_dict())
    assert not any(watching.judge(torch.tensor(1.0), torch.tensor(1.0), step) for step in range(10, 20))
    assert watching.judge(torch.tensor(9.0), torch.tensor(1.0), 20)


def test_killed_while_going_back_it_goes_back_once_more(tmp_path, monkeypatch):
    spikes = SpikeConfig("rewind", **SPIKES, rewind_steps=4)

    def run(folder):
        return train(folder, Poisoned({20}, 30.0), spikes=spikes, keep_checkpoints=4)

    straight, expected = run(tmp_path / "straight")
    for method in ("drop_after", "add"):
        owner = CheckpointStore if method == "drop_after" else LeftOut
        plain = getattr(owner, method)

        def then_killed(self, *args, plain=plain, **kwargs):
            plain(self, *args, **kwargs)
            raise Killed

        monkeypatch.setattr(owner, method, then_killed)
        with pytest.raises(Killed):
            run(tmp_path / method)
        monkeypatch.undo()
        resumed, result = run(tmp_path / method)
        assert result.left_out == expected.left_out, method
        assert_same(weights(straight), weights(resumed))
