"""`herd pretrain` given bad input: one line that says what to do, before the first step, and nothing left behind."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pretrain_standin import VOCAB, write_corpus

from herd.cli import main
from herd.corpus.tokenizer import TokenizerConfig, train_tokenizer
from herd.model.config import ModelConfig
from herd.model.heads import RewardModel
from herd.model.io import load_model, save_model
from herd.model.transformer import Transformer
from herd.runs.manifest import hash_outputs
from herd.training import pretrain_stage

BASICS = (
    "curriculum=cosine", "curriculum.tokens=4096", "curriculum.batch_tokens=1024", "model=tiny", "eval_tokens=400",
    "mix.weights={general: 0.6, code: 0.4, maths: 0, multilingual: 0}",
)  # fmt: skip
SHAPE = ModelConfig(dim=16, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=16, vocab_size=VOCAB, max_seq_len=256)


def finish(folder: Path, stage: str, inputs: dict | None = None) -> Path:
    """Give a folder the manifest of a finished stage."""
    manifest = {"stage": stage, "address": f"{stage}-{folder.name}", "inputs": inputs or {}, "outputs": hash_outputs(folder)}
    manifest |= {"metrics": {}, "finished": "2026-01-01T00:00:00+00:00"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "store/tokenize")
    return finish(tmp_path / "store/tokenize", "tokenize")


def refusal(capsys, monkeypatch, tmp_path: Path, tokens: Path, *arguments: str) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrain_stage, "fit", lambda *args, **named: pytest.fail("training began"))
    with pytest.raises(SystemExit) as stop:
        main(["pretrain", f"inputs.tokens={tokens}", *BASICS, *arguments])
    out, err = capsys.readouterr()
    assert (stop.value.code, out, len(err.splitlines())) == (2, "", 1), err
    assert not list(tmp_path.glob("runs/store/pretrain-*"))
    return err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.vocab_size=47"], "model.vocab_size is 47, the tokenizer has 48 entries: set model.vocab_size=0"),
        (["mix.weights={general: 0, code: 0, maths: 0, multilingual: 0}"], "weights sum to 0, not 1"),
        (["mix.weights={general: 0, code: 0, maths: 0, multilingual: 0}", "mix.absent=rescale"], "weights sum to 0, not 1"),
        (["mix.weights={general: nan, code: 0, maths: 0, multilingual: 0}"], "general' is nan: give a finite number"),
        (["mix.weights={maths: 1, multilingual: 0, general: 0, code: 0}"], "weight to 'maths', of which"),
        (
            ["mix.weights={maths: 1, multilingual: 0, general: 0, code: 0}", "mix.absent=rescale"],
            "gives no weight to what there is",
        ),
        (["+mix.weights.cod=0.1", "mix.weights.general=0.5"], "Did you mean 'code'"),
        (["++curriculum.stages.initial.mix.general=0.5", "++curriculum.stages.initial.mix.kode=0.5"], "Did you mean 'code'"),
        (["++curriculum.stages.initial.mix.general=0"], "curriculum stage's mix: weights sum to 0"),
        (["curriculum.batch_tokens=1000"], "is no whole number of rows of 128 tokens"),
        (["curriculum.batch_tokens=100"], "is no whole number of rows of 128 tokens"),
        (["curriculum.tokens=100"], "less than one batch: raise curriculum.tokens"),
        (["model.max_seq_len=128"], "rows of 256 tokens, the model's positions end at 128: raise model.max_seq_len"),
        (["mix.max_epochs=0.1"], "and mix.max_epochs is 0.1: lower its weight"),
        (["eval_seq_len=512"], "eval_seq_len 512 exceeds model.max_seq_len 256"),
        (["trainer.devices=3", "parallel=ddp", "trainer.micro_batch_tokens=128"], "which 3 processes cannot share equally"),
        (["trainer.devices=2", "parallel=ddp"], "makes 1 micro-batch, which 2 processes cannot share equally"),
    ],
)
def test_bad_settings(capsys, monkeypatch, tmp_path, tokens, arguments, message):
    assert message in refusal(capsys, monkeypatch, tmp_path, tokens, *arguments)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"12")


def alter(path: Path) -> None:
    ids = np.fromfile(path, "<u2")
    ids[7] = (ids[7] + 1) % (VOCAB - 3)
    ids.tofile(path)


@pytest.mark.parametrize(
    ("file", "fault", "message"),
    [
        ("code/tokens.bin", cut, "code/tokens.bin' is truncated: "),
        ("code/tokens.bin", lengthen, "code/tokens.bin' is too long: "),
        ("code/tokens.bin", alter, "code/tokens.bin' has changed since `herd tokenize` wrote it"),
        ("code/tokens.bin", Path.unlink, "code/tokens.bin' is missing"),
        ("general/offsets.npy", cut, "general/offsets.npy' cannot be read"),
        ("general/bytes.npy", cut, "general/bytes.npy' cannot be read"),
    ],
)
def test_damaged_shards(capsys, monkeypatch, tmp_path, tokens, file, fault, message):
    fault(tokens / "tokens/train" / file)
    err = refusal(capsys, monkeypatch, tmp_path, tokens)
    assert message in err
    assert "delete the stage's folder and run" in err


def test_an_index_of_another_vocabulary(capsys, monkeypatch, tmp_path, tokens):
    path = tokens / "tokens/index.json"
    path.write_text(path.read_text().replace('"vocab_size": 48', '"vocab_size": 70000'))
    assert "names type uint16 for a vocabulary of 70,000" in refusal(capsys, monkeypatch, tmp_path, tokens)


def tokenizer(seed: str):
    config = TokenizerConfig(vocab_size=300, special_tokens=11, training_characters=1000, fill_with_reserved=True)
    return train_tokenizer([seed * 20], config)


def imported(folder: Path, shape: ModelConfig = SHAPE, text: str = "the same text", reward: bool = False) -> Path:
    """A model and its tokenizer as `herd import` leaves them."""
    model = Transformer(shape)
    model.init_weights(5)
    save_model(RewardModel(model) if reward else model, folder / "model")
    if text:
        tokenizer(text).save(folder / "tokenizer")
    return finish(folder, "import")


def test_imported_models_that_do_not_fit(capsys, monkeypatch, tmp_path, tokens):
    tokenizer("the same text").save(tokens / "tokenizer")
    store = tmp_path / "store"

    def said(folder: Path, *more: str) -> str:
        return refusal(capsys, monkeypatch, tmp_path, tokens, f"inputs.start={folder}", "start_lr=own", *more)

    fine = imported(store / "fine")
    assert "trained with another tokenizer than that of inputs.tokens" in said(imported(store / "other", text="and other text"))
    assert "has 48 entries" in said(imported(store / "small", ModelConfig(16, 1, 2, 1, 16, VOCAB - 1, 256)))
    assert "is a reward model" in said(imported(store / "reward", reward=True))
    assert "rows of 256 tokens, the model's positions end at 64" in said(
        imported(store / "short", replace(SHAPE, max_seq_len=64))
    )
    assert "imported without its tokenizer" in said(imported(store / "bare", text=""))
    assert "has no stages" in said(fine, "start_stage=initial")
    assert "stands at learning rate 0" in said(fine, "start_lr=checkpoint", "curriculum.stages.initial.schedule.warmup_share=0")
    (fine / "model/model.safetensors").write_bytes(b"x")
    assert "truncated or no safetensors file" in said(fine)


def test_training_goes_on_from_an_imported_model(tmp_path, tokens, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer("the same text").save(tokens / "tokenizer")
    start = imported(tmp_path / "store/start", ModelConfig(24, 1, 2, 1, 16, VOCAB + 2, 256))
    settings = ["start_lr=own", "optimizer.lr=1e-9", "optimizer.weight_decay=0"]
    main(["pretrain", f"inputs.tokens={tokens}", f"inputs.start={start}", *BASICS, *settings])
    trained, before = load_model(tmp_path / "runs/default/pretrain/model"), load_model(start / "model")
    assert trained.config == before.config
    for name, weight in trained.state_dict().items():
        torch.testing.assert_close(weight, before.state_dict()[name], rtol=0, atol=1e-6)
        assert not torch.equal(weight, before.state_dict()[name]) or weight.dim() == 1
