"""OpenAI's interface: same answers as the sampler, streams that add up, usage, stops, and refusals in OpenAI's shape."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from herd.cli import main
from herd.generation.choose import SamplingConfig
from herd.generation.engine import Engine
from herd.generation.sampler import generate
from herd.generation.service import Service
from herd.model.io import load_model

from .conftest import CHAT, events, wanted

testclient = pytest.importorskip("starlette.testclient", reason="needs the extra `serve`")


def test_models(client):
    assert [m["id"] for m in client.get("/v1/models").json()["data"]] == ["tiny/dpo"]
    assert client.get("/v1/models/tiny/dpo").json()["object"] == "model"
    assert client.get("/v1/models/gpt").status_code == 404


def test_a_chat_answer_is_the_samplers(client, folder, tokenizer):
    body = CHAT | {"model": "tiny/dpo", "n": 3, "temperature": 0.9, "top_p": 0.95}
    ids, samples, texts = wanted(folder, tokenizer, body)
    answer = client.post("/v1/chat/completions", json=body).json()
    assert (answer["object"], answer["model"]) == ("chat.completion", "tiny/dpo")
    assert [c["message"] for c in answer["choices"]] == [{"role": "assistant", "content": text} for text in texts]
    assert [c["finish_reason"] for c in answer["choices"]] == ["stop" if s.finished else "length" for s in samples]
    drawn = sum(len(s.tokens) for s in samples)
    assert answer["usage"] == {"prompt_tokens": len(ids), "completion_tokens": drawn, "total_tokens": len(ids) + drawn}


def test_a_stream_adds_up_to_the_answer(client):
    whole = client.post("/v1/chat/completions", json=CHAT | {"n": 2}).json()
    body = CHAT | {"n": 2, "stream": True, "stream_options": {"include_usage": True}}
    response = client.post("/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, last = events(response)
    texts, reasons, begun = ["", ""], [None, None], set()
    for chunk in chunks:
        (choice,) = chunk["choices"]
        assert (chunk["object"], chunk["usage"]) == ("chat.completion.chunk", None)
        assert ("role" in choice["delta"]) == (choice["index"] not in begun)
        begun.add(choice["index"])
        texts[choice["index"]] += choice["delta"]["content"]
        reasons[choice["index"]] = choice["finish_reason"]
    assert texts == [c["message"]["content"] for c in whole["choices"]]
    assert reasons == [c["finish_reason"] for c in whole["choices"]]
    assert last["choices"] == [] and last["usage"] == whole["usage"]


def test_texts_are_continued_several_at_once(client, folder, tokenizer):
    body = {"prompt": ["what", "colour is"], "n": 2, "max_tokens": 6, "seed": 1, "temperature": 1.0}
    answer = client.post("/v1/completions", json=body).json()
    ids = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in body["prompt"]]
    drawn = generate(load_model(folder / "model"), ids, 2, SamplingConfig(6, seed=1), tokenizer.stop_ids)
    texts = [tokenizer.decode(s.tokens, skip_special_tokens=True) for of in drawn for s in of]
    assert [c["text"] for c in answer["choices"]] == texts
    assert answer["object"] == "text_completion"
    streamed = events(client.post("/v1/completions", json=body | {"stream": True}))
    assert ["".join(e["choices"][0]["text"] for e in streamed if e["choices"][0]["index"] == i) for i in range(4)] == texts


def test_ids_come_as_they_went_and_as_they_were_drawn(client, folder, tokenizer):
    """Prompts as ids, answers as ids with one log-probability each: what the sampler draws, stop tokens included."""
    prompts = [[tokenizer.bos_id, *tokenizer.encode("what colour")], [tokenizer.bos_id]]
    body = {"prompt": prompts, "n": 3, "max_tokens": 24, "seed": 9, "temperature": 1.3, "logprobs": 0, "return_token_ids": True}
    model, sampling = load_model(folder / "model"), SamplingConfig(24, 1.3, seed=9)
    plain = generate(model, prompts, 1, sampling, ())[0][0].tokens[4]  # of text, and drawn before the end
    for extra, stops in (
        ({}, tokenizer.stop_ids),
        ({"stop_token_ids": [plain]}, {*tokenizer.stop_ids, plain}),
        ({"stop_token_ids": [plain], "ignore_eos": True}, {plain}),
    ):
        answer = client.post("/v1/completions", json=body | extra).json()
        drawn = generate(model, prompts, 3, sampling, stops)
        wanted = [(prompt, sample) for prompt, of in zip(prompts, drawn, strict=True) for sample in of]
        for choice, (prompt, sample) in zip(answer["choices"], wanted, strict=True):
            assert (choice["prompt_token_ids"], choice["token_ids"]) == (prompt, sample.tokens)
            logprobs = choice["logprobs"]["token_logprobs"]
            assert len(logprobs) == len(sample.tokens) and sum(logprobs) == pytest.approx(sample.logprob, rel=1e-5)
            assert choice["finish_reason"] == ("stop" if sample.finished else "length")
            text = sample.tokens[:-1] if sample.finished else sample.tokens  # a stop token is no text
            assert choice["text"] == tokenizer.decode(text, skip_special_tokens=True)
    assert any(sample.finished and sample.tokens[-1] == plain for _, sample in wanted)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"prompt": [5, 10_000]}, "has no token 10000"),
        ({"prompt": [[5], ["x"]]}, "must be a list of whole numbers"),
        ({"prompt": [[]]}, "the prompt is empty"),
        ({"prompt": [5], "stop_token_ids": 3}, "`stop_token_ids`: token ids must be a list"),
        ({"prompt": [5], "stream": True, "return_token_ids": True}, "not offered for a stream"),
        ({"prompt": [5], "min_p": 0.1}, "`min_p` is not offered"),
    ],
)
def test_ids_that_are_none_are_refused(client, wrong, told):
    response = client.post("/v1/completions", json=wrong)
    assert response.status_code == 400 and told in response.json()["error"]["message"]


def test_version(client):
    from herd import __version__

    assert client.get("/version").json() == {"version": __version__}
    assert client.get("/v1/models").json()["data"][0]["max_model_len"] == 96


def test_stop_texts_end_an_answer_before_them(client, folder, tokenizer):
    text = next(t for seed in range(99) if len(t := wanted(folder, tokenizer, CHAT | {"seed": seed})[2][0]) > 5)
    seed = next(s for s in range(99) if wanted(folder, tokenizer, CHAT | {"seed": s})[2][0] == text)
    stop = text[2:4]
    body = CHAT | {"seed": seed, "stop": ["never there", stop]}
    choice = client.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (text[: text.index(stop)], "stop")
    chunks = events(client.post("/v1/chat/completions", json=body | {"stream": True}))
    assert "".join(c["choices"][0]["delta"]["content"] for c in chunks) == text[: text.index(stop)]


def test_health(client):
    assert client.get("/health").status_code == 200
    assert client.post("/health").status_code == 405


def test_health_ends_with_the_engine(folder, tokenizer):
    from herd.generation.openai.app import Served, make_app

    service = Service(Engine(load_model(folder / "model").requires_grad_(False), 1, 64))
    client = testclient.TestClient(make_app(Served("m", tokenizer, service, window=64, longest=8)))
    service.close()
    assert client.get("/health").status_code == 503


def test_requests_at_the_same_time_share_the_batch_and_change_nothing(client):
    bodies = [CHAT | {"seed": seed, "n": 2} for seed in range(8)]
    alone = [client.post("/v1/chat/completions", json=body).json()["choices"] for body in bodies]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda body: client.post("/v1/chat/completions", json=body).json()["choices"], bodies))
    assert together == alone
    assert client.engine.pool.used == 0


def test_without_a_seed_answers_differ(client):
    body = {k: v for k, v in CHAT.items() if k != "seed"}
    texts = {client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"] for _ in range(5)}
    assert len(texts) > 1


@pytest.mark.parametrize(
    ("path", "body", "status", "message", "key"),
    [
        ("chat/completions", {"messages": []}, 400, "at least one message", "messages"),
        ("chat/completions", {}, 400, "`messages` must be a list", "messages"),
        ("chat/completions", CHAT | {"model": "gpt-4"}, 404, "no model 'gpt-4' here, only 'tiny/dpo'", "model"),
        ("chat/completions", {"messages": [{"role": "robot", "content": "a"}]}, 400, "unknown role 'robot'", "messages"),
        ("chat/completions", {"messages": [{"role": "assistant", "content": "a"}]}, 400, "assistant's own", "messages"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            400,
            "type `text`",
            "messages",
        ),
        ("chat/completions", {"messages": [{"role": "user", "content": "a " * 200}]}, 400, "leaves no room", "messages"),
        ("chat/completions", CHAT | {"max_tokens": 96}, 400, "`max_tokens` is 96, but the prompt's", "max_tokens"),
        ("chat/completions", CHAT | {"temperature": "hot"}, 400, "`temperature` must be a number", "temperature"),
        ("chat/completions", CHAT | {"top_p": 0}, 400, "`top_p`", "top_p"),
        ("chat/completions", CHAT | {"n": True}, 400, "`n` must be a whole number", "n"),
        ("chat/completions", CHAT | {"stop": [""]}, 400, "none of them empty", "stop"),
        ("chat/completions", CHAT | {"tempreature": 1}, 400, "Did you mean 'temperature'", "tempreature"),
        ("chat/completions", CHAT | {"stream": "yes"}, 400, "true or false", "stream"),
        ("chat/completions", CHAT | {"logprobs": 3}, 400, "`logprobs` must be true or false", "logprobs"),
        ("chat/completions", CHAT | {"top_logprobs": 2}, 400, "`top_logprobs` needs `logprobs`", "top_logprobs"),
        ("completions", {"prompt": "a", "logprobs": 21}, 400, "`logprobs` must be a whole number from 0 to 20", "logprobs"),
        ("chat/completions", [], 400, "must be a JSON object", None),
        ("completions", {"prompt": {"text": "a"}}, 400, "`prompt` must be a text", "prompt"),
        ("completions", {"prompt": [[1, 2], "a"]}, 400, "must be a list of whole numbers", "prompt"),
        ("completions", {"prompt": [1, True]}, 400, "must be a list of whole numbers", "prompt"),
        ("completions", {"prompt": "a", "max_tokens": 0}, 400, "`max_tokens` must be a whole number 1 or more", "max_tokens"),
        ("completions", {"prompt": "a", "echo": 1}, 400, "`echo` must be true or false", "echo"),
        ("chat/completions", CHAT | {"echo": True}, 400, "`echo` is not offered here: post to /v1/completions", "echo"),
        ("chat/completions", CHAT | {"functions": [{}]}, 400, "`functions` is not offered here: offer `tools`", "functions"),
        (
            "chat/completions",
            CHAT | {"response_format": {"type": "json_object"}},
            400,
            "`response_form",
            "response_format",
        ),
        ("chat/completions", CHAT | {"logit_bias": {"5": 1}}, 400, "`logit_bias` is not offered", "logit_bias"),
        ("completions", {"prompt": "a", "presence_penalty": 0.5}, 400, "`presence_penalty` is not", "presence_penalty"),
        ("completions", {"prompt": "a", "messages": []}, 400, "Unknown key `messages`", "messages"),
        ("completions", {"prompt": "a", "guided_json": {}}, 400, "Unknown key `guided_json`", "guided_json"),
        ("completions", {"prompt": "a", "stream_options": {"include_usgae": True}}, 400, "no keys but", "stream_options"),
        ("completions", {"prompt": "\ud800"}, 400, "surrogate", "prompt"),
        ("completions", {"prompt": "a", "b\ud800": 1}, 400, "Unknown key `b\\ud800`", "b\\ud800"),
        ("embeddings", {}, 404, "POST /v1/embeddings: Not Found", None),
    ],
)
def test_refusals_have_openais_shape(client, path, body, status, message, key):
    for stream in (False, True):
        sent = body | {"stream": True} if stream and isinstance(body, dict) and "stream" not in body else body
        response = client.post(f"/v1/{path}", content=json.dumps(sent))
        error = response.json()["error"]
        assert response.status_code == status
        assert message in error["message"] and "\n" not in error["message"]
        assert (error["type"], error["param"]) == ("invalid_request_error", key)
    assert client.engine.pool.used == 0


def test_what_asks_for_nothing_is_taken(client):
    """Bodies of OpenAI's client, of vLLM's users and of lm-evaluation-harness (messages with a `type`)."""
    more = {"user": "me", "store": True, "metadata": {"a": "b"}, "response_format": {"type": "text"}, "frequency_penalty": 0.0}
    more |= {
        "logit_bias": None,
        "tools": None,
        "tool_choice": None,
        "reasoning_effort": None,
        "verbosity": "medium",
        "min_p": 0.0,
    }
    more |= {"parallel_tool_calls": False, "modalities": ["text"], "stream_options": None, "skip_special_tokens": True}
    messages = [CHAT["messages"][0] | {"type": "text", "name": "me"}]
    bare = client.post("/v1/chat/completions", json=CHAT).json()["choices"]
    assert client.post("/v1/chat/completions", json=CHAT | more | {"messages": messages}).json()["choices"] == bare
    parts = [{"role": "user", "content": [{"type": "text", "text": part} for part in ("what ", "colour?")]}]
    assert client.post("/v1/chat/completions", json=CHAT | {"messages": parts}).json()["choices"] == bare


def test_other_bad_requests(client):
    for content, message in (
        ("{", "no JSON (Expecting property name enclosed in double quotes at line 1, column 2)"),
        (b'{"prompt": "\xe9"}', "no JSON (not UTF-8)"),
        ("[" * 200_000, "no JSON (too deep"),
        ("", "no JSON (Expecting value at line 1, column 1)"),
    ):
        response = client.post("/v1/completions", content=content)
        assert response.status_code == 400 and message in response.json()["error"]["message"]
    assert "base_url ends in /v1" in client.post("/chat/completions", json=CHAT).json()["error"]["message"]
    assert client.get("/v1/chat/completions").status_code == 405
    for host in ("[::1]:8000", "LOCALHOST.:80"):
        assert client.get("/v1/models", headers={"host": host}).status_code == 200
    for host in ("evil.example", "[::2]:8000", "[::1", ""):
        response = client.get("/v1/models", headers={"host": host})
        assert response.status_code == 400 and "This server is called" in response.json()["error"]["message"]
    response = client.post("/v1/completions", content=b" " * 8_000_001)
    assert (response.status_code, response.json()["error"]["type"]) == (413, "invalid_request_error")


def test_a_request_that_memory_can_never_hold_is_refused_before_its_stream_begins(folder, tokenizer):
    from herd.generation.openai.app import Served, make_app

    engine = Engine(load_model(folder / "model").requires_grad_(False), 6, 64)
    with testclient.TestClient(make_app(Served("tiny", tokenizer, Service(engine), 96, 20))) as client:
        response = client.post("/v1/chat/completions", json=CHAT | {"max_tokens": 60, "stream": True})
        assert response.status_code == 400
        assert "max_kv_tokens holds 64" in response.json()["error"]["message"]


def test_a_fault_of_the_engine_reaches_who_waits_and_ends_nothing(folder, tokenizer):
    from herd.generation.openai.app import Served, make_app

    model = load_model(folder / "model").requires_grad_(False)
    kept = model.norm.weight.clone()
    engine = Engine(model, 6, 512)
    with testclient.TestClient(
        make_app(Served("tiny", tokenizer, Service(engine), 96, 20)), raise_server_exceptions=False
    ) as client:
        model.norm.weight.fill_(float("nan"))
        assert "logits are not numbers" in client.post("/v1/chat/completions", json=CHAT).json()["error"]["message"]
        model.norm.weight.copy_(kept)
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 200


def test_a_port_in_use_is_told_before_anything_is_loaded(tmp_path, capsys):
    pytest.importorskip("uvicorn", reason="needs the extra `serve`")
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit):
        main(["serve", f"model={tmp_path}/none", f"port={taken.getsockname()[1]}"])
    err = capsys.readouterr().err
    assert "Cannot listen at 127.0.0.1" in err and "Address already in use" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["port=99999"], "port is 99999"),
        (["batch_size=0"], "batch_size and max_new_tokens"),
        (["max_kv_tokens=3", "port=0"], "max_kv_tokens=3"),
        (["host=192.0.2.1"], "Cannot listen at 192.0.2.1, port 8000 (Cannot assign"),
    ],
)
def test_bad_settings_end_in_one_line(folder, capsys, arguments, message):
    with pytest.raises(SystemExit):
        main(["serve", f"model={folder}", *arguments])
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) == 1
