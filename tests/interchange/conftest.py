"""A tokenizer, models with layers that matter, and a run that holds them, for the tests of exchange with others."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from herd.corpus.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from herd.model.config import ModelConfig, RopeScaling
from herd.model.heads import RewardModel
from herd.model.io import save_model
from herd.model.transformer import Transformer

TEXTS = ["assistant user system ipython \n\n x\n\n\n what colour is it, and why? def f(x): return x " * 4]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    config = TokenizerConfig(vocab_size=320, special_tokens=16, training_characters=1000, fill_with_reserved=True)
    return train_tokenizer(TEXTS, config)


MakeModel = Callable[..., Transformer]


@pytest.fixture(scope="session")
def make_model(tokenizer: Tokenizer) -> MakeModel:
    """Random weights away from initialisation: norms apart from 1, layers that change the logits."""
    shape = ModelConfig(
        dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=48, vocab_size=tokenizer.vocab_size, max_seq_len=256,
        rope_scaling=RopeScaling(factor=4.0, original_max_seq_len=32),
    )  # fmt: skip

    def make(seed: int = 0, **changes: object) -> Transformer:
        model = Transformer(replace(shape, **changes)).requires_grad_(False)
        model.init_weights(seed)
        generator = torch.Generator().manual_seed(seed)
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.copy_(torch.rand(weight.shape, generator=generator) + 0.5)
            elif name.endswith(("wo.weight", "w2.weight")):
                weight.mul_(20)
        return model

    return make


@pytest.fixture
def run(tmp_path: Path, tokenizer: Tokenizer, make_model: MakeModel) -> Path:
    """``runs/one`` as stages leave it: a tokenizer, a model that was trained with it, and a reward model."""
    store = tmp_path / "runs/store"
    (tmp_path / "runs/one").mkdir(parents=True)
    tokenizer.save(store / "tokenize-0/tokenizer")
    save_model(make_model(tie_embeddings=True), store / "pretrain-0/model")
    save_model(RewardModel(make_model(1, tie_embeddings=True)), store / "reward-0/model")
    inputs = {
        "tokenize": {},
        "pretrain": {"tokens": "tokenize-0"},
        "reward": {"base": "pretrain-0", "preferences": {"round-1": "gone"}},
    }
    for i, (stage, of_stage) in enumerate(inputs.items()):
        manifest = {
            "stage": stage,
            "inputs": of_stage,
            "finished": f"2026-01-0{i + 1}T00:00:00+00:00",
            "address": stage,
            "outputs": {},
        }
        (store / f"{stage}-0/manifest.json").write_text(json.dumps(manifest))
        (tmp_path / "runs/one" / stage).symlink_to(f"../store/{stage}-0")
    return tmp_path / "runs/one"
