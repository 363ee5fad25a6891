"""What the division of work must not change: workers, order of shards, kills, full disks; and memory."""

import errno
import gzip
import json
import multiprocessing
import os
import shutil
import signal
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from herd.config.errors import UserError
from herd.curation import ledger as rows_of_ledger
from herd.curation import lines as line_keys
from herd.curation.lines import ranges
from herd.curation.pipeline import decide, extract, gather, index, lines, measure, split, tasks, words, write
from herd.curation.sources import Context, list_shards, streams
from herd.curation.stage import STAGE
from herd.runs.manifest import hash_outputs
from herd.runs.seeds import stream
from herd.runs.stage import Inputs, StageRun
from herd.runs.tables import shard_files

PHASES = ["extract", "index", "gather", "fit", "lines", "words", "frequent", "measure", "rules", "choose", "split", "separate"]
PHASES += ["runs-0", "shared-0", "cut-1", "write", "entries"]


def sentence(rng) -> str:
    pairs = ["".join(rng.choice(list(part)) for part in ("bdfgklmnprst", "aeiou", "bdfgklmnprst", "aeiou")) for _ in range(9)]
    return "The " + " ".join(pairs) + " of that.\n"


def make_rows(count: int = 90) -> list[dict]:
    """Documents with repeated lines, copies, a shared passage and equal records."""
    rng = stream(0, "pipeline-test")
    passage = "".join(sentence(rng) for _ in range(4))
    rows = []
    for i in range(count):
        body = "".join(sentence(rng) for _ in range(8)) + "Sign in to read more\n" * (i % 3 == 0) + passage * (i % 20 == 1)
        rows.append({"text": body, "url": f"https://s.org/{i}", "date": f"20{i % 20:02d}", "domain": ("general", "maths")[i % 2]})
    copies = [rows[i] | {"url": f"https://mirror.org/{i}", "date": "1999"} for i in range(0, 12, 3)]
    return [*rows, *copies, rows[5], rows[5], rows[7] | {"text": "", "url": "u"}, rows[9] | {"text": "tiny"}]


def write_files(folder: Path, rows: list[dict], files: int) -> Path:
    folder.mkdir(parents=True)
    for i in range(files):
        text = "".join(json.dumps(row) + "\n" for row in rows[i::files])
        (folder / f"part-{i}.jsonl").write_text(text, encoding="utf-8")
    return folder


def overrides(source: Path, *more: str) -> list[str]:
    fixed = ["source=jsonl", f"source.path={source}", "source.domain_column=domain", "language.enabled=false", "partitions=3"]
    fixed += ["classifier.max_chunks=60", "classifier.features=1024", "kl.min_words=500", "kl.buckets=1024"]
    return [*fixed, "classifier.drop_share=0.1", "split.share={general: 0.2, maths: 0.2, code: 0.1, multilingual: 0.1}", *more]


def hashes(folder: Path) -> dict:
    return {name: digest for name, digest in hash_outputs(folder).items() if ".scratch" not in name and name != "metrics.jsonl"}


def run(config, folder: Path) -> dict:
    return STAGE.run(config, Inputs({}, {}), StageRun(folder, seed=config.seed))


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_files(tmp_path_factory.mktemp("source") / "data", make_rows(), 4)


@pytest.fixture(scope="module")
def made(source, configure, tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("made")
    return folder, run(configure(*overrides(source, "workers=1")), folder)


def test_same_bytes_for_any_number_of_workers(source, made, configure, tmp_path):
    """Four, as many as the files and more than the partitions, and one."""
    assert run(configure(*overrides(source, "workers=4")), tmp_path) == made[1]
    assert hashes(tmp_path) == hashes(made[0])


def test_same_bytes_for_any_order_of_shards(source, made, configure, tmp_path, monkeypatch):
    from herd.curation import stage

    real = stage.list_shards
    monkeypatch.setattr(stage, "list_shards", lambda *given: real(*given)[::-1])
    assert run(configure(*overrides(source, "workers=1")), tmp_path) == made[1]
    assert hashes(tmp_path) == hashes(made[0])


def test_same_documents_however_the_input_is_cut_into_files(made, configure, tmp_path):
    """All but the columns that say where a record was read."""
    rows = stream(1, "shuffle").permutation(make_rows()).tolist()
    other = write_files(tmp_path / "data", rows, 3)
    run(configure(*overrides(other, "workers=1", "source.shard_bytes=4000")), tmp_path / "out")
    for name in ("documents/train", "documents/heldout", "ledger/ledger", "scores/scores"):
        tables = []
        for folder in (made[0], tmp_path / "out"):
            files = shard_files((folder / name).parent, Path(name).name)
            tables.append([r for f in files for r in pq.read_table(f).to_pylist()])
            for row in tables[-1]:
                row.pop("file", None), row.pop("position", None)
        assert tables[0] == tables[1], name
    assert pq.read_table(tmp_path / "out/removed_lines.parquet").equals(pq.read_table(made[0] / "removed_lines.parquet"))


def test_number_of_partitions_changes_no_decision(source, made, configure, tmp_path):
    run(configure(*overrides(source, "workers=1", "partitions=1", "classifier.enabled=false")), tmp_path / "one")
    run(configure(*overrides(source, "workers=1", "partitions=5", "classifier.enabled=false")), tmp_path / "five")
    for name in ("documents/train", "documents/heldout", "ledger/ledger", "scores/scores"):
        tables = []
        for folder in (tmp_path / "one", tmp_path / "five"):
            files = shard_files((folder / name).parent, Path(name).name)
            tables.append([r for f in files for r in pq.read_table(f).to_pylist()])
        assert tables[0] == tables[1], name


WITHOUT_FILES = {"fit", "separate", "entries"}  # phases whose files lie elsewhere: killed when all is written but the result


def _run_and_die(config, folder: str, phase: str) -> None:
    """Child: kill this process in the first task of ``phase`` that is left, with a file half written where it writes one."""
    from herd.runs.tables import Replacing

    real, finish = tasks.write_json, Replacing.__exit__

    def without_result(path: Path, value: object) -> None:
        if path.parent.name == phase:
            os.kill(os.getpid(), signal.SIGKILL)
        real(path, value)

    def half_written(self, *given) -> None:
        if self.path.parent.name == phase:
            os.kill(os.getpid(), signal.SIGKILL)
        finish(self, *given)

    if phase in WITHOUT_FILES:
        tasks.write_json = without_result
    else:
        Replacing.__exit__ = half_written  # type: ignore[method-assign]
    run(config, Path(folder))


def test_a_stage_killed_in_every_phase_goes_on_to_the_same_bytes(source, made, configure, tmp_path):
    config = configure(*overrides(source, "workers=1"))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["herd.curation.stage", "herd.curation.classifiers.quality", "sklearn.linear_model", "pyarrow.parquet"]
    )
    for phase in PHASES:
        child = context.Process(target=_run_and_die, args=(config, str(tmp_path), phase))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL, phase
        done = {path.parent.name for path in (tmp_path / ".scratch").rglob("*.json")}
        assert set(PHASES[: PHASES.index(phase)]) - {"fit", "lines", "words"} <= done | {phase}
    assert run(config, tmp_path) == made[1]
    assert hashes(tmp_path) == hashes(made[0])


def test_a_full_disk_is_said_in_one_line_and_what_is_finished_stays(source, made, configure, tmp_path, monkeypatch):
    config = configure(*overrides(source, "workers=1"))
    real, calls = os.fsync, [0]

    def full(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] > 40:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr("herd.runs.tables.os.fsync", full)
    with pytest.raises(UserError, match=r"^The disk is full \(.*the same command goes on from here; what is finished stays\.$"):
        run(config, tmp_path)
    monkeypatch.undo()
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / ".scratch").rglob("*.json")}
    assert finished
    assert not list(tmp_path.rglob("*.tmp"))
    assert run(config, tmp_path) == made[1]
    assert {path: path.stat().st_mtime_ns for path in finished} == finished  # not done again
    assert hashes(tmp_path) == hashes(made[0])


def test_a_damaged_folder_loses_no_document_without_a_row(configure, tmp_path):
    """Broken gzip, an empty file, NUL bytes, wrong encodings, a page 100,000 elements deep, one too long, equal records."""
    folder = tmp_path / "pages"
    folder.mkdir()
    rng = stream(0, "pages")

    def page(count: int = 12) -> str:
        return f"<html><body><article><p>{'</p><p>'.join(sentence(rng) for _ in range(count))}</p></article></body></html>"

    for i in range(8):
        (folder / f"good-{i}.html").write_text(page(), encoding="utf-8")
    (folder / "broken.html.gz").write_bytes(gzip.compress(page().encode())[:-20])
    (folder / "empty.html").write_bytes(b"")
    (folder / "nul.html").write_bytes(page().replace(" ", "\0 ", 9).encode())
    (folder / "utf16.html").write_bytes(page().encode("utf-16-le")[1:])
    (folder / "latin.html").write_bytes(page().replace("The", "Thé").encode("latin-1"))
    (folder / "deep.html").write_text("<div>" * 100_000 + "deep" + "</div>" * 100_000, encoding="utf-8")
    (folder / "long.html").write_text("<p>" + "a" * 3_000_000, encoding="utf-8")
    (folder / "noise.html").write_bytes(stream(0, "noise").bytes(20_000))
    shutil.copy(folder / "good-0.html", folder / "same.html")
    loose = ["language.enabled=false", "rules.general.max_top_3gram=null", "classifier.enabled=false"]  # sentences are made up
    config = configure("source=html", f"source.path={folder}", "workers=1", "partitions=2", *loose)
    metrics = run(config, tmp_path / "out")
    rows = [r for f in shard_files(tmp_path / "out/ledger", "ledger") for r in pq.read_table(f).to_pylist()]
    problems = pq.read_table(tmp_path / "out/ledger/problems.parquet").to_pylist()
    final = [row for row in rows if row["action"] in ("kept", "dropped")]
    assert len(final) == len({row["id"] for row in final}) == metrics["documents_in"]
    assert metrics["documents_in"] + len({row["id"] for row in problems}) == 17
    assert {"broken.html.gz", "empty.html"} <= {row["id"] for row in problems}
    fate = {row["url"].rpartition("/")[2]: row["rule"] for row in final}
    assert fate["deep.html"] not in ("train", "heldout")
    assert fate["noise.html"] not in ("train", "heldout")
    assert sum(rule in ("train", "heldout") for rule in fate.values()) >= 8


def test_line_numbers_read_as_people_count():
    assert ranges([0, 1, 2, 5, 7, 8]) == "1-3, 6, 8-9"
    assert ranges([]) == ""


def test_line_rule_equals_a_plain_count_per_bucket(make_work, gathered, tmp_path):
    """Seven copies go, all of them; six stay; languages, buckets and lines without letters do not mix."""
    bodies = [("en", 0, ["Rare here", "Page {}", "--", "Own {}"])] * 6 + [("en", 0, ["Page {}", "--", "Own {}"])]
    bodies += [("en", 1, ["Page {}"])] * 3 + [("de", 0, ["Page {}"])] * 6 + [("en", -1, ["Page {}"])] * 9
    documents = []
    for i, (language, bucket, texts) in enumerate(bodies):
        body = "\n".join(t.format(i if "Page" in t else chr(97 + i) * 3) for t in texts) + "\n"
        documents.append({"id": f"{i:016x}", "url": "", "language": language, "bucket": bucket, "text": body})
    work = make_work(tmp_path, "source=jsonl", "source.path=none", "partitions=2", "kl.enabled=false")
    gathered(work, documents[::2], 0)
    gathered(work, documents[1::2], 1)
    for p in range(2):
        result = lines.count(work, p)
        work.part("lines", p, ".json").write_text(json.dumps(result), encoding="utf-8")
    merged = [lines.merge(work, p, 2) for p in range(2)]
    assert sum(m["lines"] for m in merged) == 1
    assert sum(m["copies"] for m in merged) == 7  # "page 0" of seven English documents of bucket 0; a mark alone is no line
    judge = measure._Judge(work)
    with measure.LedgerWriter(tmp_path / "rows.parquet") as ledger:
        kept = [row for row in documents if judge._repeated(row, ledger)]
    assert len(kept) == len(documents)
    assert kept[0]["text"] == "Rare here\n--\nOwn aaa\n"
    assert kept[6]["text"].startswith("--\nOwn")
    assert all("Page" in row["text"] for row in kept[7:])


def documents_of(count: int) -> list[dict]:
    rng = stream(0, "memory", count)
    vocabulary = [
        f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnprst"
    ]  # few: caches of words are bounded, but large
    picks = rng.integers(0, len(vocabulary), (count, 40))
    bodies = [[" ".join(vocabulary[w] for w in row[i : i + 10]) for i in range(0, 40, 10)] for row in picks]
    return [{"text": "\n".join(body) + "\nMenu\n", "url": f"https://s.org/{i}"} for i, body in enumerate(bodies)]


def test_memory_of_a_task_does_not_grow_with_the_number_of_documents(make_work, tmp_path, monkeypatch):
    """Peak of Python's and numpy's memory and of Arrow's, at 300 and at 1,200 documents; only the index may grow."""
    for module, name, value in (
        (extract, "_CHUNK_DOCUMENTS", 50), (gather, "_SLICE_DOCUMENTS", 50), (lines, "_RUN", 200), (lines, "_MERGED", 200),
        (measure, "_BATCH", 20), (decide, "_ROWS", 50), (split, "_BATCH", 20), (measure, "_GROUP", 200), (decide, "_GROUP", 200),
        (split, "_GROUP", 200), (write, "_GROUP", 200), (line_keys, "_SPELLINGS", 200), (rows_of_ledger, "_ROWS", 50),
        (streams, "_BLOCK", 1 << 14),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)

    def peaks(count: int) -> dict[str, int]:
        source = write_files(tmp_path / f"data{count}", documents_of(count), 1)
        rules = ["++rules.general={min_words: 1}", "rules.coverage.enabled=false", "kl.min_words=10", "kl.buckets=256"]
        work = make_work(tmp_path / f"out{count}", *overrides(source, *rules, "partitions=1", "classifier.enabled=false"))
        (work.scratch / "source").mkdir(parents=True)
        shard = list_shards(work.config.source, Context(0, 1, work.scratch / "source"))[0]
        found: dict[str, int] = {}

        def measured(phase: str, function, *arguments) -> None:
            pool = pa.proxy_memory_pool(pa.system_memory_pool())
            pa.set_memory_pool(pool)
            tracemalloc.start()
            tasks.perform(tasks.Task(function, work, arguments, work.part(phase, 0, ".json")))
            found[phase] = tracemalloc.get_traced_memory()[1] + pool.max_memory()
            tracemalloc.stop()
            pa.set_memory_pool(pa.system_memory_pool())

        measured("extract", extract.extract, 0, shard)
        measured("index", index.index, 1)
        measured("gather", gather.gather, 0, 1)
        measured("lines", lines.count, 0)
        measured("words", words.count_words, 0)
        measured("frequent", lines.merge, 0, 1)
        measured("measure", measure.measure_partition, 0)
        write.write_removed_lines(work)
        shutil.copy(work.file("index", "links.parquet"), work.measured / "measured" / "links.parquet")
        measured("rules", decide.apply_rules, 0)
        measured("choose", decide.choose, 0, None)
        tasks.perform(tasks.Task(split.hold_out, work, (), work.part("split", 0, ".json")))
        measured("separate", split.separate, 0)
        measured("write", write.write_partition, 0)
        return found

    peaks(100)  # imports and caches
    small, large = peaks(300), peaks(1200)
    assert (large.pop("index") - small["index"]) / 900 < 400  # bytes a document; 217 at 25,000 documents
    grown = {phase: (small[phase], large[phase]) for phase in large if large[phase] > 1.25 * small[phase] + 100_000}
    assert not grown
