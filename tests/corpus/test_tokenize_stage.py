"""`herd tokenize` on a small curate artifact."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from herd.config.errors import UserError
from herd.config.loader import compose, conf_root, load
from herd.corpus.mixture import MixConfig, Mixture, Phase
from herd.corpus.shards import TokenShards
from herd.corpus.tokenize_stage import STAGE, TokenizeConfig, training_texts
from herd.corpus.tokenizer import Tokenizer, TokenizerConfig
from herd.runs.stage import Artifact, Inputs, Stage, StageRun, execute
from herd.runs.tables import shard_path

CONFIG = TokenizeConfig(TokenizerConfig(vocab_size=500, special_tokens=16, training_characters=300_000), seed=1)
Table = dict[str, list[Any]]


@dataclass(frozen=True)
class Documents:
    """Configuration of the stand-in for `herd curate`: the tables it writes."""

    train: Any
    heldout: Any
    seed: int = 0


def write_documents(config: Documents, inputs: Inputs, run: StageRun) -> dict[str, Any]:
    (run.folder / "documents").mkdir()
    for split in ("train", "heldout"):
        columns = {k: pa.array(v, None if v else pa.string()) for k, v in getattr(config, split).items()}
        rows = pa.table(columns)
        half = len(rows) // 2
        for i, part in enumerate((rows.slice(0, half), rows.slice(half))):
            pq.write_table(part, shard_path(run.folder / "documents", split, i, 2), row_group_size=50)
    return {}


CURATE = Stage("curate", 1, Documents, write_documents, "stand-in")


def table(texts: list[str], name: str) -> Table:
    domains = [("code", "general", "maths")[i % 3] for i in range(len(texts))]
    columns: Table = {"id": [f"{name}-{i:04}" for i in range(len(texts))], "domain": domains, "text": texts}
    return columns | {"quality": [0.5] * len(texts), "url": [""] * len(texts)}


@pytest.fixture
def documents(sources: list[str]) -> Documents:
    parts = [source[i : i + 1500] for source in sources for i in range(0, len(source), 1500)]
    return Documents(train=table(parts[:-20], "t"), heldout=table([*parts[-20:], "", "naïve <|eot_id|> 🙂"], "h"))


Run = Callable[..., Artifact]


@pytest.fixture
def tokenize(tmp_path: Path) -> Run:
    def run(documents: Documents, config: TokenizeConfig = CONFIG, **inputs: Any) -> Artifact:
        curated = execute(CURATE, documents, {}, tmp_path / "runs", "test")
        given = {"documents": curated.path, **inputs}
        return execute(STAGE, config, given, tmp_path / "runs", "test")

    return run


def test_every_document_is_encoded_whole(documents: Documents, tokenize: Run) -> None:
    made = tokenize(documents)
    tokenizer, shards = Tokenizer.load(made / "tokenizer"), TokenShards(made / "tokens")
    shards.verify()
    seen: dict[str, tuple[str, str, str]] = {}
    for split in ("train", "heldout"):
        for domain in shards.domains(split):
            source = shards.source(split, domain)
            for i, identity in enumerate(source.ids):
                ids = source.tokens[source.offsets[i] : source.offsets[i + 1]].tolist()
                assert (ids[0], ids[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
                assert max(ids[1:-1], default=0) < tokenizer.bos_id
                text = tokenizer.decode(ids[1:-1])
                assert source.bytes[i] == len(text.encode()) == source.token_bytes[ids].sum()
                seen[identity] = (split, domain, text)
    expected = {}
    for split in ("train", "heldout"):
        columns = getattr(documents, split)
        for identity, domain, text in zip(columns["id"], columns["domain"], columns["text"], strict=True):
            expected[identity] = (split, domain, text)
    assert seen == expected
    assert tokenizer.vocab_size == shards.vocab_size == made.metrics["vocab_size"] == 500
    assert shards.pad_id == tokenizer.pad_id


def test_metrics_say_what_was_written(documents: Documents, tokenize: Run) -> None:
    made = tokenize(documents)
    metrics, shards = made.metrics, TokenShards(made / "tokens")
    tokenizer = Tokenizer.load(made / "tokenizer")
    assert metrics["tokens_by_domain"] == shards.tokens("train")
    assert metrics["heldout_tokens_by_domain"] == shards.tokens("heldout")
    assert sum(metrics["documents_by_domain"].values()) == len(documents.train["id"])
    texts = documents.heldout["text"]
    tokens = sum(len(ids) for ids in tokenizer.encode_batch(texts))
    assert metrics["characters_per_token"] == pytest.approx(sum(map(len, texts)) / tokens)
    assert 1.5 < metrics["characters_per_token"] < 4
    assert made.manifest["cost"]["tokens"] == sum(shards.tokens("train").values())


def test_batches_and_runs_give_the_same_bytes(documents: Documents, tokenize: Run) -> None:
    first, other = tokenize(documents), tokenize(documents, replace(CONFIG, batch_characters=1_000))
    assert first.path != other.path
    assert first.manifest["outputs"] == other.manifest["outputs"]
    assert tokenize(documents).path == first.path


def test_the_tokenizer_learns_from_the_train_split_alone(documents: Documents, tokenize: Run) -> None:
    first = tokenize(documents)
    other = tokenize(replace(documents, heldout=table(["qzqzqz " * 2000] * 3, "x")))
    name = "tokenizer/tokenizer.json"
    assert first.manifest["outputs"][name] == other.manifest["outputs"][name]


def test_an_earlier_tokenizer_can_be_used(documents: Documents, tokenize: Run) -> None:
    first = tokenize(documents)
    again = tokenize(replace(documents, train=table(["qzqzqz " * 2000] * 3, "x")), tokenizer=first.path)
    assert (again / "tokenizer/tokenizer.json").read_bytes() == (first / "tokenizer/tokenizer.json").read_bytes()
    assert (
        again.manifest["outputs"]["tokens/heldout/code/tokens.bin"]
        == (first.manifest["outputs"]["tokens/heldout/code/tokens.bin"])
    )


def test_a_sample_is_spread_over_the_file_and_long_enough(tmp_path: Path) -> None:
    texts = [f"{i:04} " * 20 for i in range(1000)]
    pq.write_table(pa.table(table(texts, "t")), tmp_path / "t.parquet")

    def sample(limit: int, seed: int = 0) -> list[str]:
        config = TokenizeConfig(TokenizerConfig(500, 16, limit), seed)
        return list(training_texts([pq.ParquetFile(tmp_path / "t.parquet")], config))

    tenth = sample(10_000)
    assert len(tenth) == 100
    assert tenth == sorted(set(tenth))
    assert 20 < sum(text < "05" for text in tenth) < 80
    assert sample(10_000, seed=1) != tenth
    assert len(sample(1)) == 1
    assert sample(10**9) == texts


def without(columns: Table, name: str) -> Table:
    return {key: value for key, value in columns.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: without(t, "text"), r"train-00000-of-00002\.parquet' has no column 'text': it has id, domain"),
        (lambda t: t | {"domain": list(range(len(t["id"])))}, "column 'domain' holds int64, not strings"),
        (lambda t: t | {"text": [None, *t["text"][1:]]}, r"Row 0 of the documents has no .* \(id 't-0000'\)"),
        (lambda t: t | {"domain": ["../../up", *t["domain"][1:]]}, "'../../up' is no name for a split or domain"),
        (lambda t: {k: [] for k in t}, "holds no documents"),
        (lambda t: {k: v[:1] for k, v in t.items()}, r"give only .* of tokenizer.vocab_size=500 entries"),
    ],
)
def test_bad_documents_are_refused(documents: Documents, tokenize: Run, change: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tokenize(replace(documents, train=change(documents.train)))


def test_a_file_of_another_kind_is_refused(documents: Documents, tmp_path: Path) -> None:
    curated = execute(CURATE, documents, {}, tmp_path / "runs", "test")
    path = curated / "documents/train-00001-of-00002.parquet"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"train-00001-of-00002\.parquet' is no parquet file"):
        execute(STAGE, CONFIG, {"documents": curated.path}, tmp_path / "runs", "test")
    path.unlink()
    with pytest.raises(UserError, match=r"is no whole table: shard 1 of 2 is missing"):
        execute(STAGE, CONFIG, {"documents": curated.path}, tmp_path / "runs", "test")


def test_an_interrupted_attempt_leaves_no_trace(documents: Documents, tmp_path: Path, tokenize: Run) -> None:
    clean = tokenize(documents).manifest["outputs"]
    curated = Artifact.open(tmp_path / "runs" / "test" / "curate")
    run = StageRun(tmp_path / "partial", seed=1)
    stale = run.folder / "tokens" / "train" / "old" / "tokens.bin"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"half")
    STAGE.run(CONFIG, Inputs({"documents": curated}, {}), run)
    left = {p.relative_to(run.folder).as_posix() for p in run.folder.rglob("*") if p.is_file()}
    assert left == set(clean)


@pytest.mark.parametrize(("name", "vocab_size", "special"), [("laptop", 1024, 16), ("llama3", 128_256, 256), ("tiny", 512, 16)])
def test_presets_compose(name: str, vocab_size: int, special: int) -> None:
    composed = compose("tokenize", [f"tokenizer={name}"])
    plain = cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True))
    config = load(TokenizeConfig, {key: plain[key] for key in plain if key not in ("run", "inputs", "hydra")})
    assert (config.tokenizer.vocab_size, config.tokenizer.special_tokens) == (vocab_size, special)


def test_mixes_are_valid_and_run(documents: Documents, tokenize: Run) -> None:
    mixes = {path.stem: load(MixConfig, OmegaConf.load(path)) for path in (conf_root() / "mix").glob("*.yaml")}
    assert mixes["llama3"].weights == {"general": 0.50, "maths": 0.25, "code": 0.17, "multilingual": 0.08}
    raised = mixes["llama3_annealing"].weights
    assert raised["maths"] > 0.25
    assert raised["code"] > 0.17
    shards = TokenShards(tokenize(documents) / "tokens")
    with pytest.raises(UserError, match="weight to 'multilingual'"):
        Mixture(shards, "train", [Phase(4, 64, raised)], 0)
    rows = Mixture(shards, "train", [Phase(4, 64, {"code": 0.5, "maths": 0.5})], 0).rows(0, 0, 4)
    assert sorted(rows.sources) == ["code", "code", "maths", "maths"]
