"""Log-probabilities over OpenAI's interface: the model's own, of answers and of prompts, with the likeliest tokens."""

import pytest
import torch

from herd.generation.openai.logprobs import TokenTrail, logprobs_of
from herd.model.io import load_model

from ..conftest import CHAT, events, wanted

TEXTS = ["what colour is it", " the", "user \u20ac assistant"]


@pytest.fixture(scope="module")
def scores_of(folder):
    """Token ids -> (T, vocab_size): entry t scores the token after t, in float64."""
    model = load_model(folder / "model").double()

    def scores(ids):
        with torch.no_grad():
            return model.logits(model(torch.tensor([[*ids]])))[0].log_softmax(-1)

    return scores


@pytest.mark.parametrize("stop", [None, 2])
def test_logprobs_are_the_models_own_of_the_tokens_whose_text_is_given(client, folder, tokenizer, stop):
    """Of a whole answer, of one cut by a stop text, and of a stream's parts."""
    seed = next(s for s in range(99) if len(wanted(folder, tokenizer, CHAT | {"seed": s})[2][0]) > 5)
    body = CHAT | {"seed": seed, "temperature": 0.7, "logprobs": True, "top_logprobs": 0}
    ids, (sample,), (text,) = wanted(folder, tokenizer, body)
    if stop:
        body |= {"stop": text[stop : stop + 2]}
    choice = client.post("/v1/chat/completions", json=body).json()["choices"][0]
    found = choice["logprobs"]["content"]
    model = load_model(folder / "model")
    with torch.no_grad():
        scores = model.logits(model(torch.tensor([[*ids, *sample.tokens]]))).log_softmax(-1)[0, len(ids) - 1 :]
    own = [t for t in sample.tokens if t not in tokenizer.stop_ids]
    exact = [float(scores[i, token]) for i, token in enumerate(own)]
    assert [t["logprob"] for t in found] == pytest.approx(exact[: len(found)], abs=1e-4)
    assert all({*t} == {"token", "logprob", "bytes", "top_logprobs"} and t["top_logprobs"] == [] for t in found)
    assert [t["bytes"] and bytes(t["bytes"]) for t in found] == [tokenizer.bytes_of(token) for token in own[: len(found)]]
    spelled = b"".join(bytes(t["bytes"] or ()) for t in found).decode("utf-8", "replace")
    assert len(found) == len(own) and spelled == text if not stop else spelled.startswith(choice["message"]["content"])
    assert choice["logprobs"]["refusal"] is None
    chunks = events(client.post("/v1/chat/completions", json=body | {"stream": True}))
    parts = [c["choices"][0]["logprobs"] for c in chunks]
    assert [t for part in parts if part for t in part["content"]] == found
    plain = client.post("/v1/chat/completions", json={k: v for k, v in body.items() if "logprobs" not in k}).json()["choices"][0]
    assert plain == choice | {"logprobs": None}


def test_logprobs_of_texts_have_four_lists(client, tokenizer):
    body = {"prompt": "what", "n": 2, "max_tokens": 6, "seed": 1, "logprobs": 0}
    for choice in client.post("/v1/completions", json=body).json()["choices"]:
        told, text = choice["logprobs"], choice["text"]
        assert told["top_logprobs"] is None
        assert len(told["tokens"]) == len(told["token_logprobs"]) == len(told["text_offset"])
        assert all(score <= 0 for score in told["token_logprobs"])
        for token, at in zip(told["tokens"], told["text_offset"], strict=True):
            assert token.startswith("bytes:") or not token or text[at:].startswith(token) or "\ufffd" in text


def test_a_character_of_several_tokens_comes_with_the_text_in_which_it_is_whole(tokenizer):
    trail, text = TokenTrail(tokenizer), "a\u20ac b"
    ids = [i for byte in text.encode() for i in range(tokenizer.vocab_size) if tokenizer.bytes_of(i) == bytes([byte])]
    for n, token in enumerate(ids):
        trail.push(token, -float(n))
    assert [t.logprob for t in trail.take(1)] == [0.0]
    assert [(t.offset, t.text) for t in trail.take(2)] == [(1, "\ufffd")] * 3
    trail.push(tokenizer.eot_id, -9.0)
    assert [t.spelled for t in trail.take(4)] == [b" ", b"b"]
    [special] = trail.take(4, last=True)
    assert (special.spelled, special.text, special.offset) == (None, "<|eot_id|>", 4)


@pytest.mark.parametrize("body", [{}, {"n": 2, "temperature": 0.8}])
def test_a_chat_tells_the_likeliest_tokens(client, tokenizer, scores_of, folder, body):
    body = CHAT | body | {"logprobs": True, "top_logprobs": 7}
    ids, samples, _ = wanted(folder, tokenizer, body)
    answer = client.post("/v1/chat/completions", json=body).json()
    for sample, choice in zip(samples, answer["choices"], strict=True):
        exact = scores_of([*ids, *sample.tokens])[len(ids) - 1 :]
        for token, scores in zip(choice["logprobs"]["content"], exact, strict=False):
            best, likeliest = scores.topk(7)
            assert [other["logprob"] for other in token["top_logprobs"]] == pytest.approx(best.tolist(), abs=1e-5)
            spelled = [None if other["bytes"] is None else bytes(other["bytes"]) for other in token["top_logprobs"]]
            assert spelled == [tokenizer.bytes_of(i) for i in likeliest.tolist()]
            assert all({*other} == {"token", "logprob", "bytes"} for other in token["top_logprobs"])
    chunks = events(client.post("/v1/chat/completions", json=body | {"stream": True}))
    for choice in answer["choices"]:
        parts = [c["choices"][0]["logprobs"] for c in chunks if c["choices"][0]["index"] == choice["index"]]
        assert [t for part in parts if part for t in part["content"]] == choice["logprobs"]["content"]


def test_a_text_tells_the_likeliest_tokens_by_name_and_the_drawn_one(client):
    body = {"prompt": ["what", "it is"], "max_tokens": 8, "seed": 3, "logprobs": 3}
    answer = client.post("/v1/completions", json=body).json()
    extra = 0
    for choice in answer["choices"]:
        told = choice["logprobs"]
        assert len(told["top_logprobs"]) == len(told["tokens"])
        for token, logprob, others in zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True):
            assert others[token] == logprob and len(others) in (3, 4)
            extra += len(others) == 4
    assert extra  # drawn, and not among the likeliest
    chunks = events(client.post("/v1/completions", json=body | {"stream": True}))
    parts = [c["choices"][0]["logprobs"] for c in chunks if c["choices"][0]["index"] == 0]
    for key, values in answer["choices"][0]["logprobs"].items():
        assert [value for part in parts if part for value in part[key]] == values


def lm_eval(client, prompts, contexts, **more):
    """Log-likelihoods as lm-evaluation-harness asks for them: `local-completions`, `_create_payload` and `parse_logprobs`."""
    body = {"model": "tiny/dpo", "prompt": prompts, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    found = []
    for choice, context in zip(client.post("/v1/completions", json=body | more).json()["choices"], contexts, strict=True):
        told = choice["logprobs"]
        own, best = told["token_logprobs"][context:-1], told["top_logprobs"][context:-1]
        found.append((sum(own), all(score == max(of.values()) for score, of in zip(own, best, strict=True))))
    return found


def test_log_likelihoods_of_lm_eval_are_the_models(client, tokenizer, scores_of):
    """Prompts as token ids, several in one body; one continuation is the greedy one."""
    prompts = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in TEXTS]
    greedy = prompts[0][:3]
    for _ in range(4):
        greedy = [*greedy, int(scores_of(greedy)[-1].argmax())]
    prompts, contexts = [*prompts, greedy, [5, 6]], [4, 1, 2, 3, 1]
    exact = []
    for ids, context in zip(prompts, contexts, strict=True):
        scores = scores_of(ids)[context - 1 : -1]
        own = scores.gather(1, torch.tensor(ids[context:])[:, None])[:, 0]
        exact.append((float(own.sum()), bool((own == scores.amax(1)).all())))
    found = lm_eval(client, prompts, contexts)
    assert [score for score, _ in found] == pytest.approx([score for score, _ in exact], abs=1e-5)
    assert [flag for _, flag in found] == [flag for _, flag in exact]
    assert found[3][1] and not found[0][1]
    # The token drawn after a prompt is no part of it, whichever it is.
    assert lm_eval(client, prompts, contexts, stop_token_ids=[*range(tokenizer.vocab_size)]) == found


def test_log_likelihoods_of_texts_have_no_place_for_the_token_we_put_before_them(client, tokenizer, scores_of):
    """lm-eval with `tokenized_requests=False` counts the tokens of the text."""
    [(found, _)] = lm_eval(client, TEXTS[0], [3])
    ids = tokenizer.encode(TEXTS[0])
    scores = scores_of([tokenizer.bos_id, *ids])
    assert found == pytest.approx(sum(float(scores[i, ids[i]]) for i in range(3, len(ids))), abs=1e-5)


def test_an_echo_is_the_prompt_and_then_the_answer(client, tokenizer):
    body = {"prompt": TEXTS, "max_tokens": 5, "seed": 1, "logprobs": 2, "n": 2}
    plain = client.post("/v1/completions", json=body).json()
    echoed = client.post("/v1/completions", json=body | {"echo": True}).json()
    only = client.post("/v1/completions", json=body | {"echo": True, "max_tokens": 0}).json()
    assert plain["usage"] == echoed["usage"]
    assert only["usage"]["completion_tokens"] == 0 and {c["finish_reason"] for c in only["choices"]} == {"length"}
    chunks = events(client.post("/v1/completions", json=body | {"echo": True, "stream": True}))
    parts = [[part for chunk in chunks for part in chunk["choices"] if part["index"] == i] for i in range(6)]
    for i, (a, b, c) in enumerate(zip(plain["choices"], echoed["choices"], only["choices"], strict=True)):
        text = TEXTS[i // 2]
        assert (b["text"], c["text"], b["finish_reason"]) == (text + a["text"], text, a["finish_reason"])
        spelled = [tokenizer.bytes_of(token) for token in tokenizer.encode(text)]
        assert len(c["logprobs"]["tokens"]) == len(spelled)
        for key, values in b["logprobs"].items():
            after = [at + len(text) for at in a["logprobs"][key]] if key == "text_offset" else a["logprobs"][key]
            assert values == c["logprobs"][key] + after
            assert values == [value for part in parts[i] if part["logprobs"] for value in part["logprobs"][key]]
        assert b["text"] == "".join(part["text"] for part in parts[i])


def test_an_echo_of_ids_tells_nothing_of_the_first(client, tokenizer):
    ids = [tokenizer.bos_id, *tokenizer.encode("a\u20ac")]
    body = {"prompt": ids, "max_tokens": 0, "echo": True, "logprobs": 0}
    [choice] = client.post("/v1/completions", json=body).json()["choices"]
    assert choice["text"] == "a\u20ac"
    told = choice["logprobs"]
    assert told["tokens"] == ["<|begin_of_text|>", "a", "bytes:\\xe2", "bytes:\\x82", "bytes:\\xac"]
    assert told["text_offset"] == [0, 0, 1, 1, 1] and told["top_logprobs"] is None
    assert told["token_logprobs"][0] is None and all(score < 0 for score in told["token_logprobs"][1:])
    bare = client.post("/v1/completions", json={"prompt": ids, "max_tokens": 2, "echo": True}).json()["choices"][0]
    assert bare["text"].startswith("a\u20ac") and bare["logprobs"] is None


def test_tokens_that_read_alike_are_told_once_by_the_likeliest(tokenizer):
    alike = [i for i in range(tokenizer.vocab_size) if tokenizer.bytes_of(i) == b"a"]
    trail = TokenTrail(tokenizer)
    trail.push(alike[0], -2.0, ((alike[0], -1.0), (alike[0], -3.0)))
    assert logprobs_of("text", trail.take(9))["top_logprobs"] == [{"a": -1.0}]
