"""DPO and SFT against TRL's trainers, same tiny weights and rows: benchmarks/posttraining/parity.py as a test."""

import importlib.util
import sys
from importlib import import_module
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # TRL takes half a minute to import
if importlib.util.find_spec("trl") is None or importlib.util.find_spec("datasets") is None:
    pytest.skip("parity needs trl, datasets and accelerate", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "posttraining"))
parity = import_module("parity")


@pytest.mark.parametrize("name", parity.AGREEING)
def test_loss_log_probabilities_and_metrics_are_trls(name):
    differences = parity.dpo_difference(parity.AGREEING[name])
    assert max(differences.values()) < 1e-5, differences


def test_logits_and_the_sft_loss_are_trls():
    assert parity.logits_difference() < 1e-5
    assert parity.sft_difference() < 1e-5


def test_what_differs_on_purpose_differs_by_what_was_meant():
    for case, (ours, theirs, unexplained) in ((c, v.values()) for c, v in parity.on_purpose().items()):
        assert abs(ours - theirs) > 1e-3, case
        assert unexplained < 1e-5, case
