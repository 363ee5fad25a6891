"""Checkpoints: damage is named, the right ones stay, a full disk ends nothing, a thread writes the same as the step itself."""

import errno
import time

import pytest
import torch
from training_standin import Killed, Regression, assert_same, kill_at, timeless, train, weights

from herd.config.errors import UserError
from herd.training import checkpoint as checkpoint_module
from herd.training.checkpoint import CheckpointStore, score_of, step_of
from herd.training.checkpoint_io import Snapshot, StoreIO


def checkpoints(folder) -> CheckpointStore:
    return CheckpointStore(folder / ".scratch/checkpoints")


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_damaged_newest_checkpoint_is_named_and_the_one_before_used(tmp_path, capsys, damage):
    straight, _ = train(tmp_path / "straight")
    with pytest.raises(Killed):
        train(tmp_path / "killed", callbacks=[kill_at(11)])
    newest, before = checkpoints(tmp_path / "killed").files()
    content = newest.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    newest.write_bytes({"truncate": content[:middle], "flip": flipped, "empty": b""}[damage])
    resumed, result = train(tmp_path / "killed")
    assert newest.name in capsys.readouterr().err
    assert result.resumed_at == step_of(before) == 6
    assert_same(weights(straight), weights(resumed))


def another_shape(shape):
    def damage(state):
        state[0]["exp_avg"] = torch.zeros(shape)

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        # The fused kernel would read past their end.
        (another_shape((1,)), r"model\.0\.weight has exp_avg of shape .* where \(8, 4\)"),
        (another_shape((8, 5)), r"model\.0\.weight has exp_avg of shape .* where \(8, 4\)"),
        # They would begin at zero again, in the midst of a run.
        (lambda state: state.pop(1), r"the optimizer's state of model\.2\.weight has no step"),
    ],
    ids=["one number", "wider", "missing"],
)
def test_moments_that_do_not_fit_are_refused_before_the_first_step(tmp_path, damage, message):
    """Such a file is whole: its name carries its hash."""
    with pytest.raises(Killed):
        train(tmp_path, callbacks=[kill_at(7)])
    store = checkpoints(tmp_path)
    state = torch.load(store.files()[0], weights_only=True)
    damage(state["optimizer_states"][0]["state"])
    store.save(state, 6)
    module = Regression()
    with pytest.raises(UserError, match=f"step-00000006.* {message}") as caught:
        train(tmp_path, module=module)
    assert not module.steps_seen and "\n" not in str(caught.value)


def test_a_run_that_begins_by_leaving_steps_out_is_resumed(tmp_path):
    """No gradient yet, and yet a state of the optimizer."""
    left_out = [[0, 4]]
    straight, _ = train(tmp_path / "straight", left_out=left_out)
    with pytest.raises(Killed):
        train(tmp_path / "killed", left_out=left_out, callbacks=[kill_at(4)])
    resumed, result = train(tmp_path / "killed", left_out=left_out)
    assert result.resumed_at == 3
    assert_same(weights(straight), weights(resumed))


def test_only_the_newest_checkpoints_stay(tmp_path):
    train(tmp_path)
    assert [step_of(path) for path in checkpoints(tmp_path).files()] == [12, 9]
    assert not list((tmp_path / ".scratch/checkpoints").glob(".*"))


def test_permanent_ones_and_the_best_stay_besides(tmp_path):
    store = CheckpointStore(tmp_path, keep=1, best=2, permanent_every=4)
    losses = {1: 5.0, 2: 3.0, 3: 4.0, 5: 3.5, 6: float("nan"), 7: 1e-7}
    store.scores.update(losses)
    for step in range(1, 10):
        store.save({"global_step": step}, step)
    kept = {step_of(path): score_of(path) for path in store.files()}
    assert kept == {9: None, 8: None, 7: 1e-7, 4: None, 2: 3.0}
    assert all(store.is_whole(path) for path in store.files())


def test_of_equally_good_ones_the_newest_stays(tmp_path):
    store = CheckpointStore(tmp_path, keep=1, best=1, regular=lambda step: False)
    store.scores.update({1: 3.0, 2: 3.0})
    for step in (1, 2, 3):
        store.save({}, step)
    assert [step_of(path) for path in store.files()] == [3, 2]


def test_the_newest_that_a_run_may_go_back_to_stays(tmp_path):
    store = CheckpointStore(tmp_path, keep=2, regular=lambda step: step % 10 == 0)
    for step in (10, 20, 21, 22, 23):
        store.save({}, step)
    assert [step_of(path) for path in store.files()] == [23, 22, 20]
    assert step_of(store.newest(22)) == 20


def test_best_checkpoint_of_a_fit_carries_its_loss(tmp_path):
    import pytorch_lightning as pl

    class Evaluate(pl.Callback):
        def on_train_batch_end(self, trainer, module, *rest):
            if trainer.global_step in (3, 6):
                module.report({"eval_loss": trainer.global_step / 2})

    train(tmp_path, callbacks=[Evaluate()], keep_checkpoints=1, keep_best=1)
    assert [(step_of(path), score_of(path)) for path in checkpoints(tmp_path).files()] == [(12, None), (3, 1.5)]


def test_thread_and_step_write_the_same(tmp_path):
    for name, background in (("thread", True), ("step", False)):
        train(tmp_path / name, checkpoint_async=background)
    assert timeless(tmp_path / "thread") == timeless(tmp_path / "step")
    pairs = [checkpoints(tmp_path / name).files() for name in ("thread", "step")]
    for one, other in zip(*pairs, strict=True):
        a, b = (torch.load(path, weights_only=True) for path in (one, other))
        for state in (a, b):  # seconds of training
            del state["callbacks"]["LogMetrics"]
        assert_equal(a, b)


def assert_equal(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        assert a == b


def test_snapshot_does_not_follow_training():
    weight, nested = torch.zeros(3), {"sums": [torch.ones(2)], "count": 1}
    snapshot = Snapshot()
    first = snapshot.take({"weight": weight, **nested})
    weight += 1
    nested["sums"].append(torch.ones(2))
    assert first["weight"].tolist() == [0, 0, 0]
    assert len(first["sums"]) == 1
    again = snapshot.take({"weight": weight, **nested})
    assert again["weight"].data_ptr() == first["weight"].data_ptr()  # the same pages
    assert again["weight"].tolist() == [1, 1, 1]


def test_snapshot_keeps_each_tensor_apart_and_in_its_own_type():
    snapshot = Snapshot()
    pairs = snapshot.take({"pairs": [(torch.zeros(2), torch.ones(2)), (torch.full((2,), 2.0), torch.full((2,), 3.0))]})["pairs"]
    assert [[tensor[0].item() for tensor in pair] for pair in pairs] == [[0, 1], [2, 3]]
    wider = snapshot.take({"pairs": [(torch.full((2,), 1 / 3, dtype=torch.float64), torch.ones(2))]})["pairs"]
    assert wider[0][0].dtype == torch.float64 and wider[0][0][0].item() == 1 / 3


class FullDisk:
    """A file that takes so many bytes and then has no room."""

    def __init__(self, file, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data)


@pytest.mark.parametrize("background", [True, False])
def test_a_full_disk_is_one_line_and_the_checkpoint_before_it_stays(tmp_path, monkeypatch, capsys, background):
    straight, _ = train(tmp_path / "straight")
    plain = checkpoint_module._Hashing.__init__

    def full(self, file):
        plain(self, file if "00000003" in file.name else FullDisk(file, 900))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module._Hashing, "__init__", full)
        finished, _ = train(tmp_path / "full", checkpoint_async=background)
    assert_same(weights(straight), weights(finished))  # training went on
    lines = [line for line in capsys.readouterr().err.splitlines() if "could not be written" in line]
    assert len(lines) == 3
    assert "step 6" in lines[0] and "No space left on device): the one of step 3 stays" in lines[0]
    store = checkpoints(tmp_path / "full")
    assert [step_of(path) for path in store.files()] == [3]
    assert not list(store.folder.glob(".*"))  # nothing half-written
    resumed, result = train(tmp_path / "full")
    assert result.resumed_at == 3
    assert_same(weights(straight), weights(resumed))


def test_a_damaged_one_that_another_rank_has_set_aside_is_passed_over(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path)
    for step in (1, 2):
        store.save({}, step)
    newest, before = store.files()
    plain = CheckpointStore.is_whole

    def is_whole(self, path):
        if path == newest:
            path.unlink()
        return plain(self, path)

    monkeypatch.setattr(CheckpointStore, "is_whole", is_whole)
    assert store.newest() == before


def test_a_fault_of_the_program_while_writing_ends_the_run(tmp_path, monkeypatch):
    def save(self, state, step):
        raise RuntimeError("no such format")

    monkeypatch.setattr(CheckpointStore, "save", save)
    with pytest.raises(RuntimeError, match="no such format"):
        train(tmp_path)


def test_a_checkpoint_waits_for_the_one_before_it(tmp_path, monkeypatch):
    """They share the buffers of the copy."""
    written = {}

    def save(self, state, step):
        time.sleep(0.05)
        written[step] = state["weight"].item()

    monkeypatch.setattr(CheckpointStore, "save", save)
    writer = StoreIO(CheckpointStore(tmp_path), background=True)
    for step in (1, 2):
        writer.save_checkpoint({"global_step": step, "weight": torch.tensor(float(step))}, "")
    writer.finish()
    assert written == {1: 1.0, 2: 2.0}
