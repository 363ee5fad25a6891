"""`herd chat`: turns, commands, a full window, an interrupt, and models that have seen no dialogs."""

import io
import json
import shutil

import pytest

from herd.cli import main
from herd.config.errors import UserError
from herd.dialog.messages import Message, Role
from herd.dialog.render import render
from herd.generation.choose import SamplingConfig
from herd.generation.opening import open_generator
from herd.generation.sampler import generate
from herd.generation.terminal import Conversation
from herd.generation.tool import printable

SAMPLING = SamplingConfig(8, 0.9, 0.95, 2)


@pytest.fixture(scope="module")
def opened(folder):
    return open_generator(str(folder), "runs", None, "cpu", 0)


def answer(opened, dialog):
    ids = render(dialog, opened.tokenizer, generation_prompt=True).tokens.tolist()
    ((sample,),) = generate(opened.model, [ids], 1, SAMPLING, opened.tokenizer.stop_ids)
    return opened.tokenizer.decode(sample.tokens, skip_special_tokens=True)


def test_each_answer_goes_on_from_all_that_was_said(opened):
    talk = Conversation(opened, SAMPLING, "Be brief")
    dialog = [Message(Role.SYSTEM, "Be brief")]
    for text in ("what?", "why?"):
        dialog.append(Message(Role.USER, text))
        assert talk.say(text) == 0
        said = "".join(talk.answer())
        assert said == answer(opened, dialog)
        dialog.append(Message(Role.ASSISTANT, said))


def test_the_oldest_turns_give_way_and_a_message_too_long_is_refused(opened):
    talk = Conversation(opened, SAMPLING)
    dropped = []
    for _ in range(6):
        dropped.append(talk.say("what colour is it"))
        "".join(talk.answer())
    assert dropped[0] == 0 and sum(dropped) > 0 and all(n % 2 == 0 for n in dropped)
    before = list(talk._said)
    with pytest.raises(UserError, match="window of 96 cannot hold"):
        talk.say("x " * 100)
    assert talk._said == before


def test_an_answer_that_is_stopped_is_kept_as_far_as_it_came(opened):
    talk = Conversation(opened, SAMPLING)
    talk.say("what?")
    pieces = talk.answer()
    begun = next(pieces)
    pieces.close()
    assert talk._said[-1] == Message(Role.ASSISTANT, begun)
    assert not talk._engine.busy and talk._engine.pool.used == 0


def test_lines_from_a_pipe(folder, opened, capsys, monkeypatch):
    monkeypatch.setattr(
        "sys.stdin", io.StringIO("what?\n\n/system Be brief\nwhat?\n/clear\nwhat?\n/help\n/systm x\n" + "x " * 100 + "\n")
    )
    main(["chat", f"model={folder}", "temperature=0.9", "top_p=0.95", "seed=2", "max_new_tokens=8"])
    plain = printable(answer(opened, [Message(Role.USER, "what?")]))
    brief = printable(answer(opened, [Message(Role.SYSTEM, "Be brief"), Message(Role.USER, "what?")]))
    out = capsys.readouterr().out
    assert out.startswith(f"{plain}\n(begun anew)\n{brief}\n(begun anew)\n{brief}\n/clear begins anew")
    assert "(the message and its frame have" in out
    assert "(no command /systm. Did you mean '/system'? /help lists them)" in out


def test_a_base_model_is_refused_unless_forced(folder, tmp_path, capsys, monkeypatch):
    stage = tmp_path / "pretrain"
    shutil.copytree(folder, stage)
    (stage / "manifest.json").write_text(json.dumps({"stage": "pretrain", "inputs": {}}))
    with pytest.raises(SystemExit):
        main(["chat", f"model={stage}"])
    assert "is a base model (herd pretrain): it continues text" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    main(["chat", f"model={stage}", "force=true"])
