"""manifest.json: what made a stage's folder, what it cost, and the digest of every file in it."""

import datetime
import importlib.metadata
import json
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from herd.config.errors import UserError
from herd.runs.atomic import sha256_file

MANIFEST = "manifest.json"
_PACKAGES = ("torch", "pytorch-lightning", "numpy", "scipy", "scikit-learn", "tokenizers", "hydra-core", "omegaconf")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished stage folder.

    Raises:
        UserError: the folder is missing, unfinished, or its manifest is not JSON.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise UserError(
            f"'{folder}' is no finished stage (it has no {MANIFEST}): run the stage that makes it, or give another path."
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' is damaged ({error}): delete its folder and run the stage again.") from error
    assert isinstance(manifest, dict)
    return manifest


def hash_outputs(folder: Path) -> dict[str, dict[str, Any]]:
    """Relative path -> {sha256, bytes} of every file below ``folder``, hidden ones left out, in sorted order."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    visible = [p for p in files if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    return {
        p.relative_to(folder).as_posix(): {"sha256": sha256_file(p), "bytes": p.stat().st_size}
        for p in visible
        if p.name != MANIFEST
    }


@cache
def versions() -> dict[str, str]:
    """Python and the libraries that decide a result's bits."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in (*_PACKAGES, "herd"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@cache
def commit() -> str | None:
    """The checkout's commit, with ``+changes`` when the tree differs from it; None outside a checkout."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def now() -> str:
    """UTC, ISO 8601, whole seconds."""
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0).isoformat()
