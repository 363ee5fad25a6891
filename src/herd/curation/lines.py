"""Line de-duplication, the parts without files: what makes two lines equal, and how removed ones are named.

A line that occurs more than k times in a bucket of N documents is removed (paper, section 3.1.1), every copy of it, the first
included: what is repeated that often is navigation, a notice or an inherited method. A bucket holds documents of one language.
Lines are compared in CCNet's normal form; lines without a letter or digit are never counted.
"""

import hashlib
from collections.abc import Sequence

from herd.curation.text import line_key

_SPELLINGS = 200_000  # lines whose hash is remembered


class LineHashes:
    """Hash of each line of a document within its language and bucket; 0 = the line is never compared."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], dict[str, int]] = {}
        self._size = 0

    def of(self, lines: Sequence[str], language: str, bucket: int) -> list[int]:
        """One number a line."""
        known = self._known.setdefault((language, bucket), {})
        out = []
        for line in lines:
            value = known.get(line)
            if value is None:
                value = known[line] = line_hash(line, language, bucket)
                self._size += 1
            out.append(value)
        if self._size > _SPELLINGS:
            self._known, self._size = {}, 0
        return out


def line_hash(line: str, language: str, bucket: int) -> int:
    """64 bits of a line's normal form within its language and bucket; 0 where that is empty.

    Two of a billion different lines of a bucket share a hash by chance with probability 2.7%.
    """
    key = line_key(line)
    if not key:
        return 0
    raw = f"{language}\x1f{bucket}\x1f{key}".encode("utf-8", "surrogatepass")
    return max(int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little"), 1)


def ranges(numbers: Sequence[int]) -> str:
    """`[0, 1, 2, 5]` -> ``1-3, 6``: line numbers as people count them, from 1."""
    parts: list[str] = []
    start = previous = None
    for number in [*numbers, None]:
        if previous is not None and number is not None and number == previous + 1:
            previous = number
            continue
        if start is not None and previous is not None:
            parts.append(f"{start + 1}" if start == previous else f"{start + 1}-{previous + 1}")
        start = previous = number
    return ", ".join(parts)
