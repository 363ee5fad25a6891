"""A small artificial corpus with structure to learn, tokenized by the real stage, and a model with random weights."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from herd.corpus.shards import TokenShards
from herd.corpus.tokenize_stage import STAGE as TOKENIZE
from herd.corpus.tokenize_stage import TokenizeConfig
from herd.corpus.tokenizer import Tokenizer, TokenizerConfig
from herd.evaluation.bench import Bench, HeldoutConfig
from herd.evaluation.scoring import LanguageModel
from herd.model.config import ModelConfig
from herd.model.transformer import Transformer
from herd.runs.seeds import stream
from herd.runs.stage import Artifact, Inputs, Stage, StageRun, execute
from herd.runs.tables import shard_path

DOMAINS = ("general", "maths", "code", "multilingual")
MIX = {"general": 0.5, "maths": 0.25, "code": 0.17, "multilingual": 0.08}
VERBS = [
    "compute",
    "return",
    "estimate",
    "invert",
    "merge",
    "sort",
    "filter",
    "sample",
    "reduce",
    "encode",
    "decode",
    "scale",
]
NOUNS = [
    "matrix",
    "vector",
    "norm",
    "gradient",
    "signal",
    "spectrum",
    "table",
    "index",
    "graph",
    "kernel",
    "weight",
    "tensor",
]
PLACES = [
    "along the given axis",
    "of the input array",
    "with respect to its rows",
    "after the first call",
    "for every item",
]


def entry(rng_seed: int, number: int, split: str) -> dict[str, str]:
    """A documented function whose summary repeats the words of its name."""
    rng = stream(rng_seed, "entry", split, number)
    verb, noun = VERBS[number % 12], NOUNS[(number // 12) % 12]
    place = PLACES[int(rng.integers(5))]
    tag = f"{split[0]}{number}"
    return {
        "id": f"e-{split}-{number:04d}",
        "document_id": f"{split}-general-{number // 4:04d}",
        "split": split,
        "package": "alpha" if number % 2 else "beta",
        "name": f"{'alpha' if number % 2 else 'beta'}.{verb}_{noun}_{tag}",
        "signature": "(a, axis=None)",
        "summary": f"{verb.capitalize()} the {noun} {place}, variant {tag}.",
        "description": f"The {noun} is taken {place} and {verb} is applied to {tag} until nothing changes any more.",
        "parameters": json.dumps(["a", "axis"]),
    }


def text_of(entries: list[dict[str, str]], domain: str, seed: int) -> str:
    lines = [f"{e['name'].split('.')[-1]}{e['signature']}\n{e['summary']}\n\n{e['description']}\n" for e in entries]
    if domain == "multilingual":
        lines = ["Die Größe der Matrix beträgt fünf, über alle Zeilen gezählt.\n" * 3]
    elif domain != "general":
        rng = stream(seed, "text", domain)
        picks = [(VERBS[int(rng.integers(12))], NOUNS[int(rng.integers(12))]) for _ in range(25)]
        lines = [f"def {v}_{n}(x):\n    return {v}({n}, x)\n" for v, n in picks]
    return "\n".join(lines)


def write_corpus(config: None, inputs: Inputs, run: StageRun) -> dict[str, int]:
    entries = []
    for split, documents in (("train", 60), ("heldout", 40)):
        rows = []
        for domain in DOMAINS:
            for d in range(documents if domain != "multilingual" else 4):
                own = [entry(1, 4 * d + i, split) for i in range(4)] if domain == "general" else []
                entries += own
                text = text_of(own, domain, d + (0 if split == "train" else 1000))
                rows.append({"id": f"{split}-{domain}-{d:04d}", "domain": domain, "text": text})
        rows.sort(key=lambda row: row["id"])
        (run.folder / "documents").mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), shard_path(run.folder / "documents", split, 0, 1))
    pq.write_table(pa.Table.from_pylist(entries), run.folder / "entries.parquet")
    return {"entries": len(entries)}


@dataclass(frozen=True)
class NoConfig:
    seed: int = 0


@dataclass(frozen=True)
class Small:
    """Finished artifacts of the artificial corpus."""

    root: Path
    documents: Artifact
    tokens: Artifact


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    root = tmp_path_factory.mktemp("runs")
    corpus = Stage("curate", 1, NoConfig, write_corpus, "artificial corpus")
    documents = execute(corpus, NoConfig(), {}, root, "test")
    config = TokenizeConfig(TokenizerConfig(640, 16, 1_000_000, fill_with_reserved=True))
    tokens = execute(TOKENIZE, config, {"documents": documents.path}, root, "test")
    return Small(root, documents, tokens)


@pytest.fixture(scope="session")
def tokenizer(small: Small) -> Tokenizer:
    return Tokenizer.load(small.tokens / "tokenizer")


def tiny_transformer(vocab_size: int, seed: int = 0, max_seq_len: int = 256) -> Transformer:
    config = ModelConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=64, vocab_size=vocab_size, max_seq_len=max_seq_len)
    model = Transformer(config)
    model.init_weights(seed)
    return model.eval()


@pytest.fixture
def make_lm(tokenizer: Tokenizer) -> Callable[..., LanguageModel]:
    def make(label: str = "random", **options: int) -> LanguageModel:
        return LanguageModel(label, tiny_transformer(tokenizer.vocab_size, **options), torch.device("cpu"))

    return make


@pytest.fixture
def bench(small: Small, tokenizer: Tokenizer, tmp_path: Path) -> Bench:
    return Bench(
        seed=3,
        resamples=200,
        mix=MIX,
        heldout_config=HeldoutConfig(tokens_per_domain=3000, document_tokens=200, context_tokens=64),
        tokenizer=tokenizer,
        shards=TokenShards(small.tokens / "tokens"),
        documents=small.documents,
        dialogs=None,
        scratch=tmp_path / "scratch",
        preferences={},
        labels=("random",),
    )
