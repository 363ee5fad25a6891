"""The dialect that a model was trained in. It travels with the model, in the configuration that its stage's manifest records."""

from __future__ import annotations

from collections.abc import Mapping

from herd.config.errors import UserError
from herd.runs.stage import Artifact

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


def of_group(name: str, models: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """The models of a group by the names of their inputs, `name.LABEL`."""
    return {f"{name}.{label}": artifact for label, artifact in models.items()}
