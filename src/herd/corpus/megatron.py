"""Token shards in the format that Megatron-LM and its relatives (NeMo, GPT-NeoX, nanotron) map into memory.

``<name>.bin``  ids, little-endian, documents end to end
``<name>.idx``  all little-endian: the 9 bytes ``MMIDIDX\\0\\0``, version 1 (uint64), type of the ids (uint8: 8 uint16, 4 int32),
                number of sequences (uint64), number of document boundaries (uint64); then of each sequence its length in ids
                (int32), of each its first byte in the .bin (int64), and the boundaries: the number of the first sequence of
                each document, and the total (int64)

A document is one sequence here, with the begin and end token that it has in our shards.
"""

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from herd.config.errors import UserError
from herd.corpus.shards import TokenSource
from herd.runs.atomic import fsync_folder

MAGIC, VERSION = b"MMIDIDX\x00\x00", 1
TYPE_CODES = {"uint16": 8, "int32": 4}  # of the nine that Megatron knows, those that ids need
_AT_ONCE = 1 << 22  # ids
_LONGEST = 2**31 - 1  # ids of a document: lengths are int32


def write_megatron(source: TokenSource, prefix: Path, advance: Callable[[int], None] = lambda tokens: None) -> None:
    """Write ``prefix.bin``, ``prefix.idx`` and ``prefix.ids.parquet``, which names each document, in flat memory.

    Args:
        source: one domain of one split. Ids of 65,536 or more become int32, which has the same bytes.
        prefix: path without suffix; its folder is made.
        advance: told how many tokens have been written since it was last called.

    Raises:
        UserError: a document of 2^31 tokens or more, or ids outside the vocabulary.
    """
    lengths = np.diff(source.offsets_of(0, source.documents))
    if lengths.size and int(lengths.max()) > _LONGEST:
        longest = int(lengths.argmax())
        raise UserError(
            f"Document {longest} of '{source.folder}' has {lengths[longest]:,} tokens: Megatron's index ends at 2^31 - 1."
        )
    prefix.parent.mkdir(parents=True, exist_ok=True)
    width = source.tokens.dtype.itemsize
    with _named(prefix, ".bin").open("wb") as file:
        for first in range(0, len(source.tokens), _AT_ONCE):
            tokens = source.check_tokens(source.tokens[first : first + _AT_ONCE])
            tokens.tofile(file)
            advance(len(tokens))
    with _named(prefix, ".idx").open("wb") as file:
        code = TYPE_CODES["uint16" if width == 2 else "int32"]
        file.write(MAGIC + struct.pack("<QBQQ", VERSION, code, source.documents, source.documents + 1))
        lengths.astype("<i4").tofile(file)
        (np.asarray(source.offsets[:-1]) * width).astype("<i8").tofile(file)
        np.arange(source.documents + 1, dtype="<i8").tofile(file)
    shutil.copyfile(source.folder / "ids.parquet", _named(prefix, ".ids.parquet"))
    fsync_folder(prefix.parent)


def _named(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(prefix.name + suffix)
