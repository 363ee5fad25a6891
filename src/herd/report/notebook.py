"""Executes an analysis notebook on a run and hands over its figures, so that the page shows what the notebook shows.

Notebooks are jupytext scripts in ``notebooks/``; they read the run's folder from the environment variable
``HERD_RUN_FOLDER``. The folder given here holds a link to each finished stage under its label, as ``runs/<name>`` does.
"""

import base64
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from herd.config.errors import UserError
from herd.config.loader import data_root
from herd.runs.stage import Artifact

RUN_FOLDER = "HERD_RUN_FOLDER"


@dataclass(frozen=True)
class NotebookFigure:
    """One PNG that a cell displayed."""

    name: str  # from the heading before the cell: isoflop_curves
    image: bytes
    title: str  # that heading
    caption: str  # the text under it


def link_stages(stages: Mapping[str, Artifact], folder: Path) -> Path:
    """Make ``folder/<label>`` a link to each stage; returns ``folder``."""
    for label, artifact in stages.items():
        link = folder / label
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(artifact.path, target_is_directory=True)
    return folder


def execute_notebook(name: str, run_folder: Path, timeout: float = 120) -> list[NotebookFigure]:
    """Run ``notebooks/<name>.py`` in a kernel of its own and collect its figures in order.

    Raises:
        UserError: the notebook is missing, or one of its cells fails (with the cell's own error).
    """
    import jupytext
    import nbclient
    from jupyter_client.manager import AsyncKernelManager

    path = data_root() / "notebooks" / f"{name}.py"
    if not path.is_file():
        raise UserError(f"No notebook '{path}': reinstall herd, or set report.notebook=null.")
    notebook = jupytext.read(path)
    environment = os.environ | {RUN_FOLDER: str(run_folder), "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    # Sockets are files of a private folder: no port is opened. Their paths must be short (about 100 characters).
    with tempfile.TemporaryDirectory(prefix="herd-") as sockets:
        kernel = AsyncKernelManager(kernel_name="python3", transport="ipc", connection_file=str(Path(sockets) / "kernel.json"))
        client = nbclient.NotebookClient(notebook, km=kernel, timeout=timeout, resources={"metadata": {"path": str(run_folder)}})
        client.owns_km = True  # or nobody would shut the kernel down
        _execute(client, environment, name, timeout)
    return figures_of(notebook)


def _execute(client: Any, environment: Mapping[str, str], name: str, timeout: float) -> None:
    from nbclient.exceptions import CellExecutionError, CellTimeoutError

    try:
        client.execute(env=dict(environment))
    except CellExecutionError as error:
        raise UserError(f"notebooks/{name}.py failed on this run: {error.ename}: {error.evalue}") from error
    except CellTimeoutError as error:
        raise UserError(f"notebooks/{name}.py took longer than {timeout:.0f} s on this run.") from error


def figures_of(notebook: Any) -> list[NotebookFigure]:
    """Every PNG among the outputs of an executed notebook, with the last heading and its text before it."""
    figures: list[NotebookFigure] = []
    title = caption = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and (heading := re.match(r"#+\s+(.+)", cell.source.strip())):
            title = heading.group(1).strip()
            caption = " ".join(cell.source.strip()[heading.end() :].split())
        for output in cell.get("outputs", []):
            image = output.get("data", {}).get("image/png")
            if image:
                slug = re.sub(r"\W+", "_", title.lower()).strip("_") or "figure"
                names = [figure.name for figure in figures]
                name = slug if slug not in names else f"{slug}_{len(figures) + 1}"
                figures.append(NotebookFigure(name, base64.b64decode(image), title, caption))
    return figures
