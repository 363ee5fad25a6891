"""Training agrees with a plain loop over Hugging Face's model, step by step, from the exported weights."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="parity needs transformers (extra dev)")
ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "benchmarks/training"), str(ROOT / "tests/training")]

from agreement import trajectory  # noqa: E402
from pretrain_standin import VOCAB, config, write_corpus  # noqa: E402


@pytest.mark.parametrize("scaled", [False, True])
def test_fifty_steps_of_pretraining_have_the_losses_of_a_plain_loop(tmp_path, scaled):
    inputs = write_corpus(tmp_path / "corpus")
    scaling = {"factor": 4.0, "original_max_seq_len": 16} if scaled else None
    model = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 48, "vocab_size": VOCAB, "max_seq_len": 64}
    stage = {
        "schedule": {"kind": "cosine", "warmup_share": 0.1},
        "ramp": [{"start": 0.0, "batch": 0.5, "seq_len": 32}, {"start": 0.2, "batch": 1.0, "seq_len": 64}],
    }
    given = config(
        model=model | {"rope_scaling": scaling, "tie_embeddings": scaled},
        curriculum={"tokens": 256 * 45, "batch_tokens": 256, "stages": {"initial": stage}},
        trainer__log_every_steps=1,
        trainer__checkpoint_every_steps=1000,
    )
    found = trajectory(given, inputs, tmp_path)
    assert found["steps"] >= 50
    assert found["largest_relative_difference_of_loss"]["herd_against_transformers_sdpa"] < 1e-4
    first, last = found["first_and_last_loss"]["herd"]
    assert last < 0.8 * first  # it learnt, so the optimizers were at work
