"""Stages: addressed by content, skipped when finished, whole or not there."""

import json
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from herd.config.errors import UserError
from herd.runs.lineage import lineage
from herd.runs.stage import Artifact, Inputs, Stage, StageRun, address_of, execute, stored, what_is_kept


@dataclass(frozen=True)
class Config:
    text: str = "a"
    seed: int = 0


CALLS: list[str] = []


def write(config: Config, inputs: Inputs, run: StageRun) -> dict:
    CALLS.append(config.text)
    (run.folder / "out.txt").write_text(config.text)
    (run.scratch / "checkpoint").write_text("x")
    run.cost(tokens=3, flops_6n=2.0)
    return {"length": len(config.text)}


def copy(config: Config, inputs: Inputs, run: StageRun) -> dict:
    text = (inputs["source"] / "out.txt").read_text()
    (run.folder / "copy.txt").write_text(text + config.text)
    return {}


WRITE = Stage("write", 1, Config, write, "writes")
COPY = Stage("copy", 1, Config, copy, "copies", inputs=("source",), groups=("more",))


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    CALLS.clear()


def test_finished_stage_is_skipped_and_a_change_makes_a_new_one(tmp_path: Path) -> None:
    first = execute(WRITE, Config("a"), {}, tmp_path, "run")
    again = execute(WRITE, Config("a"), {}, tmp_path, "other-run")
    other = execute(WRITE, Config("b"), {}, tmp_path, "run")
    assert CALLS == ["a", "b"]
    assert again.path == first.path != other.path
    assert (tmp_path / "run" / "write" / "out.txt").read_text() == "b"
    assert (tmp_path / "other-run" / "write" / "out.txt").read_text() == "a"


def test_version_seed_inputs_and_fingerprint_are_part_of_the_address(tmp_path: Path) -> None:
    outside = {"value": 1}
    watched = Stage("write", 1, Config, write, "", fingerprint=lambda config: outside)
    paths = {
        execute(WRITE, Config(), {}, tmp_path, "r").path,
        execute(WRITE, Config(seed=1), {}, tmp_path, "r").path,
        execute(Stage("write", 2, Config, write, ""), Config(), {}, tmp_path, "r").path,
        execute(watched, Config(), {}, tmp_path, "r").path,
    }
    outside["value"] = 2
    paths.add(execute(watched, Config(), {}, tmp_path, "r").path)
    sources = [execute(WRITE, Config(text), {}, tmp_path, "r").path for text in "xy"]
    paths |= {execute(COPY, Config(), {"source": source}, tmp_path, "r").path for source in sources}
    assert len(paths) == 7


def test_keys_that_say_how_to_compute_are_not_part_of_the_address(tmp_path: Path) -> None:
    hurried = Stage("write", 1, Config, write, "writes", execution=("seed",))
    first = execute(hurried, Config("a", seed=1), {}, tmp_path, "run")
    assert execute(hurried, Config("a", seed=2), {}, tmp_path, "run").path == first.path
    assert execute(hurried, Config("b", seed=1), {}, tmp_path, "run").path != first.path


def test_a_key_within_a_key_can_say_how_to_compute_too() -> None:
    def address(machine: dict[str, object], text: str = "a") -> str:
        stage = Stage("write", 1, dict, write, "writes", execution=("machine.workers", "machine.board.name"))
        return address_of(stage, {"text": text, "machine": machine}, Inputs({}, {}))

    plain = address({"workers": 1, "precise": True, "board": {"name": "a", "size": 1}})
    assert address({"workers": 2, "precise": True, "board": {"name": "b", "size": 1}}) == plain
    assert address({"workers": 1, "precise": False, "board": {"name": "a", "size": 1}}) != plain
    assert address({"workers": 1, "precise": True, "board": {"name": "a", "size": 2}}) != plain


def test_manifest_says_what_made_it(tmp_path: Path) -> None:
    artifact = execute(WRITE, Config("abc", seed=7), {}, tmp_path, "run", node="deep/er")
    manifest = artifact.manifest
    assert manifest["config"] == {"text": "abc", "seed": 7}
    assert manifest["metrics"] == {"length": 3} == artifact.metrics
    assert (manifest["cost"]["tokens"], manifest["cost"]["flops_6N"]) == (3, 2.0)
    assert manifest["seed"] == 7
    assert set(manifest["outputs"]) == {"out.txt"}
    assert manifest["outputs"]["out.txt"]["sha256"].startswith("ba7816bf")  # SHA-256 of "abc", FIPS 180-2 example
    assert manifest["peak_memory_bytes"] > 1e6
    assert not (artifact.path / ".scratch").exists()
    assert (tmp_path / "run" / "deep" / "er").resolve() == artifact.path


def test_failure_leaves_the_earlier_output_and_no_finished_folder(tmp_path: Path) -> None:
    def fail(config: Config, inputs: Inputs, run: StageRun) -> dict:
        (run.folder / "out.txt").write_text("half")
        raise UserError("broken")

    execute(WRITE, Config("good"), {}, tmp_path, "run")
    broken = Stage("write", 2, Config, fail, "")
    with pytest.raises(UserError, match="broken"):
        execute(broken, Config("bad"), {}, tmp_path, "run")
    assert (tmp_path / "run" / "write" / "out.txt").read_text() == "good"
    assert stored(broken, Config("bad"), {}, tmp_path) is None


def test_a_refusal_before_anything_was_made_leaves_no_folder(tmp_path: Path) -> None:
    def fail(config: Config, inputs: Inputs, run: StageRun) -> dict:
        if config.text == "late":
            (run.scratch / "checkpoint").write_text("x")
        raise UserError("waiting")

    def left() -> list[str]:
        return sorted(path.name for path in (tmp_path / "store").glob(".partial*"))

    for text, count in (("early", 0), ("late", 1)):
        with pytest.raises(UserError, match="waiting"):
            execute(Stage("write", 2, Config, fail, ""), Config(text), {}, tmp_path, "run")
        assert len(left()) == count


def _slow(config: Config, inputs: Inputs, run: StageRun) -> dict:
    seen = run.scratch / "starts"
    starts = int(seen.read_text()) + 1 if seen.exists() else 1
    seen.write_text(str(starts))
    if starts == 1:
        time.sleep(60)
    (run.folder / "out.txt").write_text(f"start {starts}")
    return {}


SLOW = Stage("slow", 1, Config, _slow, "")


def _run_slow(root: Path) -> None:
    execute(SLOW, Config(), {}, root, "run")


def test_killed_stage_finds_its_scratch_again(tmp_path: Path) -> None:
    child = multiprocessing.get_context("spawn").Process(target=_run_slow, args=(tmp_path,))
    child.start()
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("store/.partial-*/.scratch/starts")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(child.pid or 0, signal.SIGKILL)
    child.join()
    artifact = execute(SLOW, Config(), {}, tmp_path, "run")
    assert (artifact / "out.txt").read_text() == "start 2"


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "needs inputs.source"),
        ({"sauce": "x"}, "no input 'sauce'. Did you mean 'source'"),
        ({"source": "nowhere"}, "inputs.source: '.*nowhere' is no finished stage"),
        ({"source": "FIRST", "more": {"a": "nowhere"}}, "inputs.more.a: '.*nowhere' is no finished stage"),
        ({"source": {"a": "x"}}, "one folder, not a group"),
        ({"source": "FIRST", "more": "x"}, "is a group"),
    ],
)
def test_wrong_inputs_are_refused_in_one_line(tmp_path: Path, inputs: dict, message: str) -> None:
    first = execute(WRITE, Config(), {}, tmp_path, "run").path
    given = {name: str(first) if value == "FIRST" else value for name, value in inputs.items()}
    with pytest.raises(UserError, match=message):
        execute(COPY, Config(), given, tmp_path, "run")


def test_node_cannot_leave_the_run_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leaves the run folder"):
        execute(WRITE, Config(), {}, tmp_path, "run", node="../../elsewhere")


def test_damaged_manifest_is_named(tmp_path: Path) -> None:
    artifact = execute(WRITE, Config(), {}, tmp_path, "run")
    (artifact.path / "manifest.json").write_text('{"stage": ')
    with pytest.raises(UserError, match="damaged"):
        Artifact.open(artifact.path)


def test_lineage_names_every_stage_and_notices_a_change(tmp_path: Path) -> None:
    source = execute(WRITE, Config("s"), {}, tmp_path, "run")
    result = execute(COPY, Config("c"), {"source": source.path, "more": {"x": source.path}}, tmp_path, "run")
    lines = list(lineage(tmp_path / "run" / "copy" / "copy.txt"))
    assert "verified" in lines[0]
    assert lines[1].startswith("copy ")
    assert lines[2].startswith("  more.x: write ")
    assert lines[3].startswith("  source: write ")
    assert lines[3].endswith("(above)")
    (result.path / "copy.txt").write_text("tampered")
    assert "CHANGED" in next(lineage(result.path / "copy.txt"))
    with pytest.raises(UserError, match="no finished stage"):
        list(lineage(tmp_path))


def test_manifest_is_plain_json(tmp_path: Path) -> None:
    path = execute(WRITE, Config(), {}, tmp_path, "run") / "manifest.json"
    assert json.loads(path.read_text())["stage"] == "write"


def test_a_real_folder_in_the_link_s_place_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "run" / "write").mkdir(parents=True)
    with pytest.raises(UserError, match="not a link made by herd"):
        execute(WRITE, Config("a"), {}, tmp_path, "run")
    assert CALLS == []
    assert not (tmp_path / "store").exists()


def test_what_is_kept_of_a_stopped_stage_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("herd.runs.stage._unfinished", [])

    def stop(config: Config, inputs: Inputs, run: StageRun) -> dict:
        if config.text == "late":
            (run.scratch / "checkpoint").write_text("x")
        raise KeyboardInterrupt

    assert what_is_kept() == "the same command goes on from here"
    for text, told in (
        ("early", "write had not kept anything yet, the same command begins it again"),
        ("late", "what write has done is kept, the same command goes on from there"),
    ):
        with pytest.raises(KeyboardInterrupt):
            execute(Stage("write", 2, Config, stop, ""), Config(text), {}, tmp_path, "run")
        assert what_is_kept() == told
