"""Sampling from a server: vLLM's shapes in, samples out; everything else is refused in one line."""

import asyncio
import importlib.util
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from herd.config.errors import UserError
from herd.generation.choose import SamplingConfig
from herd.generation.engines.config import EngineConfig
from herd.generation.sampler import Asked, Sample

pytest.importorskip("httpx", reason="needs the extra `serve`")

from herd.generation.engines import server_sampler
from herd.generation.engines.server_sampler import ServerSampler, answers, base_of

spec = importlib.util.spec_from_file_location("vllm_stub", Path(__file__).with_name("vllm_stub.py"))
vllm_stub = importlib.util.module_from_spec(spec)
spec.loader.exec_module(vllm_stub)

SAMPLING = SamplingConfig(max_new_tokens=8, temperature=0.7, top_p=0.9, seed=3, top_k=20)
PROMPTS = [[1, 5, 6], [1, 7], [1, 5, 6, 8]]


@pytest.fixture
def stub():
    """Makes stubs, each with its own turn; ended with the test."""
    made = []

    def make(turn=None):
        server = vllm_stub.VllmStub(turn=turn)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        made.append(server)
        return server

    yield make
    for server in made:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Seconds that were waited for between attempts."""
    waited, sleep = [], asyncio.sleep

    async def at_once(seconds):
        waited.append(seconds)
        await sleep(0)

    monkeypatch.setattr(server_sampler.asyncio, "sleep", at_once)
    return waited


def sampler_of(server, vocab_size=100, **settings):
    config = EngineConfig(kind="server", url=server.url, **settings)
    return ServerSampler(server.url, config.model, vocab_size, config)


def test_samples_are_what_vllm_drew_stop_id_included(stub):
    server, told = stub(), []
    sampler = sampler_of(server)
    found = sampler.draw(Asked(PROMPTS, 3, SAMPLING, frozenset({9, 4})), done=lambda *of: told.append(of))
    seeds = {tuple(body["prompt"]): body["seed"] for body in server.bodies}
    first = [seeds[tuple(prompt)] % 50 + 50 for prompt in PROMPTS]
    assert found == [[Sample([i, 40 + k, 4], True, -3.0) for k in range(3)] for i in first]
    assert sorted(told, key=lambda of: of[0]) == list(enumerate(found))
    assert sampler.about == {"kind": "server", "software": "vllm", "version": "0.11.0", "model": "tiny"}
    (cut,) = sampler.draw(Asked(PROMPTS[:1], 1, SamplingConfig(2), frozenset({4})))
    assert [(len(s.tokens), s.finished, s.logprob) for s in cut] == [(2, False, -1.5)]
    assert sampler.draw(Asked([], 2, SAMPLING, frozenset({4}))) == []


def test_everything_that_a_server_could_have_a_default_for_is_said(stub):
    server = stub()
    sampler_of(server).draw(Asked(PROMPTS[:1], 3, SAMPLING, frozenset({9, 4})))
    (body,) = server.bodies
    assert 0 <= body.pop("seed") < 2**62
    assert body == {
        "model": "tiny",
        "prompt": [1, 5, 6],
        "n": 3,
        "max_tokens": 8,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 20,
        "min_p": 0,
        "repetition_penalty": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "stop_token_ids": [4, 9],
        "ignore_eos": True,
        "logprobs": 0,
        "return_token_ids": True,
    }


def test_a_seed_is_of_the_prompt_and_the_seed_alone(stub):
    """vLLM's k-th sample has seed + k: prompts that shared a seed would share their chance."""
    server = stub()
    sampler = sampler_of(server)
    sampler.draw(Asked(PROMPTS, 2, SAMPLING, frozenset({4})))
    sampler.draw(Asked(PROMPTS[::-1], 2, SAMPLING, frozenset({4})))
    sampler.draw(Asked(PROMPTS, 2, SamplingConfig(8, seed=4), frozenset({4})))
    seeds = [{tuple(b["prompt"]): b["seed"] for b in server.bodies[i : i + 3]} for i in (0, 3, 6)]
    assert seeds[0] == seeds[1] and len({*seeds[0].values(), *seeds[2].values()}) == 6


def altered(**changed):
    """A choice of vLLM's with other values; ... takes the key away."""

    def turn(body, earlier):
        answer = vllm_stub.completion(body)
        for key, value in changed.items():
            if value is ...:
                del answer["choices"][-1][key]
            else:
                answer["choices"][-1][key] = value
        return 200, answer

    return turn


@pytest.mark.parametrize(
    ("turn", "told"),
    [
        (altered(token_ids=None), "without token ids: `return_token_ids` needs vLLM 0.10.2 or later"),
        (altered(token_ids=...), "without token ids"),
        (altered(token_ids=["5", "6"]), "without token ids"),
        (altered(prompt_token_ids=[1, 5]), "has read another prompt than was sent"),
        (altered(logprobs=None), "without a log-probability for each token"),
        (altered(logprobs={"token_logprobs": [-1.0, None, -1.0]}), "without a log-probability for each token"),
        (altered(logprobs={"token_logprobs": [-1.0]}), "without a log-probability for each token"),
        (altered(logprobs={"token_logprobs": [-1.0, 0.7, -1.0]}), "without a log-probability for each token"),
        (altered(token_ids=[50, 100, 4]), "token 100 is none of the model's 100: another model is served"),
        (altered(finish_reason="abort"), "finish_reason 'abort'"),
        (altered(finish_reason="length"), "an answer of 3 tokens ends with 4, and finish_reason is length"),
        (altered(token_ids=[50, 51, 52]), "ends with 52, and finish_reason is stop"),
        (altered(token_ids=[50, 51, 52], finish_reason="length"), "cut after 3 of 8 tokens"),
        (altered(token_ids=[50, 4, 4]), "goes on after a stop token"),
        (altered(token_ids=[], logprobs={"token_logprobs": []}), "an answer of 0 tokens ends with none"),
        (altered(index=0), "2 answers were asked for, and 2 came"),
        (lambda body, earlier: (200, vllm_stub.completion(body | {"n": 1})), "2 answers were asked for, and 1 came"),
        (lambda body, earlier: (200, []), "no list of choices"),
        (lambda body, earlier: (200, "<html>"), "something that is no JSON: '<html>'"),
        (lambda body, earlier: vllm_stub.error(400, "max_tokens is\ntoo large"), "with status 400: max_tokens is too large"),
        (lambda body, earlier: (401, {"error": "Unauthorized"}), "with status 401: Unauthorized"),
        (lambda body, earlier: (500, {"detail": "EngineDeadError"}), "with status 500: EngineDeadError"),
        (lambda body, earlier: (404, "no such path"), "with status 404: no such path"),
        (lambda body, earlier: (503, {"detail": "busy"}), "with status 503: busy"),
        (lambda body, earlier: "hang up", "the connection was lost 3 times"),
    ],
)
def test_nonsense_is_refused_in_one_line(stub, turn, told):
    server = stub(turn)
    with pytest.raises(UserError) as caught:
        sampler_of(server, retries=2).draw(Asked(PROMPTS, 2, SAMPLING, frozenset({4})))
    assert told in str(caught.value) and server.url in str(caught.value) and "\n" not in str(caught.value)


def test_lost_connections_and_busy_servers_are_asked_again(stub, no_waiting):
    moods = iter(["hang up", (503, {"detail": "busy"}), (429, {"detail": "busy"}), None, None, None])
    server = stub(lambda body, earlier: next(moods))
    sampler = sampler_of(server, prompts_at_once=1)
    assert len(sampler.draw(Asked(PROMPTS, 1, SAMPLING, frozenset({4})))) == 3
    assert no_waiting == [1, 2, 4]
    prompts = [body["prompt"] for body in server.bodies]
    assert prompts == [PROMPTS[0]] * 4 + PROMPTS[1:]


def test_it_is_asked_as_often_as_told_and_no_more(stub, no_waiting):
    moods = iter(["hang up", "hang up", None])
    server = stub(lambda body, earlier: next(moods))
    assert len(sampler_of(server, retries=2).draw(Asked(PROMPTS[:1], 1, SAMPLING, frozenset({4})))) == 1
    server = stub(lambda body, earlier: "hang up")
    with pytest.raises(UserError, match="the connection was lost 3 times"):
        sampler_of(server, retries=2).draw(Asked(PROMPTS[:1], 1, SAMPLING, frozenset({4})))
    assert len(server.bodies) == 3 and no_waiting == [1, 2, 1, 2]


def test_no_more_prompts_are_in_flight_than_asked(stub):
    busy, most, lock, gate = set(), [], threading.Lock(), threading.Event()

    def turn(body, earlier):
        with lock:
            busy.add(earlier)
            most.append(len(busy))
            if len(busy) == 2:
                gate.set()
        gate.wait(5)  # until there are two
        with lock:
            busy.discard(earlier)

    sampler_of(stub(turn), prompts_at_once=2).draw(Asked([[1, i] for i in range(9)], 1, SAMPLING, frozenset({4})))
    assert max(most) == 2


def test_an_error_of_the_listener_is_the_error(stub):
    def full(*of):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        sampler_of(stub()).draw(Asked(PROMPTS, 1, SAMPLING, frozenset({4})), done=full)


def test_what_does_not_fit_is_refused_before_anything_is_sent(stub):
    server = stub()
    sampler = sampler_of(server)
    with pytest.raises(UserError, match=r"Prompt 1: the prompt has 505 tokens; with max_new_tokens=8 the server's max_model_len"):
        sampler.draw(Asked([[1], [1] * 505], 1, SAMPLING, frozenset({4})))
    with pytest.raises(UserError, match="Prompt 0: the prompt is empty"):
        sampler.draw(Asked([[]], 1, SAMPLING, frozenset({4})))
    assert server.bodies == []


def test_which_model_and_where(stub, monkeypatch):
    server = stub()
    with pytest.raises(UserError, match=r"serves tiny: say with engine.model which of them is meant \(now large\)"):
        sampler_of(server, model="large")
    assert sampler_of(server, model="tiny").window == vllm_stub.WINDOW
    assert base_of(f"{server.url}/v1/") == server.url
    with pytest.raises(UserError, match=r"no server answers at http://127\.0\.0\.1:1 "):
        ServerSampler("http://127.0.0.1:1", None, 9, EngineConfig(kind="server", url="http://127.0.0.1:1"))
    monkeypatch.delenv("KEY_OF_MINE", raising=False)
    with pytest.raises(UserError, match="the environment has no KEY_OF_MINE"):
        sampler_of(server, key_variable="KEY_OF_MINE")


@pytest.mark.parametrize("key", ["sk-secret\n", "sk-secret ", "sk-secr\N{LATIN SMALL LETTER E WITH ACUTE}t"])
def test_a_key_that_cannot_be_sent_is_not_told(stub, monkeypatch, key):
    monkeypatch.setenv("KEY_OF_MINE", key)
    with pytest.raises(UserError, match=r"^engine\.key_variable: KEY_OF_MINE holds a space, a line end") as refused:
        sampler_of(stub(), key_variable="KEY_OF_MINE")
    assert "sk-" not in str(refused.value)


def test_an_answer_that_cannot_be_decoded_is_told_in_one_line():
    class Garbled(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", "3")
            self.end_headers()
            self.wfile.write(b"abc")

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Garbled) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(UserError, match=r"no server answers at .*decompressing"):
            ServerSampler(url, None, 9, EngineConfig(kind="server", url=url))
        assert not answers(url)
        server.shutdown()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"kind": "vllm"}, "engine.kind: no 'vllm'"),
        ({"kind": "server"}, "needs one of engine.url"),
        ({"kind": "server", "url": "http://a", "command": ["x", "{port}"]}, "needs one of engine.url"),
        ({"url": "http://a"}, "set engine.kind=server too"),
        ({"kind": "server", "url": "localhost:8000"}, "'localhost:8000' is no address of a server"),
        ({"kind": "server", "url": "http://a:b"}, "'http://a:b' is no address of a server"),
        ({"kind": "server", "url": "http://a:99999"}, "'http://a:99999' is no address of a server"),
        ({"kind": "server", "url": "http://[::1"}, "is no address of a server"),
        ({"kind": "server", "url": "http://a..b"}, "'http://a..b' is no address of a server"),
        ({"kind": "server", "url": "http://a b"}, "'http://a b' is no address of a server"),
        ({"kind": "server", "url": "http://me:secret@a"}, "^engine.url: leave name and password out(?!.*secret)"),
        ({"kind": "server", "url": "http://me:secret@a:b"}, "^engine.url: leave name and password out(?!.*secret)"),
        ({"kind": "server", "command": ["x", "{port:q}"]}, "'{port:q}': a place is a name alone"),
        ({"kind": "server", "command": ["x", "{port!z}"]}, "'{port!z}': a place is a name alone"),
        ({"kind": "server", "command": ["x", "{prot}"]}, r"no {prot}\. Did you mean 'port'\?"),
        ({"kind": "server", "command": ["x", "{model}"]}, "names no {port}"),
        ({"kind": "server", "command": ["x", "{port"]}, "'{port': expected"),
        ({"kind": "server", "command": ["x", "{port}"], "model": "m"}, "give engine.url too"),
        ({"prompts_at_once": 0}, "prompts_at_once 1 or more"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, told):
    with pytest.raises(UserError, match=told):
        EngineConfig(**settings)


def test_one_running_server_is_for_one_model():
    config = EngineConfig(kind="server", url="http://127.0.0.1:8000")
    config.require_one_model("reject", ["generator"])
    with pytest.raises(UserError, match=r"preferences: the server at engine.url serves one model, and 2 are asked \(a, b\)"):
        config.require_one_model("preferences", ["a", "b"])
