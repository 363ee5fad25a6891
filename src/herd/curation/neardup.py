"""MinHash signatures of shingle sets; :mod:`herd.curation.near_duplicates` finds copies with them."""

import functools

import numpy as np

SCHEMES = ("affine32", "mersenne61")
_PRIME = np.uint64(2**61 - 1)
_LOW = np.uint64(2**32 - 1)
_TILE = 1 << 16  # values at a time: a tile of 112 permutations stays in the second-level cache


@functools.cache
def _permutations(count: int, scheme: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors and offsets (count, 1), drawn as datasketch draws them."""
    random = np.random.RandomState(seed)
    if scheme == "affine32":  # odd factors: each permutation is a bijection of the 32-bit integers
        factors = random.randint(0, 2**31, count, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
        offsets = random.randint(0, 2**32, count, dtype=np.uint32)
        return factors[:, None], offsets[:, None]
    drawn = [(random.randint(1, _PRIME, dtype=np.uint64), random.randint(0, _PRIME, dtype=np.uint64)) for _ in range(count)]
    pairs = np.array(drawn, np.uint64)
    return pairs[:, :1].copy(), pairs[:, 1:].copy()


def minhash(shingles: np.ndarray, permutations: int, scheme: str = "affine32", seed: int = 1) -> np.ndarray:
    """MinHash values of a set: for each permutation the smallest permuted element. Bit by bit those of datasketch 2.

    ``affine32`` (datasketch's default since 2.0): elements are mixed once with MurmurHash3's finaliser, then permuted by
    a x + b modulo 2^32 with odd a. ``mersenne61`` (datasketch before 2.0, where it is now called "legacy", and datatrove):
    ((a x + b) mod 2^64 mod (2^61 - 1)) mod 2^32; three times the work, for comparison with signatures made elsewhere.

    Args:
        shingles: (elements,) uint32.
        permutations: how many values.
        scheme: one of :data:`SCHEMES`.
        seed: of the permutations.

    Returns:
        (permutations,) uint32; 2^32 - 1 everywhere for the empty set.
    """
    assert scheme in SCHEMES
    factors, offsets = _permutations(permutations, scheme, seed)
    values = _mix(shingles.astype(np.uint32)) if scheme == "affine32" else shingles.astype(np.uint64)
    smallest = np.full(permutations, 2**32 - 1, np.uint32)
    step = max(_TILE // permutations, 1)
    for start in range(0, len(values), step):
        permuted = factors * values[start : start + step]
        permuted += offsets
        if scheme == "mersenne61":
            permuted %= _PRIME
            permuted &= _LOW
        np.minimum(smallest, permuted.min(axis=1).astype(np.uint32), out=smallest)
    return smallest


def _mix(values: np.ndarray) -> np.ndarray:
    """MurmurHash3's 32-bit finaliser, a bijection: structured input is safe to permute."""
    values = values ^ (values >> np.uint32(16))
    values *= np.uint32(0x85EBCA6B)
    values ^= values >> np.uint32(13)
    values *= np.uint32(0xC2B2AE35)
    return values ^ (values >> np.uint32(16))
