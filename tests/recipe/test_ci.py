"""The laptop recipe's graph from raw pages to the report, on a few documents."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

COMMAND = [sys.executable, "-m", "herd.cli", "recipe", "recipe=ci"]
STAGES = 26


def run_ci(folder: Path) -> str:
    """Run the recipe to its end; what it printed."""
    done = subprocess.run(COMMAND, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


def made(folder: Path) -> dict[Path, int]:
    """Each finished stage's manifest -> when it was written."""
    return {path: path.stat().st_mtime_ns for path in (folder / "runs" / "store").glob("*/manifest.json")}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_whole_graph_runs_and_a_second_run_skips_it(tmp_path: Path) -> None:
    run_ci(tmp_path)
    run = tmp_path / "runs" / "ci"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["corpus"]["documents_in"] > summary["corpus"]["documents_out"] > 0
    assert set(summary["corpus"]["tokens_by_domain"]) == {"general", "maths", "code", "multilingual"}
    assert summary["tokenizer"]["vocab_size"] == 512
    assert summary["scaling"]["flagship"]["flops"] > 0
    assert 0 < summary["pretrain"]["loss"] < 6.2  # ln 512 is 6.24: better than guessing
    assert len(summary["rounds"]) == 2
    assert all(0 <= one["reward"]["interval"][0] <= one["reward"]["interval"][1] <= 1 for one in summary["rounds"])
    assert summary["peak_memory_bytes"] < 4 * 2**30
    assert len(summary["seconds_by_stage"]) == STAGES - 1
    assert "data:image/png" in (run / "report" / "index.html").read_text()
    before = made(tmp_path)
    said = run_ci(tmp_path)
    assert said.count("skipped") == STAGES, said
    assert made(tmp_path) == before


def digests(folder: Path) -> dict[str, dict[str, Any]]:
    """Stage's node and address -> the digest of each file it left, but for those that hold times, and a table without its."""
    found = {}
    for path in (folder / "runs" / "store").glob("*/manifest.json"):
        manifest = json.loads(path.read_text())
        if manifest["stage"] not in ("report", "scaling-sweep"):
            timed = ("metrics.jsonl", "results.json")
            outputs = {name: digest for name, digest in manifest["outputs"].items() if name not in timed}
            if manifest["stage"] == "scaling-fit":  # whose table says how long each cell took
                with (path.parent / "table.csv").open(newline="") as file:
                    outputs["table.csv"] = [row | {"seconds": ""} for row in csv.DictReader(file)]
            found[f"{manifest['node']} {manifest['address']}"] = outputs
    return found


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_again_and_again_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    """SIGKILL after 8, 9.2, 10.6 ... seconds until one attempt reaches the end."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    run_ci(whole)
    patience, kills = 8.0, 0
    while True:
        process = subprocess.Popen(
            COMMAND, cwd=broken, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            assert process.wait(timeout=patience) == 0
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            patience *= 1.15
            time.sleep(0.5)
    assert kills >= 3
    assert digests(broken) == digests(whole)
