"""Documents that a model of ours labels, and the labels: reading, choosing, dividing. The training is `herd distill-classifier`.

The paper's second quality classifier: a chat model judges documents against a written description, and a small encoder learns
its judgement, so that all documents can be scored. Nothing here imports torch.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from herd.config.errors import UserError
from herd.curation.mix import place
from herd.runs.tables import iterate_rows


@dataclass(frozen=True)
class Labelled:
    """A document and what was said of it."""

    id: str
    text: str
    group: str  # documents of one group are on one side of the division
    stated: tuple[float, ...]  # probability of each class, sums to 1


def document_files(folder: Path, split: str = "") -> list[Path]:
    """Files of documents in the `documents` folder of a curate stage, in order; of one split when it is named.

    Raises:
        UserError: there is none.
    """
    found = sorted(folder.glob(f"{split}*.parquet"))
    if not found:
        raise UserError(f"'{folder}' has no documents ({split or 'any'}*.parquet): is it the input you meant?")
    return found


def choose_documents(files: Sequence[Path], count: int, seed: int) -> list[tuple[str, str]]:
    """(id, text) of ``count`` documents: the first in the order of a seeded hash of the id, whatever the order of files.

    Two passes: ids alone, then the texts of those chosen.
    """
    places = sorted(
        (place(str(row["id"]), seed), str(row["id"])) for path in files for row in iterate_rows(path, ["id"], batch=4096)
    )
    wanted = {name for _, name in places[:count]}
    rows = (row for path in files for row in iterate_rows(path, ["id", "text"]))
    return sorted((str(row["id"]), str(row["text"])) for row in rows if row["id"] in wanted)


def read_documents(path: Path, batch: int = 256) -> Iterator[list[tuple[str, str]]]:
    """(id, text), some at a time."""
    part: list[tuple[str, str]] = []
    for row in iterate_rows(path, ["id", "text"], batch=batch):
        part.append((str(row["id"]), str(row["text"])))
        if len(part) == batch:
            yield part
            part = []
    if part:
        yield part


def read_labels(path: Path, documents: Sequence[Path]) -> tuple[tuple[str, ...], list[Labelled]]:
    """Classes and labelled documents of a JSONL file.

    A row has a `label` (a name) or `probabilities` (class -> share), and a `text` or the `id` of a document in ``documents``;
    `group` is optional.

    Raises:
        UserError: no such file, a row that is none, an id that no document has, or fewer than two classes.
    """
    rows: list[tuple[str, str | None, str, dict[str, float]]] = []
    number = 0
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    row = json.loads(line)
                    stated = row["probabilities"] if "probabilities" in row else {str(row["label"]): 1.0}
                    shares = {str(name): float(share) for name, share in stated.items()}
                    if not shares or min(shares.values()) < 0 or abs(sum(shares.values()) - 1) > 1e-3:
                        raise ValueError("probabilities do not sum to 1")
                    text, name = row.get("text"), row.get("id", f"line {number}")
                    if not isinstance(name, str) or not isinstance(text, str | None) or (text is None and "id" not in row):
                        raise ValueError("`text` or `id` is needed, as a string")
                    rows.append((name, text, str(row.get("group", "")) or name, shares))
    except OSError as error:
        raise UserError(f"labels.path: {path} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise UserError(f"labels.path: {path} is not UTF-8.") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"labels.path: {path}, line {number}: {error}; a row needs a label and a text or an id.") from error
    classes = tuple(sorted({name for *_, shares in rows for name in shares}))
    if len(classes) < 2:
        raise UserError(f"labels.path: {path} has labels of {len(classes)} classes, two are needed.")
    wanted = {name for name, text, *_ in rows if text is None}
    texts: dict[str, str] = {}
    for file_path in documents if wanted else ():
        for row in iterate_rows(file_path, ["id", "text"]):
            if row["id"] in wanted:
                texts[str(row["id"])] = str(row["text"])
    missing = sorted(wanted - texts.keys())
    if missing:
        raise UserError(
            f"labels.path: no document has the id '{missing[0]}' ({len(missing)} such): give inputs.documents or texts."
        )
    return classes, [
        Labelled(name, texts[name] if text is None else text, group, tuple(shares.get(c, 0.0) for c in classes))
        for name, text, group, shares in rows
    ]


def by_rank(scores: Sequence[float], share: float) -> np.ndarray:
    """(documents, 2): certain labels from scores without a scale (rewards): the highest ``share`` are of the second class."""
    values = np.asarray(scores, np.float64)
    order = np.argsort(-values, kind="stable")
    positive = np.zeros(len(values), bool)
    positive[order[: round(share * len(values))]] = True
    return np.stack((~positive, positive), axis=1).astype(np.float64)


def divide(
    labelled: Sequence[Labelled], calibration_share: float, heldout_share: float, seed: int
) -> tuple[list[Labelled], list[Labelled], list[Labelled]]:
    """Documents to train, to calibrate and to measure, by a hash of their group.

    Raises:
        UserError: nothing is left to train on or to measure, or a class is missing there.
    """
    parts: tuple[list[Labelled], list[Labelled], list[Labelled]] = ([], [], [])
    for item in labelled:
        at = place(item.group, seed)
        parts[2 if at < heldout_share else 1 if at < heldout_share + calibration_share else 0].append(item)
    for name, part in (("train on", parts[0]), ("measure", parts[2])):
        if len({int(np.argmax(item.stated)) for item in part}) < 2:
            raise UserError(f"distill-classifier: {len(part)} documents of fewer than two classes to {name}: label more of them.")
    return parts
