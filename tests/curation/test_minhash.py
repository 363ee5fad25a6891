"""MinHash values against datasketch, bit by bit, and against exact Jaccard similarity."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.curation.neardup import minhash
from herd.curation.text import jaccard
from herd.runs.seeds import stream

DATASKETCH = {"affine32": "affine32", "mersenne61": "legacy"}


@pytest.mark.parametrize("scheme", DATASKETCH)
@given(st.lists(st.integers(0, 2**32 - 1), max_size=20), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_equals_datasketch(scheme, elements, permutations, seed):
    datasketch = pytest.importorskip("datasketch", minversion="2.0")
    sketch = datasketch.MinHash(permutations, seed=seed, scheme=DATASKETCH[scheme], hashfunc=int)
    sketch.update_batch(elements)
    assert np.array_equal(minhash(np.array(elements, np.uint32), permutations, scheme, seed), sketch.hashvalues)


@pytest.mark.parametrize("scheme", DATASKETCH)
def test_equals_datasketch_on_sets_longer_than_a_tile(scheme):
    datasketch = pytest.importorskip("datasketch", minversion="2.0")
    elements = stream(0, "sets").integers(0, 2**32, 5_000, dtype=np.uint32)
    sketch = datasketch.MinHash(112, seed=1, scheme=DATASKETCH[scheme], hashfunc=int)
    sketch.update_batch(elements.tolist())
    assert np.array_equal(minhash(elements, 112, scheme), sketch.hashvalues)


def test_values_do_not_change():
    """Signatures are stored: these numbers are part of the format."""
    assert minhash(np.arange(5, dtype=np.uint32), 4).tolist() == PINNED


@pytest.mark.parametrize("scheme", DATASKETCH)
def test_estimates_jaccard(scheme):
    pool = np.unique(stream(0, "sets").integers(0, 2**32, 3000, dtype=np.uint32))
    a, b = pool[:1500], pool[500:2000]
    estimate = float(np.mean(minhash(a, 1024, scheme) == minhash(b, 1024, scheme)))
    assert estimate == pytest.approx(jaccard(a, b), abs=0.06)  # four standard errors


PINNED = [491263, 131247162, 308645290, 1412089388]
