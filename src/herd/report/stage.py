"""`herd report`: the finished stages of a run to a page, its figures and summary.json."""

import base64
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import jinja2

from herd.config.errors import UserError
from herd.report.blocks import Section
from herd.report.formats import size
from herd.report.notebook import NotebookFigure, execute_notebook, link_stages
from herd.report.run_data import RunData
from herd.report.sections import all_sections
from herd.report.summary import summarise
from herd.runs.atomic import write_bytes, write_json, write_text
from herd.runs.stage import Artifact, Inputs, Stage, StageRun


@dataclass(frozen=True)
class ReportConfig:
    """Schema of conf/report.yaml."""

    seed: int  # nothing here is drawn; every stage has one
    title: str  # heading of the page
    notebook: Optional[str]  # noqa: UP045 (OmegaConf) notebooks/<name>.py executed for the scaling figures; null: none
    chat_samples: int  # prompts with answers shown; 0: none
    caveats: list[str] = field(
        default_factory=list
    )  # what the run's author knows and no stage can tell; printed with post-training

    def __post_init__(self) -> None:
        if self.chat_samples < 0:
            raise UserError(f"report.chat_samples={self.chat_samples} must be 0 or more.")


def run(config: ReportConfig, inputs: Inputs, stage_run: StageRun) -> dict[str, Any]:
    """Write ``index.html`` (self-contained), ``figures/*.png`` and ``summary.json``."""
    stages = inputs.group("stages")
    if not stages:
        raise UserError(
            "report: this run has no finished stages: name one that has (run.name=laptop), or give the folder of a run "
            "(inputs.stages=FOLDER) or of single stages (inputs.stages.LABEL=FOLDER)."
        )
    data = RunData(stages, config.caveats)
    figures: list[NotebookFigure] = []
    if config.notebook is not None and has_study(data):
        figures = execute_notebook(config.notebook, link_stages(stages, stage_run.scratch / "run"))
    sections = all_sections(data, figures, config.chat_samples)
    images = [block.content for section in sections for block in section.blocks if block.kind == "figure"]
    for image in images:
        write_bytes(stage_run.folder / "figures" / f"{image['name']}.png", image["image"])
    write_text(stage_run.folder / "index.html", render(config.title, header(stages), sections))
    summary = summarise(data)
    write_json(stage_run.folder / "summary.json", summary)
    return {"stages": len(stages), "figures": len(images), "peak_memory_bytes": summary["peak_memory_bytes"]}


def show_page(report: Artifact) -> None:
    """Where to look."""
    metrics = report.metrics
    print(f"report: {metrics['stages']} stages, {metrics['figures']} figures; open {report.path / 'index.html'}", file=sys.stderr)


def has_study(data: RunData) -> bool:
    """Whether the run holds what the scaling notebook reads: a fit with the table that it fitted."""
    fit = data.find("scaling-fit")
    return fit is not None and (fit.path / "table.csv").is_file()


def render(title: str, meta: Sequence[tuple[str, str]], sections: Sequence[Section]) -> str:
    """The page: every text escaped, figures inline, nothing loaded from elsewhere."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["base64"] = lambda image: base64.b64encode(image).decode("ascii")
    return environment.get_template("page.html.j2").render(title=title, meta=meta, sections=sections)


def header(stages: dict[str, Artifact]) -> list[tuple[str, str]]:
    """Date, commit, machine and configuration, as the last stage's manifest and this machine have them."""
    last = max((artifact.manifest for artifact in stages.values()), key=lambda m: str(m["finished"]))
    commits = {str(a.manifest["commit"]) for a in stages.values() if a.manifest.get("commit")}
    versions = last.get("versions", {})
    found = [
        ("date", str(last["finished"]).replace("T", " ").replace("+00:00", " UTC")),
        ("commit", ", ".join(sorted(commits)) if 0 < len(commits) < 3 else f"{len(commits)} different" if commits else ""),
        ("machine", machine()),
        ("Python", f"{versions.get('python', '')}, torch {versions.get('torch', '')}"),
        ("seed", ", ".join(sorted({str(a.manifest.get("seed")) for a in stages.values()}))),
    ]
    return [(name, value) for name, value in found if value]


def machine() -> str:
    """Processor, usable cores and memory of this machine."""
    import psutil

    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        name = models[0] if models else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores, {size(psutil.virtual_memory().total)}"


STAGE = Stage(
    name="report",
    version=1,
    config=ReportConfig,
    run=run,
    summary="plots, page and summary of a run",
    groups=("stages",),
    show=show_page,
)
