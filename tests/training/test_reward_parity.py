"""Reward loss, gradient and metrics equal those of TRL's RewardTrainer on the same weights and rows."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="parity needs trl, which is no dependency")


def test_loss_gradient_and_metrics_are_trls() -> None:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "posttraining" / "reward_parity.py"
    spec = importlib.util.spec_from_file_location("reward_parity", path)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for case, found in script.compare().items():
        for row in ("separate", "block"):
            assert found[row]["loss_difference"] < 1e-5, case
            assert found[row]["gradient_difference_relative"] < 1e-5, case
            assert max(found[row]["metrics_difference"].values()) < 1e-5, case
