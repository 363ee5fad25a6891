"""Encoding on one core by words: the text is cut where the tokenizer cuts it, and each distinct word is encoded once.

Byte pairs are merged within a word, so the ids of a text are those of its words in a row. The pattern is Llama 3's, written for
Python's `re`; which characters are letters, numbers and blanks is asked of the library's own expression engine, so that both cut
alike. Text with characters beyond those asked about goes the library's way.
"""

import json
import os
import re
from collections.abc import Callable, Sequence
from functools import cache
from itertools import chain

from tokenizers import Regex, Tokenizer, pre_tokenizers

# Asked about: the first plane, and the pictographs of the second. U+017F is left out: without regard to case it is an `s`.
_ASKED = ((0x0000, 0x017F), (0x0180, 0xD800), (0xE000, 0x10000), (0x1F000, 0x1FB00))
_FEW_CORES = 4  # with more, the library, which uses all, may be as fast
_WORTHWHILE = 100_000  # characters: fewer are encoded before the characters have been asked about
_REMEMBERED = 4_000_000  # characters of words, some 200 MB with their ids; then all are forgotten
_AT_ONCE = 512  # texts that are cut before they are looked up
_LONG = 25_000  # a longer text is left to the library, in pieces: see `tokenizer.pieces_of`


class WordEncoder:
    """Encodes texts by remembered words.

    Args:
        encode: the library's encoding of many texts; it must cut by Llama 3's split pattern.
    """

    def __init__(self, encode: Callable[[Sequence[str]], list[list[int]]]) -> None:
        self._encode = encode
        self._forget()

    def _forget(self) -> None:
        self._known: dict[str, list[int]] = {"": []}  # word -> ids
        self._spaced: dict[str, list[int]] = {}  # what stands between two spaces -> ids of the first space and it
        self._characters = 0

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text: the same as ``encode``'s."""
        return [ids for first in range(0, len(texts), _AT_ONCE) for ids in self._some(texts[first : first + _AT_ONCE])]

    def _some(self, texts: Sequence[str]) -> list[list[int]]:
        words, foreign, uneven = _patterns()
        whole: list[int] = []  # texts for the library
        by_word: dict[int, list[str]] = {}  # texts with blanks in a row
        by_space: dict[int, list[str]] = {}  # the others: a word ends before every space, so what lies between two is a unit
        for i, text in enumerate(texts):
            if len(text) > _LONG or foreign.search(text):
                whole.append(i)
            elif uneven.search(text):
                by_word[i] = words.findall(text)
            else:
                by_space[i] = text.split(" ")
        known, spaced = self._known, self._spaced
        units = set(chain.from_iterable(parts[1:] for parts in by_space.values())).difference(spaced)
        cut = {unit: words.findall(f" {unit}") for unit in units}
        first = {i: words.findall(parts[0]) for i, parts in by_space.items()}
        new = list(set(chain.from_iterable(chain.from_iterable(of.values() for of in (by_word, cut, first)))).difference(known))
        ids = self._encode([*new, *(texts[i] for i in whole)])
        known.update(zip(new, ids, strict=False))
        spaced.update((unit, [i for word in of for i in known[word]]) for unit, of in cut.items())
        self._characters += sum(map(len, new)) + sum(map(len, units))
        found = dict(zip(whole, ids[len(new) :], strict=True))
        for i, of in by_word.items():
            found[i] = list(chain.from_iterable(map(known.__getitem__, of)))
        for i, parts in by_space.items():
            found[i] = [n for word in first[i] for n in known[word]]
            found[i].extend(chain.from_iterable(map(spaced.__getitem__, parts[1:])))
        if self._characters > _REMEMBERED:
            self._forget()
        return [found[i] for i in range(len(texts))]


def worthwhile(texts: Sequence[str]) -> bool:
    """Whether these texts are faster encoded by words here, on this process's cores, than by the library."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores <= _FEW_CORES and sum(map(len, texts)) >= _WORTHWHILE


def cuts_alike(backend: Tokenizer, reference: pre_tokenizers.PreTokenizer) -> bool:
    """Whether ``backend`` encodes word by word, and cuts words as ``reference`` does."""
    if backend.pre_tokenizer is None or backend.normalizer is not None or backend.truncation is not None:
        return False
    if not all(token.special for token in backend.get_added_tokens_decoder().values()):
        return False
    ours, theirs = (json.loads(p.__getstate__()) for p in (reference, backend.pre_tokenizer))
    for step in (*ours.get("pretokenizers", ()), *theirs.get("pretokenizers", ())):
        step.pop("trim_offsets", None)  # where a word lies in the text is asked of neither
    return bool(ours == theirs)


@cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """The split pattern; a character that it knows nothing of; a space after a blank, before which no word need end."""
    letters, numbers, blanks = (_characters(kind) for kind in (r"\p{L}", r"\p{N}", r"\s"))
    words = (
        r"'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])"
        rf"|[^\r\n{letters}{numbers}]?[{letters}]+"
        rf"|[{numbers}]{{1,3}}"
        rf"| ?[^{blanks}{letters}{numbers}]+[\r\n]*"
        rf"|[{blanks}]*[\r\n]+"
        rf"|[{blanks}]+(?![^{blanks}])"
        rf"|[{blanks}]+"
    )
    asked = "".join(f"\\U{first:08x}-\\U{end - 1:08x}" for first, end in _ASKED)
    return re.compile(words), re.compile(f"[^{asked}]"), re.compile(f"[{blanks}] ")


def _characters(kind: str) -> str:
    """Those of `_ASKED` that the library's expression matches, as ranges for brackets."""
    split = pre_tokenizers.Split(Regex(f"{kind}+"), behavior="removed", invert=True)
    runs = [run for first, end in _ASKED for run, _ in split.pre_tokenize_str("".join(map(chr, range(first, end))))]
    return "".join(f"\\U{ord(run[0]):08x}-\\U{ord(run[-1]):08x}" for run in runs)
