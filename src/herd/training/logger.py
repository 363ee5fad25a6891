"""Where metrics go: metrics.jsonl always, Weights & Biases when asked, under the same names."""

import netrc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from herd.config.errors import UserError
from herd.runs.metrics import MetricsWriter, read_metrics

MODES = ("auto", "offline", "online", "disabled")


@dataclass(frozen=True)
class WandbConfig:
    """Weights & Biases. Offline, it writes below the stage's folder and touches no network; `wandb sync FOLDER` sends
    it later.
    """

    mode: str = "disabled"  # disabled | offline | online | auto (online when an API key is at hand, else offline)
    project: str = "herd"  # project on the server
    group: str = ""  # runs shown together; "" = none
    tags: list[str] = field(default_factory=list)  # labels for filtering

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"Unknown trainer.wandb.mode '{self.mode}'. Choices: {', '.join(MODES)}.")


class MetricsSink:
    """Writes each row to metrics.jsonl and to the W&B run, if there is one.

    Rows for which the disk has no room wait in memory, and in the checkpoints, until it has; one line says so.
    """

    def __init__(self, writer: MetricsWriter, wandb_run: Any = None) -> None:
        self.writer, self.wandb_run = writer, wandb_run
        self.waiting: list[dict[str, Any]] = []  # rows not yet in the file, in order
        self._told = False

    def write(self, row: dict[str, Any]) -> None:
        """Log a row; ``row["step"]`` is the number of finished optimizer steps."""
        self.waiting.append(row)
        error = self.flush()
        if error is not None and not self._told:
            print(
                f"Metrics could not be written to '{self.writer.path}' ({error.strerror}): training goes on, and they wait in "
                "memory for room on the disk.",
                file=sys.stderr,
            )
        self._told = error is not None
        if self.wandb_run is not None:
            self.wandb_run.log({key: value for key, value in row.items() if key != "step"}, step=row["step"])

    def flush(self) -> OSError | None:
        """Write what waits; the error that keeps some of it waiting."""
        try:
            while self.waiting:
                self.writer.write(self.waiting[0])
                del self.waiting[0]
        except OSError as error:
            return error
        return None

    def take_up(self, rows: list[dict[str, Any]]) -> None:
        """Let the rows wait that waited when a checkpoint was made, unless they have reached the file since."""
        written = {row["step"] for row in read_metrics(self.writer.path)} if self.writer.path.exists() else set()
        self.waiting = [row for row in rows if row["step"] not in written]


@contextmanager
def open_sink(writer: MetricsWriter, config: WandbConfig, folder: Path, name: str, settings: Any) -> Iterator[MetricsSink]:
    """A sink for one fit; the W&B run is finished on the way out, so that the next job in this process gets its own.

    Args:
        folder: the stage's folder, below which the offline files lie (``wandb/``).
        name: the run's name on the server.
        settings: configuration to show beside the run, plain values.
    """
    if config.mode == "disabled":
        sink = MetricsSink(writer)
        yield sink
        _end(sink)
        return
    try:
        import wandb
    except ImportError as error:
        raise UserError("trainer.wandb.mode needs the package wandb: `pip install wandb`, or use logger=jsonl.") from error
    online = config.mode == "online" or (config.mode == "auto" and _has_key())
    run = wandb.init(
        project=config.project,
        group=config.group or None,
        tags=config.tags or None,
        name=name,
        dir=str(folder),
        config=settings,
        mode="online" if online else "offline",
        reinit="finish_previous",
        settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False, x_disable_stats=True),
    )
    code = 1
    try:
        sink = MetricsSink(writer, run)
        yield sink
        _end(sink)
        code = 0
    finally:
        run.finish(exit_code=code)
        wandb.teardown()  # `finish` may return before the offline file is whole; this waits for its writer


def _end(sink: MetricsSink) -> None:
    error = sink.flush()
    if error is not None:
        raise UserError(
            f"{len(sink.waiting)} rows of metrics could not be written to '{sink.writer.path}' ({error.strerror}): make room; "
            "the same command then goes on from the newest checkpoint."
        )


def _has_key() -> bool:
    """Whether a W&B key is configured, without asking the network."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
