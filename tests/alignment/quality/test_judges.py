"""Judges: a file, our own model, the grader with a known rule, and an endpoint that answers, fails, or is not there."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

from herd.alignment.choices import choice_probabilities
from herd.alignment.quality import judge_endpoint
from herd.alignment.quality.judge_endpoint import EndpointJudge
from herd.alignment.quality.judge_file import FileJudge
from herd.alignment.quality.judge_grader import GraderJudge
from herd.alignment.quality.judge_model import ModelJudge
from herd.alignment.quality.judges import JudgeConfig, Question, Verdict, certain, open_judge
from herd.config.errors import UserError
from herd.corpus.tokenizer import TokenizerConfig, train_tokenizer
from herd.dialog.messages import Message, Role
from herd.dialog.render import render
from herd.dialog.rows import Prompt
from herd.model.config import ModelConfig
from herd.model.masks import Documents
from herd.model.transformer import Transformer
from herd.runs.stage import Inputs

GRADES = ("1", "2", "3")


def judge_config(kind: str, **values) -> JudgeConfig:
    return JudgeConfig(kind, ["quality", "difficulty"], **values)


def test_a_verdict_knows_its_grade_and_its_doubt() -> None:
    verdict = Verdict((0.2, 0.5, 0.3))
    assert (verdict.choice, verdict.grade, verdict.expected_grade) == (1, 2, pytest.approx(2.1))
    assert Verdict((), "asleep").grade is None and certain(2, 3).expected_grade == 3


def file_judge(tmp_path, *rows: dict) -> FileJudge:
    path = tmp_path / "said.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return FileJudge.open(judge_config("file", path=str(path)))


def test_a_file_says_what_it_says(dialog, tmp_path) -> None:
    judge = file_judge(tmp_path, {"id": "x", "score": 3, "tags": ["write"]}, {"id": "y", "source": "b", "quality": 1.0})
    x, y, other = dialog("x", "."), dialog("y", ".", source="b"), dialog("y", ".", source="c")
    said = judge.ask([Question(d, "quality", "?", GRADES) for d in (x, y, other)])
    assert [v.grade for v in said] == [3, 1, None] and said[2].reason == "the file has no quality for it"
    tags = judge.ask([Question(x, "tags", "?", ("no", "yes"), tag) for tag in ("write", "list")])
    assert [v.choice for v in tags] == [1, 0]
    with pytest.raises(UserError, match=r"'x' has quality 3, which is none of 1, 2\."):
        judge.ask([Question(x, "quality", "?", ("1", "2"))])


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"id": "a", "qualty": 1}, "line 1: unknown key `qualty`. Did you mean 'quality'?"),
        ({"id": "a", "quality": 2.5}, "is a grade, a whole number from 1, not 2.5"),
        ({"quality": 2}, "line 1: `id` must be there"),
        ({"id": "a", "tags": "x"}, "`tags` a list"),
    ],
)
def test_a_bad_line_of_the_file_is_named(tmp_path, row, text) -> None:
    with pytest.raises(UserError) as error:
        file_judge(tmp_path, row)
    assert text in str(error.value)


def test_the_grader_knows_the_right_answer(dialog) -> None:
    asked = Message(Role.USER, "What is the signature of f?")
    judge = GraderJudge({"p": Prompt("p", "e", "signature", (asked,), "f(x, y)")}, [0.5, 0.9])
    answers = ["f(x, y)", "f(x, z)", "no idea"]
    dialogs = [dialog(str(i), a, question=asked.content, prompt_id="p") for i, a in enumerate(answers)]
    assert [v.grade for v in judge.ask([Question(d, "quality", "?", GRADES) for d in dialogs])] == [3, 2, 1]
    assert [v.grade for v in judge.ask([Question(d, "quality", "?", ("1", "2")) for d in dialogs])] == [2, 1, 1]
    stranger = dialog("q", "f(x, y)", question="Another question", prompt_id="p")
    assert judge.ask([Question(stranger, "quality", "?", GRADES)])[0].reason == "no reference answer is known"
    with pytest.raises(UserError, match=r"set judge.asked=\[quality\]"):
        judge.ask([Question(dialogs[0], "difficulty", "?", GRADES)])


def test_our_model_weighs_answers_by_their_probability(dialog) -> None:
    tokenizer = train_tokenizer(
        ["Is it good? 1 2 3 user assistant [ ] \n\n" * 30],
        TokenizerConfig(vocab_size=300, special_tokens=11, training_characters=50_000, fill_with_reserved=True),
    )
    shape = ModelConfig(dim=16, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=32, vocab_size=300, max_seq_len=64)
    model = Transformer(shape)
    model.init_weights(0)
    questions = [Question(dialog("a", "x"), "quality", text, GRADES) for text in ("Is it good?", "good? " * 50, "Is it?")]
    said = ModelJudge(model, tokenizer, batch_size=2).ask(questions)
    assert said[1].reason == "too long for the judge" and said[0].shares != said[2].shares
    totals = []
    for grade in GRADES:  # one dialog at a time, by hand
        rendered = render((Message(Role.USER, "Is it good?"), Message(Role.ASSISTANT, grade)), tokenizer)
        tokens = torch.from_numpy(rendered.tokens)[None]
        with torch.no_grad():
            hidden = model(tokens, torch.arange(len(rendered))[None], Documents(((len(rendered),),)))[0].double()
            logprobs = torch.log_softmax(hidden @ model.output_weight.double().T, dim=-1)
        answer = [t for t in range(len(rendered)) if rendered.roles[t] == Role.ASSISTANT and rendered.segments[t] in (2, 4)]
        totals.append(sum(float(logprobs[t - 1, rendered.tokens[t]]) for t in answer))
    expected = np.exp(totals) / np.exp(totals).sum()
    assert said[0].shares == pytest.approx(tuple(expected), abs=1e-5)
    assert choice_probabilities(model, tokenizer, [], GRADES, 4).shape == (0, 3)


@pytest.fixture
def server():
    """(scripted replies) -> address and the list of requests; a reply is a status, or the text of an answer."""
    started = []

    def start(*replies):
        requests: list[dict] = []
        lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    reply = replies[min(len(requests), len(replies) - 1)]
                    requests.append(body | {"path": self.path, "key": self.headers.get("Authorization")})
                if callable(reply):
                    reply = reply(body["messages"][0]["content"])
                status, text = (reply, "no") if isinstance(reply, int) else (200, reply)
                content = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments) -> None:
                pass

        http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        started.append(http)
        return f"http://127.0.0.1:{http.server_port}/v1", requests

    yield start
    for http in started:
        http.shutdown()
        http.server_close()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(judge_endpoint, "_FIRST_PAUSE", 0.0)


def test_an_endpoint_is_asked_once_and_answers_in_order(dialog, server, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "k")
    url, requests = server(lambda text: f'Because. {{"answer": "{text[0]}"}}')
    config = judge_config("endpoint", url=url + "/", model="m", parallel=3, key_variable="JUDGE_KEY")
    questions = [Question(dialog(str(i), "x"), "quality", f"{i % 3 + 1}: {i}", GRADES) for i in range(9)]
    judge = EndpointJudge(config, tmp_path / "scratch")
    assert [v.grade for v in judge.ask(questions)] == [1, 2, 3] * 3
    assert len(requests) == 9 and {r["path"] for r in requests} == {"/v1/chat/completions"}
    assert requests[0]["key"] == "Bearer k" and requests[0]["temperature"] == 0 and requests[0]["model"] == "m"
    with open(tmp_path / "scratch/judge_endpoint.jsonl", "a", encoding="utf-8") as file:
        file.write('{"question": "cut sho')  # the process died here
    assert [v.grade for v in EndpointJudge(config, tmp_path / "scratch").ask(questions)] == [1, 2, 3] * 3
    assert len(requests) == 9


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ('{"answer": 2}', 2),
        ('{"answer": 2.0}', 2),
        ('First {"answer": 1}, no: ```json\n{"answer": "3"}\n```', 3),
        ("2", None),
        ('{"answer": 7}', None),
        ('{"answer": }', None),
        ("", None),
    ],
)
def test_what_counts_as_an_answer(dialog, server, tmp_path, reply, grade) -> None:
    url, _ = server(reply)
    [verdict] = EndpointJudge(judge_config("endpoint", url=url), tmp_path).ask(
        [Question(dialog("a", "x"), "quality", "?", GRADES)]
    )
    assert verdict.grade == grade and bool(verdict.reason) == (grade is None)


def test_an_endpoint_is_asked_again_while_it_is_busy_and_no_longer(dialog, server, tmp_path) -> None:
    question = Question(dialog("a", "x"), "quality", "?", GRADES)
    url, requests = server(503, 429, '{"answer": 3}')
    assert EndpointJudge(judge_config("endpoint", url=url), tmp_path / "a").ask([question])[0].grade == 3
    assert len(requests) == 3
    url, requests = server(401)
    with pytest.raises(UserError, match=r"did not answer after 1 attempt \(status 401, .*\): start the server there"):
        EndpointJudge(judge_config("endpoint", url=url), tmp_path / "b").ask([question])
    assert len(requests) == 1


def test_an_endpoint_that_is_not_there_is_said_in_one_line(dialog, tmp_path) -> None:
    config = judge_config("endpoint", url="http://127.0.0.1:9/v1", retries=1)
    with pytest.raises(UserError) as error:
        EndpointJudge(config, tmp_path).ask([Question(dialog("a", "x"), "quality", "?", GRADES)] * 3)
    text = str(error.value)
    assert text.startswith("judge: http://127.0.0.1:9/v1/chat/completions did not answer after 2 attempts (")
    assert "refused" in text and "\n" not in text


def test_a_judge_without_what_it_needs_is_refused() -> None:
    nothing = Inputs({}, {})
    for kind, text in (("none", "there is none"), ("model", "inputs.judge"), ("grader", "inputs.prompts")):
        with pytest.raises(UserError, match=text):
            open_judge(judge_config(kind), nothing, None, "meta")
    with pytest.raises(UserError, match=r"judge.url=http"):
        judge_config("endpoint")
    with pytest.raises(UserError, match="Did you mean 'endpoint'"):
        judge_config("endpont")
