"""A tiny model with its tokenizer beside it, as a stage leaves them."""

from pathlib import Path

import pytest

from herd.corpus.tokenizer import TokenizerConfig, train_tokenizer
from herd.model.config import ModelConfig
from herd.model.io import save_model
from herd.model.transformer import Transformer


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``model`` and ``tokenizer``; 96 positions."""
    folder = tmp_path_factory.mktemp("generate")
    config = TokenizerConfig(vocab_size=320, special_tokens=16, training_characters=1000, fill_with_reserved=True)
    tokenizer = train_tokenizer(["assistant user \n\n what colour is it " * 4], config)
    tokenizer.save(folder / "tokenizer")
    shape = ModelConfig(dim=16, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=32, vocab_size=320, max_seq_len=96)
    model = Transformer(shape).requires_grad_(False)
    for weight in (model.tok_embeddings.weight, model.output.weight):
        weight.mul_(3)
    save_model(model, folder / "model")
    return folder
