"""Divergence from the corpus: by hand, against its definition, and its independence of length and of the order of merging."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.config.errors import UserError
from herd.curation.kl import KLConfig, Reference, bucket_counts
from herd.runs.seeds import stream


def hashes_of(buckets: list[int], count: int) -> np.ndarray:
    """Word hashes that fall into these of ``count`` buckets."""
    return np.array(buckets, np.uint64) << np.uint64(64 - (count.bit_length() - 1))


def test_by_hand():
    """Counts 6 and 2 and pseudo-count 1: q = 0.7, 0.3. A document of one word twice: KL = ln(1 / q)."""
    reference = Reference(np.array([6, 2]))
    assert reference.divergence(hashes_of([0, 0], 2))[0] == pytest.approx(math.log(1 / 0.7))
    assert reference.divergence(hashes_of([0, 1], 2))[0] == pytest.approx(0.5 * math.log(0.5 / 0.7) + 0.5 * math.log(0.5 / 0.3))
    assert reference.divergence(hashes_of([], 2)) == (0.0, 0.0, 0.0)
    assert Reference(np.array([6, 0, 1, 1])).divergence(hashes_of([1, 1, 2], 4))[2] == pytest.approx(2 / 3)


@given(st.lists(st.integers(0, 7), min_size=1, max_size=40), st.lists(st.integers(0, 50), min_size=8, max_size=8))
def test_equals_its_definition(document, counts):
    q = (np.array(counts) + 0.5) / (sum(counts) + 4)
    p = np.bincount(document, minlength=8) / len(document)
    expected = sum(p[b] * math.log(p[b] / q[b]) for b in range(8) if p[b])
    found = Reference(np.array(counts), pseudo_count=0.5).divergence(hashes_of(document, 8))[0]
    assert found == pytest.approx(expected, abs=1e-12)


def test_counts_of_partitions_merge_in_any_order():
    hashes = stream(0, "kl").integers(0, 2**64, 5_000, dtype=np.uint64)
    whole = bucket_counts(hashes, 256)
    parts = [bucket_counts(hashes[i::7], 256) for i in range(7)]
    assert np.array_equal(sum(parts), whole)
    assert np.array_equal(sum(reversed(parts)), whole)
    assert whole.sum() == len(hashes)


def test_excess_does_not_depend_on_length():
    """Words drawn from the reference: the divergence falls with length from about 3 nats, the excess stays at zero."""
    rng = stream(1, "kl")
    share = 1 / np.arange(1, 4097)
    share /= share.sum()
    reference = Reference((share * 1e9).astype(np.int64))
    plain, excess = {}, {}
    for words, repeats in ((30, 400), (300, 100), (3_000, 30), (30_000, 10)):
        found = [reference.divergence(hashes_of(rng.choice(4096, words, p=share).tolist(), 4096)) for _ in range(repeats)]
        plain[words], excess[words] = np.mean([f[0] for f in found]), np.mean([f[1] for f in found])
    assert plain[30] > 2.5 > plain[300] > plain[3_000] > plain[30_000] > 0
    assert max(map(abs, excess.values())) < 0.03


def test_outliers_stand_out():
    rng = stream(2, "kl")
    share = 1 / np.arange(1, 1025)
    share /= share.sum()
    reference = Reference((share * 1e6).astype(np.int64))
    normal = rng.choice(1024, 500, p=share).tolist()
    odd = normal[:350] + rng.integers(900, 1024, 150).tolist()
    assert reference.divergence(hashes_of(odd, 1024))[1] > reference.divergence(hashes_of(normal, 1024))[1] + 0.3


def test_settings_are_checked():
    with pytest.raises(UserError, match="power of two"):
        KLConfig(buckets=1000)
    with pytest.raises(UserError, match="positive"):
        KLConfig(pseudo_count=0)
