"""All n-grams of words of a corpus as sorted 64-bit hashes on disk, to ask which runs of words a text shares with it.

``index/grams-00003-of-00016.npy``  (n-grams,) uint64, sorted, each once; a file holds the hashes with its leading bits
``index/index.json``                n, the number of documents, words and distinct n-grams; written last: it marks a whole index

Words are those of :func:`herd.curation.text.words` (lower case, no punctuation; 3 n characters stand for n of them in unspaced
scripts), and no n-gram crosses from one document to the next. The index takes 8 bytes for each distinct n-gram, so at most 8
bytes a word of the corpus; building it takes memory for one document file (about 24 bytes a word) or one file of the index,
asking maps the files and reads the pages that are needed. That a run of words which is not in the corpus is found by chance has
probability n-grams / 2^64.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from herd.config.errors import UserError
from herd.curation.executors import Executor
from herd.curation.text import ngram_hashes, run_length, word_hashes, words
from herd.runs.atomic import write_json
from herd.runs.progress import progress
from herd.runs.tables import Replacing, iterate_rows

INDEX = "index.json"
_NPY_HEADER = 128  # bytes
_BATCH = 1 << 21  # n-grams that are looked up, or made distinct, at once


def build_index(files: Sequence[Path], folder: Path, scratch: Path, n: int, buckets: int, executor: Executor) -> dict[str, Any]:
    """Index the columns ``text`` and ``language`` of document files; what an interrupted attempt finished is used again.

    The result depends on the documents alone, not on how they lie in files.

    Args:
        files: Parquet files.
        folder: ``index``, made here.
        scratch: intermediate files, 8 bytes a word.
        n: words of an n-gram.
        buckets: files of the index, a power of two; memory of a task falls with it.
        executor: where the tasks run.

    Returns:
        What index.json holds.
    """
    assert buckets & (buckets - 1) == 0, "buckets must be a power of two"
    scratch.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    parts = [scratch / f"{number:05d}.npy" for number in range(len(files))]
    counts = []
    with progress("hashing documents", len(files), "files") as bar:
        for count in executor.map(_hash_file, [(file, part, n) for file, part in zip(files, parts, strict=True)]):
            counts.append(count)
            bar.advance(1)
    tasks = [(parts, _bucket_path(folder, bucket, buckets), bucket, buckets) for bucket in range(buckets)]
    with progress("merging hashes", buckets, "files") as bar:
        grams = 0
        for distinct in executor.map(_merge_bucket, tasks):
            grams += distinct
            bar.advance(1)
    documents, total = (sum(count[i] for count in counts) for i in range(2))
    index = {"n": n, "buckets": buckets, "documents": documents, "words": total, "grams": grams}
    write_json(folder / INDEX, index)
    return index


def _bucket_path(folder: Path, bucket: int, buckets: int) -> Path:
    return folder / f"grams-{bucket:05d}-of-{buckets:05d}.npy"


def _hash_file(task: tuple[Path, Path, int]) -> tuple[int, int]:
    """Write the distinct n-grams of one file; returns its documents and words."""
    file, part, n = task
    marker = part.with_suffix(".json")
    if not marker.exists():
        distinct: list[np.ndarray] = []
        waiting: list[np.ndarray] = []
        documents = total = size = 0
        for row in iterate_rows(file, ["text", "language"]):
            hashes = word_hashes(words(row["text"], row["language"]))
            documents, total = documents + 1, total + len(hashes)
            waiting.append(ngram_hashes(hashes, run_length(n, row["language"])))
            size += len(waiting[-1])
            if size >= _BATCH:
                distinct.append(_distinct(waiting))
                waiting, size = [], 0
        with Replacing(part) as out:
            np.save(out, _distinct([*distinct, *waiting]))
        write_json(marker, [documents, total])
    documents, total = json.loads(marker.read_text(encoding="utf-8"))
    return documents, total


def _merge_bucket(task: tuple[list[Path], Path, int, int]) -> int:
    """Write one file of the index from the slices of all parts that belong to it; returns its number of n-grams."""
    parts, path, bucket, buckets = task
    width = 2**64 // buckets
    slices = []
    for part in parts:
        hashes = _mapped(part)
        first = int(np.searchsorted(hashes, np.uint64(bucket * width)))
        last = int(np.searchsorted(hashes, np.uint64((bucket + 1) * width))) if bucket + 1 < buckets else len(hashes)
        slices.append(np.asarray(hashes[first:last]))
    merged = _distinct(slices)
    with Replacing(path) as out:
        np.save(out, merged)
    return len(merged)


def _distinct(parts: Sequence[np.ndarray]) -> np.ndarray:
    """All hashes of the parts, sorted, each once; numpy's `unique` goes through a hash table, tens of times slower."""
    hashes = np.concatenate([np.empty(0, np.uint64), *parts])
    hashes.sort()
    return hashes[np.concatenate([[True], hashes[1:] != hashes[:-1]])] if len(hashes) else hashes


def _mapped(path: Path) -> np.ndarray:
    """An array of hashes, memory-mapped unless it is empty, which cannot be."""
    array: np.ndarray = np.load(path, allow_pickle=False, mmap_mode="r" if path.stat().st_size > _NPY_HEADER else None)
    return array


class NgramIndex:
    """A finished index.

    Args:
        folder: the folder that holds ``index.json``.

    Raises:
        UserError: no index there, or one of its files is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        try:
            index = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))
            self.n, self.grams, self._buckets = int(index["n"]), int(index["grams"]), int(index["buckets"])
            paths = [_bucket_path(self.folder, bucket, self._buckets) for bucket in range(self._buckets)]
            self._files = [_mapped(path) for path in paths]
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise UserError(f"No whole n-gram index at '{self.folder}' ({error}): run `herd ngram-index`.") from error
        held = sum(len(file) for file in self._files)
        if held != self.grams:
            raise UserError(f"'{self.folder}' holds {held:,} n-grams instead of {self.grams:,}: run `herd ngram-index` again.")

    def contains(self, hashes: np.ndarray) -> np.ndarray:
        """Which hashes (any shape of (k,) uint64) are in the corpus, (k,) bool."""
        order = np.argsort(hashes)  # neighbours lie on one page
        ordered = hashes[order]
        found = np.zeros(len(hashes), bool)
        width = 2**64 // self._buckets
        first = 0
        for bucket, file in enumerate(self._files):
            last = len(ordered) if bucket + 1 == self._buckets else int(np.searchsorted(ordered, np.uint64((bucket + 1) * width)))
            if last > first and len(file):
                wanted = ordered[first:last]
                at = np.minimum(np.searchsorted(file, wanted), len(file) - 1)
                found[order[first:last]] = file[at] == wanted
            first = last
        return found

    def coverage(self, texts: Iterable[str], language: str) -> Iterator[tuple[int, int]]:
        """For each text its number of words, and how many of them lie in an n-gram that occurs in the corpus."""
        n = run_length(self.n, language)
        batch: list[np.ndarray] = []
        size = 0
        for text in texts:
            batch.append(word_hashes(words(text, language)))
            size += len(batch[-1])
            if size >= _BATCH:
                yield from self._covered(batch, n)
                batch, size = [], 0
        yield from self._covered(batch, n)

    def _covered(self, batch: list[np.ndarray], n: int) -> Iterator[tuple[int, int]]:
        grams = [ngram_hashes(hashes, n) for hashes in batch]
        found = self.contains(np.concatenate([np.empty(0, np.uint64), *grams]))
        at = 0
        for hashes, own in zip(batch, grams, strict=True):
            yield len(hashes), int(covered(found[at : at + len(own)], n, len(hashes)).sum())
            at += len(own)


def covered(found: np.ndarray, n: int, count: int) -> np.ndarray:
    """Which of ``count`` words lie in a run of ``n`` that was found: (runs,) bool -> (count,) bool."""
    change = np.zeros(count + 1, np.int64)
    starts = np.flatnonzero(found)
    np.add.at(change, starts, 1)
    np.add.at(change, starts + n, -1)
    return np.cumsum(change[:count]) > 0
