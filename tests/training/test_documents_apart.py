"""Packed documents know nothing of each other: not in attention, not in the loss, not in what is logged about them."""

import math

import pytest
import torch
from pretrain_standin import VOCAB, config, write_corpus
from test_pretrain import OneBatch, Plain, small_model

from herd.corpus.mixture import Mixture
from herd.corpus.packing import PackedRows
from herd.corpus.shards import TokenShards
from herd.model.masks import Documents
from herd.model.transformer import Transformer
from herd.objectives.cross_entropy import linear_cross_entropy
from herd.runs.metrics import read_metrics
from herd.runs.stage import StageRun
from herd.training import pretrain_stage
from herd.training.curriculum import Curriculum
from herd.training.fit import fit
from herd.training.pretrain import PretrainSource, loss_by_domain_of
from herd.training.trainer_config import TrainerConfig


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def some_rows(inputs, step: int = 20) -> PackedRows:
    """All rows of a step of the stand-in's curriculum."""
    curriculum = Curriculum(config().curriculum, config().mix.weights, 2e-2)
    mixture = Mixture(TokenShards(inputs["tokens"] / "tokens"), "train", curriculum.mixture_phases(), 0)
    (rows,) = PretrainSource(mixture, curriculum, 10_000)[step].micro_batches
    return rows


def losses_of(model: Transformer, rows: PackedRows) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T, dim) hidden states and (B, T) losses."""
    hidden = model(rows.tokens, rows.positions, Documents(rows.lengths))
    losses = torch.empty(rows.tokens.numel())
    linear_cross_entropy(hidden, model.output_weight, rows.targets, losses=losses)
    return hidden, losses.view(rows.tokens.shape)


@pytest.mark.parametrize("attention", ["documents", "sdpa"])
def test_changing_one_document_changes_only_its_own_losses(inputs, attention):
    rows, model = some_rows(inputs), small_model()
    model.attention = attention
    before, plain = losses_of(model, rows)
    places = [(r, sum(row[:i]), row[i]) for r, row in enumerate(rows.lengths) for i in range(len(row))]
    assert len(places) > len(rows) + 3  # several in a row
    for row, start, length in places:
        own = torch.zeros(rows.tokens.shape, dtype=torch.bool)
        own[row, start : start + length] = True
        changed = PackedRows(
            torch.where(own, (rows.tokens + 1) % VOCAB, rows.tokens),
            torch.where(own & (rows.targets >= 0), (rows.targets + 1) % VOCAB, rows.targets),
            rows.positions,
            rows.lengths,
            rows.sources,
        )
        after, losses = losses_of(model, changed)
        assert torch.equal(after[~own], before[~own])
        assert torch.equal(losses[~own], plain[~own])
        asked = own & (rows.targets >= 0)
        assert (losses[asked] != plain[asked]).all()


def test_gradient_of_a_loss_stays_within_its_document(inputs):
    rows, model = some_rows(inputs), small_model()
    embedded: list[torch.Tensor] = []
    model.tok_embeddings.register_forward_hook(lambda module, args, out: embedded.append(out.requires_grad_()) or out)
    hidden = model(rows.tokens, rows.positions, Documents(rows.lengths))
    row, length = 1, rows.lengths[1][0]
    hidden[row, :length].square().sum().backward(inputs=embedded)
    reached = embedded[0].grad.abs().sum(-1) > 0
    assert reached[row, :length].all()
    assert reached.sum() == length


def test_loss_of_each_domain_is_the_mean_over_its_tokens(inputs):
    rows, model = some_rows(inputs), small_model()
    assert set(rows.sources) == {"general", "code"}
    _, losses = losses_of(model, rows)
    found = loss_by_domain_of(rows, losses.flatten(), ("code", "general", "other"))
    logits = model.logits(model(rows.tokens, rows.positions, Documents(rows.lengths)))
    for domain in ("code", "general"):
        mine = torch.tensor([source == domain for source in rows.sources])
        expected = torch.nn.functional.cross_entropy(logits[mine].flatten(0, 1), rows.targets[mine].flatten(), reduction="sum")
        total, count = found[f"loss/{domain}"]
        assert float(total) == pytest.approx(expected.item(), rel=1e-5)
        assert count == (rows.targets[mine] != -100).sum()
    assert [float(value) for value in found["loss/other"]] == [0, 0]


def test_domains_are_logged_and_add_up_to_the_loss(inputs, tmp_path):
    settings = config(curriculum__tokens=2048, trainer__log_every_steps=1)
    pretrain_stage.run(settings, inputs, StageRun(tmp_path, seed=0))
    curriculum = Curriculum(settings.curriculum, settings.mix.weights, 2e-2)
    mixture = Mixture(TokenShards(inputs["tokens"] / "tokens"), "train", curriculum.mixture_phases(), 0)
    logged = read_metrics(tmp_path / "metrics.jsonl")
    assert len(logged) == curriculum.steps
    for step, row in enumerate(logged):
        (batch,) = PretrainSource(mixture, curriculum, 10_000)[step].micro_batches
        counts = dict.fromkeys(batch.sources, 0)
        for domain, targets in zip(batch.sources, batch.targets, strict=True):
            counts[domain] += int((targets != -100).sum())
        mean = sum(count * row[f"loss/{domain}"] for domain, count in counts.items()) / sum(counts.values())
        assert mean == pytest.approx(row["loss"], rel=1e-5)


def test_overfits_one_batch_of_packed_documents(tmp_path):
    """Random tokens in documents of mixed length, each with a first token of its own: what follows can only be learnt."""
    lengths = ((9, 14, 9), (20, 12))
    text = torch.randint(0, VOCAB, (2, 32), generator=torch.Generator().manual_seed(3))
    targets, first = text.roll(-1, 1), 0
    for row, parts in enumerate(lengths):
        for i, length in enumerate(parts):
            start = sum(parts[:i])
            text[row, start], first = first, first + 1
            targets[row, start + length - 1] = -100
    targets[:, :-1] = torch.where(targets[:, :-1] >= 0, text[:, 1:], -100)
    positions = torch.tensor([[p for length in parts for p in range(length)] for parts in lengths])
    rows = PackedRows(text, targets, positions, lengths, ("general", "code"), (0, 0))
    module = Plain(small_model(dim=48), lr=1e-2)
    result = fit(module, OneBatch([rows], steps=250), TrainerConfig(log_every_steps=250), StageRun(tmp_path, seed=0))
    with torch.no_grad():
        loss, _ = module.micro_batch_loss(rows)
    assert loss.item() / rows.target_count < 0.01
    assert 0.01 < result.last["loss"] < math.log(VOCAB)  # the mean over all steps: it was learnt, not given
