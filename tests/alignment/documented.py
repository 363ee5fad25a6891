"""A small table of documented functions, as `herd curate` leaves it."""

import json

import pyarrow as pa
import pyarrow.parquet as pq

VERBS = ["Return", "Compute", "Remove", "Sort", "Count", "Split", "Join", "Scale", "Rotate", "Parse"]
NOUNS = ["rows", "columns", "words", "angles", "points", "matrices", "strings", "bytes", "dates", "signals"]


def entry(i: int, split: str, **changes) -> dict:
    verb, noun = VERBS[i % 10], NOUNS[i // 10 % 10]
    row = {
        "id": f"{split}-{i:03d}",
        "document_id": f"d{i}",
        "split": split,
        "package": "pkg",
        "name": f"pkg.mod.{verb.lower()}_{noun}_{i}",
        "signature": "(x, y=None, *, axis=0)",
        "summary": f"{verb} the {noun} of x number {i}.",
        "description": "",
        "parameters": json.dumps(["x", "y", "axis"]),
    }
    return row | changes


def write_artifact(folder, files: dict[str, object], stage="curate"):
    """A finished stage's folder with the given files, complete enough to be an input."""
    from herd.runs.atomic import sha256_json, write_json

    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            (folder / name).write_text(content)
        else:
            pq.write_table(pa.Table.from_pylist(content), folder / name)
    address = sha256_json([stage, str(folder)])
    write_json(folder / "manifest.json", {"stage": stage, "address": address, "metrics": {}, "outputs": {}})
    return folder


def documents_in(folder):
    """A finished `curate` folder with 60 usable training entries, 20 held-out ones, and three that are not usable."""
    rows = [entry(i, "train") for i in range(60)] + [entry(i, "heldout") for i in range(60, 80)]
    rows += [
        entry(90, "train", signature="(broken"),
        entry(91, "train", summary="Short."),
        entry(92, "heldout", name="a.__len__"),
    ]
    return write_artifact(folder, {"entries.parquet": rows})
