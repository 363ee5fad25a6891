"""`herd doctor`: what this machine has, and which optional parts are missing."""

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

_OPTIONAL = {
    "wandb": ("wandb", "metrics to Weights & Biases, offline by default"),
    "datasets": ("hub", "Hugging Face datasets as a source: pip install 'herd[hub]'"),
    "submitit": ("cluster", "sweeps through Slurm: pip install 'herd[cluster]'"),
    "lm_eval": ("eval", "lm-evaluation-harness: pip install 'herd[eval]'"),
}


def findings() -> Iterator[str]:
    """Lines for a person: interpreter, processor, memory, disk, accelerator, libraries, extras."""
    yield f"python     {platform.python_version()} ({sys.executable})"
    if not (3, 11) <= sys.version_info[:2] <= (3, 12):
        yield "           herd is tested on 3.11 and 3.12"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield f"processor  {_processor()}, {cores} cores to use"
    memory = psutil.virtual_memory()
    yield f"memory     {memory.total / 2**30:.1f} GiB, {memory.available / 2**30:.1f} free (recipe=laptop takes up to 4)"
    disk = shutil.disk_usage(Path.cwd())
    yield f"disk       {disk.free / 2**30:.1f} GiB free here (recipe=laptop writes about 0.3)"
    yield from _torch()
    key = "with a key: online possible" if os.environ.get("WANDB_API_KEY") else "no key: offline"
    for module, (extra, purpose) in _OPTIONAL.items():
        found = importlib.util.find_spec(module) is not None
        note = f" ({key})" if module == "wandb" and found else ""
        yield f"{extra:<10} {'found' if found else 'absent'}{note}: {purpose}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _torch() -> Iterator[str]:
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    yield f"torch      {torch.__version__}, {torch.get_num_threads()} threads, {capability}"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            yield f"gpu {index}      {device.name}, {device.total_memory / 2**30:.0f} GiB: use hardware=gpu"
    else:
        yield "gpu        none: everything runs on the processor (hardware=cpu)"
