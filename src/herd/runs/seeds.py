"""Named random streams: each use of chance has its own, so adding one never shifts another."""

import hashlib

import numpy as np


def _digest(seed: int, names: tuple[str | int, ...]) -> int:
    text = "\x1f".join([str(int(seed)), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest(), "little")


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """A Philox generator that depends only on ``seed`` and ``names``."""
    return np.random.Generator(np.random.Philox(key=_digest(seed, names) % 2**128))


def torch_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for ``torch.Generator.manual_seed`` that depends only on ``seed`` and ``names``."""
    return _digest(seed, names) % 2**63
