"""What made a file: the stage, its configuration's address, the commit, and the same for each input, down to the source."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from herd.config.errors import UserError
from herd.runs.atomic import sha256_file
from herd.runs.manifest import MANIFEST, read_manifest


def stage_folder_of(path: Path) -> Path:
    """The finished stage folder that holds ``path``; UserError when none does."""
    resolved = Path(path).resolve()
    if not resolved.exists():
        raise UserError(f"'{path}' does not exist.")
    for folder in (resolved, *resolved.parents):
        if (folder / MANIFEST).is_file():
            return folder
    raise UserError(f"'{path}' lies in no finished stage's folder: nothing is known about its making.")


def lineage(path: Path) -> Iterator[str]:
    """Lines of a tree: the stage that made ``path``, then its inputs, recursively; a repeated stage is named once in full.

    A file whose content no longer matches the digest in its manifest is reported as changed.
    """
    folder = stage_folder_of(path)
    manifest = read_manifest(folder)
    resolved = Path(path).resolve()
    if resolved.is_file() and resolved.name != MANIFEST:
        yield digest_line(resolved, folder, manifest)
    yield from _tree(folder, manifest, "", "", set())


def digest_line(file: Path, folder: Path, manifest: Mapping[str, Any]) -> str:
    """Whether a file of a stage's folder is still what the stage wrote."""
    name = file.relative_to(folder).as_posix()
    known = manifest["outputs"].get(name)
    if known is None:
        return f"{name}: not among the outputs of this stage"
    same = sha256_file(file) == known["sha256"]
    return f"{name}: sha256 {known['sha256'][:16]} {'verified' if same else 'CHANGED since it was made'}"


def inputs_of(folder: Path, manifest: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    """(input, or group.label; the folder it was in), whether that is still there or not."""
    for name, value in manifest["inputs"].items():
        for label, relative in value.items() if isinstance(value, dict) else [("", value)]:
            yield f"{name}.{label}" if label else name, (folder.parent / relative).resolve()


def _tree(folder: Path, manifest: dict[str, Any], label: str, indent: str, seen: set[str]) -> Iterator[str]:
    head = f"{label + ': ' if label else ''}{manifest['stage']} {manifest['address'][:16]}"
    if manifest["address"] in seen:
        yield f"{indent}{head} (above)"
        return
    seen.add(manifest["address"])
    cost = manifest["cost"]
    yield (
        f"{indent}{head}  {manifest['finished']}  commit {manifest['commit'] or 'unknown'}  "
        f"seed {manifest['seed']}  {cost['seconds']:.1f} s"
    )
    for title, source in inputs_of(folder, manifest):
        if (source / MANIFEST).exists():
            yield from _tree(source, read_manifest(source), title, indent + "  ", seen)
        else:
            yield f"{indent}  {title}: '{source.name}' is gone"
