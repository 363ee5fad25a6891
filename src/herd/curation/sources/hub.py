"""Source `hub`: a data set of the Hugging Face hub at one commit, streamed shard by shard."""

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from herd.config.errors import UserError
from herd.curation.sources import SOURCES, Context, Found, Limits, Shard, Source, content_hashes
from herd.curation.sources.config import SourceConfig
from herd.curation.sources.files import found

_COMMIT = re.compile(r"[0-9a-f]{40}")


@functools.cache
def commit_of(path: str, revision: str) -> str:
    """The commit that a revision names now: itself when it is one, otherwise the hub is asked, once a process.

    Raises:
        UserError: extra not installed, unknown data set, no network.
    """
    if _COMMIT.fullmatch(revision):
        return revision
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise _no_extra() from error
    try:
        commit = HfApi().dataset_info(path, revision=revision or None).sha
    except Exception as error:  # the library raises a dozen kinds; each means that the commit is not known
        raise UserError(
            f"source.path: the commit of data set '{path}' cannot be found out ({_reason(error)}): "
            "check the name and the network, or pin one with source.revision=<40 hex digits>."
        ) from error
    assert commit
    return str(commit)


def fingerprint(config: SourceConfig) -> dict[str, Any]:
    """The commit: a data set changes under its name, and what was curated from another commit is another result."""
    if not config.path:
        return {}
    return (
        content_hashes(Path(config.path)) if Path(config.path).is_dir() else {"commit": commit_of(config.path, config.revision)}
    )


def hub_shards(config: SourceConfig, context: Context) -> list[Shard]:
    """The files that the data set's split is stored in; a limited reading is one shard, so that no byte is fetched twice.

    Raises:
        UserError: no name, extra not installed, unknown data set, no network.
    """
    if not config.path:
        raise UserError("source.path: name the data set, e.g. source.path=HuggingFaceFW/fineweb source.subset=sample-10BT.")
    _load_dataset()
    commit = "" if Path(config.path).is_dir() else commit_of(config.path, config.revision)
    count = 1 if Limits(config).any else int(getattr(open_stream(config, commit), "num_shards", 1))
    return [Shard(f"{index:05d}-of-{count:05d}", commit, index, count) for index in range(count)]


def read_hub(shard: Shard, config: SourceConfig, context: Context) -> Iterator[Found]:
    """Rows of one shard, numbered within it.

    Raises:
        UserError: the connection broke for good, or the split is empty.
    """
    number = 0
    file = f"{config.path}@{shard.name[:12]}/{shard.key}" if shard.name else f"{config.path}/{shard.key}"
    stream = open_stream(config, shard.name)
    if shard.stop > 1:
        stream = stream.shard(num_shards=shard.stop, index=shard.start)
    rows = iter(stream)
    while True:
        try:
            row = next(rows, None)
        except Exception as error:
            raise UserError(
                f"source.path: data set '{config.path}' cannot be read at {file}:{number + 1}: {_reason(error)}"
            ) from error
        if row is None:
            break
        number += 1
        yield found(row, config, file, number)
    if not number and shard.stop == 1:
        raise UserError(f"source.path: data set '{config.path}', split '{config.split}', is empty.")


def _load_dataset() -> Any:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise _no_extra() from error
    return load_dataset


def open_stream(config: SourceConfig, commit: str) -> Any:
    """The rows of the data set at that commit ("" = a local folder), streamed; UserError when it cannot be opened."""
    load_dataset = _load_dataset()
    try:
        return load_dataset(config.path, config.subset or None, split=config.split, streaming=True, revision=commit or None)
    except Exception as error:  # the library raises a dozen kinds; each means that nothing can be read
        raise UserError(f"source.path: data set '{config.path}' cannot be read: {_reason(error)}") from error


def _no_extra() -> UserError:
    return UserError("source 'hub' needs the extra `hub`: pip install 'herd[hub]'.")


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0][:300]


SOURCES.register("hub")(Source(hub_shards, read_hub, fingerprint))
