"""`herd generate`: prompts from the command line and from files, text out, and what is refused."""

import json
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from herd.cli import main
from herd.corpus.tokenizer import Tokenizer
from herd.dialog.messages import Message, Role
from herd.dialog.render import render
from herd.generation import tool
from herd.generation.engines.config import EngineConfig
from herd.generation.opening import open_generator
from herd.generation.sampler import SamplingConfig, generate
from herd.generation.tool import GenerateConfig, printable
from herd.model.heads import RewardModel
from herd.model.io import load_model, save_model


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    main(["generate", *arguments])
    return capsys.readouterr().out


def wanted(folder: Path, ids: list[list[int]], samples: int, config: SamplingConfig) -> list[list[str]]:
    tokenizer = Tokenizer.load(folder / "tokenizer")
    drawn = generate(load_model(folder / "model"), ids, samples, config, tokenizer.stop_ids)
    return [[tokenizer.decode(s.tokens, skip_special_tokens=True) for s in of] for of in drawn]


def test_a_prompt_is_continued_as_the_sampler_does(folder, capsys):
    prompt = "what {colour}, is it? it's $HOME ${run.root} = [1]"
    out = output(capsys, f"model={folder}", f"prompt={prompt}", "max_new_tokens=9", "temperature=0.7", "top_k=30", "seed=4")
    tokenizer = Tokenizer.load(folder / "tokenizer")
    ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
    assert out == wanted(folder, [ids], 1, SamplingConfig(9, 0.7, 1.0, 4, 30))[0][0] + "\n"


def test_messages_are_answered_in_the_chat_format(folder, capsys):
    arguments = ["chat=true", "system=Be, brief", "prompt=what colour?", "prompt=a?", "samples=2", "max_new_tokens=7"]
    out = output(capsys, f"model={folder / 'model'}", *arguments)
    tokenizer = Tokenizer.load(folder / "tokenizer")
    dialogs = [[Message(Role.SYSTEM, "Be, brief"), Message(Role.USER, text)] for text in ("what colour?", "a?")]
    ids = [render(d, tokenizer, generation_prompt=True).tokens.tolist() for d in dialogs]
    texts = wanted(folder, ids, 2, SamplingConfig(7, 0.8))
    assert out == "\n\n".join(text for group in texts for text in group) + "\n"


def test_messages_are_written_as_the_model_was_trained(folder, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "sft")
    (tmp_path / "sft/manifest.json").write_text(json.dumps({"stage": "sft", "config": {"dialect": "hf"}, "inputs": {}}))
    for given, dialect in ((None, "hf"), ("meta", "meta")):
        assert open_generator(str(tmp_path / "sft"), "runs", None, "cpu", 0, given).dialect == dialect
    out = output(capsys, f"model={tmp_path / 'sft'}", "chat=true", "prompt=a", "max_new_tokens=7")
    ids = render([Message(Role.USER, "a")], Tokenizer.load(folder / "tokenizer"), generation_prompt=True, dialect="hf")
    assert out == wanted(folder, [ids.tokens.tolist()], 1, SamplingConfig(7, 0.8))[0][0] + "\n"


def test_a_system_message_stands_before_the_messages_of_a_file_too(folder, tmp_path, capsys):
    row = {"messages": [{"role": "user", "content": "colour"}]}
    (tmp_path / "in.jsonl").write_text(json.dumps(row))
    arguments = [f"model={folder}", f"file={tmp_path / 'in.jsonl'}", "chat=true", "system=Be, brief", "max_new_tokens=6"]
    tokenizer = Tokenizer.load(folder / "tokenizer")
    dialog = [Message(Role.SYSTEM, "Be, brief"), Message(Role.USER, "colour")]
    ids = render(dialog, tokenizer, generation_prompt=True).tokens.tolist()
    assert output(capsys, *arguments) == wanted(folder, [ids], 1, SamplingConfig(6, 0.8))[0][0] + "\n"
    row["messages"].insert(0, {"role": "system", "content": "own"})
    (tmp_path / "in.jsonl").write_text(json.dumps(row))
    with pytest.raises(SystemExit):
        main(["generate", *arguments])
    assert "line 1: the row has a system message of its own" in capsys.readouterr().err


def test_rows_of_a_file_come_back_with_their_samples(folder, tmp_path, capsys):
    rows = [
        {"id": "a", "prompt": "what"},
        {"id": "b", "messages": [{"role": "user", "content": "colour"}]},
        {"id": "c", "prompt": "is it"},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [f"model={folder}", f"file={tmp_path / 'in.jsonl'}", "samples=2", "max_new_tokens=6"]
    assert output(capsys, *arguments, f"out={tmp_path / 'out.jsonl'}") == f"{tmp_path / 'out.jsonl'}\n"
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["id"], row["sample"]) for row in found] == [(i, k) for i in "abc" for k in (0, 1)]
    assert all(row["tokens"] <= 6 and row["logprob"] < 0 and isinstance(row["finished"], bool) for row in found)
    # Neither order nor company nor batching matters to a sample.
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[::-1]))
    main(["generate", *arguments, f"out={tmp_path / 'other.jsonl'}", "batch_size=1"])
    other = [json.loads(line) for line in (tmp_path / "other.jsonl").read_text().splitlines()]
    texts = {(row["id"], row["sample"]): row["text"] for row in other}
    assert texts == {(row["id"], row["sample"]): row["text"] for row in found}
    assert texts["a", 0] != texts["a", 1]


def test_more_stop_tokens(folder, tmp_path, capsys):
    arguments = [f"model={folder}", "prompt=what colour", "samples=20", "max_new_tokens=30", f"out={tmp_path / 'x.jsonl'}"]
    main(["generate", *arguments])
    plain = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    letter = next(c for row in plain for c in row["text"] if c.isascii() and c.isalpha())
    main(["generate", *arguments, f"stop={letter}", "stop=<|python_tag|>"])
    rows = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert sum(row["finished"] for row in rows) > sum(row["finished"] for row in plain)
    assert any(row["text"].endswith(letter) and row["finished"] for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "There is no prompt: give prompt=TEXT"),
        (["prompt=a", "system=b"], "add chat=true"),
        (["prompt=a", "temperature=-1"], "temperature is -1.0"),
        (["prompt=a", "top_k=-1"], "top_k is -1"),
        (["prompt=a", "top_p=0"], "top_p is 0.0"),
        (["prompt=a", "samples=0"], "samples and batch_size must be 1 or more"),
        (["prompt=a", "max_new_tokens=80", "max_kv_tokens=64"], "one sample needs 192 tokens of keys and values"),
        (["prompt=a", "max_new_tokens=96"], "leaves room for 0: lower max_new_tokens"),
        (["prompt=a", "device=cuda:99"], "device='cuda:99' is not available here"),
        (["prompt=a", "device=foo"], "device='foo' is not available here: use cpu"),
        (["prompt=a", "stop=colour is it what"], "tokens: give the name of a special token"),
        (["prompt=a", "file=nowhere.jsonl"], "no such file"),
        (["prompt=a", "file=/"], "/: is a folder; give a file"),
        (["file=/dev/null"], "'/dev/null' holds no prompt"),
        (["prompt=a", "out=."], "out: '.' is no name for a file"),
        (["prompt=a", "tempreature=1"], "Did you mean 'temperature'"),
    ],
)
def test_bad_settings_end_in_one_line(folder, capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["generate", f"model={folder}", *arguments])
    out, err = capsys.readouterr()
    assert (stop.value.code, out, len(err.splitlines())) == (2, "", 1)
    assert message in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, "line 1: a row needs either `prompt`"),
        ({"prompt": "a", "messages": []}, "line 1: a row needs either `prompt`"),
        ({"prompt": 3}, "line 1: a row needs either `prompt`"),
        ({"prompt": "a \ud800"}, "line 1, message 0: half of a surrogate pair"),
        ({"messages": []}, "at least one message"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "is the assistant's own"),
    ],
)
def test_bad_rows_are_named(folder, capsys, tmp_path, row, message):
    (tmp_path / "in.jsonl").write_text(json.dumps(row))
    with pytest.raises(SystemExit):
        main(["generate", f"model={folder}", f"file={tmp_path / 'in.jsonl'}"])
    assert message in capsys.readouterr().err


def test_reward_models_do_not_write(folder, tmp_path, capsys):
    save_model(RewardModel(load_model(folder / "model")), tmp_path / "model")
    with pytest.raises(SystemExit):
        main(["generate", f"model={tmp_path}", "prompt=a"])
    assert "is a reward model" in capsys.readouterr().err


def test_on_a_terminal_prompts_are_shown_and_no_control_character_passes(folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    out = output(capsys, f"model={folder}", "prompt=[bold]what[/bold] \x1b[31mcolour", "max_new_tokens=5", "seed=3")
    assert "[bold]what[/bold] \ufffd[31mcolour" in out
    assert "(5 tokens)" in out
    assert printable("a\x1b]0;b\x07\tc\nd\x9b1m\r") == "a\ufffd]0;b\ufffd\tc\nd\ufffd1m\ufffd"


def test_the_configuration_lists_every_field():
    from omegaconf import OmegaConf

    from herd.config.loader import compose, to_plain
    from herd.generation.serve import ServeConfig
    from herd.generation.terminal import ChatConfig
    from herd.interchange.export import ExportConfig

    configs = {
        "generate": GenerateConfig("m", ["p"]),
        "chat": ChatConfig("m"),
        "serve": ServeConfig("m"),
        "export": ExportConfig("m", "o"),
    }
    for command, config in configs.items():
        listed = OmegaConf.to_container(compose(command))
        assert {*listed} - {"hydra"} == {*to_plain(config)}


def test_top_k_keeps_the_likeliest(folder):
    from herd.generation.choose import choose

    logits = torch.tensor([[1.0, 3.0, 2.0, 0.0, -1.0]]).expand(40_000, 5)
    draws = torch.rand(40_000, generator=torch.Generator().manual_seed(0))
    drawn = choose(logits, draws, temperature=0.5, top_p=1.0, top_k=2)
    share = (drawn == 1).double().mean().item()
    assert set(drawn.tolist()) == {1, 2}
    assert share == pytest.approx(1 / (1 + 2.718281828**-2), abs=0.01)
    assert set(choose(logits, draws, 0.5, top_p=0.85, top_k=2).tolist()) == {1}
    assert set(choose(logits, draws, 0.5, top_p=1.0, top_k=9).tolist()) == {0, 1, 2, 3, 4}
    assert torch.equal(choose(logits, draws, 0.5, 1.0, 5), choose(logits, draws, 0.5, 1.0, 0))


@pytest.mark.parametrize("end", [KeyboardInterrupt, RuntimeError])
def test_an_answer_that_is_broken_off_leaves_no_folder(folder, tmp_path, monkeypatch, end):
    @contextmanager
    def broken_off(config, writer, tokenizer, dialect, scratch):
        (scratch / "server.log").write_text("ready")
        raise end
        yield

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(tool, "sampler_of", broken_off)
    engine = EngineConfig(kind="server", url="http://127.0.0.1:1")
    with pytest.raises(end):
        tool.run(GenerateConfig(model=str(folder), prompt=["a"], engine=engine))
    assert not list(tmp_path.iterdir())
