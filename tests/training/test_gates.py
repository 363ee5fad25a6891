"""Gates of long-context stages: the needle test itself, extension, resume, and what a run records."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pretrain_standin import VOCAB, config, write_corpus
from test_pretrain import files
from training_standin import Killed

from herd.config.errors import UserError
from herd.corpus.shards import TokenShards
from herd.model.config import ModelConfig
from herd.model.transformer import Transformer
from herd.runs.stage import Inputs, StageRun
from herd.training import pretrain_stage
from herd.training.checkpoint import CheckpointStore
from herd.training.curriculum import Curriculum
from herd.training.gates import GateConfig, judge
from herd.training.needle import KEY_TOKENS, needle_accuracy, needle_trials
from herd.training.pretrain import AtStageEnds

NEVER = {"short_loss": 10.0, "needle_accuracy": 1.0, "needle_trials": 8, "needle_statements": 2, "extend": 0.5, "extensions": 2}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Inputs:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def source(inputs):
    return TokenShards(inputs["tokens"] / "tokens").source("heldout", "general")


def run(inputs: Inputs, folder: Path, **gate) -> dict:
    return pretrain_stage.run(config(curriculum__stages__long__gate=gate or None), inputs, StageRun(folder, seed=0))


def test_each_trial_asks_for_a_statement_that_stands_in_it_once(source):
    tokens, values = needle_trials(source, length=64, trials=12, statements=4, seed=0)
    assert tokens.shape == (12, 64) and values.shape == (12, 4)
    assert int(tokens.max()) < VOCAB
    depths = set()
    for row, value in zip(tokens, values, strict=True):
        key = row[-KEY_TOKENS:]
        wanted = [*key.tolist(), value[0]]
        places = [i for i in range(64 - 2 * KEY_TOKENS) if row[i : i + KEY_TOKENS + 1].tolist() == wanted]
        assert places and len(set(value.tolist())) == 4
        assert all(other in row for other in value)
        depths.add(places[0])
    assert len(depths) == 4  # the asked statement stands at each depth in turn
    again, _ = needle_trials(source, length=64, trials=12, statements=4, seed=0)
    assert (again == tokens).all()
    assert not (needle_trials(source, length=64, trials=12, statements=4, seed=1)[0] == tokens).all()


def test_a_model_that_looks_back_finds_every_needle_and_one_that_does_not_is_at_chance(source):
    class Recaller:
        """Puts all weight on the token that follows the earlier copy of the last three."""

        output_weight = torch.zeros(1)

        def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
            hidden = torch.zeros(*tokens.shape, VOCAB)
            for b, row in enumerate(tokens.tolist()):
                for i in range(len(row) - KEY_TOKENS):
                    if row[i : i + KEY_TOKENS] == row[-KEY_TOKENS:]:
                        hidden[b, -1, row[i + KEY_TOKENS]] = 1.0
                        break
            return hidden

        def logits(self, hidden: torch.Tensor) -> torch.Tensor:
            return hidden

    assert needle_accuracy(Recaller(), source, 64, trials=40, statements=4) == 1.0  # type: ignore[arg-type]
    model = Transformer(ModelConfig(dim=16, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=32, vocab_size=VOCAB, max_seq_len=64))
    share = needle_accuracy(model, source, 64, trials=400, statements=4)
    assert abs(share - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 400)


def test_a_test_that_cannot_hold_its_statements_is_refused(source):
    with pytest.raises(UserError, match="needle test of 16 tokens cannot hold 8 statements"):
        needle_trials(source, 16, 1, 8)


def test_both_criteria_must_hold(source):
    model = Transformer(ModelConfig(dim=16, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=32, vocab_size=VOCAB, max_seq_len=64))
    easy = GateConfig(short_loss=0.01, needle_accuracy=0.0, needle_trials=4, needle_statements=2)
    assert judge(easy, model, source, 64, loss=2.009, before=2.0).passed
    assert not judge(easy, model, source, 64, loss=2.011, before=2.0).passed
    assert judge(easy, model, source, 64, loss=1.5, before=2.0).passed
    assert not judge(replace(easy, needle_accuracy=1.0, needle_trials=40), model, source, 64, loss=1.5, before=2.0).passed


def test_a_gate_that_is_passed_changes_nothing(inputs, tmp_path):
    plain = run(inputs, tmp_path / "plain")
    gated = run(inputs, tmp_path / "gated", short_loss=10.0, needle_accuracy=0.0, needle_statements=2)
    assert gated["loss"] == plain["loss"] and files(tmp_path / "gated") == files(tmp_path / "plain")
    assert [verdict["passed"] for verdict in gated["gates"]["long"]] == [True]
    assert plain["gates"] == {}


def test_a_stage_is_extended_until_its_gate_is_passed_or_the_extensions_are_spent(inputs, tmp_path, capsys):
    result = run(inputs, tmp_path, **NEVER)
    plain, extended = (Curriculum(config(curriculum__stages__long__gate=NEVER).curriculum, {}, 1.0, n) for n in ({}, {"long": 2}))
    assert result["steps"] == extended.steps > plain.steps
    assert extended.stage_ends()["long"] - plain.stage_ends()["long"] == extended.steps - plain.steps
    verdicts = result["gates"]["long"]
    assert [verdict["passed"] for verdict in verdicts] == [False] * 3
    assert verdicts[0]["short_loss"] != verdicts[1]["short_loss"]
    assert list(verdicts[0]["needle_accuracy"]) == ["16", "32", "64"]
    plan = json.loads((tmp_path / "curriculum.json").read_text())
    assert plan["extensions"] == {"long": 2} and plan["tokens"] == result["tokens"] == extended.tokens
    told = capsys.readouterr().err
    assert told.count("Stage 'long' is extended, for its gate is not passed: loss on short text") == 2
    assert told.count("has not passed its gate after 2 extensions") == 1 and "Going on." in told


@pytest.mark.parametrize(
    "where", ["before the record", pytest.param("in the extension", marks=pytest.mark.slow), "at the second gate"]
)
def test_a_killed_run_extends_as_an_uninterrupted_one(inputs, tmp_path, monkeypatch, where):
    straight = run(inputs, tmp_path / "straight", **NEVER)
    end = Curriculum(config(curriculum__stages__long__gate=NEVER).curriculum, {}, 1.0).stage_ends()["long"]
    killed_at = {"before the record": end, "in the extension": end + 1, "at the second gate": end + 2}[where]
    plain = AtStageEnds.on_train_batch_start
    seen = []

    def kill(self, trainer, *args):
        seen.append(trainer.global_step)
        if trainer.global_step == killed_at:
            raise Killed
        plain(self, trainer, *args)

    monkeypatch.setattr(AtStageEnds, "on_train_batch_start", kill)
    with pytest.raises(Killed):
        run(inputs, tmp_path / "killed", **NEVER)
    monkeypatch.undo()
    assert killed_at in seen
    again = run(inputs, tmp_path / "killed", **NEVER)
    assert again["loss"] == straight["loss"] and again["gates"] == straight["gates"]
    assert files(tmp_path / "killed") == files(tmp_path / "straight")


def test_otherwise_stop_ends_the_run_with_what_was_measured(inputs, tmp_path):
    with pytest.raises(UserError, match=r"Stage 'long' has not passed its gate after 0 extensions: loss .* needles at 64.*go_on"):
        run(inputs, tmp_path, **NEVER | {"extensions": 0, "otherwise": "stop"})
    assert (tmp_path / "stages" / "long" / "model.safetensors").exists()


def test_bad_gates_are_refused():
    for values, message in (
        ({"otherwise": "stopp"}, "Unknown gate.otherwise 'stopp'. Choices: stop, go_on"),
        ({"needle_accuracy": 1.5}, r"needle_accuracy must lie in \[0, 1\]"),
        ({"extend": 0.0}, "extend must exceed 0"),
    ):
        with pytest.raises(UserError, match=message):
            GateConfig(**values)
    with pytest.raises(UserError, match="schedule must be constant"):
        config(curriculum__stages__annealing__gate={})
    with pytest.raises(UserError, match="'initial' has a gate, but nothing comes before"):
        config(curriculum__stages__initial__gate={}, curriculum__stages__initial__schedule={"kind": "constant"})


def test_an_extension_without_a_checkpoint_begins_anew(inputs, tmp_path, monkeypatch):
    """As on a disk that has no room: what is trained already must not be taken for the untrained model."""
    straight = run(inputs, tmp_path / "straight", **NEVER | {"extensions": 1})
    monkeypatch.setattr(CheckpointStore, "newest", lambda self, step=None: None)
    again = run(inputs, tmp_path / "again", **NEVER | {"extensions": 1})
    assert again["loss"] == straight["loss"] and again["steps"] == straight["steps"]
