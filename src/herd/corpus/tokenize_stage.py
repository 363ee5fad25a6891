"""``herd tokenize``: curated documents to a tokenizer, learned from the train split alone, and token shards of both.

The parquet files are read batch by batch: once to sample text to learn merges from, once to encode. Memory holds a
batch and a few numbers per document.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from herd.config.errors import UserError
from herd.corpus.epochs import shuffled
from herd.corpus.shard_writer import ShardSetWriter
from herd.corpus.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from herd.runs.progress import Progress, progress
from herd.runs.stage import Inputs, Stage, StageRun
from herd.runs.tables import open_table, shard_files

SPLITS = ("train", "heldout")
_ROWS = 256  # rows read from parquet at once


@dataclass(frozen=True)
class TokenizeConfig:
    """What `herd tokenize` does."""

    tokenizer: TokenizerConfig
    seed: int = 0  # of the sample of documents that the tokenizer learns from
    batch_characters: int = 1_000_000  # characters encoded at once; bounds the memory

    def __post_init__(self) -> None:
        if self.batch_characters < 1:
            raise UserError(f"batch_characters must be 1 or more, not {self.batch_characters}.")


@dataclass(frozen=True)
class _Batch:
    """Some documents of one split."""

    ids: list[str]
    domains: list[str]
    texts: list[str]


def run(config: TokenizeConfig, inputs: Inputs, run: StageRun) -> dict[str, Any]:
    """Write ``tokenizer/`` and ``tokens/`` into the stage's folder; with an input ``tokenizer``, use that one."""
    files = {split: _open(shard_files(inputs["documents"] / "documents", split)) for split in SPLITS}
    given = inputs.get("tokenizer")
    if given is not None:
        tokenizer = Tokenizer.load(given / "tokenizer")
    else:
        tokenizer = train_tokenizer(training_texts(files["train"], config), config.tokenizer)
    tokenizer.save(run.folder / "tokenizer")
    shutil.rmtree(run.folder / "tokens", ignore_errors=True)  # what an interrupted attempt left
    documents = sum(file.metadata.num_rows for part in files.values() for file in part)
    with (
        ShardSetWriter(run.folder / "tokens", tokenizer.token_bytes, tokenizer.pad_id) as writer,
        progress("Encoding", total=documents, unit="documents") as bar,
    ):
        for split, part in files.items():
            encode(_batches(part, config.batch_characters), split, tokenizer, writer, bar)
        index = writer.close()
    metrics = measure(index)
    run.cost(tokens=sum(metrics["tokens_by_domain"].values()))
    return metrics


def training_texts(files: list[pq.ParquetFile], config: TokenizeConfig) -> Iterator[str]:
    """At least ``training_characters`` of text, or all there is: a random sample of documents, in the files' order."""
    lengths = np.concatenate(
        [
            pc.fill_null(pc.utf8_length(batch.column(0)), 0).to_numpy(zero_copy_only=False).astype(np.int64)
            for file in files
            for batch in file.iter_batches(batch_size=_ROWS, columns=["text"])
        ]
    )
    order = shuffled(len(lengths), config.seed, "tokenizer sample")
    before = np.cumsum(lengths[order]) - lengths[order]
    chosen = np.zeros(len(lengths), dtype=bool)
    chosen[order[before < config.tokenizer.training_characters]] = True
    with progress("Learning the tokenizer", total=int(lengths[chosen].sum()), unit="characters") as bar:
        row = 0
        for batch in _batches(files, config.batch_characters):
            for text in batch.texts:
                if chosen[row]:
                    yield text
                    bar.advance(len(text))
                row += 1


def encode(batches: Iterator[_Batch], split: str, tokenizer: Tokenizer, writer: ShardSetWriter, bar: Progress) -> None:
    """Encode documents, each between ``<|begin_of_text|>`` and ``<|end_of_text|>``, and write them by domain."""
    for batch in batches:
        tokens = tokenizer.encode_batch(batch.texts)
        documents = [[tokenizer.bos_id, *ids, tokenizer.eos_id] for ids in tokens]
        by_domain: dict[str, list[int]] = {}
        for i, domain in enumerate(batch.domains):
            by_domain.setdefault(domain, []).append(i)
        for domain, rows in by_domain.items():
            writer.add(
                split,
                domain,
                [batch.ids[i] for i in rows],
                [documents[i] for i in rows],
                [batch.texts[i] for i in rows],
            )
        bar.advance(len(batch.texts))


def measure(index: dict[str, Any]) -> dict[str, Any]:
    """The stage's metrics. Compression counts the tokens of text, not the two that enclose each document."""
    train, heldout = (index["splits"].get(split, {}) for split in SPLITS)

    def compression(*entries: dict[str, int]) -> float:
        text_tokens = sum(e["tokens"] - 2 * e["documents"] for e in entries)
        return sum(e["characters"] for e in entries) / max(text_tokens, 1)

    return {
        "vocab_size": index["vocab_size"],
        "characters_per_token": compression(*heldout.values()),
        "characters_per_token_by_domain": {name: compression(entry) for name, entry in heldout.items()},
        "characters_per_token_train": compression(*train.values()),
        "tokens_by_domain": {name: entry["tokens"] for name, entry in train.items()},
        "heldout_tokens_by_domain": {name: entry["tokens"] for name, entry in heldout.items()},
        "documents_by_domain": {name: entry["documents"] for name, entry in train.items()},
    }


def _open(paths: list[Path]) -> list[pq.ParquetFile]:
    """Open the shards of one split; UserError unless they have rows with id, domain and text, all strings, none missing."""
    files = []
    for path in paths:
        file = open_table(path)
        for name in ("id", "domain", "text"):
            if name not in file.schema_arrow.names:
                raise UserError(f"'{path}' has no column '{name}': it has {', '.join(file.schema_arrow.names)}.")
            kind = file.schema_arrow.field(name).type
            if not pa.types.is_string(kind) and not pa.types.is_large_string(kind):
                raise UserError(f"'{path}': column '{name}' holds {kind}, not strings.")
        files.append(file)
    if not sum(file.metadata.num_rows for file in files):
        raise UserError(f"'{paths[0].parent}' holds no documents: give `herd curate` more text, or loosen its filters.")
    return files


def _batches(files: list[pq.ParquetFile], characters: int) -> Iterator[_Batch]:
    """Documents in the files' order, in groups that end once they hold ``characters`` of text."""
    batch, size, row = _Batch([], [], []), 0, 0
    records = (r for file in files for r in file.iter_batches(batch_size=_ROWS, columns=["id", "domain", "text"]))
    for record in records:
        columns = (record.column(name).to_pylist() for name in ("id", "domain", "text"))
        for identity, domain, text in zip(*columns, strict=True):
            if identity is None or domain is None or text is None:
                raise UserError(f"Row {row} of the documents has no id, domain or text (id {identity!r}).")
            batch.ids.append(identity)
            batch.domains.append(domain)
            batch.texts.append(text)
            size, row = size + len(text), row + 1
            if size >= characters:
                yield batch
                batch, size = _Batch([], [], []), 0
    if batch.ids:
        yield batch


STAGE = Stage(
    name="tokenize",
    version=1,
    config=TokenizeConfig,
    run=run,
    summary="train the tokenizer, write token shards",
    inputs=("documents",),
    optional=("tokenizer",),
)
