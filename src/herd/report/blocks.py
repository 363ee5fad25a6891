"""What a page is made of: sections of text, tables, figures, checks and dialogs, all plain data that the template escapes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Verdict = Literal["yes", "no", "open"]  # open: the numbers do not decide it


@dataclass(frozen=True)
class Block:
    """One piece of a section; ``kind`` says which macro of the template draws it."""

    kind: str  # text | figure | table | facts | claims | dialogs
    content: Any


@dataclass
class Section:
    """A heading and its blocks; a section without blocks is left out."""

    id: str
    title: str
    blocks: list[Block] = field(default_factory=list)

    def text(self, *sentences: str | None) -> "Section":
        """A paragraph of those sentences that there are."""
        joined = " ".join(sentence for sentence in sentences if sentence)
        if joined:
            self.blocks.append(Block("text", joined))
        return self

    def figure(self, name: str, image: bytes | None, alt: str, caption: str = "") -> "Section":
        """A PNG; nothing when there is none."""
        if image is not None:
            self.blocks.append(Block("figure", {"name": name, "image": image, "alt": alt, "caption": caption}))
        return self

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> "Section":
        """Rows of text, the first column left-aligned; nothing when there are no rows."""
        if rows:
            self.blocks.append(Block("table", {"header": list(header), "rows": [list(r) for r in rows], "caption": caption}))
        return self


@dataclass(frozen=True)
class Claim:
    """Something that the run is to show."""

    text: str
    verdict: Verdict
    detail: str  # the numbers

    @property
    def mark(self) -> str:
        """The verdict as the page shows it."""
        return {"yes": "✓ yes", "no": "✗ no", "open": "~ open"}[self.verdict]


def above(bounds: Sequence[float] | None, level: float) -> Verdict:
    """Whether a score lies above ``level``: ``open`` when its interval holds the level or is not known."""
    if bounds is None or bounds[0] <= level <= bounds[1]:
        return "open"
    return "yes" if bounds[0] > level else "no"


@dataclass(frozen=True)
class Fact:
    """A number for the top of the page."""

    name: str
    value: str
    note: str = ""
