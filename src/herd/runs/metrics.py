"""metrics.jsonl: one JSON object a line, appended as a run goes on."""

import errno
import json
import math
import os
from pathlib import Path
from typing import Any


class MetricsWriter:
    """Appends rows to a JSON-lines file and flushes each, so that a killed run keeps what it logged."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def write(self, row: dict[str, Any]) -> None:
        """Append ``row``; a value that is not finite is written as a string, since NaN is not JSON.

        Raises:
            OSError: the disk is full, say. Nothing of the row is then left in the file.
        """
        safe = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        line = (json.dumps(safe, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab", buffering=0) as file:
            before = file.seek(0, os.SEEK_END)
            try:
                if file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            except OSError:
                file.truncate(before)
                raise

    def truncate_after(self, key: str, value: float) -> None:
        """Drop rows whose ``key`` exceeds ``value`` (what was logged after the checkpoint a run resumes from)."""
        if not self.path.exists():
            return
        kept = [row for row in read_metrics(self.path) if not (key in row and row[key] > value)]
        temporary = self.path.with_suffix(".tmp")
        with open(temporary, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
        os.replace(temporary, self.path)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete rows; a half-written last line (a killed run) is left out."""
    rows: list[dict[str, Any]] = []
    with open(path, encoding="utf-8") as file:
        for line in file:
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                if line.endswith("\n"):
                    raise
    return rows
