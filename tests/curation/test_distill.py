"""Labels and documents of the distillation: read, chosen and divided by hashes, never by order."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from herd.config.errors import UserError
from herd.curation.distill import Labelled, by_rank, choose_documents, divide, document_files, read_documents, read_labels


@pytest.fixture
def folder(tmp_path):
    for split, ids in (
        ("train-00000-of-00002", range(5)),
        ("train-00001-of-00002", range(5, 9)),
        ("heldout-00000-of-00001", [9]),
    ):
        table = pa.table({"id": [f"d{i}" for i in ids], "text": [f"text {i}" for i in ids]})
        pq.write_table(table, tmp_path / f"{split}.parquet")
    return tmp_path


def rows(path, *items) -> str:
    path.write_text("\n".join(json.dumps(item) for item in items) + "\n", encoding="utf-8")
    return path


def test_documents_are_chosen_by_id(folder):
    files = document_files(folder, "train")
    assert len(files) == 2 and len(document_files(folder)) == 3
    chosen = choose_documents(files, 4, seed=0)
    assert chosen == choose_documents(files[::-1], 4, seed=0) == sorted(chosen)
    assert set(chosen) < set(choose_documents(files, 6, seed=0))  # more documents: the same ones and others
    assert chosen != choose_documents(files, 4, seed=1)
    assert len(choose_documents(files, 100, seed=0)) == 9
    assert [len(part) for part in read_documents(files[0], batch=2)] == [2, 2, 1]
    with pytest.raises(UserError, match="no documents"):
        document_files(folder, "other")


def test_labels_from_a_file(folder, tmp_path):
    path = tmp_path / "labels.jsonl"
    rows(
        path,
        {"id": "d1", "label": "good"},
        {"text": "own", "label": "bad", "group": "g"},
        {"id": "d9", "probabilities": {"good": 0.25, "bad": 0.75}},
    )
    classes, found = read_labels(path, document_files(folder))
    assert classes == ("bad", "good")
    assert found[0] == Labelled("d1", "text 1", "d1", (0.0, 1.0))
    assert found[1] == Labelled("line 2", "own", "g", (1.0, 0.0))
    assert found[2].stated == (0.75, 0.25) and found[2].text == "text 9"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"label": "x"}, "line 1"),
        ({"text": "x"}, "line 1"),
        ({"text": "x", "probabilities": {"a": 0.5}}, "sum to 1"),
        ({"text": "x", "probabilities": {}}, "line 1"),
        ({"text": 5, "label": "x"}, "line 1"),
        ([1], "line 1"),
        ({"id": "absent", "label": "x"}, "no document has the id 'absent'"),
        ({"text": "x", "label": "y"}, "1 classes"),
    ],
)
def test_bad_labels_are_refused(folder, tmp_path, row, message):
    items = [row, {"text": "t", "label": "y"}] if "id" in row else [row]
    with pytest.raises(UserError, match=message):
        read_labels(rows(tmp_path / "labels.jsonl", *items), document_files(folder))


def test_unreadable_labels(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_labels(tmp_path / "absent", [])
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        read_labels(tmp_path / "binary", [])


def test_rewards_to_labels_by_rank():
    assert by_rank([0.1, -5.0, 7.0, 0.2], 0.5)[:, 1].tolist() == [0, 0, 1, 1]
    assert by_rank([1.0, 1.0, 1.0, 1.0], 0.25)[:, 1].sum() == 1


def test_division_keeps_groups_together_in_any_order():
    items = [Labelled(f"d{i}", "t", f"g{i // 3}", (1.0, 0.0) if i % 2 else (0.0, 1.0)) for i in range(300)]
    parts = divide(items, 0.2, 0.3, seed=0)
    assert sum(map(len, parts)) == 300
    groups = [{item.group for item in part} for part in parts]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    assert [set(p) for p in divide(items[::-1], 0.2, 0.3, seed=0)] == [set(p) for p in parts]
    assert np.allclose([len(p) / 300 for p in parts], [0.5, 0.2, 0.3], atol=0.12)
    with pytest.raises(UserError, match="fewer than two classes"):
        divide([Labelled(f"d{i}", "t", f"g{i}", (1.0, 0.0)) for i in range(50)], 0.2, 0.3, seed=0)
