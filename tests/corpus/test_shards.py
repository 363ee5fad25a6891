"""Token shards: what is written is read, and damage is named in one line."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from herd.config.errors import UserError
from herd.corpus.mixture import Mixture, Phase
from herd.corpus.packing import evaluation_rows
from herd.corpus.shard_writer import ShardSetWriter
from herd.corpus.shards import TokenShards

MakeShards = Callable[..., TokenShards]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_535, "uint16"), (65_536, "uint32"), (128_256, "uint32")])
def test_what_is_written_is_read(tmp_path: Path, vocab_size: int, dtype: str) -> None:
    sizes = np.arange(vocab_size) % 5
    last = vocab_size - 1
    with ShardSetWriter(tmp_path, sizes, pad_id=7) as writer:
        writer.add("train", "code", ["a", "b"], [[1, 2, last], [3, 4]], ["né", ""])
        writer.add("train", "maths", ["m"], [[5, 6]], ["x"])
        writer.add("train", "code", ["c"], [[8, 9, 10, 11]], ["xyz"])
        writer.add("heldout", "code", ["d"], [[12, 13]], ["h"])
        index = writer.close()
    shards = TokenShards(tmp_path)
    assert index["dtype"] == dtype
    assert index["splits"]["train"]["code"] == {"tokens": 9, "documents": 3, "characters": 5, "bytes": 6}
    assert json.loads((tmp_path / "index.json").read_text()) == index
    assert shards.domains("train") == ("code", "maths")
    assert shards.tokens("train") == {"code": 9, "maths": 2}
    source = shards.source("train", "code")
    assert source.tokens.dtype == dtype
    assert source.tokens.tolist() == [1, 2, last, 3, 4, 8, 9, 10, 11]
    assert source.offsets.tolist() == [0, 3, 5, 9]
    assert source.bytes.tolist() == [3, 0, 3]
    assert source.ids == ["a", "b", "c"]
    assert source.documents == 3
    assert (source.token_bytes == sizes).all()
    assert (source.vocab_size, source.pad_id) == (vocab_size, 7)
    shards.verify()


def test_an_error_leaves_no_set_behind(tmp_path: Path) -> None:
    def write_and_fail() -> None:
        with ShardSetWriter(tmp_path, np.ones(10), pad_id=0) as writer:
            writer.add("train", "code", ["a"], [[1, 2]], ["x"])
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_and_fail()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    with pytest.raises(UserError, match="No token shards at"):
        TokenShards(tmp_path)


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".", "co de"])
def test_a_domain_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    writer = ShardSetWriter(tmp_path / "tokens", np.ones(10), pad_id=0)
    with pytest.raises(UserError, match="is no name for a split or domain"):
        writer.add("train", name, ["a"], [[1, 2]], ["x"])
    assert list(tmp_path.iterdir()) == []


def damage_tokens(folder: Path) -> None:
    content = (folder / "tokens.bin").read_bytes()
    (folder / "tokens.bin").write_bytes(content[:-1])


def lengthen_tokens(folder: Path) -> None:
    with (folder / "tokens.bin").open("ab") as file:
        file.write(b"\0\0")


def unsort_offsets(folder: Path) -> None:
    np.save(folder / "offsets.npy", np.array([0, 9, 5, 12]))


def shift_offsets(folder: Path) -> None:
    np.save(folder / "offsets.npy", np.array([1, 4, 9, 12]))


def shorten_offsets(folder: Path) -> None:
    np.save(folder / "offsets.npy", np.array([0, 12]))


def cut_offsets(folder: Path) -> None:
    (folder / "offsets.npy").write_bytes((folder / "offsets.npy").read_bytes()[:-9])


def empty_offsets(folder: Path) -> None:
    (folder / "offsets.npy").write_bytes(b"")


def shorten_bytes(folder: Path) -> None:
    np.save(folder / "bytes.npy", np.array([1, 1]))


DAMAGE = [
    (damage_tokens, r"tokens\.bin' is truncated: 23 bytes instead of 24"),
    (lengthen_tokens, r"tokens\.bin' is too long: 26 bytes instead of 24"),
    (unsort_offsets, r"offsets\.npy' is not sorted: document 1 runs from 9 to 5"),
    (shift_offsets, r"offsets\.npy' runs from 1 to 12, not 0 to 12"),
    (shorten_offsets, r"offsets\.npy' has shape \(2,\) for 3 documents"),
    (cut_offsets, r"offsets\.npy' cannot be read"),
    (empty_offsets, r"offsets\.npy' cannot be read"),
    (shorten_bytes, r"bytes\.npy' has 2 rows for 3 documents"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_damage_is_named(make_shards: MakeShards, damage: Callable[[Path], None], message: str) -> None:
    shards = make_shards(code=[4, 5, 3])
    damage(shards.folder / "train" / "code")
    with pytest.raises(UserError, match=message) as caught:
        TokenShards(shards.folder).source("train", "code")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["tokens.bin", "offsets.npy", "bytes.npy", "ids.parquet"])
def test_a_missing_file_is_named(make_shards: MakeShards, name: str) -> None:
    shards = make_shards(code=[4, 5, 3])
    (shards.folder / "train" / "code" / name).unlink()
    with pytest.raises(UserError, match=f"{name}' is missing"):
        TokenShards(shards.folder).source("train", "code")


def test_ids_beyond_the_vocabulary_are_named(make_shards: MakeShards) -> None:
    made = make_shards(vocab_size=1000, code=[4, 5, 3])
    path = made.folder / "train" / "code" / "tokens.bin"
    content = np.fromfile(path, dtype=np.uint16)
    content[6] = 1000
    content.tofile(path)
    shards = TokenShards(made.folder)
    message = r"tokens\.bin' holds id 1000, the vocabulary ends at 999"
    with pytest.raises(UserError, match=message):
        shards.verify()
    with pytest.raises(UserError, match=message):
        Mixture(shards, "train", [Phase(1, 12, {"code": 1.0})], 0).rows(0, 0, 1)
    with pytest.raises(UserError, match=message):
        list(evaluation_rows(shards.source("train", "code"), 12))


def test_damaged_ids_are_named(make_shards: MakeShards) -> None:
    shards = make_shards(code=[4, 5, 3])
    path = shards.folder / "train" / "code" / "ids.parquet"
    pq.write_table(pa.table({"id": ["only one"]}), path)
    with pytest.raises(UserError, match=r"ids\.parquet' has 1 rows for 3 documents"):
        shards.verify()
    path.write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"ids\.parquet' cannot be read"):
        TokenShards(shards.folder).verify()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("{}", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"vocab_size": 70000, "pad_id": 0, "dtype": "uint16", "splits": {}}', "names type uint16"),
    ],
)
def test_a_damaged_index_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(UserError, match=rf"index\.json' {message}"):
        TokenShards(tmp_path)


def test_unknown_names_get_the_nearest(make_shards: MakeShards) -> None:
    shards = make_shards(code=[4], maths=[5])
    with pytest.raises(UserError, match=r"No domain 'math' in split 'train'.* Did you mean 'maths'"):
        shards.source("train", "math")
    with pytest.raises(UserError, match=r"No split 'heldout'.* It has train"):
        shards.domains("heldout")
