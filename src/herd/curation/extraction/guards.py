"""What a page must not be: too long, too deep, too costly to parse, or text in no known encoding."""

import re
from dataclasses import dataclass

from herd.curation.text import word_set

_CHARSET = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([\w.:-]{1,40})""", re.IGNORECASE)
_BOMS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
# Elements that never stay open (void) or that the next one of their kind closes are left out: they cannot nest by themselves.
_FLAT = word_set(
    "area base br col embed hr img input link meta source track wbr p li td th tr dt dd option optgroup thead tbody "
    "tfoot colgroup rt rp "
    "html head body"
)
_FLAT_TAGS = frozenset(f"<{slash}{name}" for name in _FLAT for slash in ("", "/"))
_TAG = re.compile(r"</?[a-zA-Z][^\s/>]*+")
_FORMATTING = frozenset(
    f"<{name}" for name in word_set("a b big code em font i nobr s small strike strong tt u")
)  # reopened in every block until they are closed
_LONG_TAG = re.compile(r"<[a-zA-Z][^<>]{4000,}+")
_QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'")


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
            except (LookupError, UnicodeError):  # unknown, or no encoding of text ("hex", "idna")
                return Refusal("unknown_encoding", f"the page declares the unknown encoding '{name[:40]}'")
    share = text.count("\ufffd") / max(len(text), 1)
    if share > max_replaced:
        return Refusal("undecodable", "not valid text in its encoding", share, max_replaced)
    return text


@dataclass(frozen=True, slots=True)
class Cost:
    """What parsing a page would take, from its tags alone."""

    depth: int  # elements open at a time, upper estimate
    work: int  # steps on the stack of open elements
    unclosed: int = 0  # elements that need an end tag and still have none at the end of the page


def cost(html: str, max_depth: int, max_work: int) -> Cost:
    """Estimate of the parser's cost; counting stops soon after a limit.

    An end tag counts only where an element of its name is open, since the parser ignores all others: pages that pair every
    start tag with a wrong end tag are as deep as those without. Each tag may walk the whole stack; an element with n
    attributes takes n^2 / 2 comparisons.
    """
    opened: dict[str, int] = {}
    depth = deepest = formatting = 0
    work = 0
    if max(map(len, html.split(">"))) > 4000:
        for found in _LONG_TAG.finditer(html):
            work += len(_QUOTED.sub("", found.group()).split()) ** 2 // 2
        if work > max_work:
            return Cost(0, work)
    for tag in _TAG.findall(html):
        if tag in _FLAT_TAGS:
            continue
        if not tag.islower():
            tag = tag.lower()
            if tag in _FLAT_TAGS:
                continue
        if tag[1] != "/":
            opened[tag] = opened.get(tag, 0) + 1
            depth += 1
            if tag in _FORMATTING:
                formatting += 1
            if depth > deepest:
                deepest = depth
                if depth > max_depth:
                    break
            work += depth + 8 * formatting
        else:
            tag = "<" + tag[2:]
            if opened.get(tag):
                opened[tag] -= 1
                depth -= 1
                if tag in _FORMATTING:
                    formatting -= 1
            else:
                work += depth
        if work > max_work:
            break
    return Cost(deepest, work, depth)
