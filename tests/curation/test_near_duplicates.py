"""The near-duplicate index, against exact Jaccard similarity of all pairs."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.curation.near_duplicates import band_hashes, find_duplicates
from herd.curation.neardup import minhash
from herd.curation.text import jaccard, shingles
from herd.runs.seeds import stream

BANDS, ROWS, PERMUTATIONS = 28, 4, 112


def prose(seed: int, count: int) -> list[str]:
    """Words without digits, which shingles would fold."""
    letters = np.array(list("abcdefghijklmnopqrst"))
    return ["".join(row) for row in letters[stream(0, "prose", seed).integers(0, 20, (count, 4))]]


def search(texts: list[str], order: list[int], languages: list[str] | None = None, threshold: float = 0.7, link: float = 0.5):
    """Duplicates among texts, the first of ``order`` preferred."""
    languages = languages or ["en"] * len(texts)
    sets = [shingles(t, "en", 5) for t in texts]
    salt = np.array([hash_of(language) for language in languages], np.uint64)
    signatures = np.array([minhash(s, PERMUTATIONS) if len(s) else np.full(PERMUTATIONS, i) for i, s in enumerate(sets)])
    bands = band_hashes(signatures.reshape(len(texts), PERMUTATIONS), BANDS, ROWS, salt)
    bodies = zip(languages, sets, texts, strict=True)
    exact = np.array([hash_of(f"{lang}{s.tobytes().hex() or t}") for lang, s, t in bodies], np.uint64)
    return find_duplicates(np.array(order, int), exact, lambda i: bands[i], BANDS, lambda i: sets[i], threshold, link), sets


def hash_of(name: str) -> int:
    return int(stream(0, "hash", name).integers(0, 2**63))


def test_near_duplicates_go_and_name_what_stays():
    base = prose(1, 300)
    near = [*base[:150], "changed", *base[151:]]  # 5 of 296 shingles differ
    half = base[:230] + prose(2, 70)
    texts = [" ".join(t) for t in (base, near, half, prose(3, 300))]
    found, _ = search(texts, [1, 0, 2, 3], link=0.3)
    assert found.duplicate_of.tolist() == [1, -1, -1, -1]
    assert found.similarity[0] == pytest.approx((296 - 5) / (296 + 5))
    assert [set(pair) for pair in found.links] == [{1, 2}]


def test_languages_do_not_mix_and_texts_without_words_compare_exactly():
    texts = ["only three words", "only three words", "only three words", "!!!", "???", "!!!"]
    found, _ = search(texts, [0, 1, 2, 3, 4, 5], ["en", "en", "de", "en", "en", "en"])
    assert found.duplicate_of.tolist() == [-1, 0, -1, -1, -1, 3]


def test_a_thousand_copies_cost_a_thousand_comparisons():
    body, near = prose(1, 200), [*prose(1, 199), "changed"]
    texts = [" ".join(body)] * 500 + [" ".join(near)] * 500
    found, _ = search(texts, list(range(1000)))
    assert found.compared <= 1000
    assert found.duplicate_of.tolist() == [-1] + [0] * 999


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 90)), max_size=12), st.randoms())
def test_agrees_with_exact_jaccard(recipe, random):
    """Every dropped document has a kept one above the threshold; no two kept ones are above it (28 x 4 misses < 1e-3)."""
    texts = []
    for number, (topic, changes) in enumerate(recipe):
        text = prose(topic, 200)
        text[:changes] = prose(100 + number, changes)
        texts.append(" ".join(text))
    found, sets = search(texts, random.sample(range(len(texts)), len(texts)))
    kept = np.flatnonzero(found.duplicate_of < 0).tolist()
    for i, other in enumerate(found.duplicate_of.tolist()):
        if other >= 0:
            assert other in kept
            assert found.similarity[i] == pytest.approx(jaccard(sets[i], sets[other]))
            assert found.similarity[i] >= 0.7
    for n, i in enumerate(kept):
        assert all(jaccard(sets[i], sets[j]) < 0.7 for j in kept[:n])
    linked = {frozenset(pair) for pair in found.links}
    expected = {frozenset((i, j)) for n, i in enumerate(kept) for j in kept[:n] if jaccard(sets[i], sets[j]) >= 0.6}
    assert expected <= linked  # 28 x 4 finds a pair of 0.6 with probability 0.98; these sets have no pair near it


def test_memory_is_what_the_docstring_says():
    """Bytes a document, from the slope between two sizes, when no band hash is shared."""

    def peak(n: int) -> int:
        rng = stream(0, "memory", n)
        exact = rng.integers(0, 2**63, n).astype(np.uint64)
        order = np.arange(n)
        tracemalloc.start()
        find_duplicates(order, exact, lambda i: exact * np.uint64(2 * i + 1), 4, lambda i: exact[:0].astype(np.uint32), 0.7, 0.5)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    slope = (peak(200_000) - peak(100_000)) / 100_000
    assert slope <= 52
