import json

import pytest
from omegaconf import OmegaConf

from herd.alignment.dialogs_stage import STAGE, DialogsConfig
from herd.config.errors import UserError
from herd.config.loader import compose, load
from herd.dialog.messages import parse_messages, reject_reason
from herd.dialog.rows import read_jsonl, read_prompts
from herd.runs.stage import execute

CONFIG = DialogsConfig(
    seed=0,
    tasks=["what", "signature", "call"],
    seed_dialogs=20,
    seed_turns=2,
    train_prompts=30,
    heldout_prompts=50,
    seed_flaws=0.5,
)


def test_three_files_of_disjoint_entries(documents, tmp_path):
    made = execute(STAGE, CONFIG, {"documents": documents}, tmp_path / "runs", "test")
    train, heldout = read_prompts(made / "train_prompts.jsonl"), read_prompts(made / "heldout_prompts.jsonl")
    seeds = [row for _, row in read_jsonl(made / "seed_dialogs.jsonl")]
    assert (len(train), len(heldout), len(seeds)) == (30, 20, 20)
    used = [{p.entry_id for p in train}, {p.entry_id for p in heldout}, {s["entry_id"] for s in seeds}]
    assert not used[0] & used[1]
    assert not used[0] & used[2]
    assert not used[1] & used[2]
    assert all(e.startswith("heldout") for e in used[1])
    assert all(e.startswith("train") for e in used[0] | used[2])
    assert {p.task for p in train} == {"what", "signature", "call"}
    assert 0 < made.metrics["seed_dialogs_flawed"] < 20
    for seed in seeds:
        assert len(seed["messages"]) == 4
        assert len(set(seed["tasks"])) == 2
        assert reject_reason(parse_messages(seed["messages"], "seed")) is None


def test_equal_inputs_give_equal_bytes(documents, tmp_path):
    made = [execute(STAGE, CONFIG, {"documents": documents}, tmp_path / name, "test") for name in ("a", "b")]
    for file in ("train_prompts.jsonl", "heldout_prompts.jsonl", "seed_dialogs.jsonl"):
        assert (made[0] / file).read_bytes() == (made[1] / file).read_bytes()


def test_a_small_corpus_is_shared_in_proportion(documents, tmp_path):
    config = DialogsConfig(
        seed=0, tasks=["what"], seed_dialogs=100, seed_turns=1, train_prompts=200, heldout_prompts=5, seed_flaws=0.0
    )
    metrics = execute(STAGE, config, {"documents": documents}, tmp_path / "runs", "test").metrics
    assert (metrics["seed_dialogs"], metrics["train_prompts"], metrics["heldout_prompts"]) == (20, 40, 5)
    assert metrics["seed_dialogs_flawed"] == 0


def test_no_usable_entries_is_said_with_the_reasons(documents, tmp_path):
    config = DialogsConfig(
        seed=0, tasks=["what"], seed_dialogs=1, seed_turns=1, train_prompts=1, heldout_prompts=1, seed_flaws=0.0
    )
    strict = json.loads(json.dumps({"max_signature": 3, "min_summary": 1, "max_summary": 5}))
    config = load(DialogsConfig, {**config.__dict__, "entries": strict})
    with pytest.raises(UserError, match=r"0 usable train entries.*long_signature"):
        execute(STAGE, config, {"documents": documents}, tmp_path / "runs", "test")


def test_configuration():
    composed = OmegaConf.to_container(compose("dialogs"))
    composed = {k: v for k, v in composed.items() if k not in ("run", "inputs", "hydra")}
    assert load(DialogsConfig, composed).seed_dialogs == 1200
    with pytest.raises(UserError, match=r"unknown task `wat`.*what"):
        DialogsConfig(seed=0, tasks=["wat"], seed_dialogs=1, seed_turns=1, train_prompts=1, heldout_prompts=1, seed_flaws=0.0)
