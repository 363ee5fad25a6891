"""Atomic files, metrics lines, named random streams."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.runs.atomic import sha256_file, write_bytes, write_json
from herd.runs.metrics import MetricsWriter, read_metrics
from herd.runs.seeds import stream, torch_seed


def test_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_json_refuses_nan_and_sorts_keys(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": 2})
    write_json(tmp_path / "b.json", {"a": 2, "b": 1})
    assert sha256_file(tmp_path / "a.json") == sha256_file(tmp_path / "b.json")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "c.json", {"x": float("nan")})


def test_metrics_survive_a_half_written_line_and_are_cut_at_the_checkpoint(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    for step in range(5):
        writer.write({"step": step, "loss": float("inf") if step == 4 else step / 2})
    with open(writer.path, "a") as file:
        file.write('{"step": 5, "lo')
    assert [row["step"] for row in read_metrics(writer.path)] == [0, 1, 2, 3, 4]
    writer.truncate_after("step", 2)
    writer.write({"step": 3, "loss": 1.0})
    assert [row["step"] for row in read_metrics(writer.path)] == [0, 1, 2, 3]


@given(st.integers(0, 2**40), st.text(max_size=8), st.text(max_size=8))
def test_streams_depend_on_seed_and_every_name(seed: int, a: str, b: str) -> None:
    draw = stream(seed, a, b).integers(0, 2**62, 4)
    assert np.array_equal(draw, stream(seed, a, b).integers(0, 2**62, 4))
    assert not np.array_equal(draw, stream(seed + 1, a, b).integers(0, 2**62, 4))
    assert not np.array_equal(draw, stream(seed, a, b, "more").integers(0, 2**62, 4))
    assert 0 <= torch_seed(seed, a, b) < 2**63
