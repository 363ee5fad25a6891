"""The two passes that treat each document alone, spread over processes; results come in input order for any number of them."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, TypeVar

import numpy as np

from herd.curation.config import DedupConfig, ExtractionConfig, RulesConfig
from herd.curation.documents import Record
from herd.curation.extraction import Refusal, decode, extract_html
from herd.curation.neardup import minhash
from herd.curation.rules import bad_lines, first_broken
from herd.curation.text import shingles, tidy, tidy_code, word_hashes, words

_CHUNK = 32  # items a task

I = TypeVar("I")  # noqa: E741
O = TypeVar("O")  # noqa: E741


class Pool:
    """`map` over processes; with one worker everything happens in this process, with the same result."""

    def __init__(self, workers: int) -> None:
        # Spawned, not forked: this process may hold threads of numerical libraries.
        self._pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn")) if workers > 1 else None

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[[I], O], items: Sequence[I]) -> Iterator[O]:
        """Apply a top-level function to each item, results in order."""
        if self._pool is None:
            return map(function, items)
        return self._pool.map(function, items, chunksize=_CHUNK)


Prepared = tuple[str, np.ndarray, np.ndarray | None]  # text, shingles, MinHash values


def prepare(task: tuple[Record, ExtractionConfig, DedupConfig]) -> Prepared | Refusal:
    """Raw record -> text with its shingles and signature, or the reason why there is none."""
    record, extraction, dedup = task
    text = _text(record, extraction)
    if isinstance(text, Refusal):
        return text
    if not text.strip():
        return Refusal("no_text", "the text is empty")
    if len(text) > extraction.max_characters:
        return Refusal(
            "text_too_long", "longer than extraction.max_characters", float(len(text)), float(extraction.max_characters)
        )
    if not dedup.documents:
        return text, np.empty(0, np.uint32), None
    found = shingles(text, record.language, dedup.shingle_words)
    return text, found, minhash(found, dedup.permutations) if len(found) else None


def _text(record: Record, config: ExtractionConfig) -> str | Refusal:
    if record.media == "html":
        return extract_html(record.content, config)
    if len(record.content) > 4 * config.max_characters:  # at most four bytes a character: refused before it is decoded
        limit = 4.0 * config.max_characters
        return Refusal("text_too_long", "longer than extraction.max_characters allows", float(len(record.content)), limit)
    content = record.content
    text = decode(content, config.max_replaced, declared=False) if isinstance(content, bytes) else content
    if isinstance(text, Refusal):
        return text
    text = text.encode("utf-8", "replace").decode("utf-8")  # lone surrogates, as JSON escapes can hold, become "?"
    return tidy_code(text) if record.media == "code" else tidy(text)


Judged = tuple[list[tuple[int, str]], tuple[str, float, float] | None]  # lines to remove, rule broken


def judge(task: tuple[str, str, str, str, RulesConfig]) -> Judged:
    """(text, language, domain, media) -> which lines go by C4's rules, and which quality rule the rest breaks first."""
    text, language, domain, media, rules = task
    lines = bad_lines(text) if rules.drop_lines and media != "code" and domain != "code" else []
    if lines:
        gone = {i for i, _ in lines}
        text = tidy("\n".join(line for i, line in enumerate(text.split("\n")) if i not in gone))
        if not text:
            return lines, ("only_bad_lines", float(len(gone)), 0.0)
    return lines, first_broken(text, language, getattr(rules, domain))


def hash_words(task: tuple[str, str]) -> np.ndarray:
    """(text, language) -> word hashes (words,) uint64."""
    text, language = task
    return word_hashes(words(text, language))
