"""A sweep on Weights & Biases: one run per cell, one that follows the sweep, and one that sums up, all in one group.

A cell is logged when it has finished, with its training curve, budget, parameters and tokens, so that a dashboard can group by
budget and plot loss against tokens; failed and diverged ones are there too, with their status. The run ``progress`` has a row for
each finished cell (how many, what they cost, the law so far) and each wave (the goal with its interval), and the table of cells.
The run ``summary``, of the fit, holds the run table, the laws and the figures.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from herd.config.errors import UserError, nearest
from herd.runs.atomic import write_text
from herd.scaling.records.record import STATUSES, Record

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


class SweepLog:
    """The runs of one sweep, open while they are written; everything is a no-op when W&B is disabled.

    Args:
        config: where to.
        folder: below which offline files lie (``wandb/``).
        follow: file that remembers which cells were logged, so that a sweep started again logs each once; with it there is
            the run ``progress`` too. None = neither.
    """

    def __init__(self, config: SweepWandbConfig, folder: Path, follow: Path | None = None) -> None:
        self.config, self.folder, self.follow = config, folder, follow
        self._known: dict[str, Record] = {}
        self._logged: set[str] = set()
        self._progress: Any = None

    @property
    def on(self) -> bool:
        """Whether anything is written."""
        return self.config.mode != "disabled"

    def __enter__(self) -> "SweepLog":
        if not self.on:
            return self
        try:
            import wandb
        except ImportError as error:
            raise UserError("wandb.mode needs the package wandb: `pip install wandb`, or wandb.mode=disabled.") from error
        self._wandb = wandb
        if self.follow is not None:  # before the first cell trains: a missing key ends the sweep here
            if self.follow.exists():
                self._logged = set(self.follow.read_text(encoding="utf-8").split())
            self._progress = self._start("progress", "progress", {}, ["progress"])
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self.on:
            return
        if self._progress is not None:
            self._progress.finish(exit_code=0 if kind is None else 1)
        self._wandb.teardown()  # `finish` may return before the offline file is whole; this waits for its writer

    def cell(self, record: Record, curve: Sequence[Mapping[str, Any]]) -> None:
        """One finished cell with the rows of its metrics.jsonl; a second call for the same cell does nothing."""
        if not self.on or record.cell in self._logged:
            return
        values = {key: value for key, value in asdict(record).items() if _plain(value) and key not in ("loss", "tasks")}
        run = self._start(record.cell, "cell", values, [f"budget {record.budget:.3g}", record.status])
        for row in curve:
            # Committed at once: a row that waits for the next step would overwrite the summary below.
            run.log({key: value for key, value in row.items() if key != "step"}, step=int(row["step"]), commit=True)
        scores = {f"task/{name}": score for name, score in record.tasks.items()}
        run.summary.update(({"loss": record.loss} if math.isfinite(record.loss) else {}) | scores)
        run.finish(exit_code=0 if record.status == "ok" else 1)
        self._logged.add(record.cell)
        if self.follow is not None:
            write_text(self.follow, "\n".join(sorted(self._logged)))

    def knows(self, cell: str) -> bool:
        """Whether a row of the run ``progress`` has counted the cell."""
        return cell in self._known

    def progress(
        self, records: Sequence[Record], numbers: Callable[[Sequence[Record]], Mapping[str, Any]], table: bool = False
    ) -> None:
        """A row of the run that follows the sweep: counts, cost, lowest loss, and ``numbers`` of all records told so far.

        Args:
            records: those that are new; known ones may be among them.
            numbers: all records -> what else there is to say, such as the law so far.
            table: with the table of all cells so far.
        """
        if self._progress is None:
            return
        self._known |= {record.cell: record for record in records}
        known = list(self._known.values())
        if not known:
            return
        row: dict[str, Any] = {f"cells/{status}": sum(record.status == status for record in known) for status in STATUSES}
        row |= {"cells/finished": len(known), "flops": sum(record.flops for record in known)}
        good = [record.loss for record in known if record.status == "ok"]
        row |= {"best_loss": min(good)} if good else {}
        row |= {key: value for key, value in numbers(known).items() if value is not None}
        if table:
            row["cells"] = self._table(known)
        self._progress.log(row, commit=True)

    def summary(self, records: Sequence[Record], laws: Mapping[str, Any], figures: Sequence[Path]) -> None:
        """The run table, the laws and the figures."""
        if not self.on:
            return
        run = self._start("summary", "summary", {"cells": len(records)}, ["summary"])
        run.log({"cells": self._table(records)} | {path.stem: self._wandb.Image(str(path)) for path in figures})
        run.summary.update({key: value for key, value in laws.items() if value is not None})
        run.finish()

    def _start(self, name: str, job_type: str, values: dict[str, Any], tags: list[str]) -> Any:
        settings = self._wandb.Settings(silent=True, console="off", disable_git=True, save_code=False, x_disable_stats=True)
        return self._wandb.init(
            project=self.config.project, group=self.config.group, job_type=job_type, name=name, tags=tags, config=values,
            dir=str(self.folder), mode=self.config.mode, reinit="create_new", settings=settings,  # type: ignore[arg-type]
        )  # fmt: skip

    def _table(self, records: Sequence[Record]) -> Any:
        columns: list[str | int] = [key for key in asdict(records[0]) if any(_plain(getattr(r, key)) for r in records)]
        rows = [[value if _plain(value := getattr(record, str(key))) else None for key in columns] for record in records]
        return self._wandb.Table(columns=columns, data=rows)


def log_sweep(
    config: SweepWandbConfig,
    folder: Path,
    records: Sequence[Record],
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
    laws: Mapping[str, Any],
    figures: Sequence[Path],
    cells: bool = True,
) -> None:
    """Log a fitted sweep: its cells and a summary.

    Args:
        config: where to; nothing happens when W&B is disabled.
        folder: below which offline files lie (``wandb/``).
        records: the run table.
        curves: cell -> rows of its metrics.jsonl (with ``step``), where there are any.
        laws: plain numbers for the summary run.
        figures: PNG files.
        cells: False where the sweep logged them itself while it ran.
    """
    with SweepLog(config, folder) as log:
        for record in records if cells else ():
            log.cell(record, curves.get(record.cell, []))
        log.summary(records, laws, figures)


def _plain(value: Any) -> bool:
    """Whether a value says something that a dashboard can show."""
    return isinstance(value, str | int | float) and value != "" and not (isinstance(value, float) and math.isnan(value))
