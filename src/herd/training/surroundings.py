"""The process as a fit wants it, and afterwards as it was."""

import logging
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

from herd import products
from herd.config.errors import UserError
from herd.runs.ranks import first_process, launched
from herd.training.trainer_config import TrainerConfig


@cache
def bf16_slowdown() -> float:
    """How many times as long a matrix product takes in bfloat16 as in float32 on one core here; measured, a few ms."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, times = torch.ones(128, 128, dtype=dtype), []
        for _ in range(5):
            clock = time.thread_time()
            torch.mm(a, a)
            times.append(time.thread_time() - clock)
        seconds[dtype] = min(times)
    torch.set_num_threads(threads)
    return seconds[torch.bfloat16] / seconds[torch.float32]


def require_devices(config: TrainerConfig) -> None:
    """UserError for several devices without a way to share, or without processes to use them; for a GPU that is not there."""
    if config.processes > 1 and config.strategy == "single":
        raise UserError(f"{config.processes} devices need parallel@trainer=ddp or parallel@trainer=fsdp, not single.")
    if config.processes > 1 and not launched():
        raise UserError(
            f"{config.processes} devices need {config.processes} processes: start this command by `torchrun --nproc-per-node "
            f"{config.devices} --nnodes {config.nodes} --no-python herd ...`, or by srun."
        )
    if config.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("trainer.accelerator = gpu, but torch sees no GPU here: use hardware@trainer=cpu.")


@contextmanager
def threads_as_asked(config: TrainerConfig) -> Iterator[None]:
    """As many torch threads on the CPU as configured."""
    threads = torch.get_num_threads()
    try:
        if config.threads and config.accelerator == "cpu":
            torch.set_num_threads(config.threads)
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def surroundings(config: TrainerConfig) -> Iterator[None]:
    """Threads as configured, Lightning's chatter off.

    Raises:
        UserError: several devices without a way to share, or without processes to use them; a GPU that is not there.
    """
    require_devices(config)
    if config.accelerator == "cpu" and config.precision == "bf16" and first_process(config.processes):
        if not products.CPU_MULTIPLIES_BF16:
            print(
                "This processor has no bf16 arithmetic: operands are rounded to bf16 and multiplied in float32 (about as "
                "fast as precision=fp32, in less memory).",
                file=sys.stderr,
            )
        elif (times := bf16_slowdown()) > 2:
            print(f"bf16 takes {times:.0f} times as long as fp32 on this processor: use precision@trainer=fp32.", file=sys.stderr)
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with threads_as_asked(config), warnings.catch_warnings():
            # Advice for other set-ups (few workers, no length): the loader is as it is on purpose.
            warnings.filterwarnings("ignore", module=r"pytorch_lightning|lightning_fabric")
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            # A sharded model may return a view, which FSDP2 warns must not be changed in place; nothing here does.
            warnings.filterwarnings("ignore", message=".*returned a view tensor.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
