"""Contamination: coverage and gains against values computed by hand and by definition; planted examples are found."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herd.config.errors import UserError
from herd.config.loader import compose, load
from herd.curation import contamination_stage, ngram_index_stage
from herd.curation.benchmarks import BenchmarkConfig, read_examples, read_scores
from herd.curation.contamination import choose_threshold, estimated_gain, is_contaminated, sweep
from herd.curation.contamination_stage import ContaminationConfig
from herd.curation.executors import ProcessExecutor
from herd.curation.ngram_index import NgramIndex, build_index, covered
from herd.curation.ngram_index_stage import NgramIndexConfig
from herd.runs.manifest import hash_outputs
from herd.runs.stage import Artifact, Inputs, StageRun
from herd.runs.tables import shard_path


def write_documents(folder: Path, texts: list[str], shards: int = 2) -> Path:
    """A folder of documents as `herd curate` leaves it."""
    (folder / "documents").mkdir(parents=True)
    for shard in range(shards):
        part = texts[shard::shards]
        table = pa.table({"text": pa.array(part, pa.string()), "language": pa.array(["en"] * len(part), pa.string())})
        pq.write_table(table, shard_path(folder / "documents", "train", shard, shards))
    return folder


def index_of(tmp_path: Path, texts: list[str], n: int = 8, **layout: int) -> NgramIndex:
    folder = write_documents(tmp_path / "corpus", texts, layout.get("shards", 2))
    files = sorted((folder / "documents").glob("*.parquet"))
    with ProcessExecutor(1) as executor:
        build_index(files, tmp_path / "index", tmp_path / "scratch", n, layout.get("buckets", 4), executor)
    return NgramIndex(tmp_path / "index")


# --- coverage ---


def test_coverage_of_a_sentence_by_hand(tmp_path):
    corpus = ["One two three four five six seven eight nine.", "alpha beta"]
    index = index_of(tmp_path, corpus)
    assert index.grams == 2
    texts = [
        "zero ONE two, three four five six seven eight! ten eleven",  # words 1 to 8 of 11
        "one two three four five six seven nine",  # no eight in a row
        "one two three four five six seven eight nine",  # two overlapping 8-grams cover all nine
        "alpha beta",  # shorter than an 8-gram
        "",
    ]
    assert list(index.coverage(texts, "en")) == [(11, 8), (8, 0), (9, 9), (2, 0), (0, 0)]


def test_no_run_crosses_from_one_document_to_the_next(tmp_path):
    index = index_of(tmp_path, ["a b c d", "e f g h"], n=8, shards=1)
    assert list(index.coverage(["a b c d e f g h"], "en")) == [(8, 0)]


def test_covered_words_of_overlapping_and_separate_runs():
    assert covered(np.array([True, False, True, False, False, False]), 3, 8).tolist() == [True] * 5 + [False] * 3
    assert covered(np.array([], bool), 8, 5).tolist() == [False] * 5


def naive(corpus: list[list[str]], example: list[str], n: int) -> int:
    """Covered words, by definition."""
    grams = {tuple(document[i : i + n]) for document in corpus for i in range(len(document) - n + 1)}
    return sum(
        any(tuple(example[j : j + n]) in grams for j in range(max(0, i - n + 1), min(i, len(example) - n) + 1))
        for i in range(len(example))
    )


WORDS = st.lists(st.sampled_from(["a", "b", "c"]), max_size=25)


@settings(max_examples=40, deadline=None)
@given(st.lists(WORDS, max_size=6), st.lists(WORDS, min_size=1, max_size=5), st.integers(1, 5), st.sampled_from([1, 2, 8]))
def test_coverage_equals_the_definition(tmp_path_factory, corpus, examples, n, buckets):
    index = index_of(tmp_path_factory.mktemp("x"), [" ".join(document) for document in corpus], n, buckets=buckets)
    found = list(index.coverage([" ".join(example) for example in examples], "en"))
    assert found == [(len(example), naive(corpus, example, n)) for example in examples]


def test_the_index_depends_on_the_documents_alone(tmp_path):
    rng = np.random.default_rng(0)
    texts = [" ".join(map(str, rng.integers(0, 50, 100))) for _ in range(40)]
    index_of(tmp_path / "a", texts, shards=1)
    index_of(tmp_path / "b", texts[::-1], shards=7)
    assert hash_outputs(tmp_path / "a" / "index") == hash_outputs(tmp_path / "b" / "index")


def test_an_interrupted_index_goes_on_and_a_damaged_one_is_refused(tmp_path):
    texts = ["one two three four five six seven eight nine ten"] * 3
    index_of(tmp_path, texts)
    with pytest.raises(UserError, match="run `herd ngram-index`"):
        NgramIndex(tmp_path)
    before = hash_outputs(tmp_path / "index")
    for path in (tmp_path / "index").iterdir():
        path.unlink()
    files = [Path("absent-0"), Path("absent-1")]  # hashed before: not read again
    with ProcessExecutor(1) as executor:
        build_index(files, tmp_path / "index", tmp_path / "scratch", 8, 4, executor)
    assert hash_outputs(tmp_path / "index") == before
    full = max((tmp_path / "index").glob("*.npy"), key=lambda path: path.stat().st_size)
    full.write_bytes(full.read_bytes()[:-8])
    with pytest.raises(UserError, match="run `herd ngram-index`"):
        NgramIndex(tmp_path / "index")


# --- gains ---


def test_a_gain_by_hand():
    # 4 of 10 contaminated, all right; of the clean ones 2 of 6 right.
    contaminated = np.array([True] * 4 + [False] * 6)
    scores = np.array([1.0] * 4 + [1, 1, 0, 0, 0, 0])
    gain, low, high = estimated_gain(scores, contaminated, 0.95, 2)
    assert gain == pytest.approx(0.6 - 2 / 6)
    # After a success and a failure more on each side: 5/6 and 3/8.
    variance = 5 / 6 * 1 / 6 / 6 + 3 / 8 * 5 / 8 / 8
    assert high - gain == pytest.approx(1.959964 * 0.4 * variance**0.5)
    assert gain - low == pytest.approx(high - gain)
    assert estimated_gain(scores, contaminated, 0.95, 5) is None


def test_a_gain_without_effect_is_rarely_significant():
    rng = np.random.default_rng(3)
    significant = 0
    for _ in range(2_000):
        scores = (rng.random(200) < 0.4).astype(float)
        _, low, _ = estimated_gain(scores, rng.random(200) < 0.3, 0.95, 10)
        significant += low > 0
    assert 0.01 < significant / 2_000 < 0.04  # one side of a 95% interval


def test_the_threshold_of_the_largest_significant_gain_is_chosen():
    # Half-covered examples are not known, fully covered ones are: the large model gains from 0.9 on.
    shares = np.repeat([0.0, 0.5, 1.0], 100)
    small = np.tile([1.0, 0.0], 150)
    large = np.concatenate([np.tile([1.0, 0.0], 100), np.ones(100)])
    gains = sweep(shares, {"small": small, "large": large}, [0.9, 0.2, 0.5], 0.95, 10)
    assert [(g.threshold, g.model) for g in gains] == [(t, m) for t in (0.2, 0.5, 0.9) for m in ("large", "small")]
    by = {(g.threshold, g.model): g for g in gains}
    assert by[0.9, "large"].gain == pytest.approx(2 / 3 - 0.5)
    assert by[0.2, "large"].gain == pytest.approx(2 / 3 - 0.5)  # clean: 100 at 0.5; both 0.5 and 1.0 count as contaminated
    assert by[0.9, "large"].significant
    assert not by[0.9, "small"].significant
    assert choose_threshold(gains) == 0.2  # the smallest of equals
    lower = np.concatenate([np.tile([1.0, 1.0, 1.0, 0.0], 25), np.tile([1.0, 0.0], 50), np.ones(100)])
    assert choose_threshold(sweep(shares, {"m": lower}, [0.2, 0.9], 0.95, 10)) == 0.9
    assert choose_threshold(sweep(shares, {"m": small}, [0.2, 0.9], 0.95, 10)) is None
    assert choose_threshold([]) is None


def test_contaminated_means_at_least_the_threshold():
    assert is_contaminated(np.array([0.0, 0.3, 0.5, 1.0]), 0.5).tolist() == [False, False, True, True]


# --- stages ---


QUESTIONS = [
    f"A farmer number {i} has {i + 3} sheep and sells {i + 1} of them on the market; how many sheep are left in her field?"
    for i in range(40)
]


@pytest.fixture(scope="module")
def indexed(tmp_path_factory) -> Path:
    """An index of a corpus in which questions 0 to 9 stand word for word."""
    folder = tmp_path_factory.mktemp("indexed")
    filler = ["Rivers carve valleys over long times, and people settle beside them for water and trade. " * 3] * 5
    corpus = write_documents(folder / "corpus", [*filler, *(f"Seen on a forum: {q} Thanks." for q in QUESTIONS[:10])])
    metrics = ngram_index_stage.run(
        NgramIndexConfig(workers=1), Inputs({"documents": Artifact(corpus, {})}, {}), StageRun(folder / "run", seed=0)
    )
    assert metrics["documents"] == 15
    assert metrics["bytes_per_word"] <= 8
    return folder / "run"


def contaminated_run(tmp_path: Path, indexed: Path, **settings) -> dict:
    examples = [{"question": q, "answer": str(2)} for q in QUESTIONS]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(e) + "\n" for e in examples), encoding="utf-8")
    benchmark = BenchmarkConfig("sheep", str(tmp_path / "q.jsonl"), fields=["question"])
    config = ContaminationConfig(tasks=[benchmark], **settings)
    return contamination_stage.run(config, Inputs({"index": Artifact(indexed, {})}, {}), StageRun(tmp_path / "run", seed=0))


def test_planted_examples_are_found_and_their_gain_chooses_the_threshold(tmp_path, indexed):
    rows = [
        {"task": "sheep", "model": model, "id": str(i), "score": float(i < 10 or (i + shift) % 3 == 0)}
        for shift, model in enumerate(("1m", "3m"))
        for i in range(40)
    ]
    (tmp_path / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = contaminated_run(tmp_path, indexed, scores=str(tmp_path / "scores.jsonl"))["tasks"]["sheep"]
    examples = pq.read_table(tmp_path / "run" / "examples.parquet").to_pylist()
    assert [e["share"] for e in examples[:10]] == [1.0] * 10
    assert all(0 < e["share"] < 1 for e in examples[10:])  # "of them on the market how many sheep are left" is everywhere
    assert found["contaminated"]["1"] == 0.25
    assert found["contaminated_at_threshold"] == 0.25
    assert found["threshold"] == min(t for t in (0.1 * i for i in range(1, 11)) if t > max(e["share"] for e in examples[10:]))
    # Model 1m: all 10 planted ones and 10 of 30 others right.
    assert found["gains"]["1m"]["gain"] == pytest.approx(20 / 40 - 10 / 30)
    assert found["gains"]["1m"]["low"] > 0
    table = (tmp_path / "run" / "sweep.csv").read_text(encoding="utf-8").splitlines()
    assert table[0].startswith("task,threshold,model,examples,contaminated,score_all,score_clean,gain")
    assert len(table) == 1 + 10 * 2


def test_without_scores_there_are_shares_and_no_threshold(tmp_path, indexed):
    found = contaminated_run(tmp_path, indexed)["tasks"]["sheep"]
    assert found["threshold"] is None
    assert found["contaminated"]["1"] == 0.25


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"task": "sheep", "model": "m", "id": "0", "score": 1}], "has none for 39 examples"),
        ([{"task": "goats", "model": "m", "id": "0", "score": 1}], "'goats' is none of the tasks"),
        ([{"task": "sheep", "model": "m", "id": "0", "score": 7}], "no number in"),
        ([{"task": "sheep", "model": "m", "id": "0", "scor": 1}], "Did you mean 'scor'"),
        ([{"task": "sheep", "model": "m", "id": str(i), "score": 1} for i in range(41)], "'40' .* is no example"),
        ([{"task": "sheep", "model": "m", "id": "0", "score": 1}] * 2, "a second score"),
    ],
)
def test_scores_that_do_not_fit_are_refused(tmp_path, indexed, rows, message):
    (tmp_path / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        contaminated_run(tmp_path, indexed, scores=str(tmp_path / "scores.jsonl"))


def test_benchmarks_of_three_formats(tmp_path):
    (tmp_path / "a.csv").write_text('q,a\n"one, two",three\n', encoding="utf-8")
    assert read_examples(BenchmarkConfig("x", str(tmp_path / "a.csv"))) == (["0"], ["one, two\nthree"])
    assert read_examples(BenchmarkConfig("x", str(tmp_path / "a.csv"), header=False, fields=["1"]))[1] == ["a", "three"]
    pq.write_table(pa.table({"task": [7], "choices": [["x y", "z"]]}), tmp_path / "a.parquet")
    assert read_examples(BenchmarkConfig("x", str(tmp_path / "a.parquet"), id_field="task")) == (["7"], ["x y\nz"])
    (tmp_path / "a.jsonl").write_text('{"q": {"text": "deep"}, "n": 1}\n', encoding="utf-8")
    assert read_examples(BenchmarkConfig("x", str(tmp_path / "a.jsonl")))[1] == ["deep"]


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        (b'{"q": "x"}\nnonsense\n', {}, r":2: not a JSON object"),
        (b"", {}, "empty"),
        (b'{"q": "x"}\n', {"fields": ["quest"]}, "no field 'quest'"),
        (b'{"q": "x"}\n{"q": "x"}\n', {"id_field": "q"}, "occurs twice"),
    ],
)
def test_bad_benchmarks_end_with_one_line(tmp_path, content, settings, message):
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_examples(BenchmarkConfig("x", str(tmp_path / "x.jsonl"), **settings))


def test_configurations_compose_and_bad_values_are_refused(tmp_path):
    from omegaconf import OmegaConf

    def loaded(schema, command, *overrides):
        tree = OmegaConf.to_container(compose(command, list(overrides)), resolve=True)
        return load(schema, {k: v for k, v in tree.items() if k not in ("run", "inputs")})

    assert loaded(NgramIndexConfig, "ngram-index") == NgramIndexConfig()
    config = loaded(ContaminationConfig, "contamination", "tasks=[{name: x, path: y, fields: [q]}]")
    assert config.tasks == [BenchmarkConfig("x", "y", fields=["q"])]
    assert config.thresholds == pytest.approx(ContaminationConfig(tasks=config.tasks).thresholds)
    with pytest.raises(UserError, match="power of two"):
        NgramIndexConfig(buckets=3)
    with pytest.raises(UserError, match="name at least one"):
        contamination_stage.run(ContaminationConfig(), Inputs({}, {}), StageRun(tmp_path / "run", 0))
    for change in ({"thresholds": [0.0]}, {"confidence": 1.0}, {"min_examples": 1}):
        with pytest.raises(UserError):
            replace(config, **change)


def test_real_benchmark_items_planted_in_a_corpus_are_found(tmp_path):
    root = Path(os.environ.get("HERD_REFERENCE_DATA", Path(__file__).parents[3] / "shared" / "data")) / "benchmarks"
    if not (root / "gsm8k" / "test.jsonl").is_file():
        pytest.skip(f"no reference data at {root} (HERD_REFERENCE_DATA)")
    benchmark = BenchmarkConfig("gsm8k", str(root / "gsm8k" / "test.jsonl"), fields=["question", "answer"])
    ids, texts = read_examples(benchmark)
    index = index_of(tmp_path, [f"Somebody wrote: {text} And so on." for text in texts[:100]])
    words, hits = np.array(list(index.coverage(texts, "en"))).T
    assert (hits[:100] == words[:100]).all()
    assert is_contaminated(hits / words, 0.5)[100:].mean() < 0.01
    assert len(ids) == 1319


def test_spreadsheets_files_and_blank_lines_are_read(tmp_path):
    (tmp_path / "a.csv").write_text("\ufeffq,id\none two,7\n\nthree,8\n", encoding="utf-8")
    assert read_examples(BenchmarkConfig("x", str(tmp_path / "a.csv"), fields=["q"], id_field="id")) == (
        ["7", "8"],
        ["one two", "three"],
    )
    (tmp_path / "a.jsonl").write_text('{"q": "x"}\n\n  \n{"q": "y"}\n\n{"r": "z"}\n', encoding="utf-8")
    assert read_examples(BenchmarkConfig("x", str(tmp_path / "a.jsonl")))[1] == ["x", "y", "z"]
    with pytest.raises(UserError, match=r"a\.jsonl:6: no field 'q'"):
        read_examples(BenchmarkConfig("x", str(tmp_path / "a.jsonl"), fields=["q"]))


def test_half_a_surrogate_pair_is_no_id(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": "\\ud800", "q": "hello"}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.jsonl:1: id '\\ud800' holds half a surrogate pair"):
        read_examples(BenchmarkConfig("x", str(tmp_path / "a.jsonl"), fields=["q"], id_field="id"))
    (tmp_path / "s.jsonl").write_text('{"task": "x", "model": "\\ud800", "id": "1", "score": 1}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"model .* holds half"):
        read_scores(str(tmp_path / "s.jsonl"))


def test_a_text_without_spaces_needs_runs_of_24_characters(tmp_path):
    """An 8-gram there is 24 characters: eight that the corpus holds too are nothing."""
    corpus = "".join(chr(0x4E00 + i) for i in range(200))
    folder = write_documents(tmp_path / "corpus", [corpus], 1)
    file = next((folder / "documents").glob("*.parquet"))
    pq.write_table(pa.table({"text": [corpus], "language": ["zh"]}), file)
    with ProcessExecutor(1) as executor:
        build_index([file], tmp_path / "index", tmp_path / "scratch", 8, 4, executor)
    index = NgramIndex(tmp_path / "index")
    assert index.grams == 200 - 24 + 1
    assert list(index.coverage([corpus[10:33], corpus[10:34], corpus[10:34] + "".join(reversed(corpus))], "zh")) == [
        (23, 0),
        (24, 24),
        (224, 24),
    ]
