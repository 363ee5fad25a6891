"""The decision ledger: why each document is where it is.

``ledger/ledger-00000-of-000NN.parquet`` holds the rows of documents, sorted by id and, for one document, in the order of the
stages; a document's shard is told by the leading bits of its id. ``ledger/problems.parquet`` names what never became a
document: unreadable files, lines that are not JSON, modules that fail to import.
"""

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from herd.runs.tables import TableWriter, iterate_rows

if TYPE_CHECKING:
    import pyarrow as pa

STAGES = ("collect", "extract", "url", "document", "line", "quality", "classifier", "mix", "split")
_ROWS = 4_096  # rows a group


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """One decision about a document, or about a part of the input that became none.

    Each document that came in ends in exactly one row with action ``kept`` or ``dropped``; ``edited`` rows come on top.
    """

    id: str  # a document's id, or the place of what never became one, e.g. a file's name
    stage: str  # one of STAGES
    action: str  # kept, edited, dropped
    rule: str  # which rule decided
    score: float | None = None  # the measured value
    threshold: float | None = None  # the limit that it was held against
    duplicate_of: str = ""  # id of the document that stays in its place
    detail: str = ""  # a sentence for the reader
    lines: tuple[int, ...] = ()  # hashes of the lines that were removed, as in removed_lines.parquet
    url: str = ""  # of the document


def ledger_schema() -> "pa.Schema":
    """Columns of the ledger's files."""
    import pyarrow as pa

    text, number = pa.string(), pa.float64()
    return pa.schema(
        [
            ("id", text),
            ("url", text),
            ("stage", text),
            ("action", text),
            ("rule", text),
            ("score", number),
            ("threshold", number),
            ("duplicate_of", text),
            ("lines", pa.list_(pa.uint64())),
            ("detail", text),
        ]
    )


class LedgerWriter:
    """Context manager: rows into one file, a few thousand at a time.

    ``dropped`` counts what went, by rule; ``first`` is the first row's (id, detail).
    """

    def __init__(self, path: Path) -> None:
        self._table = TableWriter(path, ledger_schema())
        self._rows: list[dict[str, Any]] = []
        self.dropped: Counter[str] = Counter()
        self.first: tuple[str, str] | None = None

    def __enter__(self) -> "LedgerWriter":
        self._table.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._table.write_rows(self._rows)
        self._table.__exit__(kind, error, trace)

    def add(self, row: LedgerRow | dict[str, Any]) -> None:
        """Append one decision."""
        plain = asdict(row) if isinstance(row, LedgerRow) else row
        self.first = self.first or (plain["id"], plain["detail"])
        self.dropped[plain["rule"]] += plain["action"] == "dropped"
        self._rows.append(plain)
        if len(self._rows) >= _ROWS:
            self._table.write_rows(self._rows)
            self._rows = []

    def counts(self) -> dict[str, int]:
        """Rule -> documents that it dropped."""
        return {rule: count for rule, count in sorted(self.dropped.items()) if count}


def merge(paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Rows of several files, each sorted by id, in the order of the ledger; a few rows of each in memory."""
    order = {stage: i for i, stage in enumerate(STAGES)}
    return heapq.merge(*(iterate_rows(path) for path in paths), key=lambda row: (row["id"], order[row["stage"]]))
