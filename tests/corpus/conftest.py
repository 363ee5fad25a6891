"""A small corpus made of real text (this Python's own modules) and a set of shards made of numbers."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from herd.corpus.shard_writer import ShardSetWriter
from herd.corpus.shards import TokenShards
from herd.corpus.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer

MODULES = (
    "argparse",
    "ast",
    "collections",
    "dataclasses",
    "datetime",
    "heapq",
    "inspect",
    "json",
    "logging",
    "textwrap",
)


def module_sources() -> list[str]:
    """Source text of some modules of the standard library."""
    found = [importlib.util.find_spec(name) for name in MODULES]
    return [Path(spec.origin).read_text(encoding="utf-8") for spec in found if spec and spec.origin]


@pytest.fixture(scope="session")
def sources() -> list[str]:
    return module_sources()


@pytest.fixture(scope="session")
def tokenizer(sources: list[str]) -> Tokenizer:
    return train_tokenizer(sources, TokenizerConfig(vocab_size=600, special_tokens=16, training_characters=10**6))


MakeShards = Callable[..., TokenShards]


@pytest.fixture
def make_shards(tmp_path: Path) -> MakeShards:
    """Write shards from ``{domain: [document length, ...]}``; a token's id says which document it is of and where.

    Document ``i`` of length ``n`` is the ids ``first, ..., first + n - 1``, with all ids of a domain distinct.
    """

    def make(split: str = "train", vocab_size: int = 60_000, **domains: list[int]) -> TokenShards:
        folder = tmp_path / f"tokens-{len(list(tmp_path.iterdir()))}"
        sizes = np.ones(vocab_size, dtype=np.int32)
        with ShardSetWriter(folder, sizes, pad_id=vocab_size - 1) as writer:
            for domain, lengths in domains.items():
                ends = np.cumsum(lengths)
                documents = [list(range(end - n, end)) for end, n in zip(ends.tolist(), lengths, strict=True)]
                names = [f"{domain}/{i}" for i in range(len(lengths))]
                writer.add(split, domain, names, documents, ["x" * (n - 2) for n in lengths])
            writer.close()
        return TokenShards(folder)

    return make
