"""From labels to a small encoder to scores: the encoder is bidirectional, learns a separable task, and goes on where it was."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from training_standin import on_two_ranks

from herd.alignment import distill_stage
from herd.config.errors import UserError
from herd.config.loader import compose
from herd.corpus.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from herd.dialog.masks import sft_mask
from herd.dialog.messages import Message, Role
from herd.dialog.render import render
from herd.model.config import ModelConfig
from herd.model.encoder import DocumentEncoder, load_encoder, save_encoder
from herd.model.heads import RewardModel
from herd.model.io import save_model
from herd.model.transformer import Transformer
from herd.recipe.job import make_job
from herd.runs.atomic import sha256_json, write_json
from herd.runs.seeds import stream
from herd.runs.stage import execute
from herd.training.encoder import encoder_logits, encoder_sequences

COMMON = ["the", "of", "and", "a", "in", "that", "page", "it", "for", "with"]
GOOD, BAD = ["theorem", "proof", "argument", "evidence"], ["click", "login", "menu", "cookie"]
SHAPE = ModelConfig(dim=16, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=32, vocab_size=400, max_seq_len=128, tie_embeddings=True)


def finished(folder, stage: str) -> str:
    write_json(
        folder / "manifest.json", {"stage": stage, "address": sha256_json([stage, str(folder)]), "metrics": {}, "outputs": {}}
    )
    return str(folder)


def text_of(i: int) -> tuple[str, str]:
    """Text and label: three telling words among forty common ones."""
    rng = stream(0, "text", i)
    telling = list(rng.choice(GOOD if i % 2 else BAD, 3))
    words = [*rng.choice(COMMON, 37), *telling]
    return " ".join(words[int(k)] for k in rng.permutation(40)), "good" if i % 2 else "poor"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Tokenizer, documents, a judge and a reward model, each in the folder of a finished stage."""
    root = tmp_path_factory.mktemp("distill")
    text = " ".join([*COMMON, *GOOD, *BAD]) + " yes no Is it good? assistant user system\n\n"
    config = TokenizerConfig(vocab_size=400, special_tokens=11, training_characters=50_000, fill_with_reserved=True)
    train_tokenizer([text * 20], config).save(root / "tokens" / "tokenizer")
    documents = root / "curate" / "documents"
    documents.mkdir(parents=True)
    for split, ids in (
        ("train-00000-of-00002", range(150)),
        ("train-00001-of-00002", range(150, 300)),
        ("heldout-00000-of-00001", range(300, 330)),
    ):
        table = pa.table({"id": [f"{i:04d}" for i in ids], "text": [text_of(i)[0] for i in ids]})
        pq.write_table(table, documents / f"{split}.parquet")
    save_model(Transformer(SHAPE), root / "judge" / "model")
    save_model(RewardModel(Transformer(SHAPE)), root / "reward" / "model")
    return {name: finished(root / name, name) for name in ("tokens", "curate", "judge", "reward")}


def run(made, root, *overrides: str, inputs=("tokens", "curate")):
    settings = ["window=64", "batch_size=16", "model=tiny", "trainer.log_every_steps=1", "trainer.checkpoint_every_steps=5"]
    job = make_job("distill-classifier", compose("distill-classifier", [*settings, *overrides]))
    given = {{"curate": "documents"}.get(name, name): made[name] for name in inputs}
    return execute(distill_stage.STAGE, job.config, given, root / "runs", "test")


def test_learns_a_separable_task_and_scores_every_document(made, tmp_path):
    labels = tmp_path / "labels.jsonl"
    rows = [{"id": f"{i:04d}", "label": text_of(i)[1]} for i in range(300)]
    labels.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    settings = ["labels.kind=file", f"labels.path={labels}", "epochs=8", "optimizer.lr=1e-2"]
    artifact = run(made, tmp_path, *settings)
    metrics = artifact.metrics
    assert metrics["auc_interval"][0] > 0.8, metrics["auc"]
    assert metrics["accuracy_interval"][0] > metrics["most_frequent_class"]
    assert metrics["brier"] < metrics["brier_of_base_rate"] / 2
    assert metrics["precision_recall"] and metrics["reliability"] and metrics["calibrated"]
    assert metrics["labels"] == {"poor": 150, "good": 150}
    assert metrics["documents_scored"] == 330
    scores = {}
    for path in sorted((artifact / "scores").glob("*.parquet")):
        scores |= {row["id"]: row["score"] for row in pq.read_table(path).to_pylist()}
    assert len(scores) == 330
    unseen = [(scores[f"{i:04d}"], text_of(i)[1]) for i in range(300, 330)]
    assert (
        np.mean([s for s, label in unseen if label == "good"])
        > 0.7
        > 0.3
        > np.mean([s for s, label in unseen if label == "poor"])
    )
    # The saved encoder is the one that scored.
    encoder, tokenizer = load_encoder(artifact / "encoder"), Tokenizer.load(tmp_path / made["tokens"] / "tokenizer")
    assert encoder.classes == ("poor", "good")
    calibrated = json.loads((artifact / "encoder" / "calibration.json").read_text())
    logits = encoder_logits(encoder, encoder_sequences([text_of(301)[0]], tokenizer, 64), tokenizer.pad_id)[0]
    odds = calibrated["scale"] * (logits[1] - logits[0]) + calibrated["shift"][1] - calibrated["shift"][0]
    assert 1 / (1 + np.exp(-odds)) == pytest.approx(scores["0301"], abs=1e-4)


class Interrupted(Exception):
    """Stands for a kill."""


def test_labels_by_a_model_and_going_on_after_an_interruption(made, tmp_path, monkeypatch):
    settings = ["labels.documents=150", "labels.description='Is it good? {text}'", "epochs=1"]
    inputs = ("tokens", "curate", "judge")
    calls: list[int] = []
    judge = distill_stage._judge

    def watched(*arguments):
        label = judge(*arguments)

        def counted(texts):
            if len(calls) == 2:
                calls.append(-1)
                raise Interrupted
            calls.append(len(texts))
            return label(texts)

        return counted

    monkeypatch.setattr(distill_stage, "_judge", watched)
    monkeypatch.setattr(distill_stage, "divide", _divide_by_turns)
    with pytest.raises(Interrupted):
        run(made, tmp_path, *settings, inputs=inputs)
    artifact = run(made, tmp_path, *settings, inputs=inputs)
    assert calls == [64, 64, -1, 22]  # 150 documents by 64; the two finished chunks were not labelled again
    labels = pq.read_table(artifact / "labels.parquet").to_pylist()
    assert len(labels) == 150
    assert all(row["poor"] + row["good"] == pytest.approx(1) for row in labels)
    # By hand: probability of an answer, summed over its tokens, over the two answers.
    row = labels[7]
    found = []
    tokenizer, model = Tokenizer.load(tmp_path / made["tokens"] / "tokenizer"), Transformer(SHAPE)
    for answer in ("no", "yes"):
        asked = Message(Role.USER, f"Is it good? {text_of(int(row['id']))[0]}")
        rendered = render((asked, Message(Role.ASSISTANT, answer)), tokenizer)
        tokens = torch.from_numpy(rendered.tokens)
        logprobs = torch.log_softmax(model.logits(model(tokens[None]))[0], dim=-1)[:-1].gather(1, tokens[1:, None])[:, 0]
        found.append(float(logprobs[torch.from_numpy(sft_mask(rendered)[1:])].sum().exp().detach()))
    assert row["good"] == pytest.approx(found[1] / sum(found), rel=1e-4)


def _divide_by_turns(labelled, *_):
    """An untrained judge says the same of all: divide without asking for both classes."""
    return labelled[::2], labelled[1::4], labelled[3::4]


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_ranks_make_what_one_makes(made, tmp_path, monkeypatch, strategy):
    settings = ["labels.documents=130", "labels.description='Is it good? {text}'", "epochs=1"]
    inputs = ("tokens", "curate", "judge")
    monkeypatch.setattr(distill_stage, "divide", _divide_by_turns)
    one = run(made, tmp_path / "one", *settings, inputs=inputs)
    two = [*settings, f"parallel@trainer={strategy}", "trainer.devices=2"]
    assert on_two_ranks(lambda rank: run(made, tmp_path / "two", *two, inputs=inputs) and None) == [0, 0]
    both = run(made, tmp_path / "two", *settings, inputs=inputs)  # is there
    labels = [pq.read_table(artifact / "labels.parquet").to_pydict() for artifact in (one, both)]
    assert labels[0] == labels[1]
    encoders = [load_encoder(artifact / "encoder").state_dict() for artifact in (one, both)]
    for name, weight in encoders[0].items():
        torch.testing.assert_close(encoders[1][name], weight, rtol=0, atol=1e-5, msg=name)
    assert one.metrics.keys() == both.metrics.keys()
    assert both.metrics["train_loss"] == pytest.approx(one.metrics["train_loss"], abs=1e-5)
    assert both.metrics["documents_scored"] == 330


def test_labels_by_a_reward_model(made, tmp_path):
    settings = ["labels.kind=reward", "labels.description='Write a good page.'", "labels.documents=120", "epochs=1"]
    artifact = run(made, tmp_path, *settings, inputs=("tokens", "curate", "reward"))
    assert artifact.metrics["labels"] == {"low": 90, "high": 30}
    assert artifact.metrics["classes"] == ["low", "high"]


def test_refusals(made, tmp_path):
    with pytest.raises(UserError, match=r"needs inputs\.judge"):
        run(made, tmp_path)
    with pytest.raises(UserError, match=r"needs inputs\.documents"):
        run(made, tmp_path, inputs=("tokens", "judge"))
    with pytest.raises(UserError, match=r"labels\.path"):
        run(made, tmp_path, "labels.kind=file")
    with pytest.raises(UserError, match="leave no room"):
        run(made, tmp_path, f"labels.description='{'good ' * 200}'", inputs=("tokens", "curate", "judge"))
    with pytest.raises(UserError, match="exceeds the model"):
        run(made, tmp_path, "labels.kind=reward", "window=512", "labels.documents=120", inputs=("tokens", "curate", "reward"))


# The encoder.


def encoder() -> DocumentEncoder:
    return DocumentEncoder(Transformer(SHAPE), ("a", "b", "c"), seed=1)


def test_every_token_sees_the_whole_document_and_no_other():
    model = encoder()
    tokens = torch.arange(20).view(1, 20) + 30
    positions = torch.cat((torch.arange(8), torch.arange(9), torch.arange(3)))[None]
    lengths, ends = ((8, 9, 3),), torch.tensor([7, 16])
    first = model(tokens, positions, lengths, ends)
    assert first.shape == (2, 3)
    changed = tokens.clone()
    changed[0, 16] = 5  # the last token of the second document
    second = model(changed, positions, lengths, ends)
    assert torch.equal(first[0], second[0]) and not torch.allclose(first[1], second[1])
    alone = model(tokens[:, 8:17], positions[:, 8:17], ((9,),), torch.tensor([8]))
    assert torch.allclose(alone[0], first[1], atol=1e-6)
    # Not causal: the first token's hidden state changes with the last token.
    from herd.model.encoder import document_of, within_documents

    mask = within_documents(document_of(((9,),)))
    hidden = [model.backbone(t[:, 8:17], mask=mask)[0, 0] for t in (tokens, changed)]
    assert not torch.allclose(*hidden)


def test_encoder_survives_saving(tmp_path):
    model = encoder()
    with torch.no_grad():
        model.bias += 0.5
    save_encoder(model, tmp_path / "encoder")
    again = load_encoder(tmp_path / "encoder")
    assert again.classes == model.classes
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    (tmp_path / "encoder" / "encoder.json").write_text('{"format": "herd.encoder/1", "classes": ["a"]}')
    with pytest.raises(UserError, match="does not fit"):
        load_encoder(tmp_path / "encoder")
    with pytest.raises(UserError, match="encoder"):
        load_encoder(tmp_path)
