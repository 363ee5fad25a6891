"""Kept blocks -> text: blank lines around paragraphs, one line for an item or a table's row, code as it stands."""

from collections.abc import Iterator
from dataclasses import replace

from herd.curation.extraction.blocks import Block, Elements
from herd.curation.text import word_set

_SPACED = word_set("p h1 h2 h3 h4 h5 h6 pre table ul ol dl blockquote section article figure")  # a blank line around


def write(blocks: list[Block], elements: Elements, markdown: bool) -> str:
    """Text of the blocks in order."""
    spaced = [0] * len(elements.tag)
    for e in range(1, len(spaced)):
        spaced[e] = e if elements.tag[e] in _SPACED else spaced[elements.parent[e]]
    out: list[str] = []
    previous = -1
    counters: dict[int, int] = {}
    for block in _whole_listings(blocks, elements):
        text = block.text.strip("\n") if block.pre else block.text
        if not block.pre and "\n" in text:
            text = "\n".join(line.strip(" ") for line in text.split("\n"))
        if markdown:
            text = _mark(text, block, elements, counters)
        if out:
            out.append("\n" if spaced[block.element] == previous and not block.pre else "\n\n")
        out.append(text)
        previous = spaced[block.element]
    return "".join(out)


def _whole_listings(blocks: list[Block], elements: Elements) -> Iterator[Block]:
    """The blocks; listings of one line each that follow each other in elements alike (editors, a row a line) are one."""
    lines: list[str] = []
    open_block: Block | None = None
    for block in blocks:
        single = block.pre and "\n" not in block.text.strip("\n")
        if single and open_block is not None and elements.path[block.element] == elements.path[open_block.element]:
            lines.append(block.text.strip("\n"))
            continue
        if open_block is not None:
            yield replace(open_block, text="\n".join(lines))
        open_block = block if single else None
        if single:
            lines = [block.text.strip("\n")]
        else:
            yield block
    if open_block is not None:
        yield replace(open_block, text="\n".join(lines))


def _mark(text: str, block: Block, elements: Elements, counters: dict[int, int]) -> str:
    """One block with the markers of Markdown."""
    if block.pre:
        return f"```\n{text}\n```"
    tag, element = elements.tag[block.element], block.element
    if len(tag) == 2 and tag[0] == "h" and tag[1].isdigit():
        return "#" * int(tag[1]) + " " + text.replace("\n", " ")
    if tag == "p" and elements.tag[elements.parent[element]] == "li":
        element, tag = elements.parent[element], "li"
    if tag == "li":
        around = elements.parent[element]
        depth, e = 0, elements.parent[around]
        while e:
            depth += elements.tag[e] in ("ul", "ol")
            e = elements.parent[e]
        mark = "-"
        if elements.tag[around] == "ol":
            counters[around] = counters.get(around, 0) + 1
            mark = f"{counters[around]}."
        return "  " * depth + f"{mark} {text}"
    if tag == "blockquote":
        return "> " + text.replace("\n", "\n> ")
    return text
