"""Memory that is freed stays with the process."""

import ctypes
import os
from functools import cache

# mallopt's parameters (malloc.h)
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# Bytes; a larger block goes back to the system when it is freed, as any does by default from 32 MB on at the latest.
_LARGEST = 2**28


@cache
def keep_freed_memory() -> bool:
    """Have the C library keep what is freed, for the allocations to come; whether it does.

    glibc returns memory to the system when the end of its heap falls free, and single blocks from a threshold on. A training step
    on a CPU frees hundreds of megabytes and asks for as many: with 30M parameters and 2,048 tokens 8,000 to 210,000 pages a step
    were taken anew, each zeroed by the system first, and then next to none (benchmarks/training/step_vs_transformers.py compares
    the steps). Left alone where the user has set glibc's own variables, and where the library has no such setting.
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, musl; Windows has no library of the process itself
        return False
    # In this order: a threshold for single blocks alone would have the heap trimmed at a fixed, small one.
    return bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1)) and bool(mallopt(_MMAP_THRESHOLD, _LARGEST))
