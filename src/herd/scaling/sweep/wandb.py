"""A finished sweep on Weights & Biases: one run per cell, and one that sums up, all in one group.

Cells carry their training curve, budget, parameters and tokens, so that a dashboard can group by budget and plot loss against
tokens; failed and diverged ones are there too, with their status. The summary run holds the run table, the laws and the figures.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from herd.config.errors import UserError, nearest
from herd.scaling.records.record import Record

MODES = ("disabled", "offline", "online")


@dataclass(frozen=True)
class SweepWandbConfig:
    """Weights & Biases. Offline runs lie below the stage's folder and touch no network; `wandb sync FOLDER` sends them later."""

    mode: str = "disabled"  # disabled | offline | online (needs a key)
    project: str = "herd"  # project on the server
    group: str = "sweep"  # of the cells and the summary: the sweep's name

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"Unknown wandb.mode '{self.mode}'.{nearest(self.mode, MODES)} Choices: {', '.join(MODES)}.")


def log_sweep(
    config: SweepWandbConfig,
    folder: Path,
    records: Sequence[Record],
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
    laws: Mapping[str, Any],
    figures: Sequence[Path],
) -> None:
    """Log the cells and a summary; nothing happens when W&B is disabled.

    Args:
        config: where to.
        folder: below which offline files lie (``wandb/``).
        records: the run table.
        curves: cell -> rows of its metrics.jsonl (with ``step``), where there are any.
        laws: plain numbers for the summary run.
        figures: PNG files.
    """
    if config.mode == "disabled":
        return
    try:
        import wandb
    except ImportError as error:
        raise UserError("wandb.mode needs the package wandb: `pip install wandb`, or wandb.mode=disabled.") from error
    settings = wandb.Settings(silent=True, console="off", disable_git=True, save_code=False, x_disable_stats=True)

    def start(name: str, job_type: str, values: dict[str, Any], tags: list[str]) -> Any:
        return wandb.init(
            project=config.project, group=config.group, job_type=job_type, name=name, tags=tags, config=values,
            dir=str(folder), mode=config.mode, reinit="finish_previous", settings=settings,  # type: ignore[arg-type]
        )  # fmt: skip

    try:
        for record in records:
            values = {key: value for key, value in asdict(record).items() if _plain(value) and key not in ("loss", "tasks")}
            run = start(record.cell, "cell", values, [f"budget {record.budget:.3g}", record.status])
            for row in curves.get(record.cell, []):
                # Committed at once: a row that waits for the next step would overwrite the summary below.
                run.log({key: value for key, value in row.items() if key != "step"}, step=int(row["step"]), commit=True)
            scores = {f"task/{name}": score for name, score in record.tasks.items()}
            run.summary.update(({"loss": record.loss} if math.isfinite(record.loss) else {}) | scores)
            run.finish(exit_code=0 if record.status == "ok" else 1)
        run = start("summary", "summary", {"cells": len(records)}, ["summary"])
        columns: list[str | int] = [key for key in asdict(records[0]) if any(_plain(getattr(record, key)) for record in records)]
        rows = [[value if _plain(value := getattr(record, str(key))) else None for key in columns] for record in records]
        run.log({"cells": wandb.Table(columns=columns, data=rows)} | {path.stem: wandb.Image(str(path)) for path in figures})
        run.summary.update({key: value for key, value in laws.items() if value is not None})
        run.finish()
    finally:
        wandb.teardown()  # `finish` may return before the offline file is whole; this waits for its writer


def _plain(value: Any) -> bool:
    """Whether a value says something that a dashboard can show."""
    return isinstance(value, str | int | float) and value != "" and not (isinstance(value, float) and math.isnan(value))
