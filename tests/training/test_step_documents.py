"""`herd batch`: the documents that it names are those whose tokens the step trained on."""

import pytest
from pretrain_standin import config, write_corpus

from herd.config.errors import UserError
from herd.config.loader import to_plain
from herd.corpus.mixture import Mixture
from herd.corpus.shards import TokenShards
from herd.runs.atomic import write_json
from herd.training.curriculum import Curriculum
from herd.training.pretrain import PretrainSource
from herd.training.step_documents import batch_lines


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder of a pre-training as its manifest tells of it."""
    root = tmp_path_factory.mktemp("runs")
    write_corpus(root / "tokenize-1")
    write_json(root / "tokenize-1" / "manifest.json", {"stage": "tokenize", "address": "1", "inputs": {}})
    inputs = {"tokens": "tokenize-1"}
    write_json(
        root / "pretrain-1" / "manifest.json",
        {"stage": "pretrain", "address": "2", "inputs": inputs, "config": to_plain(config())},
    )
    curriculum = Curriculum(config().curriculum, config().mix.weights, 2e-2)
    write_json(root / "pretrain-1" / "curriculum.json", {"extensions": {}, "phases": curriculum.summary()})
    return root / "pretrain-1"


@pytest.mark.parametrize("step", [0, 17, 40])
def test_names_the_documents_whose_tokens_the_step_holds(run, step):
    curriculum = Curriculum(config().curriculum, config().mix.weights, 2e-2)
    shards = TokenShards(run.parent / "tokenize-1" / "tokens")
    trained = PretrainSource(Mixture(shards, "train", curriculum.mixture_phases(), 0), curriculum, 96)[step]
    rows = [(row, lengths) for part in trained.micro_batches for row, lengths in zip(part.tokens, part.lengths, strict=True)]
    head, *lines = batch_lines(run, step)
    assert f"step {step} of {curriculum.steps}, stage {curriculum.phase(step).stage}" in head
    assert len(lines) == len(rows) + sum(len(lengths) for _, lengths in rows)
    texts = {
        source.ids[i]: source.tokens[source.offsets[i] : source.offsets[i + 1]].tolist()
        for source in (shards.source("train", domain) for domain in ("general", "code"))
        for i in range(source.documents)
    }
    for row, lengths in rows:
        domain, start = lines.pop(0).split(": ")[1], 0
        for length in lengths:
            name = lines.pop(0).split()[0]
            assert name.startswith(f"train-{domain}-")
            piece, whole = row[start : start + length].tolist(), texts[name]
            assert any(whole[k : k + length] == piece for k in range(len(whole) - length + 1))
            start += length


def test_refuses_a_step_or_folder_that_is_not_there(run):
    with pytest.raises(UserError, match=r"step 10000: .* has the steps 0 to"):
        list(batch_lines(run, 10_000))
    with pytest.raises(UserError, match=r"made by `herd tokenize`"):
        list(batch_lines(run.parent / "tokenize-1", 0))
