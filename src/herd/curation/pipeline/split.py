"""Phase `split`: which documents are held out, and no run of words of theirs in train.

The choice needs columns of all documents in one process: 28 bytes each and twice that while it sorts. Overlaps are found in
rounds: the runs of words of the held-out documents (16 bytes a held-out word in one process) are looked up in each partition's
train text, lines that hold a shared one are cut, and what was cut is looked at again, since removing a line joins its
neighbours.
"""

import heapq
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from herd.curation.documents import DOMAINS
from herd.curation.executors import Executor
from herd.curation.pipeline.decide import final_choice
from herd.curation.pipeline.measure import measured_file
from herd.curation.pipeline.tasks import Result, Work, run_phase
from herd.curation.split import Facts, choose_heldout, cut_lines
from herd.curation.text import ngram_hashes, run_length, runs_present, word_hashes, words
from herd.runs.tables import Replacing, TableWriter, iterate_rows, open_table

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH = 256  # documents in memory
_GROUP = 8_192  # documents of a row group


def hold_out(work: Work) -> Result:
    """Write, for each partition, which of its documents are held out: one byte each, in the order of ids."""
    parts: list[dict[str, np.ndarray]] = []
    languages: set[str] = set()
    for partition in range(work.config.partitions):
        columns: dict[str, list[np.ndarray]] = {name: [] for name in ("characters", "group", "order", "domain", "language")}
        for batch in open_table(final_choice(work, partition)).iter_batches(columns=list(columns)):
            for name in columns:
                column = batch.column(name)
                columns[name].append(np.array(column.to_pylist(), str) if name == "language" else column.to_numpy())
        kinds: dict[str, Any] = {"language": "U1", "domain": np.int8, "characters": np.int64}
        parts.append({n: np.concatenate(v) if v else np.empty(0, kinds.get(n, np.uint64)) for n, v in columns.items()})
        languages.update(parts[-1]["language"].tolist())
    names = sorted(languages)
    strata = [(domain, language) for domain in DOMAINS for language in names]
    stratum = [p["domain"].astype(np.int32) * len(names) + np.searchsorted(names, p["language"]) for p in parts]
    sizes = [len(part["group"]) for part in parts]
    characters, group, order = (np.concatenate([p[n] for p in parts]) for n in ("characters", "group", "order"))
    facts = Facts(np.concatenate(stratum), characters, group, order, strata)
    chosen = choose_heldout(facts, _links(work), work.config.split)
    ends = np.cumsum(sizes)
    for partition, (size, end) in enumerate(zip(sizes, ends, strict=True)):
        with Replacing(work.part("split", partition, ".heldout")) as out:
            out.write(chosen[end - size : end].astype(np.uint8).tobytes())
    return {"heldout": int(chosen.sum()), "train": int(len(chosen) - chosen.sum())}


def _links(work: Work) -> np.ndarray:
    """(pairs, 2) numbers of linked documents, those of which both stayed."""
    table = open_table(work.measured / "measured" / "links.parquet").read()
    wanted = {name for column in ("a", "b") for name in table[column].to_pylist()}
    numbers: dict[str, int] = {}
    at = 0
    for partition in range(work.config.partitions):
        for batch in open_table(final_choice(work, partition)).iter_batches(columns=["id"]):
            for i, name in enumerate(batch.column("id").to_pylist(), start=at):
                if name in wanted:
                    numbers[name] = i
            at += batch.num_rows
    rows = zip(table["a"].to_pylist(), table["b"].to_pylist(), strict=True)
    found = [(numbers[a], numbers[b]) for a, b in rows if a in numbers and b in numbers]
    return np.array(found, np.int64).reshape(-1, 2)


def chosen_documents(work: Work, partition: int) -> Iterator[list[dict[str, Any]]]:
    """Documents that stay, with ``heldout``, ``quality`` and their text, some hundred at a time."""
    held = np.fromfile(work.part("split", partition, ".heldout"), np.uint8)
    wanted = (
        row
        for batch in open_table(final_choice(work, partition)).iter_batches(
            _BATCH, columns=["id", "domain", "category", "quality"]
        )
        for row in batch.to_pylist()
    )
    number, following = 0, next(wanted, None)
    for batch in open_table(measured_file(work, "documents", partition)).iter_batches(_BATCH):
        found = []
        for row in batch.to_pylist():
            if following is not None and row["id"] == following["id"]:
                found.append(row | following | {"domain": DOMAINS[following["domain"]], "heldout": bool(held[number])})
                number, following = number + 1, next(wanted, None)
        yield found
    assert following is None, "a chosen document was never measured"


def separate(work: Work, partition: int) -> Result:
    """Word hashes of the partition's train documents, a 0 before and after each; its held-out documents apart."""
    end = np.zeros(1, np.uint64).tobytes()
    with (
        Replacing(work.part("split", partition, ".words")) as out,
        TableWriter(_cut_file(work, -1, partition), heldout_schema(), _GROUP) as table,
    ):
        out.write(end)
        for rows in chosen_documents(work, partition):
            held = []
            for row in rows:
                if row["heldout"]:
                    held.append({name: row[name] for name in ("id", "language", "media", "text")} | {"lines": 0, "share": 0.0})
                else:
                    out.write(word_hashes(words(row["text"], row["language"])).tobytes() + end)
            table.write_rows(held)
    return {}


def heldout_schema() -> "pa.Schema":
    """Columns of held-out documents while they are cut: lines removed in this round, share of words in shared runs."""
    import pyarrow as pa

    texts = [(name, pa.string()) for name in ("id", "language", "media", "text")]
    return pa.schema([*texts, ("lines", pa.int64()), ("share", pa.float64())])


def _cut_file(work: Work, round_: int, partition: int) -> Any:
    return work.part(f"cut-{round_ + 1}", partition, ".parquet")


def train_words(work: Work, partition: int) -> np.ndarray:
    """Word hashes of the partition's train documents, on disk."""
    return np.memmap(work.part("split", partition, ".words"), np.uint64, "r")


def cut_overlaps(executor: Executor, work: Work) -> int:
    """Rounds of looking up and cutting until nothing is shared; returns their number."""
    partitions = range(work.config.partitions)
    round_ = 0
    while True:
        phase = f"runs-{round_}"
        listed = run_phase(executor, work, phase, own_runs, [(p, round_) for p in partitions], "listing held-out passages")
        lengths = sorted({n for result in listed for n in result["lengths"]})
        paths = [work.part(f"runs-{round_}", p, ".u64") for p in partitions]
        wanted = np.unique(np.concatenate([np.fromfile(path, np.uint64) for path in paths]))
        if not len(wanted):
            return round_
        with Replacing(work.file(f"runs-{round_}", "wanted.u64")) as out:
            out.write(wanted.tobytes())
        run_phase(
            executor, work, f"shared-{round_}", look_up, [(p, round_, lengths) for p in partitions], "looking for them in train"
        )
        shared = np.zeros(len(wanted), bool)
        for p in partitions:
            shared |= np.fromfile(work.part(f"shared-{round_}", p, ".mask"), bool)
        with Replacing(work.file(f"shared-{round_}", "shared.u64")) as out:
            out.write(wanted[shared].tobytes())
        cut = run_phase(executor, work, f"cut-{round_ + 1}", cut_partition, [(p, round_) for p in partitions], "cutting them out")
        round_ += 1
        if not sum(result["changed"] for result in cut):
            return round_


def own_runs(work: Work, partition: int, round_: int) -> Result:
    """Hashes of the runs of words in held-out documents that are still open: sorted, unique; returns how long runs are."""
    n, lengths = work.config.split.overlap_words, set()
    found = [np.empty(0, np.uint64)]
    for batch in open_table(_cut_file(work, round_ - 1, partition)).iter_batches(_BATCH, columns=["language", "text"]):
        for row in batch.to_pylist():
            length = run_length(n, row["language"])
            lengths.add(length)
            found.append(ngram_hashes(word_hashes(words(row["text"], row["language"])), length))
    with Replacing(work.part(f"runs-{round_}", partition, ".u64")) as out:
        out.write(np.unique(np.concatenate(found)).tobytes())
    return {"lengths": sorted(lengths)}


def look_up(work: Work, partition: int, round_: int, lengths: list[int]) -> Result:
    """Which of the wanted runs, which have these lengths, stand in the partition's train documents: one byte each."""
    wanted = np.memmap(work.file(f"runs-{round_}", "wanted.u64"), np.uint64, "r")
    present = np.zeros(len(wanted), bool)
    for length in lengths:
        present |= runs_present(train_words(work, partition), length, wanted)
    with Replacing(work.part(f"shared-{round_}", partition, ".mask")) as out:
        out.write(present.tobytes())
    return {}


def cut_partition(work: Work, partition: int, round_: int) -> Result:
    """Cut shared runs out of open held-out documents; those that changed are open again."""
    path = work.file(f"shared-{round_}", "shared.u64")
    shared = np.memmap(path, np.uint64, "r") if path.stat().st_size else np.empty(0, np.uint64)
    changed = 0
    with TableWriter(_cut_file(work, round_, partition), heldout_schema(), _GROUP) as table:
        for batch in open_table(_cut_file(work, round_ - 1, partition)).iter_batches(_BATCH):
            rows = []
            for row in batch.to_pylist():
                n = run_length(work.config.split.overlap_words, row["language"])
                own = ngram_hashes(word_hashes(words(row["text"], row["language"])), n)
                starts = np.flatnonzero(_member(own, shared))
                if len(starts):
                    text, lines, share = cut_lines(row["text"], row["language"], row["media"], starts, n)
                    rows.append(row | {"text": text, "lines": lines, "share": share})
            changed += sum(bool(row["text"]) for row in rows)
            table.write_rows(rows)
    return {"changed": changed}


def _member(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Which of ``values`` are in ``known``, which is sorted and may lie on disk."""
    if not len(known):
        return np.zeros(len(values), bool)
    at = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return np.asarray(known[at] == values)


def cuts(work: Work, partition: int) -> Iterator[dict[str, Any]]:
    """Held-out documents that were cut, by id: text that is left, lines removed in all rounds, share of words shared at first."""

    def rows(round_: int) -> Iterator[tuple[str, int, dict[str, Any]]]:
        for row in iterate_rows(_cut_file(work, round_, partition)):
            yield row["id"], round_, row

    rounds = itertools.takewhile(lambda r: _cut_file(work, r, partition).exists(), itertools.count())
    merged = heapq.merge(*(rows(r) for r in list(rounds)), key=lambda item: item[:2])
    for name, found in itertools.groupby(merged, key=lambda item: item[0]):
        versions = [row for _, _, row in found]
        lines = sum(row["lines"] for row in versions)
        yield {"id": name, "text": versions[-1]["text"], "lines": lines, "share": versions[0]["share"]}
