"""HTML -> text: boilerplate out, code and formulas kept (paper, section 3.1.1).

Two passes over the tree that selectolax (lexbor) parses: elements which are boilerplate by name, role or class are
removed, then one iterative walk writes lines. No markdown markers are added. Hostile pages are refused by size and depth
before they reach the parser, whose time grows with the square of the depth.
"""

import functools
import re
from dataclasses import dataclass

from herd.curation.config import ExtractionConfig
from herd.curation.text import tidy, word_set

_REMOVED = (
    "script, style, template, iframe, object, embed, svg, canvas, audio, video, button, select, input, "
    "nav, footer, aside, dialog, [role=navigation], [role=banner], [role=contentinfo], [role=search], "
    "[role=complementary], [role=dialog], [hidden], [aria-hidden=true]"
)
# Boilerplate, unless it holds most of the page: some sites wrap everything in a form, or keep the text for readers
# without scripts.
_USUALLY_REMOVED = "noscript, form"
# Words of class names and ids (split at anything but letters) that mark boilerplate.
_BOILERPLATE = word_set(
    "nav navbar navigation menu menus sidebar breadcrumb breadcrumbs footer cookie cookies consent share "
    "sharing social newsletter subscribe subscription promo advert advertisement ads sponsored related "
    "recommended popup modal pagination pager toolbar masthead skip login signup toc copyright disclaimer"
)
_WORD = re.compile(r"[a-z]+")
_BLOCKS = word_set(
    "address article aside blockquote body br caption center dd details div dl dt fieldset figcaption figure "
    "footer h1 h2 h3 h4 h5 h6 header hgroup hr li main menu ol option p pre section summary table tbody tfoot "
    "thead tr ul"
)
_SPACED = word_set("p h1 h2 h3 h4 h5 h6 pre table ul ol dl blockquote section article figure")  # blank line around
_VOID = word_set("area base br col embed hr img input link meta source track wbr")
_OPTIONAL_END = word_set("p li td th tr dt dd option optgroup thead tbody tfoot colgroup rt rp html head body")
_TAG = re.compile(rb"<(/?)([a-zA-Z][^\s/>]*)")
_SPACE = re.compile(r"[ \t\n\r\f]+")
_CHARSET = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([\w.:-]{1,40})""", re.IGNORECASE)
_FORMULA = re.compile(r"[\\^_=${}]")
_BOMS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a page gives no text."""

    rule: str
    detail: str
    score: float | None = None
    threshold: float | None = None


def decode(raw: bytes, max_replaced: float, declared: bool = True) -> str | Refusal:
    """Bytes -> text: byte-order mark, then UTF-8, then the page's declared charset, then Windows-1252.

    Args:
        raw: the content.
        max_replaced: share of characters that may be undecodable.
        declared: look for a `<meta charset>`; without it only UTF-8 counts.
    """
    for mark, encoding in _BOMS:
        if raw.startswith(mark):
            text = raw[len(mark) :].decode(encoding, "replace")
            break
    else:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            text = raw.decode("utf-8", "replace")
        found = _CHARSET.search(raw[:4096]) if declared else None
        name = found.group(1).decode("ascii", "replace").lower() if found else ""
        if declared and name not in ("utf-8", "utf8"):
            name = "cp1252" if name in ("", "iso-8859-1", "latin1", "latin-1", "ascii", "us-ascii") else name
            try:
                text = raw.decode(name, "replace")
            except LookupError:
                return Refusal("unknown_encoding", f"the page declares the unknown encoding '{name[:40]}'")
    share = text.count("\ufffd") / max(len(text), 1)
    if share > max_replaced:
        return Refusal("undecodable", "not valid text in its encoding", share, max_replaced)
    return text


def extract_html(raw: bytes | str, config: ExtractionConfig) -> str | Refusal:
    """Main text of one page, or the reason why there is none."""
    content = raw if isinstance(raw, bytes) else raw.encode("utf-8", "replace")
    if len(content) > config.max_bytes:
        return Refusal("page_too_large", "longer than extraction.max_bytes", float(len(content)), float(config.max_bytes))
    depth = nesting(content, config.max_depth)
    if depth > config.max_depth:
        return Refusal("nested_too_deep", "more nested elements than extraction.max_depth", depth, config.max_depth)
    lowered = content.lower()
    opens = b"<html" in lowered or b"<body" in lowered
    if config.drop_truncated and opens and b"</html" not in lowered and b"</body" not in lowered:
        return Refusal("truncated_page", "opens <html> or <body> and closes neither")
    text = decode(content, config.max_replaced)
    if isinstance(text, Refusal):
        return text
    return _extract(text.replace("\x00", ""), config) or Refusal("no_text", "nothing is left after boilerplate")


def nesting(content: bytes, limit: int) -> int:
    """Upper estimate of the deepest nesting, from tags alone; stops soon after ``limit``."""
    depth = deepest = 0
    for match in _TAG.finditer(content):
        name = match.group(2).lower().decode("latin-1")
        if name in _VOID or name in _OPTIONAL_END:
            continue
        depth = max(depth - 1, 0) if match.group(1) else depth + 1
        if depth > deepest:
            deepest = depth
            if depth > limit:
                break
    return deepest


def _extract(html: str, config: ExtractionConfig) -> str:
    from selectolax.lexbor import LexborHTMLParser

    tree = LexborHTMLParser(html)
    body = tree.body
    if body is None:
        return ""
    for node in body.css(_REMOVED):
        node.decompose()
    whole = len(body.text())
    for node in body.css(_USUALLY_REMOVED):
        if len(node.text()) <= 0.5 * whole:
            node.decompose()
    whole = len(body.text())
    for node in body.css("[class], [id]"):
        attributes = node.attributes
        if not _marks_boilerplate(f"{attributes.get('class') or ''} {attributes.get('id') or ''}"):
            continue
        if node.tag in ("body", "html", "main", "article", "pre", "code"):
            continue
        if node.css_first("main, article, h1") is None and len(node.text()) < 0.3 * whole:
            node.decompose()
    root = _main_part(body)
    for node in root.css("header"):
        if node.css_first("h1") is None:
            node.decompose()
    return tidy(_Writer(config.max_link_density).write(root))


@functools.lru_cache(maxsize=10_000)
def _marks_boilerplate(names: str) -> bool:
    return not _BOILERPLATE.isdisjoint(_WORD.findall(names.lower()))


def _main_part(body):  # type: ignore[no-untyped-def]  # selectolax nodes carry no types
    """`<main>` or the only `<article>`, when it holds a good part of the page's text; else the body."""
    whole = len(body.text())
    for selector in ("main, [role=main]", "article"):
        found = body.css(selector)
        if len(found) == 1 and len(found[0].text()) >= 0.25 * whole:
            return found[0]
    return body


class _Writer:
    """Writes the lines of a tree; a block that is little but links is left out."""

    def __init__(self, max_link_density: float) -> None:
        self.max_link_density = max_link_density
        self.lines: list[str] = []
        self.parts: list[str] = []  # of the current line
        self.linked = 0  # characters of the current line inside links
        self.links = 0
        self.run: list[str] = []  # consecutive lines that are links: navigation if there are many

    def write(self, root) -> str:  # type: ignore[no-untyped-def]
        node, depth, stop = root, 0, root.mem_id
        pre = link = 0
        while True:
            tag = node.tag
            child = None
            if tag == "-text":
                self._text(node.text_content or "", pre, link)
            elif tag == "math":
                self._formula(node)
            else:
                if tag in _BLOCKS:
                    self._end_line(tag in _SPACED)
                elif tag in ("td", "th") and any(part.strip("\u00a0 ") for part in self.parts):
                    self.parts.append("\t")
                elif tag == "img":
                    self._image(node)
                pre += tag in ("pre", "textarea", "listing")
                link += tag == "a"
                self.links += tag == "a"
                child = node.first_child
                if child is not None:
                    node, depth = child, depth + 1
                    continue
                pre, link = self._close(tag, pre, link)
            while node.mem_id != stop:
                following = node.next
                if following is not None:
                    node = following
                    break
                node, depth = node.parent, depth - 1
                pre, link = self._close(node.tag, pre, link)
            else:
                self._end_line(True)
                self._end_run()
                return "\n".join(self.lines)

    def _close(self, tag: str, pre: int, link: int) -> tuple[int, int]:
        if tag in _BLOCKS and tag not in ("br", "hr"):
            self._end_line(tag in _SPACED)
        return pre - (tag in ("pre", "textarea", "listing")), link - (tag == "a")

    def _text(self, text: str, pre: int, link: int) -> None:
        if pre:
            first, *rest = text.split("\n")
            self.parts.append(first)
            for line in rest:
                self._end_line(False, keep=True)
                self.parts.append(line)
            return
        text = _SPACE.sub(" ", text)
        if not self.parts or self.parts[-1][-1:] in (" ", "\t"):
            text = text.lstrip(" ")
        if text:
            self.parts.append(text)
            self.linked += len(text) if link else 0

    def _formula(self, node) -> None:  # type: ignore[no-untyped-def]
        """MathML: the LaTeX that it was made from, if the page carries it, else its characters."""
        source = node.css_first("annotation[encoding='application/x-tex']")
        text = (source.text() if source is not None else node.attributes.get("alttext") or node.text()).strip()
        self.parts.append(f"${text}$" if text else "")

    def _image(self, node) -> None:  # type: ignore[no-untyped-def]
        """A picture of a formula keeps its alternative text (paper); other pictures say nothing."""
        attributes = node.attributes
        text, classes = (attributes.get("alt") or "").strip(), (attributes.get("class") or "").lower()
        if text and (("math" in classes or "tex" in _WORD.findall(classes)) or len(_FORMULA.findall(text)) >= 2):
            self.parts.append(text)

    def _end_line(self, spaced: bool, keep: bool = False) -> None:
        line = "".join(self.parts).rstrip(" \t")
        linked, links = self.linked, self.links
        self.parts, self.linked, self.links = [], 0, 0
        if line.strip("\u00a0 \t"):
            dense = links > 0 and linked > self.max_link_density * len(line.strip())
            if dense and not keep:
                self.run.append(line)
            else:
                self._end_run()
                self.lines.append(line)
        elif keep or "\u00a0" in line:
            self._end_run()
            self.lines.append("")
        if spaced and self.lines and self.lines[-1] and not self.run:
            self.lines.append("")

    def _end_run(self) -> None:
        """A run of two or more link lines is navigation; a single one is a linked heading or sentence."""
        if len(self.run) == 1:
            self.lines.append(self.run[0])
        self.run = []
