"""One page -> its main text: parse, split into blocks, score them, keep the best, write."""

import functools
import re
from typing import Any

import numpy as np

from herd.curation.extraction.blocks import Block, Elements, split_blocks
from herd.curation.extraction.config import ExtractionConfig
from herd.curation.extraction.encoding import Refusal, decode
from herd.curation.extraction.evidence import collect, page_kind
from herd.curation.extraction.formulas import write_formulas
from herd.curation.extraction.guards import cost
from herd.curation.extraction.layout import write
from herd.curation.extraction.score import best_cut, log_odds
from herd.curation.text import tidy, word_set

# Never content, whatever they hold.
_REMOVED = word_set(
    "script style template iframe object embed svg canvas audio video select input textarea noembed noframes xmp plaintext nav "
    "footer aside dialog label"
)
_ASKED = _REMOVED | {"math"}  # names whose absence from a page spares work
_REMOVED_ROLES = word_set("navigation banner contentinfo search complementary dialog")
_SILENT = re.compile(r"<(?:!--|(script|style|svg)(?=[\s/>]))", re.IGNORECASE)  # what holds no text, or text of another kind
# Whatever the case, as the parser reads them: the nearest end counts. A comment has no name.
_ENDS = {"": re.compile("--(?=>)")} | {name: re.compile(f"</{name}", re.IGNORECASE) for name in ("script", "style", "svg")}
_TEX = re.compile(r"<script[^>]{0,200}type\s*=\s*[\"']?math/", re.IGNORECASE)
_STRUCTURED = 0.95  # least probability of formulas and code when structure is kept
_CODE = 0.8  # least probability of a listing otherwise: it looks like no prose
_CLOSED = re.compile(r"</(?:html|body)", re.IGNORECASE)
_OPENED = re.compile(r"<(?:html|body)", re.IGNORECASE)


def extract_html(raw: bytes | str, config: ExtractionConfig, charset: str = "") -> str | Refusal:
    """Main text of one page, or the reason why there is none; ``charset`` is what its HTTP header declares."""
    if len(raw) > config.max_bytes:
        return Refusal("page_too_large", "longer than extraction.max_bytes", float(len(raw)), float(config.max_bytes))
    if isinstance(raw, bytes):
        text = decode(raw, config.max_replaced, charset=charset)
        if isinstance(text, Refusal):
            return text
    else:
        text = raw.encode("utf-8", "replace").decode("utf-8")  # without lone surrogates
    if "\x00" in text:
        text = text.replace("\x00", "")
    closed = "</html" in text or "</body" in text or _CLOSED.search(text) is not None or not _OPENED.search(text)
    cut = text.rfind("<") > text.rfind(">")  # inside a tag
    kind = page_kind(text)
    text = without_scripts(text)
    price = cost(text, config.max_depth, config.max_work)
    if price.depth > config.max_depth:
        return Refusal("nested_too_deep", "more nested elements than extraction.max_depth", price.depth, config.max_depth)
    if price.work > config.max_work:
        return Refusal(
            "too_slow", "costs the parser more steps than extraction.max_work", float(price.work), float(config.max_work)
        )
    if config.drop_truncated and not closed and (cut or price.unclosed):  # </body> and </html> alone may be left out
        return Refusal("truncated_page", "opens <html> or <body>, closes neither, and ends inside another element")
    blocks, elements = read_blocks(text, config.markdown, price.names)
    kept = choose(blocks, elements, kind, config)
    return tidy(write(kept, elements, config.markdown)) or Refusal("no_text", "nothing is left after boilerplate")


def without_scripts(html: str) -> str:
    """The page without comments, scripts, styles and drawings, half of most pages; formulas in scripts stay.

    Linear in the length also where nothing is ever closed: a kind of element that has no end once has none later.
    """
    out: list[str] = []
    start = position = 0  # of what is not copied yet, of what is not searched yet
    endless: set[str] = set()
    while (found := _SILENT.search(html, position)) is not None:
        name = (found.group(1) or "").lower()
        position = found.end()
        if name in endless or (name == "script" and _TEX.match(html, found.start())):
            continue
        ending = _ENDS[name].search(html, position)
        if ending is None:
            endless.add(name)
            continue
        out.append(html[start : found.start()])
        closed = html.find(">", ending.end())
        start = position = closed + 1 if closed >= 0 else len(html)
    out.append(html[start:])
    return "".join(out)


def read_blocks(html: str, markdown: bool = False, names: frozenset[str] = _ASKED) -> tuple[list[Block], Elements]:
    """Parse a page and split it; formulas are text from here on.

    Args:
        html: the page.
        markdown: keep markers.
        names: of its tags, which say what need not be looked for.
    """
    from selectolax.lexbor import LexborHTMLParser

    body: Any = LexborHTMLParser(html).body
    if body is None:
        return [], Elements()
    if names & {"math", "script"}:
        write_formulas(body, html)
    for node in [node for node in body.css(_selector(names & _REMOVED)) if _is_removed(node)]:
        node.decompose()
    return split_blocks(body.html or "", markdown)


@functools.lru_cache(maxsize=1000)
def _selector(names: frozenset[str]) -> str:
    return ", ".join((*sorted(names), "[role]", "[hidden]"))


def _is_removed(node: Any) -> bool:
    if node.tag in _REMOVED:
        return True
    attributes = node.attributes
    return "hidden" in attributes or attributes.get("role") in _REMOVED_ROLES


def choose(blocks: list[Block], elements: Elements, kind: int, config: ExtractionConfig) -> list[Block]:
    """The blocks that are content, in order."""
    if not blocks:
        return []
    odds = log_odds(collect(blocks, elements, kind)) + config.bias
    probability = 1 / (1 + np.exp(-np.clip(odds, -30, 30)))
    listings = [block.pre for block in blocks]
    probability[listings] = np.maximum(probability[listings], _CODE)
    if config.keep_structure:
        structured = [block.pre or block.formula or 2 * block.code > len(block.text) for block in blocks]
        probability[structured] = np.maximum(probability[structured], _STRUCTURED)
    words = np.array([block.text.count(" ") + block.text.count("\n") + 1 for block in blocks], np.float64)
    keep = best_cut(probability, words)
    if config.keep_structure:
        keep |= np.array(structured)
    return [block for block, kept in zip(blocks, keep, strict=True) if kept]
