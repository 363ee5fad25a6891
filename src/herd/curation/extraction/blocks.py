"""A parsed page -> its blocks: runs of text between block-level tags, and the tree of elements that they stand in.

The parser's tree is written out again as HTML, which makes it regular (every tag closed, every attribute quoted), and one
regular expression cuts it: several times faster than asking the tree for one node after another.
"""

import functools
import re
from dataclasses import dataclass, field

from herd.curation.extraction.formulas import picture
from herd.curation.extraction.names import TAG_BITS, read_attributes
from herd.curation.text import word_set

_TAG = re.compile(r"<([^>]*)>")  # the parser writes ">" in an attribute as "&gt;"
_HEAD = re.compile(r"(/?)([^\s>/!]+)(.*)", re.DOTALL)
_CLOSING, _BLOCK, _BREAK, _LINK, _MARK = 1, 2, 4, 8, 16  # what a tag does
BLOCKS = word_set(
    "address article aside blockquote body caption center dd details dialog dir div dl dt fieldset figcaption figure "
    "footer form h1 "
    "h2 h3 h4 h5 h6 header hgroup html legend li listing main menu nav noscript ol optgroup option p pre search section select "
    "summary table tbody td textarea tfoot th thead tr ul"
)
_PRE = frozenset(("pre", "listing", "textarea"))
_EMPHASIS = {"b": "**", "strong": "**", "i": "*", "em": "*", "code": "`", "kbd": "`", "samp": "`"}
_LINE_NUMBERS = re.compile(
    r"(?<!data-)\b(?:lineno|linenos|linenodiv|line-numbers-rows|linenumbers?|line-numbers?|gutter|rouge-gutter|blob-num"
    r"|hljs-ln-numbers|lnt)\b|\bclass=\"ln\""
)
_CODE = re.compile(r"<(/?)(pre|listing|textarea|code)(?=[\s>])[^>]*>")
_ANY_TAG = re.compile(r"<[^>]*>")
# Cells that hold a line of code as it is written, one a row.
_CODE_CELL = re.compile(r"<td\s[^<>]*\bclass=\"[^\"<>]*\b(?:blob-code|hljs-ln-code|js-file-line)\b[^<>]*>(.*?)</td>", re.DOTALL)
CODE_LINES = 3  # of text in a <code>, from which on its line ends are meant
_LINE = re.compile(r"\bclass=\"(?:[\w-]+ )*(?:code-|token-|view-)?line(?= |\")")  # a line of code, also without a line end
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

    def add_up(self) -> None:
        """Give each element what its children hold, once every block is counted in its own."""
        parents, characters, linked, blocks = self.parent, self.characters, self.linked, self.blocks
        for e in range(len(parents) - 1, 0, -1):
            if blocks[e]:
                parent = parents[e]
                characters[parent] += characters[e]
                linked[parent] += linked[e]
                blocks[parent] += blocks[e]


def split_blocks(html: str, markdown: bool = False) -> tuple[list[Block], Elements]:
    """Blocks and elements of a page, from HTML as the parser writes it."""
    elements = Elements()
    parents, of_path = elements.parent, elements.path
    current = elements.open("#root", 0, 0, 0)
    out: list[Block] = []
    paths: dict[tuple[int, str, str], int] = {}
    rows: list[int] = []  # per open row: the number of blocks before it
    parts: list[str] = []
    links = inside = coded = pre = link = code = 0
    skipped = ""  # inside an element of line numbers: its tag
    skipped_depth = 0
    tags: dict[str, tuple[int, str, str]] = {}  # as it stands in the page -> read; most come many times

    if "blob-code" in html or "hljs-ln-code" in html or "js-file-line" in html:
        end = html.rfind("</td>") + 5  # behind it no cell can end
        html = _CODE_CELL.sub(r"<td><pre>\1</pre></td>", html[:end]) + html[end:] if end >= 5 else html
    pieces = _TAG.split(_lift_code(html) if "<code" in html else html)
    pieces.append("")
    for text, head in zip(pieces[::2], pieces[1::2], strict=True):
        if text and not skipped:
            if pre:
                parts.append(text)
                if link:
                    inside += len(text)
            elif text.isspace():
                if parts and parts[-1][-1] not in " \n":
                    parts.append(" ")
            else:
                words = " ".join(text.split())
                if text[0] in " \n\t\r\f" and parts and parts[-1][-1] not in " \n":
                    parts.append(" ")
                parts.append(words)
                if text[-1] in " \n\t\r\f":
                    parts.append(" ")
                if link:
                    inside += len(words)
                if code:
                    coded += len(words)
        kind, tag, attributes = tags.get(head) or tags.setdefault(head, _read_tag(head))
        if skipped:
            if tag == skipped:
                skipped_depth += -1 if kind & _CLOSING else 1
                if not skipped_depth:
                    skipped = ""
        elif kind == _CLOSING:  # of what changes nothing
            continue
        elif not kind:
            if pre and attributes:
                if _numbers_lines(attributes):
                    skipped, skipped_depth = tag, 1
                elif parts and parts[-1][-1] != "\n" and _is_line(attributes):
                    parts.append("\n")
        elif kind == _CLOSING | _BLOCK:
            if pre and tag not in _PRE:  # a line of code in an element of its own
                if parts and parts[-1][-1] != "\n":
                    parts.append("\n")
                continue
            if parts:
                _add(out, elements, parts, Block("", current, links, inside, coded, pre > 0, False))
                parts.clear()
            links = inside = coded = 0
            if tag in _PRE:
                pre -= 1
            elif tag == "tr" and rows:
                _join_cells(out, rows.pop(), current, elements)
            current = parents[current]
        elif kind == _BLOCK:
            if pre and tag not in _PRE:
                if attributes and _numbers_lines(attributes):
                    skipped, skipped_depth = tag, 1
                elif parts and parts[-1][-1] != "\n":
                    parts.append("\n")
                continue
            if attributes and (tag == "td" or tag == "th") and _numbers_lines(attributes):
                skipped, skipped_depth = tag, 1
                continue
            if parts:
                _add(out, elements, parts, Block("", current, links, inside, coded, pre > 0, False))
                parts.clear()
            links = inside = coded = 0
            bits, classes = read_attributes(attributes) if attributes else (0, "")
            path = paths.setdefault((of_path[current], tag, classes), len(paths) + 1)
            current = elements.open(tag, current, bits | TAG_BITS.get(tag, 0), path)
            if tag in _PRE:
                pre += 1
            elif tag == "tr":
                rows.append(len(out))
        elif kind == _BREAK:
            if tag == "br":
                parts.append("\n")
            elif tag == "img":
                if attributes and (written := picture(attributes)):
                    parts.append(written)
            else:
                if parts:
                    _add(out, elements, parts, Block("", current, links, inside, coded, pre > 0, False))
                    parts.clear()
                links = inside = coded = 0
        elif kind & _CLOSING:
            if kind & _LINK:
                link -= 1
            elif tag == "code":
                code -= 1
            if markdown and tag in _EMPHASIS and not pre:
                _close_mark(parts, _EMPHASIS[tag])
        else:
            if kind & _LINK:
                link += 1
                links += 1
            elif tag == "code":
                code += 1
            if pre:
                if attributes and tag != "code" and _numbers_lines(attributes):
                    skipped, skipped_depth = tag, 1
                    link -= kind & _LINK > 0
            elif markdown and tag in _EMPHASIS:
                parts.append(_EMPHASIS[tag])
    if parts:
        _add(out, elements, parts, Block("", current, links, inside, coded, pre > 0, False))
    elements.add_up()
    return out, elements


def _read_tag(head: str) -> tuple[int, str, str]:
    """(what it does, name, attributes) of what stands between < and >; a comment has no name."""
    found = _HEAD.match(head)
    if found is None:
        return 0, "", ""
    closing, tag, attributes = found.groups()
    kind = _CLOSING if closing else 0
    if tag in BLOCKS:
        kind |= _BLOCK
    elif tag in ("br", "hr", "img"):
        kind = _BREAK if not closing else kind
    elif tag in ("a", "button"):
        kind |= _LINK
    elif tag in _EMPHASIS:
        kind |= _MARK
    return kind, tag, attributes


@functools.lru_cache(maxsize=10_000)
def _numbers_lines(attributes: str) -> bool:
    return _LINE_NUMBERS.search(attributes) is not None


@functools.lru_cache(maxsize=10_000)
def _is_line(attributes: str) -> bool:
    return _LINE.search(attributes) is not None


def _add(out: list[Block], elements: Elements, parts: list[str], block: Block) -> None:
    """Give a block its text and append it, unless it is blank."""
    text = "".join(parts)
    if "&" in text:
        text = text.replace("&nbsp;", "\u00a0").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    if not block.pre:
        text = text.strip(" ")
    if text and not text.isspace():
        block.text, block.formula = text, text.count("$") > 1
        out.append(block)
        elements.characters[block.element] += len(text)
        elements.linked[block.element] += block.linked
        elements.blocks[block.element] += 1


def _lift_code(html: str) -> str:
    """Put a `<code>` of several lines that stands in no `<pre>` into one: style sheets show it as it is written."""
    out: list[str] = []
    start, opened, pre = 0, -1, 0
    for found in _CODE.finditer(html):
        closing, tag = found.groups()
        if tag != "code":
            pre += -1 if closing else 1
            opened = -1
        elif not pre and not closing:
            opened = found.start()
        elif opened >= 0:
            code = html[opened : found.end()].replace("<br>\n", "\n")
            if sum(not line.isspace() and line != "" for line in _ANY_TAG.sub("", code).split("\n")) >= CODE_LINES:
                out += (html[start:opened], "<pre>", code, "</pre>")
                start = found.end()
            opened = -1
    return "".join((*out, html[start:]))


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
