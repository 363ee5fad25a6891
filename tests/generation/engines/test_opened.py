"""Engines from their settings: a server is started, asked, compared with our own model, and ended whatever happens."""

import os
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import psutil
import pytest
import torch

from herd.config.errors import UserError
from herd.corpus.tokenizer import Tokenizer
from herd.generation.choose import SamplingConfig
from herd.generation.engine import Engine
from herd.generation.engines.config import EngineConfig
from herd.generation.engines.opened import Writer, sampler_of
from herd.generation.sampler import Asked, OwnSampler
from herd.generation.service import Service
from herd.model.io import load_model, save_model

pytest.importorskip("uvicorn", reason="needs the extra `serve`")
pytest.importorskip("httpx", reason="needs the extra `serve`")

STUB = [sys.executable, str(Path(__file__).with_name("vllm_stub.py")), "{port}"]
PROMPTS = [[1, 5, 6, 40], [1, 70], [1, 5]]


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.load(folder / "tokenizer")


@pytest.fixture(scope="module")
def url(folder, tokenizer, listening):
    """`herd serve` of the model, in a thread."""
    from herd.generation.openai.app import Served, make_app

    engine = Engine(load_model(folder / "model").requires_grad_(False), 16, 2048)
    app = make_app(Served("tiny", tokenizer, Service(engine), window=96, longest=20))
    with listening(app) as url:
        yield url


def opened(config, folder, tokenizer, tmp_path):
    return sampler_of(config, Writer.open("tiny", folder / "model", "model"), tokenizer, "meta", tmp_path)


def started(**settings):
    command = settings.pop("command", STUB)
    return EngineConfig(kind="server", command=command, **{"checked_prompts": 0, "start_seconds": 20} | settings)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_server_of_ours_draws_what_the_engine_here_draws(url, folder, tokenizer, tmp_path, temperature):
    sampling = SamplingConfig(max_new_tokens=12, temperature=temperature, top_p=0.9, seed=5)
    with opened(EngineConfig(), folder, tokenizer, tmp_path) as own:
        assert own.about == {"kind": "herd"}
        wanted = own.draw(Asked(PROMPTS, 4, sampling, frozenset(tokenizer.stop_ids)))
    with opened(EngineConfig(kind="server", url=url), folder, tokenizer, tmp_path) as served:
        found = served.draw(Asked(PROMPTS, 4, sampling, frozenset(tokenizer.stop_ids)))
    assert [[s.tokens for s in of] for of in found] == [[s.tokens for s in of] for of in wanted]
    for a, b in zip(chain(*found), chain(*wanted), strict=True):
        assert a.finished == b.finished and a.logprob == pytest.approx(b.logprob, abs=1e-4)
    assert served.about.pop("logprob_difference") < 1e-5
    assert served.about.pop("checked_tokens") >= 3
    assert (served.about["software"], served.about["model"]) == ("herd", "tiny")


def test_answers_that_are_there_from_before_need_no_server(folder, tokenizer, tmp_path, capsys):
    found, about = [], []
    for command in (STUB, ["no-such-vllm", "{port}"]):
        with opened(started(command=command), folder, tokenizer, tmp_path) as sampler:
            found.append(sampler.draw(Asked([[1, 2], [1, 3]], 2, SamplingConfig(8), frozenset({4}))))
            about.append(sampler.about)
    assert found[0] == found[1]
    assert about[0] == about[1] and about[1]["software"] == "vllm"
    assert "the answers to 2 of 2 prompts are there from before" in capsys.readouterr().err


def test_answers_of_two_servers_are_not_mixed(folder, tokenizer, tmp_path):
    with opened(started(), folder, tokenizer, tmp_path) as sampler:
        first = sampler.draw(Asked([[1, 2]], 1, SamplingConfig(8), frozenset({4})))
    (about,) = tmp_path.rglob("engine-tiny.json")
    about.write_text(about.read_text().replace("0.11.0", "0.10.2"))
    with opened(started(), folder, tokenizer, tmp_path) as sampler:
        assert sampler.draw(Asked([[1, 2]], 1, SamplingConfig(8), frozenset({4}))) == first  # all there: nobody is asked
        with pytest.raises(UserError, match=r"another server drew \(vllm 0.10.2 tiny and vllm 0.11.0 tiny\): go on with that"):
            sampler.draw(Asked([[1, 3]], 1, SamplingConfig(8), frozenset({4})))


def test_a_server_of_another_model_is_refused(url, folder, tokenizer, tmp_path):
    other = load_model(folder / "model").requires_grad_(False)
    other.output.weight.add_(0.3 * torch.randn(other.output.weight.shape, generator=torch.Generator().manual_seed(0)))
    save_model(other, tmp_path / "model")
    told = r"are off those of .*model by .* nats a token \(\d+ tokens; at most 0.1\)"
    config = EngineConfig(kind="server", url=url)
    with opened(config, tmp_path, tokenizer, tmp_path) as sampler, pytest.raises(UserError, match=told):
        sampler.draw(Asked(PROMPTS, 1, SamplingConfig(4, 0.0), frozenset(tokenizer.stop_ids)))


def test_a_started_server_is_ended_with_its_children(folder, tokenizer, tmp_path):
    before = set(psutil.Process().children())
    with opened(started(arguments=["{model}", "{name}"]), folder, tokenizer, tmp_path) as sampler:
        assert sampler.draw(Asked([], 1, SamplingConfig(8), frozenset({4}))) == [] and sampler.about == {"kind": "server"}
        assert set(psutil.Process().children()) == before  # nothing is started before it must
        assert sampler.draw(Asked([[1, 2]], 2, SamplingConfig(8), frozenset({4})))[0][1].tokens[1:] == [41, 4]
        family = [p for p in psutil.Process().children(recursive=True) if p not in before]
        assert len(family) == 2  # the guardian and the server
        (command,) = [p.cmdline() for p in family if "guardian" not in " ".join(p.cmdline())]
        model = Path(command[-2])
        files = {path.name for path in model.iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= files
    assert not any(p.is_running() for p in family) and not model.exists()
    assert sampler.about == {"kind": "server", "software": "vllm", "version": "0.11.0", "model": "tiny"}


class Stopped(Exception):
    pass


@pytest.mark.parametrize("end", [Stopped, KeyboardInterrupt])
def test_it_is_ended_by_an_error_too(folder, tokenizer, tmp_path, end):
    before, family = set(psutil.Process().children()), []

    def fail():
        with opened(started(), folder, tokenizer, tmp_path) as sampler:
            sampler.draw(Asked([[1, 2]], 1, SamplingConfig(8), frozenset({4})))
            family.extend(p for p in psutil.Process().children(recursive=True) if p not in before)
            raise end

    with pytest.raises(end):
        fail()
    assert family and not any(p.is_running() for p in family)


def test_it_dies_with_a_parent_that_is_killed():
    """Nothing of ours runs at a kill -9: the guardian sees that its standard input has closed."""
    parent = """
import sys, time
from pathlib import Path
from herd.generation.engines.server_process import ServerProcess
server = ServerProcess(["sleep", "60"], Path(sys.argv[1]))
print("begun", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", parent, os.devnull], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        family = psutil.Process(process.pid).children(recursive=True)
        while not any(p.name() == "sleep" for p in family):
            time.sleep(0.01)
            family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    gone, alive = psutil.wait_procs(family, timeout=10)
    assert len(gone) == 2 and not alive


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (started(command=["no-such-vllm", "{port}"]), r"there is no program 'no-such-vllm' here: install it"),
        (
            started(command=["sh", "-c", "echo begun; echo out of memory; exit 3; {port}"]),
            r"ended with status 3, and said last: out of memory \(all it said: .*server.log\)",
        ),
        (started(command=["sh", "-c", "kill -9 $$; {port}"]), "ended with status 137 without a word"),
        (started(command=["sh", "-c", "sleep 60; {port}"], start_seconds=0.3), "does not answer after 0.3 s: raise engine.start"),
    ],
)
def test_a_server_that_does_not_come_up_is_told_in_one_line(folder, tokenizer, tmp_path, config, told):
    before = set(psutil.Process().children())
    with opened(config, folder, tokenizer, tmp_path) as sampler, pytest.raises(UserError, match=told) as caught:
        sampler.draw(Asked([[1, 2]], 1, SamplingConfig(8), frozenset({4})))
    assert "\n" not in str(caught.value)
    assert set(psutil.Process().children()) == before


def test_a_server_that_dies_at_work_is_told_with_what_it_said_last(folder, tokenizer, tmp_path):
    with opened(started(), folder, tokenizer, tmp_path) as sampler:
        sampler.draw(Asked([[1, 2]], 1, SamplingConfig(8), frozenset({4})))
        (server,) = [p for p in psutil.Process().children(recursive=True) if "vllm_stub" in " ".join(p.cmdline()[:2])]
        server.kill()
        server.wait(10)
        with pytest.raises(UserError, match="has ended with status 137, and said last: stub: begun"):
            sampler.draw(Asked([[1, 3]], 1, SamplingConfig(8), frozenset({4})))


@pytest.mark.slow  # starts `herd serve`, which imports torch
def test_herd_serve_as_the_command(folder, tokenizer, tmp_path):
    serve = [sys.executable, "-m", "herd", "serve", "model={own_model}", "tokenizer={tokenizer}", "name={name}", "port={port}"]
    sampling = SamplingConfig(max_new_tokens=12, temperature=1.0, seed=5)
    with opened(started(command=serve, checked_prompts=2), folder, tokenizer, tmp_path) as served:
        found = served.draw(Asked(PROMPTS, 4, sampling, frozenset(tokenizer.stop_ids)))
    wanted = OwnSampler(load_model(folder / "model")).draw(Asked(PROMPTS, 4, sampling, frozenset(tokenizer.stop_ids)))
    assert [[s.tokens for s in of] for of in found] == [[s.tokens for s in of] for of in wanted]
