"""Rows of metrics on a full disk: none is lost, none is half-written, one line says so."""

import errno
import resource

import pytest
from training_standin import Child, Killed, kill_at, timeless, train

from herd.config.errors import UserError
from herd.runs.metrics import MetricsWriter, read_metrics


@pytest.fixture
def full_disk(monkeypatch):
    """A set of steps whose rows find no room."""
    steps: set[int] = set()
    plain = MetricsWriter.write

    def write(self, row):
        if row["step"] in steps:
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(self, row)

    monkeypatch.setattr(MetricsWriter, "write", write)
    return steps


def test_a_row_that_does_not_fit_leaves_nothing(tmp_path):
    def work(tick):
        writer = MetricsWriter(tmp_path / "metrics.jsonl")
        writer.write({"step": 1, "text": "short"})
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))  # part of the next row fits
        with pytest.raises(OSError, match=r"File too large|No space"):
            writer.write({"step": 2, "text": "x" * 200})
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        writer.write({"step": 3, "text": "after"})

    assert Child(work).end() == 0
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 3]


def test_rows_wait_for_room(tmp_path, full_disk, capsys, monkeypatch):
    train(tmp_path / "straight", log_every_steps=1)
    full_disk.add(4)
    tries = []
    plain = MetricsWriter.write

    def write(self, row):
        tries.append(row["step"])
        if tries.count(4) == 5:
            full_disk.clear()  # room, when the row of step 8 comes
        plain(self, row)

    monkeypatch.setattr(MetricsWriter, "write", write)
    train(tmp_path / "full", log_every_steps=1)
    assert timeless(tmp_path / "full") == timeless(tmp_path / "straight")
    lines = [line for line in capsys.readouterr().err.splitlines() if "could not be written" in line]
    assert len(lines) == 1 and "(No space left on device): training goes on" in lines[0]


def test_rows_that_wait_survive_a_kill(tmp_path, full_disk):
    train(tmp_path / "straight", log_every_steps=1)
    full_disk.update(range(5, 13))
    with pytest.raises(Killed):
        train(tmp_path / "full", log_every_steps=1, callbacks=[kill_at(10)])
    assert len(read_metrics(tmp_path / "full/metrics.jsonl")) == 4
    full_disk.clear()
    _, result = train(tmp_path / "full", log_every_steps=1)
    assert result.resumed_at == 9
    assert timeless(tmp_path / "full") == timeless(tmp_path / "straight")


def test_a_disk_that_stays_full_ends_the_run_in_one_line(tmp_path, full_disk):
    train(tmp_path / "straight")
    full_disk.add(12)
    with pytest.raises(UserError, match=r"1 rows of metrics could not be written .*No space left on device") as caught:
        train(tmp_path / "full")
    assert "\n" not in str(caught.value)
    full_disk.clear()
    _, result = train(tmp_path / "full")
    assert result.resumed_at == 12
    assert timeless(tmp_path / "full") == timeless(tmp_path / "straight")
