"""Settings of the extraction of text from raw content. Values live in conf/curate.yaml."""

from dataclasses import dataclass

from herd.config.errors import UserError


@dataclass(frozen=True)
class ExtractionConfig:
    """Raw content -> text."""

    max_bytes: int = 10_000_000  # a longer raw page is dropped unread
    max_depth: int = 1_000  # elements open at a time; a parser's time grows with the square of the depth
    max_work: int = 30_000_000  # steps on the parser's stack, estimated; instead of a clock, whose verdict differs by machine
    max_characters: int = 1_000_000  # of extracted text; longer documents are dropped ("absurdly long")
    max_replaced: float = 0.01  # share of undecodable characters above which a document is dropped
    drop_truncated: bool = True  # drop pages that end inside an element (paper 3.1.1: whole pages only)
    bias: float = 0.0  # added to the log-odds of every block to be content: above 0 keeps more, below 0 less
    keep_structure: bool = False  # maths and code pages: code, formulas, tables and their headings always stay
    markdown: bool = False  # markers for headings, lists, emphasis and code; the paper removes them (section 3.1.1)

    def __post_init__(self) -> None:
        if min(self.max_bytes, self.max_depth, self.max_work, self.max_characters) < 1:
            raise UserError("extraction: max_bytes, max_depth, max_work and max_characters must be at least 1.")
        if not 0 <= self.max_replaced <= 1:
            raise UserError(f"extraction.max_replaced = {self.max_replaced}: must lie in [0, 1].")


# Maths and code pages get an extraction of their own (paper, section 3.1.1): what a formula or a listing looks like to the
# statistics of prose says nothing, so structure stays and the rest has the benefit of the doubt.
MATHS_AND_CODE = ExtractionConfig(bias=1.5, keep_structure=True)
