"""Exported tokens are the source's tokens, read back by what the formats say and by their own libraries where installed."""

import struct
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from herd.config.errors import UserError
from herd.config.loader import compose, load
from herd.corpus.export_stage import STAGE, ExportTokensConfig
from herd.corpus.litdata_export import write_litdata
from herd.corpus.megatron import write_megatron
from herd.corpus.shard_writer import ShardSetWriter
from herd.corpus.shards import TokenShards, TokenSource
from herd.runs.manifest import hash_outputs
from herd.runs.stage import Artifact, Inputs, StageRun


def read_megatron(prefix: Path) -> list[np.ndarray]:
    """The format by its description, without a word of the writer's code: documents as arrays of ids."""
    index, tokens = prefix.with_suffix(".idx").read_bytes(), prefix.with_suffix(".bin").read_bytes()
    assert index[:9] == b"MMIDIDX\x00\x00"
    version, code, sequences, boundaries = struct.unpack_from("<QBQQ", index, 9)
    assert version == 1
    dtype = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f8", 7: "<f4", 8: "<u2"}[code]
    at = 9 + 8 + 1 + 8 + 8
    lengths = np.frombuffer(index, "<i4", sequences, at)
    pointers = np.frombuffer(index, "<i8", sequences, at + 4 * sequences)
    documents = np.frombuffer(index, "<i8", boundaries, at + 12 * sequences)
    assert len(index) == at + 12 * sequences + 8 * boundaries
    assert documents[0] == 0
    assert documents[-1] == sequences
    read = [np.frombuffer(tokens, dtype, n, start) for n, start in zip(lengths, pointers, strict=True)]
    assert sum(part.nbytes for part in read) == len(tokens)
    return [np.concatenate(read[a:b]) for a, b in pairwise(documents.tolist())]


def documents_of(source: TokenSource) -> list[np.ndarray]:
    return [np.asarray(source.tokens[a:b]) for a, b in pairwise(source.offsets.tolist())]


def shards_of(folder: Path, vocab_size: int) -> TokenShards:
    rng = np.random.default_rng(vocab_size)
    with ShardSetWriter(folder, np.ones(vocab_size, np.int32), pad_id=0) as writer:
        for domain, count in (("code", 1), ("general", 300)):
            tokens = [rng.integers(0, vocab_size, int(rng.integers(2, 90))).tolist() for _ in range(count)]
            tokens[0][:2] = [0, vocab_size - 1]
            writer.add("train", domain, [f"{domain}{i}" for i in range(count)], tokens, ["x"] * count)
        writer.close()
    return TokenShards(folder)


def same(left: list[np.ndarray], right: list[np.ndarray]) -> bool:
    return len(left) == len(right) and all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize(("vocab_size", "width"), [(300, 2), (65_535, 2), (65_536, 4), (128_256, 4)])
def test_megatron_files_hold_the_tokens(tmp_path, vocab_size, width):
    shards = shards_of(tmp_path / "tokens", vocab_size)
    for domain in shards.domains("train"):
        source = shards.source("train", domain)
        write_megatron(source, tmp_path / "out" / domain)
        assert same(read_megatron(tmp_path / "out" / domain), documents_of(source))
        assert (tmp_path / "out" / f"{domain}.bin").stat().st_size == width * source.entry["tokens"]
        assert pq.read_table(tmp_path / "out" / f"{domain}.ids.parquet")["id"].to_pylist() == source.ids


def test_megatrons_own_reader_agrees(tmp_path):
    indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset", reason="megatron-core is not installed")
    for vocab_size in (300, 128_256):
        source = shards_of(tmp_path / str(vocab_size), vocab_size).source("train", "general")
        write_megatron(source, tmp_path / f"out{vocab_size}")
        data = indexed.IndexedDataset(str(tmp_path / f"out{vocab_size}"))
        assert same([data[i] for i in range(len(data))], documents_of(source))
        assert data.document_indices.tolist() == list(range(source.documents + 1))


def test_a_document_that_the_index_cannot_hold_is_refused(make_shards, tmp_path, monkeypatch):
    monkeypatch.setattr("herd.corpus.megatron._LONGEST", 10)
    with pytest.raises(UserError, match=r"Document 1 of .* has 11 tokens"):
        write_megatron(make_shards(general=[10, 11]).source("train", "general"), tmp_path / "x")


@pytest.mark.parametrize("vocab_size", [300, 128_256])
def test_litdata_streams_the_tokens(tmp_path, vocab_size):
    pytest.importorskip("litdata", reason="the extra `litdata` is not installed")
    from litdata import StreamingDataset, TokensLoader

    source = shards_of(tmp_path / "tokens", vocab_size).source("train", "general")
    write_litdata(source, tmp_path / "out", chunk_bytes=4_000)
    assert len(list((tmp_path / "out").glob("*.bin"))) > 5
    data = StreamingDataset(str(tmp_path / "out"), item_loader=TokensLoader(block_size=1), shuffle=False)
    assert np.array_equal(np.concatenate([np.asarray(data[i]) for i in range(len(data))]), source.tokens)
    write_litdata(source, tmp_path / "again", chunk_bytes=4_000)
    assert hash_outputs(tmp_path / "out") == hash_outputs(tmp_path / "again")


def test_without_litdata_the_message_says_what_to_install(tmp_path, make_shards, monkeypatch):
    monkeypatch.setitem(sys.modules, "litdata", None)
    monkeypatch.setitem(sys.modules, "litdata.streaming.item_loader", None)
    with pytest.raises(UserError, match=r"herd\[litdata\]"):
        write_litdata(make_shards(general=[3]).source("train", "general"), tmp_path / "x", 1000)


def test_the_stage_exports_the_splits_and_domains_asked_for(tmp_path):
    shards = shards_of(tmp_path / "tokens", 300)
    inputs = Inputs({"tokens": Artifact(tmp_path, {})}, {})
    metrics = STAGE.run(ExportTokensConfig(splits=["train"]), inputs, StageRun(tmp_path / "run", seed=0))
    for domain in ("code", "general"):
        source = shards.source("train", domain)
        assert same(read_megatron(tmp_path / "run" / "megatron" / "train" / domain), documents_of(source))
        assert metrics["tokens"]["train"][domain] == source.entry["tokens"]
    with pytest.raises(UserError, match="Did you mean 'general'"):
        STAGE.run(ExportTokensConfig(splits=["train"], domains=["genral"]), inputs, StageRun(tmp_path / "run2", seed=0))


def test_configuration_composes_and_bad_values_are_refused():
    from omegaconf import OmegaConf

    tree = OmegaConf.to_container(compose("export-tokens", []), resolve=True)
    assert load(ExportTokensConfig, {k: v for k, v in tree.items() if k not in ("run", "inputs")}) == ExportTokensConfig()
    with pytest.raises(UserError, match="Did you mean 'megatron'"):
        ExportTokensConfig(format="megatrn")
