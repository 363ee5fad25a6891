"""Asked to stop: a checkpoint, a message, an exit code that a job script can read, and the same command goes on."""

import errno
import os
import signal
import time

import pytest
import pytorch_lightning as pl
from training_standin import Child, Points, assert_same, train, weights

from herd.training.checkpoint import CheckpointStore, step_of


@pytest.fixture(autouse=True)
def ctrl_c_is_heard():
    """A shell starts what it puts in the background deaf to Ctrl-C, and so these tests, and their children, where they are."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def slow_run(folder):
    def work(tick):
        class Slow(pl.Callback):
            def on_train_batch_end(self, *args):
                tick()
                time.sleep(0.02)

        train(folder, Points(steps=200), callbacks=[Slow()], checkpoint_every_steps=50)

    return work


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_signal_saves_and_exits_and_the_same_command_goes_on(tmp_path, capfd, number, code):
    child = Child(slow_run(tmp_path / "stopped"))
    assert child.wait_for(5) == 5
    os.kill(child.process.pid, number)
    assert child.end() == code
    message = capfd.readouterr().err
    stopped = int(message.split(f"Stopped by {number.name} after ")[1].split()[0])
    assert "goes on from there" in message
    newest = CheckpointStore(tmp_path / "stopped/.scratch/checkpoints").newest()
    assert newest is not None
    assert step_of(newest) == stopped < 200
    straight, _ = train(tmp_path / "straight", Points(steps=200))
    resumed, result = train(tmp_path / "stopped", Points(steps=200))
    assert result.resumed_at == stopped
    assert_same(weights(straight), weights(resumed))


def test_a_signal_on_a_full_disk_says_where_it_goes_on(tmp_path, capfd):
    def work(tick):
        plain = CheckpointStore.save

        def full(self, state, step):
            if step != 50:
                raise OSError(errno.ENOSPC, "No space left on device")
            return plain(self, state, step)

        class Signal(pl.Callback):
            def on_train_batch_end(self, trainer, *args):
                if trainer.global_step == 60:
                    os.kill(os.getpid(), signal.SIGTERM)

        CheckpointStore.save = full  # in the child alone
        train(tmp_path, Points(steps=200), callbacks=[Signal()], checkpoint_every_steps=50)

    assert Child(work).end() == 143
    message = capfd.readouterr().err
    assert "goes on from step 50, the newest checkpoint" in message
    assert len([line for line in message.splitlines() if "could not be written" in line]) == 1


def test_the_second_ctrl_c_ends_the_run_at_once_and_the_next_one_is_heard_again(tmp_path):
    class Impatient(pl.Callback):
        def on_train_batch_start(self, trainer, *args):
            if trainer.global_step == 5:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, callbacks=[Impatient()])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert step_of(CheckpointStore(tmp_path / ".scratch/checkpoints").files()[0]) == 3


def test_a_signal_that_is_to_be_ignored_stays_so(tmp_path):
    class Signal(pl.Callback):
        def on_train_batch_start(self, trainer, *args):
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _, result = train(tmp_path, callbacks=[Signal()])
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.steps == 12
