"""Token shards, written: batch after batch in flat memory, whole or not at all. The layout is in ``shards.py``."""

import os
import re
from array import array
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from herd.config.errors import UserError
from herd.corpus.shards import FILES, INDEX, token_dtype
from herd.runs.atomic import fsync_folder, write_json

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")  # a domain names a folder: no separators, no dots
_ROW_GROUP = 65_536  # document ids


class ShardWriter:
    """Writes one split of one domain, batch after batch, in flat memory (16 bytes a document).

    Files carry their names only after :meth:`close`; leaving the ``with`` block by an error removes them.

    Args:
        folder: ``tokens/<split>/<domain>``, made here.
        vocab_size: decides the type; larger ids are refused.
    """

    def __init__(self, folder: Path, vocab_size: int) -> None:
        self.folder, self.vocab_size, self.dtype = folder, vocab_size, token_dtype(vocab_size)
        self.characters = 0
        self._offsets, self._bytes = array("q", [0]), array("q")
        self._ids: list[str] = []  # not yet written: row groups of one size, however the documents come in
        folder.mkdir(parents=True, exist_ok=True)
        self._tokens_file = self._partial("tokens.bin").open("wb")
        self._ids_file = pq.ParquetWriter(self._partial("ids.parquet"), pa.schema([("id", pa.string())]))

    def add(self, ids: Sequence[str], tokens: Sequence[Sequence[int]], texts: Sequence[str]) -> None:
        """Append documents: their ids, their tokens (special tokens included) and their texts, to count from."""
        if not ids:
            return
        assert len(ids) == len(tokens) == len(texts)
        flat = np.concatenate([np.asarray(t, dtype=np.int64) for t in tokens])
        assert 0 <= flat.min() <= flat.max() < self.vocab_size, "token id outside the vocabulary"
        flat.astype(self.dtype).tofile(self._tokens_file)
        for document, text in zip(tokens, texts, strict=True):
            assert len(document) >= 2, "a document has at least its begin and end token"
            self._offsets.append(self._offsets[-1] + len(document))
            self._bytes.append(len(text.encode("utf-8")))
            self.characters += len(text)
        self._ids += ids
        while len(self._ids) >= _ROW_GROUP:
            self._write_ids()

    def close(self) -> dict[str, int]:
        """Flush, fsync, rename; returns this domain's entry of the index."""
        self._tokens_file.flush()
        os.fsync(self._tokens_file.fileno())
        self._tokens_file.close()
        if self._ids:
            self._write_ids()
        self._ids_file.close()
        for name, values in (("offsets.npy", self._offsets), ("bytes.npy", self._bytes)):
            with self._partial(name).open("wb") as file:
                np.save(file, np.frombuffer(values, dtype=np.int64) if len(values) else np.zeros(0, np.int64))
                file.flush()
                os.fsync(file.fileno())
        for name in FILES:
            os.replace(self._partial(name), self.folder / name)
        fsync_folder(self.folder)
        return {
            "tokens": self._offsets[-1],
            "documents": len(self._bytes),
            "characters": self.characters,
            "bytes": sum(self._bytes),
        }

    def abort(self) -> None:
        """Remove what was written."""
        self._tokens_file.close()
        self._ids_file.close()
        for name in FILES:
            self._partial(name).unlink(missing_ok=True)

    def _write_ids(self) -> None:
        self._ids_file.write_table(pa.table({"id": pa.array(self._ids[:_ROW_GROUP], pa.string())}))
        del self._ids[:_ROW_GROUP]

    def _partial(self, name: str) -> Path:
        return self.folder / f".{name}.partial"


class ShardSetWriter:
    """Writes a whole ``tokens`` folder: a :class:`ShardWriter` per split and domain, the index at the end.

    Args:
        folder: the ``tokens`` folder.
        token_bytes: (vocab_size,) bytes of text behind each id.
        pad_id: id that fills rows.
    """

    def __init__(self, folder: str | Path, token_bytes: np.ndarray, pad_id: int) -> None:
        self.folder, self.token_bytes, self.pad_id = Path(folder), token_bytes, pad_id
        self._writers: dict[tuple[str, str], ShardWriter] = {}

    def __enter__(self) -> "ShardSetWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            for writer in self._writers.values():
                writer.abort()

    def add(self, split: str, domain: str, ids: Sequence[str], tokens: Sequence[Sequence[int]], texts: Sequence[str]) -> None:
        """Append documents of one domain to one split; UserError for a name that could leave the folder."""
        if (split, domain) not in self._writers:
            for name in (split, domain):
                if not _NAME.fullmatch(name):
                    raise UserError(f"'{name}' is no name for a split or domain: use letters, digits, '_' and '-'.")
            self._writers[split, domain] = ShardWriter(self.folder / split / domain, len(self.token_bytes))
        self._writers[split, domain].add(ids, tokens, texts)

    def close(self) -> dict[str, Any]:
        """Finish every file, write and return the index."""
        splits: dict[str, dict[str, dict[str, int]]] = {}
        for (split, domain), writer in sorted(self._writers.items()):
            splits.setdefault(split, {})[domain] = writer.close()
        self.folder.mkdir(parents=True, exist_ok=True)
        np.save(self.folder / "token_bytes.npy", self.token_bytes.astype(np.int32))
        index = {
            "dtype": token_dtype(len(self.token_bytes)).name,
            "vocab_size": len(self.token_bytes),
            "pad_id": self.pad_id,
            "splits": splits,
        }
        write_json(self.folder / INDEX, index)
        return index
