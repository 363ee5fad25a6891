"""Stages that sample, killed half way: nothing is drawn twice, and the result is that of an undisturbed run, to the bit."""

import os
import signal
from pathlib import Path

import pytest
import torch
from posttraining import preferences, tiny_model, tokenizer
from training_standin import Child, Killed

from herd.alignment import best_stage, preferences_stage, reject_stage
from herd.cli import main
from herd.dialog.rows import Prompt, write_jsonl
from herd.generation import kept
from herd.generation.sampler import OwnSampler
from herd.model.heads import RewardModel
from herd.model.io import save_model
from herd.runs.atomic import write_json
from herd.runs.stage import Artifact

PROMPTS = 12
SETTINGS = {
    "reject": ["samples=3", "max_new_tokens=20", f"prompts={PROMPTS}", "batch_size=4"],
    "best": ["max_new_tokens=20", f"prompts={PROMPTS}", "batch_size=4"],
    "preferences": ["max_new_tokens=20", f"prompts={PROMPTS}", f"heldout_prompts={PROMPTS}", "batch_size=4"],
}
FILES = {"reject": "dialogs.jsonl", "best": "answers.jsonl", "preferences": "preferences.jsonl"}
DRAWN = {"reject": PROMPTS, "best": 2 * PROMPTS, "preferences": 4 * PROMPTS}  # answers of each model, of both splits
STAGES = {stage.STAGE.name: stage.STAGE for stage in (reject_stage, best_stage, preferences_stage)}


class Laboratory:
    """Inputs on disk, and the commands as a person gives them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        tokenizer().save(root / "tokens/tokenizer")
        for seed in (0, 1):
            model = tiny_model(seed)
            with torch.no_grad():
                for weight in model.parameters():
                    weight.mul_(1.3)
                model.tok_embeddings.weight[list(tokenizer().stop_ids)] *= 2  # so that some answers end
            save_model(model, root / f"model-{seed}/model")
        save_model(RewardModel(tiny_model(2)), root / "reward/model")
        rows = [Prompt(p.id, p.id, "what", p.prompt, p.chosen[0].content).to_dict() for p in preferences(PROMPTS)]
        for split in ("train", "heldout"):
            write_jsonl(root / f"prompts/{split}_prompts.jsonl", rows)
        for name in ("tokens", "model-0", "model-1", "reward", "prompts"):
            write_json(root / name / "manifest.json", {"stage": name, "address": name, "metrics": {}, "outputs": {}})

    def arguments(self, command: str, name: str) -> list[str]:
        names = {
            "reject": {"tokens": "tokens", "reward": "reward", "prompts": "prompts", "generator": "model-0"},
            "best": {"tokens": "tokens", "reward": "reward", "prompts": "prompts"},
            "preferences": {"tokens": "tokens", "dialogs": "prompts"},
        }[command]
        if command != "reject":
            names |= {"models.a": "model-0", "models.b": "model-1"}
        inputs = [f"inputs.{key}={self.root / folder}" for key, folder in names.items()]
        return [command, *SETTINGS[command], *inputs, f"run.root={self.root / name}", "run.name=test"]

    def run(self, command: str, name: str) -> Artifact:
        main(self.arguments(command, name))
        return Artifact.open(self.root / name / "test" / command)


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory) -> Laboratory:
    return Laboratory(tmp_path_factory.mktemp("sampling"))


@pytest.mark.parametrize("command", sorted(STAGES))
def test_a_stage_that_was_stopped_draws_what_is_missing(laboratory, command, monkeypatch, capsys):
    asked, plain = [], OwnSampler.draw
    stops_after = [DRAWN[command] * 2 // 3]

    def counted(self, given, done=None):
        def told(place, found):
            done(place, found)
            asked.append(place)
            if len(asked) == stops_after[0]:
                raise Killed

        return plain(self, given, told)

    whole = laboratory.run(command, "whole")
    capsys.readouterr()
    monkeypatch.setattr(OwnSampler, "draw", counted)
    with pytest.raises(Killed):
        laboratory.run(command, "stopped")
    (left,) = (laboratory.root / "stopped/store").glob(f".partial-{command}-*")
    assert list(left.glob(".scratch/answers/herd/answers-*.jsonl"))
    again = laboratory.run(command, "stopped")
    assert "prompts are there from before" in capsys.readouterr().err
    assert len(asked) == DRAWN[command]
    for name in whole.manifest["outputs"]:
        assert (again / name).read_bytes() == (whole / name).read_bytes(), name
    assert (whole / FILES[command]).read_text().strip()
    assert again.metrics == whole.metrics and again.manifest["cost"]["tokens"] == whole.manifest["cost"]["tokens"]
    assert not left.exists() and not (again.path / ".scratch").exists()


def test_kill_9_in_the_middle_of_a_line(laboratory, monkeypatch, capfd):
    """A real `herd reject`, killed while a line is being written: half of it is on the disk."""
    whole = laboratory.run("reject", "whole")

    def killed(tick) -> None:
        lines, checksum = [], kept._checksum

        def half_way(text: bytes) -> str:
            lines.append(text)
            if len(lines) == 6:
                (file,) = (laboratory.root / "killed/store").glob(".partial-reject-*/.scratch/answers/herd/*.jsonl")
                with open(file, "ab") as half:
                    half.write(b"%s %s" % (checksum(text).encode(), text[: len(text) // 2]))
                os.kill(os.getpid(), signal.SIGKILL)
            return checksum(text)

        monkeypatch.setattr(kept, "_checksum", half_way)
        main(laboratory.arguments("reject", "killed"))

    assert Child(killed).end() == -signal.SIGKILL
    monkeypatch.undo()
    again = laboratory.run("reject", "killed")
    assert f"sampling (generator): the answers to 5 of {PROMPTS} prompts are there from before\n" in capfd.readouterr().err
    assert (again / "dialogs.jsonl").read_bytes() == (whole / "dialogs.jsonl").read_bytes()
    assert again.metrics == whole.metrics


def test_pairs_that_have_gone_out_to_people_leave_nothing_behind(laboratory, capsys):
    """With their verdicts the stage has another address, so nobody would come back for what was kept under this one."""
    with pytest.raises(SystemExit):
        main([*laboratory.arguments("preferences", "people"), f"annotation.folder={laboratory.root / 'annotators'}"])
    assert "waiting for verdicts" in capsys.readouterr().err
    assert not list((laboratory.root / "people/store").glob(".partial-*"))
