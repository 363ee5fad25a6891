"""A small corpus as token shards, and a pre-training configuration with all three stages, for the tests."""

from pathlib import Path

import numpy as np

from herd.config.loader import from_dict
from herd.corpus.shard_writer import ShardSetWriter
from herd.runs.atomic import write_json
from herd.runs.stage import Artifact, Inputs
from herd.training.pretrain_stage import PretrainConfig

VOCAB, PAD, BOS, EOS = 48, 45, 46, 47


def write_corpus(folder: Path) -> Inputs:
    """Shards of two domains, each a noisy cycle through the vocabulary with its own stride: easy to learn, not
    trivial.
    """
    random = np.random.default_rng(7)
    token_bytes = np.array([1 + i % 3 for i in range(VOCAB - 3)] + [0, 0, 0], dtype=np.int32)
    with ShardSetWriter(folder / "tokens", token_bytes, PAD) as writer:
        for split, documents in (("train", 120), ("heldout", 12)):
            for domain, stride in (("general", 1), ("code", 7)):
                for i in range(documents):
                    length = int(random.integers(3, 90))
                    jumps = random.random(length) < 0.15
                    moves = np.where(jumps, random.integers(0, VOCAB - 3, length), stride)
                    tokens = [BOS, *(np.cumsum(moves) % (VOCAB - 3)).tolist(), EOS]
                    text = "x" * int(token_bytes[tokens].sum())
                    writer.add(split, domain, [f"{split}-{domain}-{i}"], [tokens], [text])
        writer.close()
    return Inputs({"tokens": Artifact(folder, {"stage": "tokenize"})}, {})


def finished_corpus(folder: Path) -> Path:
    """:func:`write_corpus` as a stage's folder on disk."""
    write_corpus(folder)
    write_json(folder / "manifest.json", {"stage": "tokenize", "address": "corpus", "metrics": {}, "outputs": {}})
    return folder


def config(**changes) -> PretrainConfig:
    """About 50 steps: a ramp, a longer length with scaled RoPE, annealing with an average. ``a.b=value`` as
    ``a__b=value``.
    """
    values = {
        "model": {
            "dim": 16,
            "n_layers": 2,
            "n_heads": 2,
            "n_kv_heads": 1,
            "ffn_dim": 32,
            "vocab_size": 0,
            "max_seq_len": 32,
        },
        "curriculum": {
            "tokens": 8192,
            "batch_tokens": 256,
            "stages": {
                "initial": {
                    "schedule": {"kind": "cosine", "warmup_share": 0.1},
                    "ramp": [{"start": 0.0, "batch": 0.5, "seq_len": 16}, {"start": 0.25, "batch": 1.0, "seq_len": 32}],
                },
                "long": {
                    "share": 0.12,
                    "schedule": {"kind": "constant", "start": 0.1},
                    "ramp": [{"batch": 1.0, "seq_len": 64}],
                    "rope_scaling": {"factor": 2.0, "original_max_seq_len": 32},
                },
                "annealing": {
                    "share": 0.2,
                    "schedule": {"kind": "linear", "start": 0.1, "final": 0.0},
                    "ramp": [{"batch": 1.0, "seq_len": 64}],
                    "mix": {"general": 0.3, "code": 0.7},
                    "average_checkpoints": 3,
                },
            },
        },
        "optimizer": {"lr": 2e-2},
        "mix": {"weights": {"general": 0.6, "code": 0.4}},
        # Micro-batches of five rows and three in the long phase of the initial stage; no garbage collection, which takes longer
        # here than ten steps.
        "trainer": {"micro_batch_tokens": 160, "checkpoint_every_steps": 7, "log_every_steps": 4, "gc_every_steps": 0},
        "eval_tokens": 400,
        "eval_seq_len": 32,
    }
    for path, value in changes.items():
        node = values
        *parents, last = path.split("__")
        for parent in parents:
            node = node[parent]
        node[last] = value
    return from_dict(PretrainConfig, values)
