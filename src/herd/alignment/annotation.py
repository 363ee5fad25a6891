"""A folder that pairs of answers go out to people in, and their verdicts come back in.

``pairs.csv`` and ``pairs.jsonl`` hold what is to be judged: an id, the prompt, and two answers in a random order that does not
say who wrote them. ``key.json`` says it: keep it from the annotators. Each of them returns ``verdicts-NAME.csv`` (or .jsonl).
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from herd.alignment.pairs import Candidate
from herd.alignment.verdicts import COLUMNS, Verdict, read_verdicts
from herd.config.errors import UserError
from herd.dialog.rows import Prompt, write_jsonl
from herd.runs.atomic import sha256_file, write_json, write_text
from herd.runs.seeds import stream


@dataclass(frozen=True)
class AnnotationConfig:
    """People in the place of the simulated grader."""

    folder: str | None = None  # where pairs go out and verdicts come back; null: the simulated grader judges
    least_share: float = 1.0  # of the pairs must have a verdict before the stage goes on; the rest is dropped and counted

    def __post_init__(self) -> None:
        if not 0.0 < self.least_share <= 1.0:
            raise UserError(f"annotation.least_share is a share in (0, 1], not {self.least_share}")


Pairs = dict[str, dict[str, list[Candidate]]]  # split -> prompt -> its two answers, a and b


@dataclass(frozen=True)
class Sent:
    """What went out."""

    pairs: Pairs
    dropped: dict[str, dict[str, int]]  # split -> why prompts have no pair, counted


class Exchange:
    """The folder of one round's annotation."""

    def __init__(self, config: AnnotationConfig, made_from: str) -> None:
        """Args: made_from: hash of everything that decides the pairs."""
        assert config.folder is not None
        self.folder, self.least_share, self.made_from = Path(config.folder), config.least_share, made_from
        self.key = self.folder / "key.json"

    def sent(self) -> Sent | None:
        """The pairs that went out, or None when none did.

        Raises:
            UserError: they were made from other models, prompts or settings.
        """
        if not self.key.exists():
            return None
        try:
            key = json.loads(self.key.read_text(encoding="utf-8"))
            same, splits, dropped = key["made_from"] == self.made_from, key["splits"], key["dropped"]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"'{self.key}' is damaged: give another annotation.folder, or delete this one") from None
        if not same:
            raise UserError(
                f"'{self.folder}' holds pairs of other models, prompts or settings: give another annotation.folder for these."
            )
        pairs = {
            split: {prompt: [Candidate(**candidate) for candidate in two] for prompt, two in by_prompt.items()}
            for split, by_prompt in splits.items()
        }
        return Sent(pairs, dropped)

    def send(self, pairs: Pairs, dropped: dict[str, dict[str, int]], prompts: Mapping[str, Prompt], seed: int) -> Sent:
        """Write the pairs, answers and rows in a random order; the same pairs in the order of the answers written."""
        ordered: Pairs = {}
        rows = []
        for split, by_prompt in pairs.items():
            ordered[split] = {}
            for prompt, two in by_prompt.items():
                swapped = stream(seed, "annotation", prompt).random() < 0.5
                a, b = two[::-1] if swapped else two
                ordered[split][prompt] = [a, b]
                messages = [message.to_dict() for message in prompts[prompt].messages]
                rows.append({"id": pair_id(prompt, [a, b]), "messages": messages, "a": a.text, "b": b.text})
        rows = [rows[i] for i in stream(seed, "annotation", "order").permutation(len(rows))]
        write_jsonl(self.folder / "pairs.jsonl", rows)
        write_text(self.folder / "pairs.csv", _spreadsheet(rows))
        splits = {
            split: {prompt: [vars(candidate) for candidate in two] for prompt, two in by_prompt.items()}
            for split, by_prompt in ordered.items()
        }
        # Last: with the key, the rest is there.
        write_json(self.key, {"made_from": self.made_from, "dropped": dropped, "splits": splits})
        return Sent(ordered, dropped)

    def verdicts(self, pairs: Pairs) -> dict[str, list[Verdict]]:
        """Pair -> the verdicts on it, annotators in the order of their names.

        Raises:
            UserError: a file is wrong, or too few pairs have a verdict yet.
        """
        ids = [pair_id(prompt, two) for by_prompt in pairs.values() for prompt, two in by_prompt.items()]
        found: dict[str, list[Verdict]] = {}
        files = verdict_files(self.folder)
        names = [annotator(path) for path in files]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"'{self.folder}' has two files of verdicts by '{name}', a .csv and a .jsonl: keep one of them.")
        for name, path in zip(names, files, strict=True):
            for pair, verdict in read_verdicts(path, name, ids).items():
                found.setdefault(pair, []).append(verdict)
        if not found or len(found) < self.least_share * len(ids):
            raise UserError(
                f"waiting for verdicts: {len(found)} of {len(ids)} pairs have one. Judge {self.folder / 'pairs.csv'} "
                f"(columns better, grade, edited) and put it at {self.folder / 'verdicts-NAME.csv'}; "
                "then the same command goes on from here."
            )
        return found


def pair_id(prompt: str, two: list[Candidate]) -> str:
    """Id of a pair: its prompt, and a digest of the two answers, so that a verdict on other answers is never taken for it."""
    digest = hashlib.sha256("\0".join(candidate.text for candidate in two).encode()).hexdigest()
    return f"{prompt}-{digest[:8]}"


def verdict_files(folder: Path) -> list[Path]:
    """Files of verdicts, in the order of their names."""
    return sorted(path for pattern in ("verdicts*.csv", "verdicts*.jsonl") for path in folder.glob(pattern))


def annotator(path: Path) -> str:
    """verdicts-anna.csv -> anna."""
    return path.stem.removeprefix("verdicts").lstrip("-_") or "annotator"


def fingerprint(config: AnnotationConfig) -> Any:
    """What the result depends on beside the pairs: the content of the files of verdicts, and which gaps are allowed."""
    if config.folder is None:
        return None
    files = {path.name: sha256_file(path) for path in verdict_files(Path(config.folder))}
    return {"verdicts": files, "least_share": config.least_share}


def _spreadsheet(rows: list[dict[str, Any]]) -> str:
    """The pairs with empty columns to fill in."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([COLUMNS[0], "prompt", "a", "b", *COLUMNS[1:]])
    for row in rows:
        prompt = "\n\n".join(f"{message['role']}: {message.get('content', '')}" for message in row["messages"])
        writer.writerow([row["id"], prompt, row["a"], row["b"], "", "", ""])
    return text.getvalue()
