"""Going on from a checkpoint: to the bit what an uninterrupted run does, what is carried over, what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pretrain_standin import config, write_corpus
from safetensors.torch import load_file, save_file

from herd.config.errors import UserError
from herd.model.io import load_model
from herd.runs.metrics import read_metrics
from herd.runs.stage import Artifact, Inputs, StageRun
from herd.training import pretrain_stage
from herd.training.heldout import document_losses, heldout_loss
from herd.training.pretrain_stage import PretrainConfig, prepare
from herd.training.start import MOMENTS, TRAINING

INITIAL = {"schedule": {"kind": "cosine", "warmup_share": 0.1, "final": 0.4}, "ramp": [{"batch": 1.0, "seq_len": 32}]}
LONG = {
    "share": 0.2,
    "schedule": {"kind": "constant", "start": 0.4},
    "ramp": [{"seq_len": 64}],
    "rope_scaling": {"factor": 2.0, "original_max_seq_len": 32},
}
ANNEAL = {
    "share": 0.3,
    "schedule": {"kind": "linear", "start": 0.4, "final": 0.0},
    "ramp": [{"batch": 1.0, "seq_len": 32}],
    "mix": {"general": 0.3, "code": 0.7},
}


def of_stages(stages: dict[str, dict], **changes: object) -> PretrainConfig:
    return config(curriculum__stages=stages, **{"save_optimizer": True, **changes})


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Inputs:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def train(folder: Path, settings: PretrainConfig, inputs: Inputs) -> tuple[Artifact, dict]:
    """A finished run as an input for others."""
    metrics = pretrain_stage.run(settings, inputs, StageRun(folder, seed=0))
    return Artifact(folder, {"stage": "pretrain", "address": folder.name}), metrics


def with_start(inputs: Inputs, start: Artifact) -> Inputs:
    return Inputs({"tokens": inputs["tokens"], "start": start}, {})


@pytest.fixture(scope="module")
def half(inputs, tmp_path_factory) -> Artifact:
    return train(tmp_path_factory.mktemp("half"), of_stages({"initial": INITIAL}), inputs)[0]


def test_two_runs_are_one_to_the_bit(inputs, half, tmp_path):
    """The second half from the checkpoint: the same weights, losses and moments as in one run of both stages."""
    whole, told = train(tmp_path / "whole", of_stages({"initial": INITIAL, "anneal": ANNEAL}), inputs)
    wrong_peak = {"optimizer__lr": 0.5}  # not read: the checkpoint's peak counts
    again, metrics = train(tmp_path / "again", of_stages({"anneal": ANNEAL}, **wrong_peak), with_start(inputs, half))
    for name in ("model/model.safetensors", f"stages/anneal/{MOMENTS}", f"stages/anneal/{TRAINING}"):
        assert (whole / name).read_bytes() == (again / name).read_bytes(), name
    steps = json.loads((half / "stages/initial" / TRAINING).read_text())["steps"]
    losses = [row["loss"] for row in read_metrics(again / "metrics.jsonl")]
    assert metrics["loss"] == told["loss"] and metrics["loss_by_domain"] == told["loss_by_domain"] and losses
    assert metrics["start"] == {"stage": "initial", "steps": steps, "tokens": 8192, "moments": True}
    assert (told["start"], told["tokens"]) == (None, metrics["tokens"] + 8192)
    assert metrics["epochs"] == told["epochs"]


def test_without_moments_adam_begins_cold(inputs, half, tmp_path):
    """Without the moments the same weights, data and rates lead elsewhere."""
    cold, _ = train(tmp_path / "cold-half", of_stages({"initial": INITIAL}, save_optimizer=False), inputs)
    assert not (cold.path / "stages/initial" / MOMENTS).exists()
    warm = train(tmp_path / "warm", of_stages({"anneal": ANNEAL}), with_start(inputs, half))[0]
    started, metrics = train(tmp_path / "cold", of_stages({"anneal": ANNEAL}), with_start(inputs, cold))
    assert metrics["start"]["moments"] is False
    assert not torch.equal(load_model(started / "model").output_weight, load_model(warm / "model").output_weight)


def test_an_earlier_stage_and_a_chain_of_starts(inputs, tmp_path):
    """From the stage before the last; the run made from it is a start in turn, with all data behind it."""
    first, _ = train(tmp_path / "first", of_stages({"initial": INITIAL, "long": LONG}), inputs)
    second, metrics = train(tmp_path / "second", of_stages({"long": LONG}, start_stage="initial"), with_start(inputs, first))
    assert metrics["start"]["stage"] == "initial"
    assert (first / "model/model.safetensors").read_bytes() == (second / "model/model.safetensors").read_bytes()
    third = prepare(of_stages({"anneal": ANNEAL}), with_start(inputs, second))
    unnamed = prepare(of_stages({"anneal": ANNEAL}), with_start(inputs, first)).start
    assert unnamed.stage == "long"  # the last
    assert third.behind == 2 and third.start.tokens == third.start.phases[0].rows * 32 + third.start.phases[1].rows * 64
    assert third.start.model().config.rope_scaling.factor == 2.0


def test_the_rate_goes_on_from_where_it_stood(inputs, half):
    goes_on = prepare(of_stages({"anneal": ANNEAL | {"schedule": {"kind": "linear", "final": 0.0}}}), with_start(inputs, half))
    assert goes_on.curriculum.learning_rate(0) == pytest.approx(0.4 * 2e-2)
    last = goes_on.curriculum.steps - 1
    assert goes_on.curriculum.learning_rate(last) == pytest.approx(0.4 * 2e-2 / goes_on.curriculum.steps)
    own = prepare(of_stages({"anneal": ANNEAL}, start_lr="own", optimizer__lr=1e-3), with_start(inputs, half))
    assert own.curriculum.learning_rate(0) == pytest.approx(0.4 * 1e-3)


def test_on_other_tokens_the_data_begin_anew(inputs, half):
    other = Inputs({"tokens": Artifact(inputs["tokens"].path, {"stage": "tokenize", "address": "other"}), "start": half}, {})
    assert prepare(of_stages({"anneal": ANNEAL}), other).behind == 0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model__dim": 32}, r"holds a model with dim 16, model\.dim is 32"),
        ({"model__tie_embeddings": True}, r"tie_embeddings False, model\.tie_embeddings is True"),
        ({"start_stage": "initail"}, "has no stage 'initail'. Did you mean 'initial'"),
        ({"start_lr": "chekpoint"}, "Did you mean 'checkpoint'"),
        ({"curriculum__stages__anneal__schedule": {"kind": "linear", "warmup_share": 0.1}}, "stage 'anneal' warms up"),
        ({"curriculum__stages__anneal__ramp": [{"seq_len": 64}]}, "rows of 64 tokens"),
    ],
)
def test_what_does_not_fit_is_refused(inputs, half, tmp_path, changes, says):
    settings = {"curriculum__stages": {"anneal": dict(ANNEAL)}, **changes}

    def attempt() -> None:
        train(tmp_path / "x", config(**settings), with_start(inputs, half))

    with pytest.raises(UserError, match=says) as caught:
        attempt()
    assert "\n" not in str(caught.value)


def test_other_inputs_are_refused(inputs, half, tmp_path):
    settings = of_stages({"anneal": ANNEAL})
    with pytest.raises(UserError, match="made by `herd sft`; give a finished `herd pretrain` or `import`"):
        prepare(settings, with_start(inputs, Artifact(half.path, {"stage": "sft"})))
    with pytest.raises(UserError, match=r"start_stage names a stage of inputs\.start, which is missing"):
        prepare(replace(settings, start_stage="initial"), inputs)
    other = write_corpus(tmp_path / "other")
    lengths = other["tokens"] / "tokens" / "token_bytes.npy"
    lengths.write_bytes(lengths.read_bytes()[:-4] + b"\1\0\0\0")
    with pytest.raises(UserError, match="trained with another tokenizer"):
        prepare(settings, with_start(other, half))
    done, _ = train(tmp_path / "done", of_stages({"initial": INITIAL | {"schedule": {"kind": "linear", "final": 0.0}}}), inputs)
    with pytest.raises(UserError, match="stands at learning rate 0"):
        prepare(settings, with_start(inputs, done))
    old = tmp_path / "done" / "stages" / "initial" / TRAINING
    old.unlink()
    with pytest.raises(UserError, match="an older version made it"):
        prepare(settings, with_start(inputs, done))


NORM = "norm.weight"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({f"{NORM}/exp_avg": torch.zeros(15)}, r"norm.weight has exp_avg of shape \(15,\) where \(16,\) is needed"),
        ({f"{NORM}/exp_avg_sq": torch.zeros(1)}, r"norm.weight has exp_avg_sq of shape \(1,\) where"),
        ({f"{NORM}/step": torch.zeros(2)}, r"norm.weight has step of shape \(2,\) where \(\) is needed"),
        ({f"{NORM}/exp_avg": None}, "norm.weight has no exp_avg"),
        ({f"{NORM}/{entry}": None for entry in ("step", "exp_avg", "exp_avg_sq")}, "norm.weight has no step"),
        ({"nrom.weight/step": torch.zeros(())}, "nrom.weight is not in the model"),
    ],
)
def test_moments_that_are_not_of_the_weights_are_refused(inputs, half, tmp_path, change, says):
    shutil.copytree(half.path, tmp_path / "start")
    file = tmp_path / "start" / "stages" / "initial" / MOMENTS
    save_file({name: value for name, value in (load_file(file) | change).items() if value is not None}, file)
    start = Artifact(tmp_path / "start", half.manifest)
    with pytest.raises(UserError, match=says) as caught:
        train(tmp_path / "x", of_stages({"anneal": ANNEAL}), with_start(inputs, start))
    assert MOMENTS in str(caught.value) and "\n" not in str(caught.value)


def test_losses_of_documents_add_up(inputs, half, tmp_path):
    """By document what the evaluation says by domain; a single document's loss is that of its windows."""
    prepared = prepare(of_stages({"initial": INITIAL}), inputs)
    model = load_model(half / "model")
    for limit in (0, 400):
        rows = document_losses(model, prepared.shards, 32, limit)
        for domain, score in heldout_loss(model, prepared.shards, 32, limit).items():
            mine = [row for row in rows if row[0] == domain]
            assert sum(row[3] for row in mine) == score["tokens"]
            assert sum(row[2] for row in mine) == pytest.approx(score["nll"], rel=1e-5)
    domain, document, nll, tokens = document_losses(model, prepared.shards, 32)[0]
    source = prepared.shards.source("heldout", domain)
    begin, end = source.offsets_of(document, document + 1)[[0, -1]].tolist()
    ids = torch.from_numpy(source.tokens[begin:end].astype("int64"))
    expected, weight = 0.0, model.output_weight.detach()
    for first in range(0, len(ids) - 1, 32):
        window = ids[first : first + 33]
        logits = model(window[None, :-1]).detach() @ weight.T
        expected += float(torch.nn.functional.cross_entropy(logits[0].double(), window[1:], reduction="sum"))
    assert (nll, tokens) == (pytest.approx(expected, rel=1e-5), len(ids) - 1)
    train(tmp_path, of_stages({"initial": INITIAL}, eval_documents=True), inputs)
    lines = (tmp_path / "heldout_documents.csv").read_text().splitlines()
    assert lines[0] == "domain,document,nll,tokens" and len(lines) > 10
