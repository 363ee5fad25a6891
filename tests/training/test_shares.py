"""Pre-training's data by rank: a rank reads its own rows alone, and the step's figures come from where documents begin."""

import pytest
import torch
from pretrain_standin import config, write_corpus

from herd.corpus.epochs import DocumentStream
from herd.corpus.mixture import Mixture
from herd.corpus.packing import PackedRows
from herd.corpus.shards import TokenShards
from herd.training.curriculum import Curriculum
from herd.training.pretrain import PretrainSource


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> PretrainSource:
    inputs = write_corpus(tmp_path_factory.mktemp("corpus"))
    curriculum = Curriculum(config().curriculum, config().mix.weights, 2e-2)
    return PretrainSource(
        Mixture(TokenShards(inputs["tokens"] / "tokens"), "train", curriculum.mixture_phases(), 0), curriculum, 96
    )


def joined(parts: list[PackedRows]) -> tuple:
    tensors = [torch.cat([getattr(part, name) for part in parts]) for name in ("tokens", "targets", "positions")]
    return *(t.tolist() for t in tensors), *(sum((getattr(p, n) for p in parts), ()) for n in ("lengths", "sources", "bytes"))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_together_have_the_rows_of_one(source, world):
    """In every step; where its micro-batches can be shared."""
    shared = 0
    for step in range(len(source)):
        phase, first, count = source.curriculum.rows(step)
        whole = source.mixture.rows(phase, first, count)
        batch = source[step]
        assert batch.normalizer == whole.target_count
        assert batch.squares == sum(n * n for row in whole.lengths for n in row)
        micro_batches = len(batch.micro_batches)
        if micro_batches % world:
            continue
        shared += 1
        shares = [batch.for_rank(rank, world) for rank in range(world)]
        assert {(s.normalizer, s.tokens, s.squares) for s in shares} == {(batch.normalizer, batch.tokens, batch.squares)}
        dealt = [shares[n % world].micro_batches[n // world] for n in range(micro_batches)]
        assert joined(dealt) == joined([whole])
    assert shared >= 10


def test_a_rank_reads_no_tokens_but_its_own(source, monkeypatch):
    read: list[int] = []
    plain = DocumentStream.read

    def counted(self, firsts, count):
        read.append(len(firsts))
        return plain(self, firsts, count)

    monkeypatch.setattr(DocumentStream, "read", counted)
    step = next(s for s in range(len(source)) if len(source[s].micro_batches) % 4 == 0)
    assert not read  # the figures of a step need none
    share = source[step].for_rank(1, 4)
    assert sum(read) == sum(len(part) for part in share.micro_batches) == source.curriculum.rows(step)[2] / 4
