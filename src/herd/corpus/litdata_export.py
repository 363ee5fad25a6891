"""Token shards in litdata's format, for ``StreamingDataset(folder, item_loader=TokensLoader(block_size=...))``.

Chunks hold whole documents end to end; litdata cuts each into blocks and leaves out what does not fill the last one, so chunks
should be large against a block.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from herd.config.errors import UserError
from herd.corpus.shards import TokenSource
from herd.runs.atomic import sha256_json, write_json


def litdata_writer() -> tuple[Any, Any]:
    """litdata's ``BinaryWriter`` and ``TokensLoader``; UserError when it is not installed."""
    try:
        from litdata.streaming.item_loader import TokensLoader
        from litdata.streaming.writer import BinaryWriter
    except ImportError as error:
        raise UserError(f"format=litdata needs the extra `litdata`: pip install 'herd[litdata]' ({error}).") from error
    return BinaryWriter, TokensLoader


def write_litdata(
    source: TokenSource, folder: Path, chunk_bytes: int, advance: Callable[[int], None] = lambda tokens: None
) -> None:
    """Write ``folder/chunk-0-*.bin`` and ``folder/index.json``; memory holds one chunk.

    Args:
        source: one domain of one split. The type of the ids stays (uint16, or int32 for 65,536 ids and more).
        folder: made here.
        chunk_bytes: of a file; a longer document makes a longer one.
        advance: told how many tokens have been written since it was last called.

    Raises:
        UserError: litdata is not installed, or ids lie outside the vocabulary.
    """
    writer_class, loader = litdata_writer()
    folder.mkdir(parents=True, exist_ok=True)
    writer = writer_class(str(folder), chunk_bytes=chunk_bytes, item_loader=loader())
    dtype = np.uint16 if source.tokens.dtype.itemsize == 2 else np.int32
    for number in range(source.documents):
        tokens = source.check_tokens(source.tokens[source.offsets[number] : source.offsets[number + 1]])
        writer[number] = np.asarray(tokens, dtype=dtype)
        advance(len(tokens))
    writer.done()
    writer.merge()
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    # The time of writing tells litdata's caches that data changed; a number made of the content does so too, and repeats.
    index["updated_at"] = str(int(sha256_json([index["chunks"], index["config"]])[:8], 16))
    write_json(folder / "index.json", index)
