"""Shared set-up: reference data, hypothesis profile, one torch thread per worker."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")

# Shared machines are noisy: no deadline per example, and the same examples in each run.
settings.register_profile("herd", deadline=None, max_examples=50, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("herd")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Hides what the imports make from the garbage collector, which would walk it again and again, in each training run too."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """Folder of third-party data that is no part of the repository; tests that need it skip where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("HERD_REFERENCE_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no reference data at {folder} (HERD_REFERENCE_DATA)")
    return folder
