"""The table of a mixture sweep: a row per run, its shares of the sources and its held-out loss on each domain.

Columns: ``run``; ``mix/<source>`` shares; ``loss/<domain>`` nats per token; further ones (``parameters``, ``tokens``) may serve
as sizes. Foreign tables have other prefixes; our own runs are gathered from what `herd pretrain` left.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from herd.config.errors import UserError, nearest
from herd.runs.atomic import write_text
from herd.runs.stage import Artifact
from herd.scaling.records.raw_tables import read_raw

_DIFFERENT = 0.02  # relative difference of tokens up to which runs compare: batches round


@dataclass(frozen=True)
class MixtureTable:
    """Rows in the order of their source."""

    runs: tuple[str, ...]
    sources: tuple[str, ...]
    domains: tuple[str, ...]
    shares: np.ndarray  # (n, sources)
    losses: np.ndarray  # (n, domains), nats per token
    extra: dict[str, np.ndarray]  # further columns of numbers, (n,)

    def sizes(self, column: str | None) -> np.ndarray | None:
        """The column that holds each run's size; None for none."""
        if column is None:
            return None
        if column not in self.extra:
            raise UserError(f"size: the table has no column of numbers '{column}'.{nearest(column, self.extra)}")
        return self.extra[column]


def read_mixtures(source: str, mix_prefix: str = "mix/", loss_prefix: str = "loss/") -> MixtureTable:
    """Read a CSV or Parquet table.

    Args:
        source: the file.
        mix_prefix, loss_prefix: how the columns of shares and of losses begin; the rest is the source's or the domain's name.

    Raises:
        UserError: no such columns, or fields that are no numbers, each by its row.
    """
    raw = read_raw(source)
    found = {
        prefix: [name for name in raw.header if name.startswith(prefix) and name != prefix]
        for prefix in (mix_prefix, loss_prefix)
    }
    for what, prefix in (("mix_prefix", mix_prefix), ("loss_prefix", loss_prefix)):
        if not found[prefix]:
            listed = ", ".join(raw.header[:8]) + (", ..." if len(raw.header) > 8 else "")
            raise UserError(f"'{source}' has no column that begins with '{prefix}' (it has: {listed}): name it with {what}=....")

    def numbers(column: str) -> np.ndarray:
        values = []
        for row, label in zip(raw.rows, raw.labels, strict=True):
            try:
                values.append(float(row[column]))
            except ValueError:
                raise UserError(f"'{source}' {label}: {column} '{row[column]}' is not a number.") from None
        return np.array(values)

    used = {*found[mix_prefix], *found[loss_prefix], "run"}
    extra = {}
    for name in raw.header:
        if name not in used and raw.rows and all(_is_number(row[name]) for row in raw.rows):
            extra[name] = numbers(name)
    names = [row.get("run", "").strip() or label for row, label in zip(raw.rows, raw.labels, strict=True)]
    if not names:
        raise UserError(f"'{source}' has no rows.")
    return MixtureTable(
        runs=tuple(names),
        sources=tuple(name.removeprefix(mix_prefix) for name in found[mix_prefix]),
        domains=tuple(name.removeprefix(loss_prefix) for name in found[loss_prefix]),
        shares=np.column_stack([numbers(name) for name in found[mix_prefix]]),
        losses=np.column_stack([numbers(name) for name in found[loss_prefix]]),
        extra=extra,
    )


def finished_runs(folder: Path) -> list[tuple[str, Artifact]]:
    """Finished `herd pretrain` runs in a folder, with their names; whole numbers in their order.

    Raises:
        UserError: no folder, or none in it.
    """
    if not folder.is_dir():
        raise UserError(f"No folder of runs '{folder}': give runs=<run.root>/<run.name>/mix of a finished sweep.")
    found = [
        (path.name, Artifact.open(path))
        for path in sorted(folder.iterdir(), key=lambda p: (not p.name.isdigit(), int(p.name) if p.name.isdigit() else 0, p.name))
        if (path / "manifest.json").is_file()
    ]
    runs = [(name, artifact) for name, artifact in found if artifact.manifest["stage"] == "pretrain"]
    if not runs:
        raise UserError(
            f"'{folder}' holds no finished `herd pretrain`: run the sweep first (herd pretrain -m +sweeps=mix_laptop)."
        )
    return runs


def gather_mixtures(folder: Path) -> MixtureTable:
    """The table of our own runs below ``folder``.

    Raises:
        UserError: runs of other domains, of other held-out text, or of other tokens, whose losses do not compare.
    """
    runs = finished_runs(folder)
    metrics = [artifact.metrics for _, artifact in runs]
    mixes: list[dict[str, float]] = [artifact.manifest["config"]["mix"]["weights"] for _, artifact in runs]
    domains = tuple(sorted(metrics[0]["loss_by_domain"]))
    sources = tuple(sorted({name for mix in mixes for name, share in mix.items() if share > 0}))
    tokens = np.array([m["tokens"] for m in metrics], dtype=float)
    inputs = {str(artifact.manifest["input_addresses"].get("tokens")) for _, artifact in runs}
    if len(inputs) > 1 or any(tuple(sorted(m["loss_by_domain"])) != domains for m in metrics):
        raise UserError(f"The runs in '{folder}' were trained or scored on different tokens: their losses do not compare.")
    odd = next((i for i in range(len(runs)) if abs(tokens[i] / np.median(tokens) - 1) > _DIFFERENT), None)
    if odd is not None:
        raise UserError(
            f"Run '{runs[odd][0]}' in '{folder}' saw {tokens[odd]:,.0f} tokens, the others {np.median(tokens):,.0f}: a mixture "
            "law needs runs that differ in the mix (and the size) alone."
        )
    return MixtureTable(
        runs=tuple(name for name, _ in runs),
        sources=sources,
        domains=domains,
        shares=np.array([[mix.get(name, 0.0) for name in sources] for mix in mixes]),
        losses=np.array([[m["loss_by_domain"][name] for name in domains] for m in metrics]),
        extra={"parameters": np.array([m["parameters_6N"] for m in metrics], dtype=float), "tokens": tokens},
    )


def write_mixtures(path: Path, table: MixtureTable) -> None:
    """Write the table in one piece, as :func:`read_mixtures` reads it."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    extra = sorted(table.extra)
    writer.writerow(["run", *(f"mix/{s}" for s in table.sources), *(f"loss/{d}" for d in table.domains), *extra])
    for i, run in enumerate(table.runs):
        numbers: Sequence[Any] = [*table.shares[i], *table.losses[i], *(table.extra[name][i] for name in extra)]
        writer.writerow([run, *(repr(float(value)) for value in numbers)])
    write_text(path, out.getvalue())


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
