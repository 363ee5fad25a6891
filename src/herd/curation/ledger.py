"""The decision ledger: why each document or line is where it is, and the funnel drawn from it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from typing import TYPE_CHECKING, Any

from herd.curation.documents import Document

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """One decision. ``id`` is a document's id, ``line:<hash>`` for a line removed everywhere, or a file's name."""

    id: str
    stage: str  # collect, url, extract, document, line, quality, classifier, split
    action: str  # kept, edited, dropped
    rule: str  # which rule decided
    score: float | None = None  # the measured value
    threshold: float | None = None  # the limit that it was held against
    duplicate_of: str = ""  # id of the document that stays in its place
    detail: str = ""  # a sentence for the reader


class Ledger:
    """Collects rows and, step by step, the funnel.

    Each document that came in ends in exactly one row with action ``kept`` or ``dropped``; ``edited`` rows come on top.
    """

    def __init__(self) -> None:
        self.rows: list[LedgerRow] = []
        self.funnel: list[dict[str, Any]] = []
        self._mark = 0

    def add(self, row: LedgerRow) -> None:
        """Append one decision."""
        self.rows.append(row)

    def extend(self, rows: Sequence[LedgerRow]) -> None:
        """Append several."""
        self.rows.extend(rows)

    def step(self, name: str, documents: int, characters: int) -> None:
        """Close a step of the funnel: what is left after it, and what the rows added since then dropped, by rule."""
        new = self.rows[self._mark :]
        self._mark = len(self.rows)
        dropped = Counter(row.rule for row in new if row.action == "dropped" and not row.id.startswith("line:"))
        self.funnel.append(
            {"step": name, "documents": documents, "characters": characters, "dropped": dict(sorted(dropped.items()))}
        )

    def table(self) -> "pa.Table":
        """All rows in the order of the decisions."""
        import pyarrow as pa

        names = [f.name for f in fields(LedgerRow)]
        types = {"score": pa.float64(), "threshold": pa.float64()}
        columns = list(zip(*map(astuple, self.rows), strict=True)) if self.rows else [()] * len(names)
        arrays = [pa.array(c, types.get(n, pa.string())) for n, c in zip(names, columns, strict=True)]
        return pa.table(dict(zip(names, arrays, strict=True)))


def dropped(document: Document, stage: str, rule: str, **facts: Any) -> LedgerRow:
    """Row for a document that goes."""
    return LedgerRow(document.id, stage, "dropped", rule, **facts)


def edited(document: Document, stage: str, rule: str, **facts: Any) -> LedgerRow:
    """Row for a document that stays with fewer lines."""
    return LedgerRow(document.id, stage, "edited", rule, **facts)
