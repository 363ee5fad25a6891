"""What sources deliver: raw records, and documented functions."""

import hashlib
from dataclasses import dataclass

DOMAINS = ("general", "maths", "code", "multilingual")


@dataclass(frozen=True, slots=True)
class Record:
    """One raw item as a source delivers it, before any decision."""

    url: str  # address, "" when the source has none
    date: (
        str  # as the source gives it, see :mod:`herd.curation.dates`; "" when unknown; the newest of several copies of a URL wins
    )
    language: str  # ISO 639-1
    domain: str  # one of DOMAINS
    source: str  # name of the source kind, e.g. "python"
    group: str  # records of one group never straddle train and held-out; "" = the record stands alone
    media: str  # "html", "text" (prose, whitespace may be normalised) or "code" (kept as it is)
    content: bytes | str  # bytes when the encoding is still to be found out
    file: str = ""  # provenance: the file it was read from, relative to the source's folder
    position: int = 0  # which line, row, record or page of that file, from 1; 0 = the file as a whole
    charset: str = ""  # of bytes, as the HTTP header declares it

    def digest(self) -> str:
        """16 hex digits of SHA-256 over address, date and content: the same record has the same id in every run.

        Where it was read from is left out: files that are cut otherwise or renamed hold the same documents. Equal records share
        a digest; ``(file, position)`` is a total order among them.
        """
        content = self.content if isinstance(self.content, bytes) else self.content.encode("utf-8", "surrogatepass")
        head = "\x1f".join((self.source, self.url, self.date, self.language, self.domain)).encode("utf-8", "replace")
        return hashlib.sha256(head + b"\x1f" + content).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class RawEntry:
    """A documented function, method or class as the interpreter shows it."""

    url: str  # of the record whose text contains it
    package: str  # top-level package
    name: str  # qualified, e.g. "scipy.optimize.minimize"
    signature: str  # "minimize(fun, x0, args=())", "" when none is known
    doc: str  # its docstring, dedented


def document_id(digest: int, copy: int) -> str:
    """Id of the ``copy``-th record with this digest: 16 hex digits, and ``.000002`` and so on where equal records came in."""
    return f"{digest:016x}" if copy == 1 else f"{digest:016x}.{copy:06d}"
