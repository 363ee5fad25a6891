"""A tiny model with its tokenizer beside it, as a stage leaves them, and behind `herd serve`."""

import json
from pathlib import Path

import pytest

from herd.corpus.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from herd.dialog.messages import Message, Role
from herd.dialog.render import render
from herd.generation.choose import SamplingConfig
from herd.generation.engine import Engine
from herd.generation.sampler import generate
from herd.generation.service import Service
from herd.model.config import ModelConfig
from herd.model.io import load_model, save_model
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


CHAT = {"messages": [{"role": "user", "content": "what colour?"}], "max_tokens": 12, "seed": 5}


@pytest.fixture(scope="session")
def tokenizer(folder):
    return Tokenizer.load(folder / "tokenizer")


@pytest.fixture(scope="session")
def client(folder, tokenizer):
    """A client of the tiny model served; ``.engine`` is what draws."""
    testclient = pytest.importorskip("starlette.testclient", reason="needs the extra `serve`")
    from herd.generation.openai.app import Served, make_app

    engine = Engine(load_model(folder / "model").requires_grad_(False), 6, 512)
    served = Served("tiny/dpo", tokenizer, Service(engine), window=96, longest=20, hosts=("testserver", "localhost", "::1"))
    with testclient.TestClient(make_app(served), raise_server_exceptions=False) as client:
        client.engine = engine
        yield client


def events(response):
    """The objects of a stream."""
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def wanted(folder, tokenizer, body):
    """What the sampler gives for a chat: the prompt's ids, samples, and their texts."""
    dialog = [Message(Role[m["role"].upper()], m["content"]) for m in body["messages"]]
    ids = render(dialog, tokenizer, generation_prompt=True).tokens.tolist()
    sampling = SamplingConfig(body["max_tokens"], body.get("temperature", 1.0), body.get("top_p", 1.0), body["seed"])
    (samples,) = generate(load_model(folder / "model"), [ids], body.get("n", 1), sampling, tokenizer.stop_ids)
    return ids, samples, [tokenizer.decode(s.tokens, skip_special_tokens=True) for s in samples]
