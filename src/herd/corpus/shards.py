"""Token shards, read: one flat file of ids per split and domain, with where each document starts.

``tokens/<split>/<domain>/tokens.bin``   ids, little-endian uint16 (vocabulary < 65,536) or uint32, documents end to end
``                       /offsets.npy``  (documents + 1,) int64, document ``i`` is ``tokens[offsets[i]:offsets[i + 1]]``
``                       /bytes.npy``    (documents,) int64, UTF-8 bytes of its text
``                       /ids.parquet``  column ``id``, in the same order
``tokens/token_bytes.npy``               (vocab_size,) int32, bytes of text behind each id; 0 for special tokens
``tokens/index.json``                    dtype, vocab_size, pad_id and the totals; written last, so it marks a whole set
"""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from herd.config.errors import UserError, nearest

INDEX = "index.json"
FILES = ("tokens.bin", "offsets.npy", "bytes.npy", "ids.parquet")
_CHECKED_AT_ONCE = 1 << 24  # tokens


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest of uint16 and uint32 that holds every id."""
    return np.dtype("<u2") if vocab_size < 65_536 else np.dtype("<u4")


class TokenSource:
    """The tokens of one domain in one split, memory-mapped; pickles as its path.

    Attributes:
        tokens: (tokens,) memory map of uint16 or uint32.
        offsets: (documents + 1,) int64.
        bytes: (documents,) int64, UTF-8 bytes of each text.
        vocab_size, pad_id, token_bytes: of the whole set.

    Raises:
        UserError: a missing, truncated or inconsistent file.
    """

    def __init__(self, folder: Path, entry: dict[str, int], vocab_size: int, pad_id: int) -> None:
        self.folder, self.name, self.entry = folder, folder.name, entry
        self.vocab_size, self.pad_id = vocab_size, pad_id
        for name in FILES:
            if not (folder / name).is_file():
                raise _damaged(folder / name, "is missing")
        self.offsets, self.bytes = _array(folder / "offsets.npy"), _array(folder / "bytes.npy")
        self._check_offsets()
        dtype = token_dtype(vocab_size)
        size, wanted = (folder / "tokens.bin").stat().st_size, entry["tokens"] * dtype.itemsize
        if size != wanted:
            kind = "truncated" if size < wanted else "too long"
            raise _damaged(folder / "tokens.bin", f"is {kind}: {size:,} bytes instead of {wanted:,}")
        self.tokens: np.ndarray = np.memmap(folder / "tokens.bin", dtype=dtype, mode="r")

    def __reduce__(self) -> tuple[Any, ...]:
        return (TokenSource, (self.folder, self.entry, self.vocab_size, self.pad_id))

    @property
    def documents(self) -> int:
        """Number of documents."""
        return len(self.offsets) - 1

    @cached_property
    def ids(self) -> list[str]:
        """Document ids, in order."""
        path = self.folder / "ids.parquet"
        try:
            ids = pq.read_table(path, columns=["id"]).column("id").to_pylist()
        except (pa.ArrowException, KeyError, OSError) as error:
            raise _damaged(path, f"cannot be read ({str(error).splitlines()[0]})") from error
        if len(ids) != self.documents:
            raise _damaged(path, f"has {len(ids):,} rows for {self.documents:,} documents")
        return ids

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """(vocab_size,) int32: bytes of text behind each id; 0 for special tokens."""
        return _array(self.folder.parents[1] / "token_bytes.npy")

    def check_tokens(self, tokens: np.ndarray) -> np.ndarray:
        """Return ``tokens``; UserError when one lies outside the vocabulary (a damaged file)."""
        if tokens.size and int(tokens.max()) >= self.vocab_size:
            raise _damaged(
                self.folder / "tokens.bin",
                f"holds id {int(tokens.max())}, the vocabulary ends at {self.vocab_size - 1}",
            )
        return tokens

    def offsets_of(self, first: int, last: int) -> np.ndarray:
        """(last - first + 1,) int64: where documents ``first`` to ``last`` begin, and where the last of them ends.

        Raises:
            UserError: they do not rise by 2 or more.
        """
        offsets = np.asarray(self.offsets[first : last + 1])
        short = np.flatnonzero(np.diff(offsets) < 2)
        if len(short):
            at = int(short[0])
            what = f"is not sorted: document {first + at} runs from {offsets[at]} to {offsets[at + 1]}"
            raise _damaged(self.folder / "offsets.npy", what)
        return offsets

    def verify(self) -> None:
        """Read everything once: every id in the vocabulary, every document in its place and named. UserError otherwise."""
        for first in range(0, self.documents, _CHECKED_AT_ONCE):
            self.offsets_of(first, min(first + _CHECKED_AT_ONCE, self.documents))
        for first in range(0, len(self.tokens), _CHECKED_AT_ONCE):
            self.check_tokens(self.tokens[first : first + _CHECKED_AT_ONCE])
        assert len(self.ids) == self.documents

    def _check_offsets(self) -> None:
        path = self.folder / "offsets.npy"
        if self.offsets.ndim != 1 or len(self.offsets) != self.entry["documents"] + 1:
            raise _damaged(path, f"has shape {self.offsets.shape} for {self.entry['documents']:,} documents")
        if len(self.bytes) != self.documents:
            raise _damaged(self.folder / "bytes.npy", f"has {len(self.bytes):,} rows for {self.documents:,} documents")
        if self.offsets[0] != 0 or self.offsets[-1] != self.entry["tokens"]:
            raise _damaged(path, f"runs from {self.offsets[0]} to {self.offsets[-1]}, not 0 to {self.entry['tokens']}")
        # Of more than 16M documents the rest is checked where it is read, for a run shall start at once.
        if self.documents <= _CHECKED_AT_ONCE:
            self.offsets_of(0, self.documents)


class TokenShards:
    """A finished ``tokens`` folder.

    Args:
        folder: the folder that holds ``index.json``.

    Raises:
        UserError: no index, or a damaged one.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / INDEX
        if not path.is_file():
            raise UserError(f"No token shards at '{self.folder}' (no {INDEX}): run `herd tokenize`.")
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
            self.vocab_size, self.pad_id = int(index["vocab_size"]), int(index["pad_id"])
            self.splits: dict[str, dict[str, dict[str, int]]] = index["splits"]
            dtype = index["dtype"]
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(path, f"cannot be read ({error!r})") from error
        if dtype != token_dtype(self.vocab_size).name:
            raise _damaged(path, f"names type {dtype} for a vocabulary of {self.vocab_size:,}")
        self._sources: dict[tuple[str, str], TokenSource] = {}

    def domains(self, split: str) -> tuple[str, ...]:
        """Domains that have documents in ``split``, sorted."""
        return tuple(sorted(self._split(split)))

    def source(self, split: str, domain: str) -> TokenSource:
        """The tokens of one domain; UserError with the nearest name for an unknown one."""
        entries = self._split(split)
        if domain not in entries:
            hint = nearest(domain, entries)
            raise UserError(f"No domain '{domain}' in split '{split}' of '{self.folder}'.{hint} It has {_list(entries)}.")
        if (split, domain) not in self._sources:
            folder = self.folder / split / domain
            self._sources[split, domain] = TokenSource(folder, entries[domain], self.vocab_size, self.pad_id)
        return self._sources[split, domain]

    def tokens(self, split: str) -> dict[str, int]:
        """Tokens of each domain in ``split``."""
        return {domain: entry["tokens"] for domain, entry in sorted(self._split(split).items())}

    def verify(self) -> None:
        """Read every file of every source once; UserError for the first fault."""
        for split, domains in self.splits.items():
            for domain in domains:
                self.source(split, domain).verify()

    def _split(self, split: str) -> dict[str, dict[str, int]]:
        if split not in self.splits:
            hint = nearest(split, self.splits)
            raise UserError(f"No split '{split}' in '{self.folder}'.{hint} It has {_list(self.splits)}.")
        return self.splits[split]


def _array(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise _damaged(path, f"cannot be read ({error})") from error


def _list(names: Any) -> str:
    return ", ".join(sorted(names)) or "none"


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"'{path}' {what}: delete the stage's folder and run `herd tokenize` again.")
