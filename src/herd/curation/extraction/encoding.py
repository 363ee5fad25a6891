"""The bytes of a page -> its text, as the HTML standard reads them; what no declared encoding fits is refused, never guessed."""

import re
from collections import Counter
from dataclasses import dataclass

_CHARSET = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([\w.:-]{1,40})""", re.IGNORECASE)
_HEAD = 4096  # bytes in which a page names its encoding
_BOMS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
# Labels that mean more than their name (WHATWG Encoding, section 4.2), by Python's names.
_MEANT = {
    **dict.fromkeys(("iso-8859-1", "iso8859-1", "iso_8859-1", "latin1", "latin-1", "l1", "ascii", "us-ascii"), "cp1252"),
    **dict.fromkeys(("iso-8859-9", "latin5"), "cp1254"),
    **dict.fromkeys(("iso-8859-11", "tis-620"), "cp874"),
    **dict.fromkeys(("gb2312", "gbk", "gb_2312-80", "x-gbk"), "gb18030"),
    **dict.fromkeys(("shift_jis", "shift-jis", "sjis", "x-sjis", "windows-31j"), "cp932"),
    **dict.fromkeys(("euc-kr", "ks_c_5601-1987", "ksc5601"), "cp949"),
    "big5": "big5hkscs",
    "utf-16": "utf-16-le",
    "x-cp1251": "cp1251",
}
# Letters beyond ASCII of the languages that Windows-1252 was made for, loan words included, and signs that all of them use.
_ALPHABETS = (
    *("àâäçèéêëïñóöü", "äöüßéèàç", "àâæçèéêëîïôœùûüÿñö"),  # English, German, French
    *("áéíñóúüçàèìòïª\u00bfº¡", "áàâãçéêíóôõúüªº", "àèéìíîòóùú"),  # Spanish, Portuguese, Italian
    *("åäöéüà", "æøåéüóòôöä", "éëïóöüèêáíúä"),  # Swedish, Danish and Norwegian, Dutch
    *("áéíóúýþæöð", "áéíóú", "àçèéíïòóúü·"),  # Icelandic, Irish, Catalan
)
_SIGNS = frozenset("€‚„…†‡‰‹›‘’“”•–—™\u00a0¢£¥§©«»¬\u00ad®°±²´µ¶·½×")
_COVERED = 0.98  # share of the page's letters beyond ASCII that one alphabet must hold
# Four letters beyond ASCII in a row: a word of Cyrillic, Greek, Hebrew, Arabic, or of an encoding with two bytes a character.
_RUNS = re.compile(rb"[\xc0-\xff]{4}")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a page gives no text."""

    rule: str
    detail: str
    score: float | None = None
    threshold: float | None = None


def decode(raw: bytes, max_replaced: float, declared: bool = True, charset: str = "") -> str | Refusal:
    """Bytes -> text: byte-order mark, UTF-8, then the charset of the response's header, then the page's own.

    A page that is not valid in the encodings that it declares is refused; so is one that declares none, unless what it means is
    beyond doubt (see :func:`_undeclared`).

    Args:
        raw: the content.
        max_replaced: share of characters that may be undecodable.
        declared: the content is HTML: look for a `<meta charset>`; without it only UTF-8 and ``charset`` count.
        charset: what the HTTP header declares, "" for nothing.
    """
    for mark, encoding in _BOMS:
        if raw.startswith(mark):
            return _checked(raw[len(mark) :].decode(encoding, "replace"), max_replaced)
    charset = charset.strip().lower()
    own = _CHARSET.search(raw[:_HEAD]) if declared else None
    named = own.group(1).decode("ascii", "replace").lower() if own else ""
    named = "utf-8" if named.startswith("utf-16") else named  # it was read as ASCII
    if not _spelled_in_ascii(raw, charset, named):
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            pass
    refused: Refusal | None = None
    for name in dict.fromkeys(name for name in (charset, named) if name):
        try:
            text = _checked(raw.decode(_MEANT.get(name, name), "replace"), max_replaced)
        except (LookupError, UnicodeError):  # unknown, or no encoding of text ("hex", "idna")
            text = Refusal("unknown_encoding", f"the page declares the unknown encoding '{name[:40]}'")
        if isinstance(text, str):
            return text
        refused = refused or text
    if refused is not None:
        return refused
    text = raw.decode("utf-8", "replace")
    if not declared or 10 * text.count("\ufffd") < sum(not character.isascii() for character in text):  # a few broken characters
        return _checked(text, max_replaced)
    return _undeclared(raw, max_replaced)


def _spelled_in_ascii(raw: bytes, charset: str, named: str) -> bool:
    """Whether the declared encoding writes other characters as ASCII or NUL bytes, which UTF-8 would take for characters."""
    return (b"\x1b" in raw and (charset or named).startswith("iso-2022")) or (b"\0" in raw and charset.startswith("utf-16"))


def _checked(text: str, max_replaced: float) -> str | Refusal:
    share = text.count("\ufffd") / max(len(text), 1)
    if share > max_replaced:
        return Refusal("undecodable", "not valid text in its encoding", share, max_replaced)
    return text


def _undeclared(raw: bytes, max_replaced: float) -> str | Refusal:
    """Windows-1252, what browsers take for granted, where the letters are those of one of its languages.

    Pages in other encodings would be valid Windows-1252, too, with other letters than their authors wrote: Polish has a
    superscript 1 in its words then, Turkish a thorn, Cyrillic and Chinese nothing but accents.
    """
    text = raw.decode("cp1252", "replace")
    high = Counter(character for character in text.lower() if character > "\x7f" and character not in _SIGNS)
    covered = max(sum(high[letter] for letter in alphabet) for alphabet in _ALPHABETS)
    if covered < _COVERED * high.total() or _RUNS.search(raw):
        return Refusal("undecodable", "it is not UTF-8 and declares no encoding")
    return _checked(text, max_replaced)
