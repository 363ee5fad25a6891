"""Formulas -> TeX, whatever a page keeps them in: MathML, MathJax and KaTeX scripts, pictures with alternative text."""

import html
import re
from typing import Any

_SOURCE = re.compile(
    r'<annotation[^<>]*encoding="application/x-tex[^"]*"[^<>]*>(.*?)</annotation(?:-xml)?>', re.DOTALL | re.IGNORECASE
)
_ANNOTATION_END = re.compile(r"</annotation(?:-xml)?>", re.IGNORECASE)
_ANNOTATION = re.compile(r"<annotation(-xml)?\b.*?</annotation(-xml)?>", re.DOTALL | re.IGNORECASE)
_STYLED = re.compile(r"^\{\\(?:displaystyle|textstyle)\s*+(.*)\}$", re.DOTALL)
_PIECE = re.compile(r"<(/?)([a-z0-9]++)[^>]*+>|([^<]+)", re.IGNORECASE)
_MARKS = re.compile(r"[\\^_=${}]")
_ALTERNATIVE, _CLASSES = re.compile(r'\salt="([^"]+)"'), re.compile(r'\sclass="([^"]+)"')
_CLASS = re.compile(r"\b(?:math|tex|latex|equation|formula|katex|mwe)", re.IGNORECASE)
# How to write elements whose children are arguments: before, between, after.
_SHAPES = {
    "mfrac": ("\\frac{", "}{", "}"),
    "msup": ("{", "}^{", "}"),
    "msub": ("{", "}_{", "}"),
    "msubsup": ("{", "}_{", "}^{", "}"),
    "munder": ("{", "}_{", "}"),
    "mover": ("{", "}^{", "}"),
    "munderover": ("{", "}_{", "}^{", "}"),
    "msqrt": ("\\sqrt{", " ", "}"),
    "mroot": ("\\sqrt{", "}[", "]"),
    "mtr": ("", " & ", " \\\\ "),
}
_RENDERED = (
    ".MathJax, .MathJax_Preview, .MathJax_Display, .MathJax_SVG, .MathJax_CHTML, .MathJax_SVG_Display, .MJXc-display, .katex-html"
)


def write_formulas(body: Any, source: str) -> None:
    """Replace each formula of a parsed page with its source as text; a rendering that stands beside its source goes.

    Args:
        body: of the page.
        source: the page's HTML, which says what need not be looked for.
    """
    scripts = body.css("script") if "math/" in source else []
    if scripts:
        for node in body.css(_RENDERED):
            if node.parent is not None:
                node.decompose()
        for node in scripts:
            kind = node.attributes.get("type") or ""
            if kind.startswith("math/tex"):
                node.replace_with(_written(node.text(), "mode=display" in kind.replace(" ", "")))
            elif kind.startswith("math/mml"):
                node.replace_with(_written(html.unescape(mathml(node.text())), False))
    for node in body.css("math") if "<math" in source or "<MATH" in source else ():
        written = node.html or ""
        display = (node.attributes.get("display") or "") == "block"
        text = html.unescape(mathml(written, node.attributes.get("alttext") or ""))
        holder = node.parent
        # KaTeX and MathJax 3 draw the formula beside the MathML that they leave for screen readers.
        while holder is not None and holder.tag in ("span", "mjx-assistive-mml", "mjx-container"):
            classes = holder.attributes.get("class") or ""
            if holder.tag == "mjx-container" or classes.split()[:1] in (["katex"], ["katex-display"], ["mwe-math-element"]):
                node, holder = holder, holder.parent
                display = display or "katex-display" in classes or node.attributes.get("display") == "true"
            elif holder.tag == "mjx-assistive-mml" or "katex-mathml" in classes or "mwe-math-mathml" in classes:
                node, holder = holder, holder.parent
            else:
                break
        if node.parent is not None:
            node.replace_with(_written(text, display))


def _written(source: str, display: bool) -> str:
    source = " ".join(source.split())
    mark = "$$" if display else "$"
    return f"{mark}{source}{mark}" if source else ""


def picture(attributes: str) -> str:
    """Text of an image from its attributes, as the parser writes them: a picture of a formula keeps its alternative text (paper).

    Other pictures say nothing.
    """
    found = _ALTERNATIVE.search(attributes)
    text = found.group(1).replace("&quot;", '"').strip() if found else ""
    if not text or len(text) > 2000:
        return ""
    classes = _CLASSES.search(attributes)
    if len(_MARKS.findall(text)) >= 2 or (classes is not None and _CLASS.search(classes.group(1))):
        styled = _STYLED.match(text)
        return styled.group(1).strip() if styled else text
    return ""


def mathml(source: str, alternative: str = "") -> str:
    """TeX of one `<math>` element: its annotation, else its alternative text, else written from its structure."""
    # Behind the last end nothing is looked for: an element that none follows would be searched to the end of the page.
    end = max((found.end() for found in _ANNOTATION_END.finditer(source)), default=0)
    found = _SOURCE.search(source, 0, end)
    text = html.unescape(found.group(1)).strip() if found else alternative.strip()
    if text:
        styled = _STYLED.match(text)
        return styled.group(1).strip() if styled else text
    return _linear(_ANNOTATION.sub("", source[:end]) + source[end:])


def _linear(source: str) -> str:
    """MathML without a source, written in a line: fractions, roots, sub- and superscripts as TeX, the rest as it reads."""
    stack: list[tuple[str, list[str]]] = [("", [])]
    end = source.rfind(">") + 1
    for closing, tag, text in (*_PIECE.findall(source, 0, end), ("", "", source[end:].partition("<")[0])):
        if text:
            text = " ".join(html.unescape(text).split()).strip("\u2061\u2062\u2063\u2064")
            if text:
                stack[-1][1].append(text)
        elif tag and not closing:
            stack.append((tag.lower(), []))
        elif len(stack) > 1 and stack[-1][0] == tag.lower():
            name, parts = stack.pop()
            stack[-1][1].append(_shape(name, parts))
    while len(stack) > 1:
        name, parts = stack.pop()
        stack[-1][1].append(_shape(name, parts))
    return " ".join("".join(stack[0][1]).split())


def _shape(name: str, parts: list[str]) -> str:
    shape = _SHAPES.get(name)
    if shape is None or not parts:
        return ("" if name in ("mi", "mn", "mo", "mtext") else " ").join(parts)
    if name in ("msqrt", "mtr"):
        return shape[0] + shape[1].join(parts) + shape[2]
    if len(parts) != len(shape) - 1:
        return " ".join(parts)
    written = [p[1:-1] if p.startswith("{") and p.endswith("}") else p for p in parts]
    out = shape[0]
    for i, part in enumerate(written):
        out += part + shape[i + 1]
    return (
        out.replace("{" + written[0] + "}^", written[0] + "^").replace("{" + written[0] + "}_", written[0] + "_")
        if name != "mfrac"
        else out
    )
