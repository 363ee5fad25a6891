"""Phase `lines`: how often each line occurs in its bucket of documents, and which lines go (paper, section 3.1.1).

Lines are counted as 64-bit hashes of (language, bucket, normal form): first by partition, in sorted runs of bounded size, then
the runs are merged by range of the hash. A line that occurs more than k times in a bucket is removed there everywhere, the
first copy included.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from herd.curation.lines import LineHashes
from herd.curation.pipeline.tasks import Result, Work
from herd.runs.tables import Replacing, open_table

_RUN = 2_000_000  # line occurrences that are sorted at once
_MERGED = 4_000_000  # entries of runs that are merged at once
REPORTED = 10_000  # removed lines that removed_lines.parquet shows, those with most copies


_RECORD = np.dtype([("line", np.uint64), ("count", np.uint32)])


def count(work: Work, partition: int) -> Result:
    """Write the partition's lines as runs of (hash, count), each sorted by hash."""
    hashes = LineHashes()
    runs: list[int] = []
    waiting: list[int] = []
    with Replacing(work.part("lines", partition, ".runs")) as out:

        def flush() -> None:
            lines, counts = np.unique(np.array(waiting, np.uint64), return_counts=True)
            run = np.empty(len(lines), _RECORD)
            run["line"], run["count"] = lines, counts
            out.write(run.tobytes())
            runs.append(len(run))
            waiting.clear()

        for batch in open_table(work.part("gather", partition, ".parquet")).iter_batches(
            256, columns=["language", "bucket", "text"]
        ):
            for row in batch.to_pylist():
                if row["bucket"] >= 0:
                    waiting += [h for h in hashes.of(row["text"].split("\n"), row["language"], row["bucket"]) if h]
            if len(waiting) >= _RUN:
                flush()
        if waiting:
            flush()
    return {"runs": runs}


def merge(work: Work, part: int, partitions: int) -> Result:
    """Sum the counts of one range of hashes over all runs; write the lines that go as (hash, count), sorted by hash."""
    runs = [run for partition in range(partitions) for run in _runs(work, partition)]
    copies = work.config.dedup.line_copies
    low, high = (part << 64) // partitions, ((part + 1) << 64) // partitions
    pieces = max(1, -(-sum(len(run) for run in runs) // (_MERGED * partitions)))
    found, removed = 0, 0
    with Replacing(work.part("frequent", part, ".lines")) as out:
        for piece in range(pieces):
            first, last = low + (high - low) * piece // pieces, low + (high - low) * (piece + 1) // pieces
            chosen = [_between(run, first, last) for run in runs]
            lines = np.concatenate([run["line"] for run in chosen]) if chosen else np.empty(0, np.uint64)
            counts = np.concatenate([run["count"] for run in chosen]).astype(np.int64) if chosen else np.empty(0, np.int64)
            by = np.argsort(lines, kind="stable")
            lines, counts = lines[by], counts[by]
            start = np.flatnonzero(np.concatenate([[True], lines[1:] != lines[:-1]])) if len(lines) else np.empty(0, int)
            total = np.add.reduceat(counts, start) if len(start) else np.empty(0, np.int64)
            many = total > copies
            record = np.empty(int(many.sum()), _RECORD)
            record["line"], record["count"] = lines[start][many], np.minimum(total[many], 2**32 - 1)
            out.write(record.tobytes())
            found, removed = found + len(record), removed + int(total[many].sum())
    return {"lines": found, "copies": removed}


def _runs(work: Work, partition: int) -> Iterator[np.ndarray]:
    """The runs of one partition, on disk."""
    path, start = work.part("lines", partition, ".runs"), 0
    for size in work.result("lines", partition)["runs"]:
        yield np.memmap(path, _RECORD, "r", offset=start * _RECORD.itemsize, shape=(size,))
        start += size


def _between(run: np.ndarray, low: int, high: int) -> np.ndarray:
    """Entries with ``low <= hash < high``."""
    start = np.searchsorted(run["line"], np.uint64(low))
    stop = len(run) if high >= 2**64 else np.searchsorted(run["line"], np.uint64(high))
    return np.asarray(run[start:stop])


class FrequentLines:
    """The lines that go, on disk, and which of them the report shows."""

    def __init__(self, work: Work) -> None:
        paths = (
            [work.part("frequent", part, ".lines") for part in range(work.config.partitions)] if work.config.dedup.lines else []
        )
        self._parts = [np.memmap(path, _RECORD, "r") for path in paths if path.stat().st_size]
        self._firsts = np.array([part["line"][0] for part in self._parts], np.uint64)

    def copies(self, hashes: list[int]) -> dict[int, int]:
        """Line -> copies, for those of ``hashes`` that go."""
        if not self._parts or not hashes:
            return {}
        found: dict[int, int] = {}
        wanted = np.unique(np.array(hashes, np.uint64))
        where = np.searchsorted(self._firsts, wanted, side="right") - 1
        for number in np.unique(where[where >= 0]).tolist():
            part, mine = self._parts[number], wanted[where == number]
            at = np.minimum(np.searchsorted(part["line"], mine), len(part) - 1)
            rows = part[at]
            found |= {int(r["line"]): int(r["count"]) for r in rows[rows["line"] == mine]}
        return found

    def most_copies(self, number: int) -> dict[int, int]:
        """The ``number`` lines with most copies (ties by hash): line -> copies, the most frequent first."""
        best: np.ndarray[Any, Any] = np.empty(0, _RECORD)
        for part in self._parts:
            best = np.concatenate([best, np.asarray(part)])
            best = best[np.lexsort((best["line"], -best["count"].astype(np.int64)))][:number]
        return {int(row["line"]): int(row["count"]) for row in best}
