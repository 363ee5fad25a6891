"""What a person sees of a running sweep: a live table of its cells on a terminal, lines elsewhere, and the law so far."""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from herd.config.errors import UserError
from herd.scaling.curves.isoflop import IsoFLOPCurve, fit_isoflop
from herd.scaling.curves.power_law import PowerLaw, fit_power_law
from herd.scaling.records.readers import read_table
from herd.scaling.records.record import Record
from herd.scaling.sweep.plan import Cell

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

STARTED = "started"  # file in a cell's folder: a worker has begun with it
_SHOWN = re.compile(r"\s*(cell \d+/\d+|cells/\w+): ")  # lines of cells: the table has them
_STYLES = {"ok": "green", "failed": "red", "diverged": "yellow", "training": "bold", "waiting": "dim"}


def law_so_far(records: Sequence[Record]) -> str:
    """The exponent of D*(C) from the cells that are finished, with its interval, or why there is none yet."""
    curves, law = fit_so_far(records)
    found = sum(curve.status == "ok" for curve in curves)
    if isinstance(law, str):
        return f"no alpha yet: {law}"
    of = f"from {found} of {len(curves)} budgets"
    if law.exponent_interval is None:
        return f"alpha so far {law.exponent:.3f} {of}; an interval needs 3"
    low, high = law.exponent_interval
    return f"alpha so far {law.exponent:.3f} [{low:.3f}, {high:.3f}] {of}"


def fit_so_far(records: Sequence[Record]) -> tuple[tuple[IsoFLOPCurve, ...], PowerLaw | str]:
    """The curves of the finished cells and the law of D*(C) through their optima, or why there is none."""
    curves = fit_isoflop(records)
    found = [curve for curve in curves if curve.status == "ok"]
    if len(found) < 2:
        refused = next((f"; {c.budget:.3g} FLOPs: {c.reason}" for c in curves if c.status != "ok"), "")
        return curves, f"{len(found)} of {len(curves)} budgets have an optimum, 2 are needed{refused}"
    errors = [None if curve.log10_tokens_se is None else curve.log10_tokens_se * np.log(10) for curve in found]
    known = [error for error in errors if error is not None]
    try:
        return curves, fit_power_law(
            [curve.budget for curve in found],
            [curve.tokens or np.nan for curve in found],
            errors=known if len(known) == len(found) else None,
        )
    except UserError as error:
        return curves, str(error)


def numbers_so_far(records: Sequence[Record]) -> dict[str, float | None]:
    """The same as numbers for a dashboard; what there is not yet is None."""
    curves, law = fit_so_far(records)
    low, high = (None, None) if isinstance(law, str) or law.exponent_interval is None else law.exponent_interval
    alpha = None if isinstance(law, str) else law.exponent
    return {"optima": sum(c.status == "ok" for c in curves), "alpha": alpha, "alpha_low": low, "alpha_high": high}


class SweepView:
    """A live table of a sweep's cells, read off its folder, so that any process can show it whatever launcher runs the jobs."""

    def __init__(self, cells: Sequence[Cell], folder: Path) -> None:
        self.cells, self.folder = list(cells), Path(folder)
        self._live: Live | None = None
        self._read = -1  # time of the table's last change that was read
        self._records: dict[str, Record] = {}

    @contextmanager
    def shown(self) -> Iterator["SweepView"]:
        """The table while the body runs; it stays on the terminal when the body ends."""
        from rich.console import Console
        from rich.live import Live

        with Live(get_renderable=self.table, console=Console(stderr=True), refresh_per_second=1) as live:
            self._live = live
            try:
                yield self
            finally:
                self._live = None

    def line(self, text: str) -> None:
        """A line of the sweep above the table; what the table shows itself is left out."""
        if self._live is not None and not _SHOWN.match(text):
            self._live.console.print(text, markup=False, highlight=False)

    def records(self) -> dict[str, Record]:
        """Cell -> its row, as far as there is one."""
        path = self.folder / "table.csv"
        try:
            changed = path.stat().st_mtime_ns
            if changed != self._read:
                self._records, self._read = {record.cell: record for record in read_table(path)}, changed
        except (OSError, UserError):  # not written yet, or without a row
            return {}
        return self._records

    def table(self) -> "Table":
        """All cells by budget and size, each with its state; failed and diverged ones with their reason."""
        from rich.table import Table
        from rich.text import Text

        records = self.records()
        table = Table(caption=law_so_far(list(records.values())) if records else None, caption_justify="left")
        for name in ("cell", "FLOPs", "parameters", "tokens", "state", "loss", "seconds"):
            table.add_column(name, justify="left" if name in ("cell", "state") else "right")
        for cell in self.cells:
            record = records.get(cell.id)
            begun = (self.folder / cell.id / STARTED).exists()
            state = record.status if record else "training" if begun else "waiting"
            reason = f": {record.error[:60]}" if record and record.error else ""
            loss = f"{record.loss:.3f}" if record and math.isfinite(record.loss) else ""
            seconds = f"{record.seconds:.0f}" if record and record.seconds is not None else ""
            where = [cell.id, f"{cell.budget:.3g}", f"{cell.parameters:,.0f}", f"{cell.tokens:,}"]
            table.add_row(*where, Text(state + reason, style=_STYLES[state]), loss, seconds)
        return table
