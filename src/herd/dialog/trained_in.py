"""The dialect and the tokenizer that a model was trained in. Both travel with it, in the manifests of the stages that made it."""

from __future__ import annotations

from collections.abc import Mapping

from herd.config.errors import UserError
from herd.runs.manifest import MANIFEST
from herd.runs.stage import Artifact

_TOKENIZER = "tokenizer/tokenizer.json"
_TRAINS = ("sft", "dpo", "reward", "average")  # commands whose models have read rows in the dialect of their configuration


def trained_in(artifact: Artifact) -> str | None:
    """The dialect of a model's training rows; None for a model that has seen no dialogs, or of which it is not known."""
    manifest = artifact.manifest
    dialect = manifest.get("config", {}).get("dialect") if manifest["stage"] in _TRAINS else None
    return None if dialect is None else str(dialect)


def require_dialect(command: str, dialect: str, models: Mapping[str, Artifact | None]) -> None:
    """UserError when one of ``models`` (name of the input -> model) was trained in another dialect than rows are rendered in.

    Headers and terminators would be where the model never saw any, and nothing else would tell: numbers come out all the same.
    """
    for name, artifact in models.items():
        known = None if artifact is None else trained_in(artifact)
        if artifact is not None and known not in (None, dialect):
            raise UserError(
                f"{command}: inputs.{name} was trained in dialect {known} (herd {artifact.manifest['stage']}), and rows are "
                f"rendered in {dialect} here: set dialect={known}, or give a model trained in {dialect}."
            )


def tokenizer_of(artifact: Artifact) -> str | None:
    """SHA-256 of a stage's tokenizer: its own, else that of the tokens or models it was made from; None where it is not known."""
    own = artifact.manifest.get("outputs", {}).get(_TOKENIZER)
    if own is not None:
        return str(own["sha256"])
    made_from = artifact.manifest.get("inputs", {})
    for given in (made_from.get("tokens"), *made_from.get("models", {}).values()):
        folder = artifact.path.parent / given if given else None
        if folder is not None and (folder / MANIFEST).exists():
            return tokenizer_of(Artifact.open(folder))
    return None


def require_tokenizer(command: str, tokens: Artifact | None, models: Mapping[str, Artifact | None]) -> None:
    """UserError when one of ``models`` (name of the input -> model) was trained with another tokenizer than that of `tokens`.

    Its ids would stand for other text, and nothing else would tell. Another `herd tokenize` with the same tokenizer is no other.
    """
    here = None if tokens is None else tokenizer_of(tokens)
    for name, artifact in models.items():
        known = None if artifact is None else tokenizer_of(artifact)
        if artifact is not None and None not in (here, known) and known != here:
            raise UserError(
                f"{command}: inputs.{name} ({artifact.path.name}) was trained with another tokenizer than inputs.tokens has: its "
                "ids stand for other text. Give the `herd tokenize` folder that it was trained with, or a model of this one."
            )


def of_group(name: str, models: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """The models of a group by the names of their inputs, `name.LABEL`."""
    return {f"{name}.{label}": artifact for label, artifact in models.items()}
