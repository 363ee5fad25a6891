"""What `herd scaling-fit` and `herd scaling-forecast` share: which table, and how its laws are fitted."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from herd.config.errors import UserError
from herd.runs.atomic import sha256_file, sha256_json
from herd.runs.stage import Artifact
from herd.scaling.laws import LawsConfig
from herd.scaling.records.raw_tables import WANDB, read_raw
from herd.scaling.records.readers import RunTable, TableOptions, read_runs


@dataclass(frozen=True)
class FitOptions(TableOptions, LawsConfig):
    """A table and its fit."""

    table: str | None = None  # CSV, Parquet, a sweep's folder, wandb:ENTITY/PROJECT, wandb:FOLDER; null = the stage's input

    def __post_init__(self) -> None:
        TableOptions.__post_init__(self)
        LawsConfig.__post_init__(self)

    def laws(self) -> LawsConfig:
        """The part that the fit itself reads."""
        return LawsConfig(**{f.name: getattr(self, f.name) for f in fields(LawsConfig)})

    def read(self, sweep: Artifact | None = None) -> RunTable:
        """The table that was named, or that of a finished sweep, checked."""
        source = self.table if self.table else str(sweep / "table.csv") if sweep else None
        assert source is not None
        return read_runs(source, self)


def fingerprint(options: FitOptions) -> Any:
    """The content of a table given by name, wherever it lies."""
    if options.table is None:
        return None
    if options.table.startswith(WANDB):
        return sha256_json(read_raw(options.table).rows)
    path = Path(options.table)
    path = path / "table.csv" if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"No run table '{path}': give table=FILE, or inputs.sweep=FOLDER of a finished sweep.")
    return sha256_file(path)
