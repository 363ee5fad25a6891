"""What made one row of post-training data: `herd lineage FILE#ID`.

A rejection-sampled row goes back to its sample, model, reward, prompt, documented entry and source page; a preference to both
models and whoever graded it. A row that a later stage kept or changed is followed by its id into the inputs of that stage.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from herd.alignment.quality.dialogs import NOTES
from herd.config.errors import UserError, nearest
from herd.curation.why import explain
from herd.dialog.rows import read_jsonl
from herd.runs.lineage import digest_line, inputs_of, stage_folder_of
from herd.runs.manifest import MANIFEST, read_manifest
from herd.runs.tables import open_table

_PROMPTS = ("train_prompts.jsonl", "heldout_prompts.jsonl")
# Told in lines of their own, or too long.
_TOLD = {"id", "prompt_id", "entry_id", "messages", "chosen", "rejected", "edited"}
_OF_PREFERENCES = frozenset({"grade", "models", "scores", "annotators"})
_OF_SAMPLES = frozenset({"reward", "mean_reward", "sample", "candidates", "seed", "model", "model_label", "score"})


@dataclass(frozen=True)
class Made:
    """A finished stage that a row comes from."""

    folder: Path
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path) -> Made:
        """The stage in ``folder``."""
        return cls(folder, read_manifest(folder))

    def __str__(self) -> str:
        """Command, address, and the node that asked first."""
        node = self.manifest.get("node")
        return f"{self.manifest['stage']} {self.manifest['address'][:16]}" + (f" ({node})" if node else "")

    def sources(self) -> dict[str, Made]:
        """Input, or group.label -> the stage it was; those whose folder is gone are left out."""
        return {name: Made.open(path) for name, path in inputs_of(self.folder, self.manifest) if (path / MANIFEST).is_file()}


def row_lineage(path: Path, row_id: str) -> Iterator[str]:
    """Lines about one row, nearest cause first.

    Args:
        path: a JSONL file of a finished stage, or the stage's folder, whose files are searched.

    Raises:
        UserError: no such file, or no row of this id, with the nearest.
    """
    made = Made.open(stage_folder_of(path))
    files = [path.resolve()] if path.is_file() else sorted(made.folder.glob("*.jsonl"))
    found = _named(path, files, row_id)
    if found is None:
        ids = [str(row.get("id")) for file in files for _, row in read_jsonl(file) if "id" in row]
        what = "no rows with an id" if not ids else f"none of its {len(ids):,} rows has the id '{row_id}'"
        raise UserError(f"'{path}': {what}.{nearest(row_id, ids)}")
    file, row = found
    yield f"{row_id}  in {file.name} of {made}"
    digest = digest_line(file, made.folder, made.manifest)
    if not digest.endswith("verified"):
        yield f"  {digest}"
    yield from _row(row, made)


def _row(row: Mapping[str, Any], made: Made) -> Iterator[str]:
    """What the row says of itself and its stage's manifest of its makers, then its prompt, or the row that it was made from."""
    sources = made.sources()
    if "chosen" in row:
        yield from _preference(row, made, sources)
    elif made.manifest["stage"] == "reject":
        yield from _sampled(row, made, sources)
    else:
        yield from _line("answer", _last_text(row.get("messages")))
    told = _TOLD | ({"grade", "models", "scores", "annotators"} if "chosen" in row else set())
    told |= (
        {"reward", "mean_reward", "sample", "candidates", "seed", "model", "model_label", "score"} if "sample" in row else set()
    )
    for name, value in row.items():
        if name not in told and isinstance(value, str | int | float | list) and value != []:
            yield from _line(name, value)
    if isinstance(row.get("source"), Mapping):
        yield from _line("read from", ", ".join(f"{name} {value}" for name, value in row["source"].items()))
    earlier = _earlier(row, sources)
    if earlier is not None:
        where, file, before = earlier
        yield f"  {'made from':<12}{before['id']}  in {file.name} of {where}"
        yield from _row(before, where)
        return
    yield from _prompt(row, sources)


def _sampled(row: Mapping[str, Any], made: Made, sources: Mapping[str, Made]) -> Iterator[str]:
    config = made.manifest["config"]
    label = row.get("model_label", "generator")
    writer = sources.get(f"models.{label}") or sources.get(str(label)) or f"{row['model']} (its folder is gone)"
    yield from _line("answer", _last_text(row["messages"]))
    yield from _line("written by", writer)
    yield from _line(
        "sample",
        f"{row['sample']} of {config['samples']}, seed {row.get('seed', config['seed'])}, "
        f"temperature {config['temperature']:g}, top-p {config['top_p']:g}",
    )
    yield from _line(
        "chosen for",
        f"reward {row['reward']:.4f}, the best of {row['candidates']} finished answers (mean {row['mean_reward']:.4f})",
    )
    yield from _line("reward by", sources.get("reward", "a reward model whose folder is gone"))
    yield from _line("grade", f"{row['score']:.4f} by the grader's known rule, which did not decide")


def _preference(row: Mapping[str, Any], made: Made, sources: Mapping[str, Made]) -> Iterator[str]:
    people = row.get("annotators") or {}
    for name in ("edited", "chosen", "rejected"):
        if row.get(name):
            writer = str(row.get("models", {}).get(name, "unknown"))
            source = sources.get(f"models.{writer}")
            by_whom = f"annotator {writer}" if writer in people else f"rule: {writer}"
            yield from _line(name, _last_text(row[name]))
            yield from _line("", f"by {source if source is not None else by_whom}")
    yield from _line("grade", row["grade"])
    if people:
        said = [f"{who}: {verdict['grade'] or 'tie'}" for who, verdict in people.items()]
        yield from _line("graded by", "people: " + ", ".join(said))
    elif made.manifest["stage"] != "preferences":
        yield from _line("graded by", f"whoever made the rows that {made} took over")
    else:
        scores = ", ".join(f"{name} {score:.4f}" for name, score in row.get("scores", {}).items())
        yield from _line("graded by", f"the simulated grader of {made}: {scores}")


def _prompt(row: Mapping[str, Any], sources: Mapping[str, Made]) -> Iterator[str]:
    """The prompt among the inputs, the entry that it asks about, the page that the entry stands on."""
    name = row.get("prompt_id")
    entry, origin = row.get("entry_id"), None
    if name:
        for made in sources.values():
            found = _find((file for file in (made.folder / prompts for prompts in _PROMPTS) if file.exists()), str(name))
            if found is not None:
                file, prompt = found
                yield from _line("prompt", f"{name}  in {file.name} of {made}")
                yield from _line("", _last_text(prompt["messages"]))
                yield from _line("reference", prompt.get("reference", ""))
                entry, origin = prompt.get("entry_id"), made
                break
        else:
            yield from _line("prompt", f"{name}: not among the inputs that are still there")
    if entry:
        upstream = {**sources, **(origin.sources() if origin else {})}
        yield from _entry(str(entry), upstream)


def _entry(name: str, sources: Mapping[str, Made]) -> Iterator[str]:
    made = next((made for made in sources.values() if (made.folder / "entries.parquet").exists()), None)
    found = _entry_row(made.folder / "entries.parquet", name) if made else None
    if made is None or found is None:
        yield from _line("entry", f"{name}: not among the inputs that are still there")
        return
    yield from _line("entry", f"{name}  {found['signature']}  in entries.parquet of {made}")
    document = str(found["document_id"])
    if (made.folder / "ledger").exists():  # the first line of `herd why` is the document's id and address
        document = f"{explain(document, made.folder)[0]}   (herd why {document} tells what curation did to it)"
    yield from _line("page", document)


def _entry_row(path: Path, name: str) -> dict[str, Any] | None:
    import pyarrow.compute as pc

    for batch in open_table(path).iter_batches():
        rows = batch.filter(pc.equal(batch.column("id"), name)).to_pylist()
        if rows:
            return dict(rows[0])
    return None


def _earlier(row: Mapping[str, Any], sources: Mapping[str, Made]) -> tuple[Made, Path, dict[str, Any]] | None:
    """The row of the same id among the inputs, prompts left out; first of all in the one that the row says it came from."""
    label = _qualifier(row)
    for made in sorted(sources.values(), key=lambda made: made is not sources.get(f"dialogs.{label}")):
        found = _find((file for file in sorted(made.folder.glob("*.jsonl")) if file.name not in _PROMPTS), str(row["id"]))
        if found is not None:
            return made, *found
    return None


def _qualifier(row: Mapping[str, Any]) -> str | None:
    """What tells a row from others of its id: the source that `herd prune` noted, or the model that `herd best` asked."""
    notes = row.get(NOTES)
    found = notes.get("source") if isinstance(notes, Mapping) else row.get("model")
    return found if isinstance(found, str) else None


def _named(path: Path, files: Iterable[Path], name: str) -> tuple[Path, dict[str, Any]] | None:
    """The row whose id, or qualifier/id, is ``name``; UserError when rows of several qualifiers have the id."""
    found: dict[str, tuple[Path, dict[str, Any]]] = {}
    for file in files:
        for _, row in read_jsonl(file):
            qualified = f"{_qualifier(row)}/{row.get('id')}"
            if qualified == name:
                return file, row
            if row.get("id") == name and (_qualifier(row) is not None or not found):
                found.setdefault(qualified, (file, row))
    told = [qualified for qualified, (_, row) in found.items() if _qualifier(row) is not None]
    if len(told) > 1:
        raise UserError(f"'{path}': {len(told)} rows have the id '{name}': give one of {', '.join(told[:5])}.")
    return next(iter(found.values()), None)


def _find(files: Iterable[Path], row_id: str) -> tuple[Path, dict[str, Any]] | None:
    return next(((file, row) for file in files for _, row in read_jsonl(file) if row.get("id") == row_id), None)


def _last_text(messages: Any, most: int = 160) -> str:
    """Text of the last message on one line, or the text itself."""
    text = messages if isinstance(messages, str) else (messages or [{}])[-1].get("content") or ""
    flat = " ".join(text.split())
    return repr(flat if len(flat) <= most else flat[: most - 3] + "...")


def _line(name: str, value: object) -> Iterator[str]:
    yield f"  {name:<12}{value}"
