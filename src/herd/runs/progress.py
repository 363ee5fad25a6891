"""Progress of long work: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """What :func:`progress` hands out."""

    def advance(self, amount: float = 1, **shown: object) -> None:
        """Count ``amount`` units as done and show ``shown`` (a loss, a name) beside the rate."""
        ...


class _Lines:
    """Plain output: at most one line in ``every`` seconds, with rate and time to go."""

    def __init__(self, description: str, total: float | None, unit: str, every: float = 15.0) -> None:
        self.description, self.total, self.unit, self.every = description, total, unit, every
        self.start = self.last = time.monotonic()
        self.done = 0.0

    def advance(self, amount: float = 1, **shown: object) -> None:
        self.done += amount
        now = time.monotonic()
        if now - self.last < self.every:
            return
        self.last = now
        rate = self.done / max(now - self.start, 1e-9)
        parts = [f"{self.done:,.0f}{f'/{self.total:,.0f}' if self.total else ''} {self.unit}", f"{rate:,.1f}/s"]
        if self.total and rate > 0:
            parts.append(f"{max(self.total - self.done, 0) / rate:.0f} s to go")
        parts += [f"{name} {_short(value)}" for name, value in shown.items()]
        print(f"  {self.description}: {', '.join(parts)}", file=sys.stderr, flush=True)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@contextmanager
def progress(description: str, total: float | None = None, unit: str = "items") -> Iterator[Progress]:
    """Show how far a piece of long work is, on stderr.

    Args:
        description: what is being done, a few words.
        total: number of units in all, or None when unknown.
        unit: what is counted, in the plural.
    """
    if not sys.stderr.isatty():
        yield _Lines(description, total, unit)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]} {task.fields[rate]} {task.fields[shown]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total, unit=unit, rate="", shown="")
        start = time.monotonic()

        class _Bar:
            done = 0.0

            def advance(self, amount: float = 1, **shown: object) -> None:
                self.done += amount
                rate = self.done / max(time.monotonic() - start, 1e-9)
                text = " ".join(f"{name} {_short(value)}" for name, value in shown.items())
                bar.update(task, advance=amount, rate=f"{rate:,.1f}/s", shown=text)

        yield _Bar()
