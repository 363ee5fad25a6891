"""Clients that go away: what they asked for is drawn no longer, wherever in its way it is, and nobody else notices."""

import asyncio
import json

import pytest

from herd.generation.choose import SamplingConfig
from herd.generation.engine import Engine, Request
from herd.generation.service import Service
from herd.model.io import load_model

from ..conftest import CHAT

pytest.importorskip("starlette", reason="needs the extra `serve`")


class Visit:
    """One request to an app, of a client that can leave."""

    def __init__(self, app, body):
        self.left, self.sent, self.answered = asyncio.Event(), [], asyncio.Event()
        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": [], "query_string": b""}
        self._body = [{"type": "http.request", "body": json.dumps(body).encode()}]
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self):
        if self._body:
            return self._body.pop()
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message):
        self.sent.append(message)
        if message.get("body"):
            self.answered.set()

    @property
    def status(self):
        return self.sent[0]["status"]


@pytest.fixture
def served(folder, tokenizer):
    """An app whose engine draws two answers at a time, never ends one by itself, and notes whose tokens it drew."""
    from herd.generation.openai.app import Served, make_app

    engine = Engine(load_model(folder / "model").requires_grad_(False), 2, 1024)
    engine.noted, step = [], engine.step

    def noting():
        drawn = step()
        engine.noted += [d.request for d in drawn]
        return drawn

    engine.step = noting
    tokenizer.stop_ids, kept = (), tokenizer.stop_ids
    engine.service = service = Service(engine)
    yield make_app(Served("tiny", tokenizer, service, 96, 64)), engine
    service.close()
    tokenizer.stop_ids = kept


async def settled(engine):
    for _ in range(500):
        if not engine.busy:
            break
        await asyncio.sleep(0.01)
    assert not engine.busy and engine.pool.used == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("when", ["waiting", "drawn"])
def test_who_leaves_is_drawn_no_longer(served, stream, when):
    app, engine = served

    async def visit():
        body = CHAT | {"max_tokens": 60, "stream": stream}
        stays = Visit(app, body | {"n": 2, "seed": 1})
        leaves = Visit(app, body | {"n": 2 if when == "waiting" else 30, "seed": 2})
        if when == "drawn":
            await (leaves.answered.wait() if stream else stays.task)
        else:
            await asyncio.sleep(0.02)
        leaves.left.set()
        await asyncio.wait_for(leaves.task, 10)
        await asyncio.wait_for(stays.task, 10)
        await settled(engine)
        return stays, leaves

    stays, leaves = asyncio.run(visit())
    assert stays.status == 200
    assert leaves.status == (200 if stream and when == "drawn" else 499)
    mine = engine.noted.count(2)
    assert mine == 0 if when == "waiting" else mine < 30 * 60


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_stops_tells_those_who_wait(served, stream):
    app, engine = served

    async def visit():
        visits = [Visit(app, CHAT | {"max_tokens": 60, "n": 40, "stream": stream}) for _ in range(2)]
        if stream:
            await visits[0].answered.wait()
        else:
            await asyncio.sleep(0.02)
        await asyncio.to_thread(engine.service.close)
        late = Visit(app, CHAT)
        await asyncio.wait_for(asyncio.gather(*(visit.task for visit in (*visits, late))), 10)
        return *visits, late

    first, second, late = asyncio.run(visit())
    assert (first.status, second.status, late.status) == (200 if stream else 503, 503, 503)
    for visit in (first, second, late):
        assert b"The server is being stopped." in b"".join(message.get("body", b"") for message in visit.sent)


def test_who_leaves_before_the_engine_hears_of_it_leaves_nothing(folder):
    engine = Engine(load_model(folder / "model").requires_grad_(False), 2, 1024)
    service, heard = Service(engine), []
    asked = Request((1, 2), 1, SamplingConfig(max_new_tokens=3), frozenset())
    with service._changed:  # the engine's thread waits
        future = service.submit([asked], heard.append)
        assert future.cancel()
    later = service.submit([asked], heard.append)
    assert later.result(10) == [1]  # the engine has seen one request, and its thread lives
    service.close()


def test_of_several_requests_all_or_none_are_taken(folder):
    from herd.config.errors import UserError

    engine = Engine(load_model(folder / "model").requires_grad_(False), 2, 1024)
    service = Service(engine)
    sampling = SamplingConfig(max_new_tokens=3)
    asked = [Request((1, 2), 2, sampling, frozenset()), Request((1,) * 99, 2, sampling, frozenset())]
    with pytest.raises(UserError, match="Prompt 1: the prompt has 99 tokens"):
        service.submit(asked, lambda event: None).result(10)
    service.close()
    assert not engine.busy and engine.pool.used == 0
