"""Words, lines and paragraphs: the one place that says what they are, so that every filter counts the same things."""

import functools
import hashlib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

# Languages written without spaces between words: a character with its marks counts as a word.
UNSPACED = frozenset({"th", "zh", "ja", "lo", "km", "my"})
_WORD_CHARACTERS = 3  # characters that stand for one word there, in n-grams: more than in Chinese words, fewer than in Thai ones

_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u200b\u2060\ufeff]")
_TRAILING = re.compile(r"[ \t](?<![ \t]{2})[ \t]*+(?=\n|$)")  # tried once a run: linear also in a million spaces
_BLANK_LINES = re.compile(r"\n{3,}")
_PLAIN_WORD = re.compile(r"\w+")
_MARKED_SCRIPTS = re.compile("[\u0300-\u036f\u0483-\u1dff]")  # combining marks and the scripts that need them
_DIGIT = re.compile(r"\d")


@functools.cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """(word, character with marks). Combining marks of Indic and Thai scripts are no ``\\w`` for `re`, but part of a word."""
    marks = "".join(re.escape(chr(c)) for c in range(0x300, 0x1E000) if unicodedata.category(chr(c)) in ("Mn", "Mc"))
    return re.compile(rf"[\w{marks}]+"), re.compile(rf"\w[{marks}]*")


@functools.cache
def _with_line_ends(pattern: re.Pattern[str]) -> re.Pattern[str]:
    return re.compile(pattern.pattern + r"|\n")


def word_set(listed: str) -> frozenset[str]:
    """A set of words given as one string, which stays readable where a list of literals would fill the page."""
    return frozenset(listed.split())


def words(text: str, language: str = "en") -> list[str]:
    """Lower-cased words without punctuation; digits stay (see :func:`shingles` for where they are folded)."""
    return _word_pattern(text, language).findall(text.lower())


def _word_pattern(text: str, language: str = "en", *, lines: bool = False) -> re.Pattern[str]:
    """What a word is in this text; with ``lines`` a line end is a match too."""
    plain = language not in UNSPACED and not _MARKED_SCRIPTS.search(text)
    pattern = _PLAIN_WORD if plain else _patterns()[language in UNSPACED]  # plain: thirty times faster
    return _with_line_ends(pattern) if lines else pattern


def tidy(text: str) -> str:
    """Prose with canonical Unicode (NFC), no control characters, no trailing spaces and at most one blank line in a row."""
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n").replace("\x85", "\n"))
    text = _TRAILING.sub("", _CONTROLS.sub("", text.replace("\x0c", "\n").replace("\u00a0", " ")))
    return _BLANK_LINES.sub("\n\n", text).strip("\n") + "\n" if text.strip() else ""


def tidy_code(text: str) -> str:
    """Code as it is, but for line ends, a byte-order mark and NUL characters."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").lstrip("\ufeff").replace("\x00", "")
    return text if not text.strip() or text.endswith("\n") else text + "\n"


def line_key(line: str) -> str:
    """CCNet's normal form of a line: lower case, each digit a 0, letters, digits and single spaces only.

    A line without any (a rule of dashes) is compared as it stands, if it has at least three marks; "" = never compared.
    """
    key = _DIGIT.sub("0", " ".join(_word_pattern(line).findall(line.lower())))
    return key or (line.strip() if len(line.strip()) >= 3 else "")


def paragraph_key(paragraph: str) -> str:
    """Normal form for exact comparison of paragraphs: case and layout do not matter."""
    return " ".join(paragraph.lower().split())


def paragraphs(text: str) -> list[str]:
    """Maximal runs of lines that are not blank."""
    return [p for p in re.split(r"\n[ \t]*(?:\n[ \t]*)+", text) if p.strip()]


def key_hash(key: str) -> int:
    """64 bits of SHA-256 of a normal form."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8], "little")


_MASK = 2**64 - 1
_ODD = 0x9E3779B97F4A7C15


def ngram_hashes(ids: np.ndarray, n: int) -> np.ndarray:
    """Hash of each run of ``n`` words: a polynomial in an odd constant modulo 2^64, then mixed.

    Built by doubling (a run of 2k is a run of k and the next one), so n = 25 takes seven passes, not 25.

    Args:
        ids: word hashes, (words,) uint64.
        n: words per run.

    Returns:
        (words - n + 1,) uint64; empty when there are fewer words.
    """
    count = len(ids) - n + 1
    if count < 1:
        return np.empty(0, np.uint64)
    run, length = ids, 1  # run[i] = hash of the words i .. i + length - 1
    for bit in bin(n)[3:]:
        run = run[: len(run) - length] * np.uint64(pow(_ODD, length, _MASK + 1)) + run[length:]
        length *= 2
        if bit == "1":
            run = run[:-1] * np.uint64(_ODD) + ids[length : length + len(run) - 1]
            length += 1
    assert length == n and len(run) == count
    mixed = run ^ (run >> np.uint64(29))
    return mixed * np.uint64(0xBF58476D1CE4E5B9)


# The stop words of Gopher's rule (Rae et al. 2021, section A.1.1); `Tokens.stops` numbers them in this order.
STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")


class _Vocabulary(dict[str, int]):
    """Word -> row of five tables: most words of a text have been seen before, so their facts are looked up, not computed.

    A cache and nothing else: results do not depend on what it holds.
    """

    def __init__(self) -> None:
        self.characters = 0  # of all words held
        self.hashes = np.empty(4096, np.uint64)  # 64 bits of BLAKE2b of the word
        self.folded = np.empty(4096, np.uint64)  # the same with each digit as 0
        self.lengths = np.empty(4096, np.int64)  # characters
        self.lettered = np.empty(4096, bool)  # holds a letter
        self.stops = np.empty(4096, np.uint8)  # 1 + index in STOP_WORDS, 0 = none of them

    def __missing__(self, word: str) -> int:
        row = len(self)
        if row == len(self.hashes):
            for name in ("hashes", "folded", "lengths", "lettered", "stops"):
                table = getattr(self, name)
                setattr(self, name, np.concatenate([table, np.empty_like(table)]))
        self.hashes[row] = _hash_word(word)
        digits = _DIGIT.search(word)
        self.folded[row] = _hash_word(_DIGIT.sub("0", word)) if digits else self.hashes[row]
        self.lengths[row] = len(word)
        self.lettered[row] = any(map(str.isalpha, word))
        self.stops[row] = STOP_WORDS.index(word) + 1 if word in STOP_WORDS else 0
        self.characters += len(word)
        self[word] = row
        return row

    def rows(self, items: list[str]) -> np.ndarray:
        """(words,) int64 rows; valid until the next call of :func:`_vocabulary`."""
        return np.fromiter(map(self.__getitem__, items), np.int64, len(items))


def _hash_word(word: str) -> int:
    raw = word.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")


_WORDS = _Vocabulary()


def _vocabulary() -> _Vocabulary:
    """The process's table of words, begun anew when large: memory stays flat however many documents pass."""
    global _WORDS
    if len(_WORDS) > 1_000_000 or _WORDS.characters > 50_000_000:
        _WORDS = _Vocabulary()
    return _WORDS


def word_hashes(items: list[str]) -> np.ndarray:
    """(words,) uint64, the same on every machine and in every run (Python's own hash is not)."""
    vocabulary = _vocabulary()
    rows = vocabulary.rows(items)  # before the table is read: new words make it grow
    return vocabulary.hashes[rows]


@dataclass(frozen=True, slots=True)
class Tokens:
    """The words of one text (those of :func:`words`) as arrays, made by one pass over it; what every statistic reads."""

    hashes: np.ndarray  # (words,) uint64
    folded: np.ndarray  # (words,) uint64, digits as 0
    lengths: np.ndarray  # (words,) int64, characters
    lettered: np.ndarray  # (words,) bool, holds a letter
    stops: np.ndarray  # (words,) uint8, 1 + index in STOP_WORDS or 0
    lines: np.ndarray  # (words,) int64, index of the line (of ``text.split("\\n")``) in which the word stands

    def __len__(self) -> int:
        return len(self.hashes)

    @property
    def characters(self) -> int:
        """Characters of all words."""
        return int(self.lengths.sum())


_last: tuple[str, str, Tokens] | None = None  # what was tokenised last


def tokenise(text: str, language: str = "en") -> Tokens:
    """Words of a text with their facts. The one tokenisation that a document needs: the last one is remembered.

    So line rules and statistics, called one after the other with the same text, share it. The arrays must not be changed.
    """
    global _last
    if _last is None or _last[0] is not text or _last[1] != language:
        _last = (text, language, _tokenise(text, language))
    return _last[2]


def _tokenise(text: str, language: str) -> Tokens:
    pattern = _word_pattern(text, language, lines=True)
    items = pattern.findall(text.lower())
    vocabulary = _vocabulary()
    end = vocabulary["\n"]
    rows = vocabulary.rows(items)
    ends = rows == end
    keep = ~ends
    rows, lines = rows[keep], np.cumsum(ends)[keep]
    v = vocabulary
    return Tokens(v.hashes[rows], v.folded[rows], v.lengths[rows], v.lettered[rows], v.stops[rows], lines)


def word_stream(parts: Iterable[np.ndarray]) -> np.ndarray:
    """Word hashes of many documents in one array, a 0 after each, so that no run of words of one crosses into the next."""
    end = np.zeros(1, np.uint64)
    return np.concatenate([end, *(piece for part in parts for piece in (part, end))])


def runs_present(stream: np.ndarray, n: int, wanted: np.ndarray) -> np.ndarray:
    """Which of the ``wanted`` runs (hashes by :func:`ngram_hashes`, sorted) occur in the stream: (wanted,) bool.

    Memory stays small: the stream is hashed a block at a time.
    """
    present = np.zeros(len(wanted), bool)
    block = 1 << 20
    for start in range(0, len(stream), block) if len(wanted) else ():
        hashes = ngram_hashes(stream[start : start + block + n - 1], n)
        at = np.minimum(np.searchsorted(wanted, hashes), len(wanted) - 1)
        present[at[wanted[at] == hashes]] = True
    return present


def run_length(n: int, language: str) -> int:
    """How many words of :func:`words` an n-gram of ``n`` words has: 3 n characters in unspaced scripts.

    Everything that asks for runs of words takes its length from here: five characters of Thai repeat in every text, five
    words do not.
    """
    return n * _WORD_CHARACTERS if language in UNSPACED else n


def shingles(text: str, language: str, size: int) -> np.ndarray:
    """Sorted, unique 32-bit hashes of the runs of ``size`` words (of :func:`run_length` characters in unspaced scripts).

    Digits are folded to 0, so that two renderings which differ in a date or a counter still count as equal. A text with
    fewer words is one shingle.
    """
    items = words(text, language)
    vocabulary = _vocabulary()
    rows = vocabulary.rows(items)
    size = min(run_length(size, language), len(items))
    if not size:
        return np.empty(0, np.uint32)
    found = (ngram_hashes(vocabulary.folded[rows], size) >> np.uint64(32)).astype(np.uint32)
    found.sort()  # and drop repeats: half the time of np.unique
    return found[np.concatenate([[True], found[1:] != found[:-1]])]


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Exact similarity of two sorted sets: size of the intersection / size of the union; two empty sets are equal."""
    if not len(a) and not len(b):
        return 1.0
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)
