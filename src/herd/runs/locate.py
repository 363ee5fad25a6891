"""Finds a model, its tokenizer and its dialect from what a person calls it: a folder, a stage, or a run by name."""

from collections.abc import Iterator
from pathlib import Path

from herd.config.errors import UserError, nearest
from herd.runs.lineage import stage_folder_of
from herd.runs.manifest import MANIFEST, read_manifest

_MODEL, _TOKENIZER = "model", "tokenizer"


def find_model(given: str, root: str | Path = "runs") -> Path:
    """The folder with the model's ``config.json``.

    Args:
        given: that folder, the folder of a stage that leaves a model, or NAME or NAME/NODE of a run under ``root``.

    Raises:
        UserError: there is none, or the run has several (all are named, the newest first).
    """
    for path in (Path(given), Path(root) / given):
        for folder in (path, path / _MODEL):
            if (folder / "config.json").is_file():
                return folder
        models = _models_below(path)
        if len(models) == 1:
            return models[0]
        if models:
            names = ", ".join(f"{given}/{model.parent.relative_to(path)}" for model in models)
            raise UserError(f"'{given}' has {len(models)} models, the newest first: give one of {names}.")
    if Path(given).exists():
        raise UserError(f"'{given}' holds no model: give the folder of a stage that trains, or of its model.")
    runs = [path.name for path in Path(root).glob("*") if path.is_dir() and path.name != "store"]
    raise UserError(f"No model at '{given}', and no run of this name under '{root}'.{nearest(given, runs)}")


def find_tokenizer(model: Path) -> Path:
    """The folder with the ``tokenizer.json`` that the model was trained with, by what its stage and their inputs left.

    Raises:
        UserError: the model lies in no stage's folder, or the inputs are gone.
    """
    beside = model.parent / _TOKENIZER
    if _is_tokenizer(beside):
        return beside
    for stage in _stages_behind(stage_folder_of(model)) if _in_stage(model) else ():
        if _is_tokenizer(stage / _TOKENIZER):
            return stage / _TOKENIZER
    raise UserError(
        f"Which tokenizer goes with {model} is not known here: give tokenizer=FOLDER, e.g. runs/laptop/tokenize/tokenizer."
    )


def find_dialect(model: Path) -> str | None:
    """The dialect that the stage which made a model wrote dialogs in; None where no such stage is known."""
    if not _in_stage(model):
        return None
    dialect = read_manifest(stage_folder_of(model)).get("config", {}).get("dialect")
    return dialect if isinstance(dialect, str) else None


def _models_below(run: Path) -> list[Path]:
    """Models of a run's nodes (``node/model`` or ``round/node/model``), the newest first."""
    found = [path.parent for pattern in ("*/model/config.json", "*/*/model/config.json") for path in run.glob(pattern)]
    finished = {model: read_manifest(model.parent)["finished"] for model in found if (model.parent / MANIFEST).is_file()}
    return sorted(finished, key=lambda model: (finished[model], str(model)), reverse=True)


def _in_stage(model: Path) -> bool:
    resolved = model.resolve()
    return any((folder / MANIFEST).is_file() for folder in (resolved, *resolved.parents))


def _stages_behind(stage: Path) -> Iterator[Path]:
    """A stage's folder and those of all its inputs, nearest first."""
    waiting, seen = [stage], {stage}
    while waiting:
        folder = waiting.pop(0)
        yield folder
        for value in read_manifest(folder)["inputs"].values():
            for relative in value.values() if isinstance(value, dict) else [value]:
                source = (folder.parent / relative).resolve()
                if source not in seen and (source / MANIFEST).is_file():
                    seen.add(source)
                    waiting.append(source)


def _is_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer.json").is_file()
