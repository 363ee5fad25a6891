"""Where metrics go: metrics.jsonl always, Weights & Biases when asked, under the same names."""

import netrc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from herd.config.errors import UserError
from herd.runs.metrics import MetricsWriter

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
    """Writes each row to metrics.jsonl and to the W&B run, if there is one."""

    def __init__(self, writer: MetricsWriter, wandb_run: Any = None) -> None:
        self.writer, self.wandb_run = writer, wandb_run

    def write(self, row: dict[str, Any]) -> None:
        """Log a row; ``row["step"]`` is the number of finished optimizer steps."""
        self.writer.write(row)
        if self.wandb_run is not None:
            self.wandb_run.log({key: value for key, value in row.items() if key != "step"}, step=row["step"])


@contextmanager
def open_sink(writer: MetricsWriter, config: WandbConfig, folder: Path, name: str, settings: Any) -> Iterator[MetricsSink]:
    """A sink for one fit; the W&B run is finished on the way out, so that the next job in this process gets its own.

    Args:
        folder: the stage's folder, below which the offline files lie (``wandb/``).
        name: the run's name on the server.
        settings: configuration to show beside the run, plain values.
    """
    if config.mode == "disabled":
        yield MetricsSink(writer)
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
        yield MetricsSink(writer, run)
        code = 0
    finally:
        run.finish(exit_code=code)
        wandb.teardown()  # `finish` may return before the offline file is whole; this waits for its writer


def _has_key() -> bool:
    """Whether a W&B key is configured, without asking the network."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
