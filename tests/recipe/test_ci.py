"""The laptop recipe's graph from raw pages to the report, on a few documents."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(600)
def test_the_whole_graph_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "herd.cli", "recipe", "recipe=ci"]
    first = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr[-2000:]
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
    assert len(summary["seconds_by_stage"]) == 23
    assert "data:image/png" in (run / "report" / "index.html").read_text()
