"""Freed memory stays, where the C library can be told so."""

import os
import subprocess
import sys

import pytest

COUNT = """
import resource, torch
from herd.runs.heap import keep_freed_memory
kept = {call}
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(10 << 20) for _ in range(3)]  # 40 MB each: by default returned one by one
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for _ in range(4): faults()
print(kept, min(faults() for _ in range(4)))
"""


def faults(call: str, **environment: str) -> tuple[str, int]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES"))} | environment
    command = [sys.executable, "-c", COUNT.format(call=call)]
    kept, count = subprocess.run(command, capture_output=True, text=True, check=True, env=clean).stdout.split()
    return kept, int(count)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's setting")
def test_what_is_freed_is_not_taken_from_the_system_again():
    pages = 3 * 10 * 1024
    kept, anew = faults("keep_freed_memory()")
    if kept == "False":
        pytest.skip("this C library has no such setting")
    assert anew < pages / 2  # a block now and then where the heap is in pieces
    assert faults("False")[1] > 0.9 * pages  # as it is otherwise


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's setting")
@pytest.mark.parametrize("own", [{"MALLOC_TRIM_THRESHOLD_": "100000"}, {"GLIBC_TUNABLES": "glibc.malloc.top_pad=1"}])
def test_the_users_own_settings_stay(own):
    assert faults("keep_freed_memory()", **own)[0] == "False"
