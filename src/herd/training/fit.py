"""The trainer's assembly: Lightning with this project's data order, checkpoints, metrics and display, and nothing
else.
"""

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, Strategy
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch.utils.data import DataLoader

from herd.config.errors import UserError
from herd.config.loader import to_plain
from herd.runs.progress import progress
from herd.runs.stage import StageRun
from herd.training.callbacks import LogMetrics, ShowProgress
from herd.training.checkpoint import AtomicCheckpointIO, CheckpointStore, SaveCheckpoints, step_of
from herd.training.logger import WandbConfig, open_sink
from herd.training.module import HerdModule
from herd.training.steps import StepBatch, StepSource, step_loader

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}  # bf16: fp32 weights, autocast
ACCELERATORS = ("cpu", "gpu")
STRATEGIES = ("single", "ddp", "fsdp")


@dataclass(frozen=True)
class TrainerConfig:
    """How to train, whatever the model: filled by the groups hardware, precision, parallel and logger."""

    accelerator: str = "cpu"  # cpu | gpu
    devices: int = 1  # processes a node: GPUs, or CPU processes
    nodes: int = 1  # machines
    threads: int = 0  # torch threads a process on the CPU; 0 = leave as it is
    micro_batch_tokens: int = 8192  # input tokens of one forward and backward pass on one device, at most
    num_workers: int = 0  # processes that prepare batches; 0 = the training process itself
    precision: str = "fp32"  # fp32 | bf16 (autocast; weights stay fp32)
    strategy: str = "single"  # single | ddp | fsdp
    gradient_clip: float = 1.0  # largest norm of the gradient; 0 = no clipping
    checkpoint_every_steps: int = 100  # optimizer steps between checkpoints; 0 = at the end of curriculum stages only
    keep_checkpoints: int = 2  # newest checkpoints kept
    log_every_steps: int = 10  # optimizer steps between rows of metrics
    wandb: WandbConfig = field(default_factory=WandbConfig)

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("accelerator", self.accelerator, ACCELERATORS),
            ("precision", self.precision, tuple(PRECISIONS)),
            ("strategy", self.strategy, STRATEGIES),
        ):
            if value not in choices:
                raise UserError(f"Unknown trainer.{name} '{value}'. Choices: {', '.join(choices)}.")
        for name in ("devices", "nodes", "micro_batch_tokens", "keep_checkpoints", "log_every_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"trainer.{name} = {getattr(self, name)}: at least 1 is needed.")
        for name in ("threads", "num_workers", "gradient_clip", "checkpoint_every_steps"):
            if getattr(self, name) < 0:
                raise UserError(f"trainer.{name} = {getattr(self, name)}: 0 or more is needed.")


@dataclass(frozen=True)
class FitResult:
    """What a fit came to. Seconds count training steps only, over all attempts when the run was resumed."""

    steps: int  # optimizer steps, all of them
    tokens: int  # input tokens
    seconds: float  # of training
    tokens_per_second: float  # tokens / seconds
    resumed_at: int  # finished steps found in a checkpoint at the start of this attempt; 0 = fresh
    last: dict[str, float]  # the metrics of the last row


class Steps(pl.LightningDataModule):
    """Feeds a StepSource from the step at which the trainer stands (after a restore, the checkpoint's)."""

    def __init__(self, source: StepSource, config: TrainerConfig) -> None:
        super().__init__()
        self.source, self.config = source, config

    def train_dataloader(self) -> DataLoader[StepBatch]:
        trainer = self.trainer
        assert trainer is not None
        rank, world = trainer.global_rank, trainer.world_size
        pin = self.config.accelerator == "gpu"
        return step_loader(self.source, trainer.global_step, self.config.num_workers, rank, world, pin)


def fit(
    module: HerdModule,
    source: StepSource,
    config: TrainerConfig,
    run: StageRun,
    callbacks: Sequence[pl.Callback] = (),
    *,
    description: str = "training",
    checkpoint_at: Callable[[int], bool] = lambda step: False,
    fingerprint: dict[str, Any] | None = None,
) -> FitResult:
    """Train ``module`` on every step of ``source``, from the newest whole checkpoint in ``run.scratch`` if there is
    one.

    The final weights depend on the module's initial weights, the source and the configuration alone, not on how often
    the run was killed and started again. They are left in ``module.model``, on the CPU.

    Args:
        module: its model must be initialised.
        source: the data, by optimizer step.
        run: metrics go to ``run.metrics``, checkpoints to ``run.scratch``, W&B's files below ``run.folder``.
        callbacks: more of them; their state is in the checkpoints when they have ``state_dict``.
        description: shown beside the progress bar.
        checkpoint_at: is a checkpoint due after so many finished steps, beside the regular ones?
        fingerprint: plain values that must be equal in a checkpoint to resume from; shapes and lengths are always
        compared.

    Raises:
        UserError: no step to train on, a checkpoint of another run, several devices without processes to use them.
        Diverged: the loss became infinite or NaN.
        SystemExit: 143 after SIGTERM, when a checkpoint has been written.
    """
    if len(source) < 1:
        raise UserError(f"There is no step to train on ({description}): the data are smaller than one batch.")
    first = first_process()
    store = CheckpointStore(run.scratch / "checkpoints", config.keep_checkpoints)
    newest = store.newest()
    resumed_at = step_of(newest) if newest else 0
    if first:
        run.metrics.truncate_after("step", resumed_at)
    identity = {
        "parameters": [[name, *parameter.shape] for name, parameter in module.model.named_parameters()],
        "steps": len(source),
        "tokens": source.tokens_at(len(source)),
        "optimizer": to_plain(module.optimizer_config),
    } | (fingerprint or {})
    module.gradient_clip = config.gradient_clip
    wandb = config.wandb if first else WandbConfig(mode="disabled")
    with (
        _surroundings(config),
        open_sink(run.metrics, wandb, run.folder, run.node or description, to_plain(config)) as sink,
        progress(description, total=len(source), unit="steps") as bar,
    ):
        metrics = LogMetrics(sink, source, config.log_every_steps)
        save = SaveCheckpoints(store, config.checkpoint_every_steps, checkpoint_at, identity)
        trainer = pl.Trainer(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.nodes,
            strategy=_strategy(config),
            precision=PRECISIONS[config.precision],  # type: ignore[arg-type]
            plugins=_plugins(config, store),
            callbacks=[*callbacks, metrics, ShowProgress(bar, metrics), save],
            max_steps=len(source),
            max_epochs=-1,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=True,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_autolog_hparams=False,
            use_distributed_sampler=False,
            default_root_dir=run.scratch,
        )
        try:
            trainer.fit(module, datamodule=Steps(source, config), ckpt_path=newest, weights_only=True)
        except SIGTERMException:
            print(
                f"Stopped by SIGTERM after {trainer.global_step} steps; the same command goes on from there.",
                file=sys.stderr,
            )
            raise SystemExit(143) from None
        finally:
            module.trainer = None
    tokens = source.tokens_at(len(source))
    return FitResult(
        steps=len(source),
        tokens=tokens,
        seconds=metrics.seconds,
        tokens_per_second=tokens / max(metrics.seconds, 1e-9),
        resumed_at=resumed_at,
        last=metrics.last,
    )


def _strategy(config: TrainerConfig) -> Strategy | str:
    backend = "gloo" if config.accelerator == "cpu" else "nccl"
    if config.strategy == "ddp":
        return DDPStrategy(process_group_backend=backend, gradient_as_bucket_view=True, static_graph=False)
    if config.strategy == "fsdp":
        return ModelParallelStrategy(
            data_parallel_size=config.devices * config.nodes,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=backend,
        )
    device = torch.device("cpu") if config.accelerator == "cpu" else torch.device("cuda", torch.cuda.current_device())
    return SingleDeviceStrategy(device=device)


def _plugins(config: TrainerConfig, store: CheckpointStore) -> list[Any]:
    plugins: list[Any] = [AtomicCheckpointIO(store)]
    if config.devices * config.nodes == 1:
        plugins.append(LightningEnvironment())  # one process is one process, also inside a Slurm allocation
    return plugins


def first_process() -> bool:
    """Whether this process is the one of its run that writes; from what torchrun or Slurm set, before Lightning starts."""
    ranks = (os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return int(next((rank for rank in ranks if rank is not None), 0)) == 0


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


@contextmanager
def _surroundings(config: TrainerConfig) -> Iterator[None]:
    """The process as a fit wants it (threads, Lightning's chatter off), and afterwards as it was."""
    processes = config.devices * config.nodes
    if processes > 1 and config.strategy == "single":
        raise UserError(f"{processes} devices need parallel@trainer=ddp or parallel@trainer=fsdp, not single.")
    if processes > 1 and "LOCAL_RANK" not in os.environ and "SLURM_PROCID" not in os.environ:
        raise UserError(
            f"{processes} devices need {processes} processes: start this command by `torchrun --nproc-per-node "
            f"{config.devices} --nnodes {config.nodes} --no-python herd ...`, or by srun."
        )
    if config.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("trainer.accelerator = gpu, but torch sees no GPU here: use hardware=cpu.")
    if config.accelerator == "cpu" and config.precision == "bf16" and (times := bf16_slowdown()) > 2:
        print(f"bf16 takes {times:.0f} times as long as fp32 on this processor: use precision@trainer=fp32.", file=sys.stderr)
    threads = torch.get_num_threads()
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch")]
    levels = [logger.level for logger in loggers]
    try:
        if config.threads and config.accelerator == "cpu":
            torch.set_num_threads(config.threads)
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            # Advice for other set-ups (few workers, no length): the loader is as it is on purpose.
            warnings.filterwarnings("ignore", module=r"pytorch_lightning|lightning_fabric")
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            yield
    finally:
        torch.set_num_threads(threads)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
