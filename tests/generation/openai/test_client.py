"""OpenAI's own client (`pip install openai`) over a socket: what it reads, and what it raises."""

import asyncio

import pytest

from herd.generation.engine import Engine
from herd.generation.service import Service
from herd.model.io import load_model

from ..conftest import CHAT

openai = pytest.importorskip("openai", reason="needs OpenAI's client")


@pytest.fixture(scope="module")
def served(folder, tokenizer, listening):
    """(client, engine)."""
    from herd.generation.openai.app import Served, make_app

    engine = Engine(load_model(folder / "model").requires_grad_(False), 4, 1024)
    app = make_app(Served("tiny/dpo", tokenizer, Service(engine), window=96, longest=20))
    with listening(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client, engine


@pytest.fixture(scope="module")
def client(served):
    return served[0]


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny/dpo"]
    assert client.models.retrieve("tiny/dpo").object == "model"


def test_chats_whole_and_streamed(client):
    asked = CHAT | {"model": "tiny/dpo", "n": 2, "logprobs": True, "top_logprobs": 3}
    answer = client.chat.completions.create(**asked)
    texts, usage = ["", ""], None
    for chunk in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in answer.choices]
    assert usage == answer.usage and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert all(len(token.top_logprobs) == 3 for choice in answer.choices for token in choice.logprobs.content)


def test_texts_and_ids(client):
    answer = client.completions.create(model="tiny/dpo", prompt=[[5, 6], [7]], max_tokens=3, seed=1, logprobs=2, echo=True)
    assert [choice.logprobs.token_logprobs[0] for choice in answer.choices] == [None, None]
    assert all(len(choice.logprobs.top_logprobs[-1]) in (2, 3) for choice in answer.choices)


def test_refusals_are_its_exceptions(client):
    with pytest.raises(openai.NotFoundError, match="There is no model 'gpt' here, only 'tiny/dpo'"):
        client.chat.completions.create(model="gpt", messages=CHAT["messages"])
    with pytest.raises(openai.BadRequestError, match="`response_format` is not offered here") as refused:
        client.chat.completions.create(**CHAT, model="tiny/dpo", response_format={"type": "json_object"})
    assert (refused.value.param, refused.value.type) == ("response_format", "invalid_request_error")
    with pytest.raises(openai.NotFoundError, match="base_url ends in /v1"):
        client.with_options(base_url=str(client.base_url).replace("/v1", "")).models.list()


def test_who_closes_a_stream_or_has_no_patience_leaves_nothing(served, monkeypatch):
    client, engine = served
    step, drawn = engine.step, []

    def counting():
        found = step()
        drawn.append(len(found))
        return found

    monkeypatch.setattr(engine, "step", counting)
    long = CHAT | {"model": "tiny/dpo", "n": 100, "max_tokens": 60}
    stream = client.chat.completions.create(**long, stream=True)
    next(iter(stream))
    stream.close()
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.1).chat.completions.create(**long)
    asyncio.run(asyncio.wait_for(_quiet(engine), 10))
    assert sum(drawn) < 100 * 60  # of twice as many asked for


async def _quiet(engine):
    while engine.busy or engine.pool.used:
        await asyncio.sleep(0.01)
