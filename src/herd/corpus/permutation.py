"""A shuffle that is never written down: any entry of a permutation of n numbers, from (n, seed) alone.

A Feistel network permutes the numbers below a power of four; those that it sends beyond n - 1 are sent through it again
until they fall below (cycle walking; Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains"): fewer than four
steps on average.
"""

from dataclasses import dataclass

import numpy as np

from herd.runs.seeds import stream

_ROUNDS = 6
_MIX = np.uint64(0xBF58476D1CE4E5B9)  # of splitmix64


@dataclass(frozen=True)
class Permutation:
    """A permutation of 0 to ``count`` - 1."""

    count: int
    keys: tuple[int, ...]  # one a round
    bits: int  # of each half

    @classmethod
    def of(cls, count: int, seed: int, *names: str | int) -> "Permutation":
        """The permutation that belongs to ``seed`` and ``names``."""
        assert 0 < count <= 2**62
        keys = stream(seed, *names).bit_generator.random_raw(_ROUNDS)
        return cls(count, tuple(int(key) for key in keys), max(1, -(-(count - 1).bit_length() // 2)))

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """(n,) int64 places -> (n,) int64, what stands there."""
        found = self._network(places.astype(np.uint64))
        while (outside := found >= np.uint64(self.count)).any():
            found[outside] = self._network(found[outside])
        return found.astype(np.int64)

    def _network(self, x: np.ndarray) -> np.ndarray:
        bits, mask = np.uint64(self.bits), np.uint64(2**self.bits - 1)
        left, right = x >> bits, x & mask
        for key in self.keys:
            mixed = (right + np.uint64(key)) * _MIX  # modulo 2^64
            mixed ^= mixed >> np.uint64(29)
            mixed *= _MIX
            left, right = right, left ^ ((mixed >> np.uint64(32)) & mask)
        return (left << bits) | right
