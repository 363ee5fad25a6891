"""`herd why ID FOLDER` for a finished `herd prune`: what happened to a dialog, and by which rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from herd.alignment.quality.dialogs import DROPPED, NOTES
from herd.config.errors import UserError
from herd.dialog.rows import read_jsonl
from herd.runs.stage import Artifact

_SHOWN = 20  # dialogs that are listed


def explain(name: str, folder: Path) -> list[str]:
    """Lines for the reader about the dialogs whose id, or source/id, is or begins with `name`.

    Raises:
        UserError: there is none, or too many.
    """
    if not name.strip():
        raise UserError("The name is empty: give an id, or its beginning.")
    artifact = Artifact.open(folder)
    if artifact.manifest["stage"] != "prune":
        raise UserError(f"'{folder}' was made by `herd {artifact.manifest['stage']}`: give the folder of a `herd prune`.")
    rows = [row for file in ("dialogs.jsonl", "dropped.jsonl") for _, row in read_jsonl(artifact / file)]
    names = {id(row): (row["id"], f"{row[NOTES]['source']}/{row['id']}") for row in rows}
    found = [row for row in rows if name in names[id(row)]] or [
        row for row in rows if any(known.startswith(name) for known in names[id(row)])
    ]
    if not found:
        raise UserError(f"No dialog of '{folder}' has an id that is or begins with '{name}'.")
    if len(found) > _SHOWN:
        raise UserError(f"{len(found)} dialogs have an id that begins with '{name}': give more of it, e.g. '{found[0]['id']}'.")
    fates = {names[id(row)][1]: DROPPED in row for row in rows}
    return [line for row in found for line in _lines(row, fates)]


def _lines(row: dict[str, Any], fates: dict[str, bool]) -> list[str]:
    notes, dropped = row[NOTES], row.get(DROPPED)
    lines = [f"{notes['source']}/{row['id']}"]
    if notes.get("modified"):
        lines.append(f"  changed  {', '.join(notes['modified'])}")
    lines.append(f"  dropped  {dropped['rule']}: {dropped['why']}" if dropped else "  kept")
    twin = (dropped or {}).get("duplicate_of")
    if twin:
        lines.append(f"           {twin} was {'dropped later' if fates[twin] else 'kept'}")
    known = {key: value for key, value in notes.items() if key not in ("source", "modified")}
    lines += [f"    {key:<18} {_value(value)}" for key, value in known.items()]
    return lines


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
