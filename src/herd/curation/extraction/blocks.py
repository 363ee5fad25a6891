"""A parsed page -> its blocks: runs of text between block-level tags, and the tree of elements that they stand in.

The parser's tree is written out again as HTML, which makes it regular (every tag closed, every attribute quoted), and one
regular expression reads it: several times faster than asking the tree for one node after another.
"""

import re
from dataclasses import dataclass, field

from herd.curation.extraction.formulas import picture
from herd.curation.extraction.names import TAG_BITS, read_attributes
from herd.curation.text import word_set

# The parser writes ">" in an attribute as "&gt;".
_TOKEN = re.compile(r"([^<]+)|<(/?)([^\s>/!]+)([^>]*)>|<[^>]*>")
_BLOCKS = word_set(
    "address article aside blockquote body caption center dd details dialog dir div dl dt fieldset figcaption figure "
    "footer form h1 "
    "h2 h3 h4 h5 h6 header hgroup html legend li listing main menu nav noscript ol optgroup option p pre search section select "
    "summary table tbody td textarea tfoot th thead tr ul"
)
_PRE = frozenset(("pre", "listing", "textarea"))
_EMPHASIS = {"b": "**", "strong": "**", "i": "*", "em": "*", "code": "`", "kbd": "`", "samp": "`"}
_LINE_NUMBERS = re.compile(
    r"\b(?:lineno|linenos|linenodiv|line-numbers-rows|linenumbers?|line-numbers?|gutter|rouge-gutter|blob-num"
    r"|hljs-ln-numbers|lnt)\b"
)
CELL_CHARACTERS = 400  # a table's row is one line while no cell is longer than this,
CELL_PARTS = 120  # or than this where it holds several blocks


@dataclass(slots=True)
class Block:
    """A run of text between block-level tags; a row of a data table is one block, its cells separated by tabs."""

    text: str
    element: int  # that holds it: an index into the fields of `Elements`
    links: int  # number of links and buttons
    linked: int  # characters inside them
    code: int  # characters inside <code>
    pre: bool  # white space counts
    formula: bool


@dataclass(slots=True)
class Elements:
    """The block-level elements, column by column, in document order (a parent stands before its children)."""

    tag: list[str] = field(default_factory=list)
    parent: list[int] = field(default_factory=list)
    own: list[int] = field(default_factory=list)  # bits of its names and its tag
    path: list[int] = field(default_factory=list)  # equal for elements of equal tags and classes up to the root
    characters: list[int] = field(default_factory=list)  # of text inside
    linked: list[int] = field(default_factory=list)  # of them inside links
    blocks: list[int] = field(default_factory=list)  # number of blocks inside

    def open(self, tag: str, parent: int, own: int, path: int) -> int:
        """Append one element and return its index."""
        self.tag.append(tag)
        self.parent.append(parent)
        self.own.append(own)
        self.path.append(path)
        self.characters.append(0)
        self.linked.append(0)
        self.blocks.append(0)
        return len(self.tag) - 1


def split_blocks(html: str, markdown: bool = False) -> tuple[list[Block], Elements]:
    """Blocks and elements of a page, from HTML as the parser writes it."""
    elements = Elements()
    parents, characters, linked, counts = elements.parent, elements.characters, elements.linked, elements.blocks
    current = elements.open("#root", 0, 0, 0)
    out: list[Block] = []
    paths: dict[tuple[int, str, str], int] = {}
    rows: list[int] = []  # per open row: the number of blocks before it
    parts: list[str] = []
    links = inside = coded = pre = link = code = 0
    skipped = ""  # inside an element of line numbers: its tag
    skipped_depth = 0

    def flush() -> None:
        nonlocal links, inside, coded
        if parts:
            text = "".join(parts)
            parts.clear()
            if "&" in text:
                text = text.replace("&nbsp;", "\u00a0").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
            if not pre:
                text = text.strip(" ")
            if not text.isspace() and text:
                formula = text.count("$") > 1 and "$" in text
                out.append(Block(text, current, links, inside, coded, pre > 0, formula))
                characters[current] += len(text)
                linked[current] += inside
                counts[current] += 1
        links = inside = coded = 0

    for text, closing, tag, attributes in _TOKEN.findall(html):
        if skipped:
            if tag == skipped:
                skipped_depth += -1 if closing else 1
                if not skipped_depth:
                    skipped = ""
            continue
        if text:
            if pre:
                parts.append(text)
                if link:
                    inside += len(text)
                continue
            first, last = text[0], text[-1]
            words = " ".join(text.split())
            if not words:
                if parts and parts[-1][-1] not in " \n":
                    parts.append(" ")
                continue
            if first in " \n\t\r\f" and parts and parts[-1][-1] not in " \n":
                parts.append(" ")
            parts.append(words)
            if last in " \n\t\r\f":
                parts.append(" ")
            if link:
                inside += len(words)
            if code:
                coded += len(words)
        elif closing:
            if tag in _BLOCKS:
                if pre and tag not in _PRE:  # a line of code in an element of its own
                    if parts and parts[-1][-1] != "\n":
                        parts.append("\n")
                    continue
                flush()
                if tag in _PRE:
                    pre -= 1
                elif tag == "tr" and rows:
                    _join_cells(out, rows.pop(), current, elements)
                parent = parents[current]
                characters[parent] += characters[current]
                linked[parent] += linked[current]
                counts[parent] += counts[current]
                current = parent
            else:
                if tag == "a" or tag == "button":
                    link -= 1
                elif tag == "code":
                    code -= 1
                if markdown and tag in _EMPHASIS and not pre:
                    _close_mark(parts, _EMPHASIS[tag])
        elif tag in _BLOCKS:
            if pre and tag not in _PRE:
                if attributes and _LINE_NUMBERS.search(attributes):
                    skipped, skipped_depth = tag, 1
                    continue
                if parts and parts[-1][-1] != "\n":
                    parts.append("\n")
                continue
            if attributes and (tag == "td" or tag == "th") and _LINE_NUMBERS.search(attributes):
                skipped, skipped_depth = tag, 1
                continue
            flush()
            bits, classes = read_attributes(attributes) if attributes else (0, "")
            path = paths.setdefault((elements.path[current], tag, classes), len(paths) + 1)
            current = elements.open(tag, current, bits | TAG_BITS.get(tag, 0), path)
            if tag in _PRE:
                pre += 1
            elif tag == "tr":
                rows.append(len(out))
        elif tag == "br":
            parts.append("\n")
        elif tag == "hr":
            flush()
        elif tag == "img":
            parts.append(picture(attributes))
            if not parts[-1]:
                parts.pop()
        else:
            if tag == "a" or tag == "button":
                link += 1
                links += 1
            elif tag == "code":
                code += 1
            if pre and attributes and tag != "code" and _LINE_NUMBERS.search(attributes):
                skipped, skipped_depth = tag, 1
                link -= tag == "a" or tag == "button"
                continue
            if markdown and tag in _EMPHASIS and not pre:
                parts.append(_EMPHASIS[tag])
    flush()
    return out, elements


def _join_cells(out: list[Block], start: int, row: int, elements: Elements) -> None:
    """Make one block of a data table's row; rows that hold long text, code or rows of their own lay a page out and stay."""
    blocks = out[start:]
    if len(blocks) < 2:
        return
    cells: dict[int, list[Block]] = {}
    for block in blocks:
        if block.pre or "\n" in block.text or "\t" in block.text or len(block.text) > CELL_CHARACTERS:
            return
        cell = block.element
        while elements.parent[cell] != row:
            if elements.tag[cell] in ("li", "h1", "h2", "h3", "tr"):
                return
            cell = elements.parent[cell]
        cells.setdefault(cell, []).append(block)
    if len(cells) < 2 or any(len(cell) > 1 and sum(len(block.text) for block in cell) > CELL_PARTS for cell in cells.values()):
        return
    text = "\t".join(" ".join(block.text for block in cell) for cell in cells.values())
    element = row
    formula = any(block.formula for block in blocks)
    links, linked, code = (sum(getattr(block, name) for block in blocks) for name in ("links", "linked", "code"))
    out[start:] = [Block(text, element, links, linked, code, False, formula)]


def _close_mark(parts: list[str], mark: str) -> None:
    """End an emphasis; one without text leaves no marker."""
    trailing = ""
    while parts and parts[-1].isspace() and "\n" not in parts[-1]:
        trailing = parts.pop()
    if parts and parts[-1] == mark:
        parts.pop()
    else:
        parts.append(mark)
    if trailing:
        parts.append(trailing)
