"""Dirty words, counted (paper, section 3.1.1: pages of adult sites that no domain list knows).

The list is the user's: a text file per language with one word or phrase a line; a line that begins with '#' is a comment. None
is part of this package.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from herd.config.errors import UserError
from herd.curation.text import Tokens, ngram_hashes, word_hashes, words


@dataclass(frozen=True)
class DirtyWordsConfig:
    """Which lists there are. How many occurrences a document may have is a rule: max_dirty_words, max_dirty_words_per_1000."""

    files: dict[str, str] = field(default_factory=dict)  # language (ISO 639-1) -> file; other languages count nothing


class DirtyWords:
    """Words and phrases of one language.

    An entry is split into words as a document is, so it matches whole words only, whatever stands between the words of a
    phrase; in scripts without spaces a character is a word, so there it matches anywhere. Occurrences are places where an
    entry begins: two entries that begin at one word count once, and a phrase inside a longer one counts as well.
    """

    def __init__(self, entries: Iterable[str], language: str) -> None:
        runs: dict[int, list[np.ndarray]] = {}
        first = []
        for entry in entries:
            items = words(entry, language)
            if items:
                hashes = word_hashes(items)
                first.append(hashes[0])
                runs.setdefault(len(items), []).append(ngram_hashes(hashes, len(items)))
        self._first = np.unique(np.array(first, np.uint64))
        self._runs = {n: np.unique(np.concatenate(found)) for n, found in sorted(runs.items())}

    def __len__(self) -> int:
        return sum(map(len, self._runs.values()))

    def count(self, tokens: Tokens) -> int:
        """Occurrences in a text."""
        places = np.flatnonzero(_among(tokens.hashes, self._first))
        hit = np.zeros(len(places), bool)
        for n, wanted in self._runs.items() if len(places) else ():
            fits = places + n <= len(tokens)
            windows = tokens.hashes[places[fits, None] + np.arange(n)]
            runs = np.array([ngram_hashes(window, n)[0] for window in windows], np.uint64)
            hit[fits] |= _among(runs, wanted)
        return int(hit.sum())


def _among(values: np.ndarray, sorted_set: np.ndarray) -> np.ndarray:
    if not len(sorted_set):
        return np.zeros(len(values), bool)
    at = np.minimum(np.searchsorted(sorted_set, values), len(sorted_set) - 1)
    return np.asarray(sorted_set[at] == values)


def load_dirty_words(files: Mapping[str, str]) -> dict[str, DirtyWords]:
    """Language -> list.

    Raises:
        UserError: a file cannot be read or holds no entry.
    """
    found = {}
    for language, name in sorted(files.items()):
        entries = read_list(Path(name), f"dirty_words.files.{language}")
        found[language] = DirtyWords(entries, language)
        if not len(found[language]):
            raise UserError(f"dirty_words.files.{language}: '{name}' holds no word.")
    return found


def read_list(path: Path, key: str) -> list[str]:
    """Lines of a list that the user gives, without blank ones and comments.

    Args:
        path: text file in UTF-8.
        key: configuration key, for the error.

    Raises:
        UserError: no such file, or not UTF-8.
    """
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UserError(f"{key}: cannot read '{path}' ({reason}).") from error
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]
