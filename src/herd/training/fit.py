"""The trainer's assembly: Lightning with this project's data order, checkpoints, metrics and display, and nothing
else.
"""

import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments import SLURMEnvironment
from pytorch_lightning.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, Strategy
from torch.utils.data import DataLoader

from herd.config.errors import UserError
from herd.config.loader import to_plain
from herd.runs.progress import progress
from herd.runs.ranks import first_process
from herd.runs.stage import StageRun
from herd.training.callbacks import LogMetrics, ShowProgress, WatchSteps
from herd.training.checkpoint import CheckpointStore, step_of
from herd.training.checkpoint_io import StoreIO
from herd.training.devices import peak_here
from herd.training.engine import engine
from herd.training.garbage import CollectGarbage, collected_on_demand
from herd.training.logger import WandbConfig, open_sink
from herd.training.module import HerdModule
from herd.training.rewind import LeftOut, Span, WithoutSpans
from herd.training.saving import SaveCheckpoints, check_checkpoint
from herd.training.signals import EXIT_CODES, Stopped, StopSignals, without_lightnings_own
from herd.training.spikes import Diverged, Rewind, StepGuard
from herd.training.steps import StepBatch, StepSource, step_loader
from herd.training.surroundings import surroundings
from herd.training.trainer_config import PRECISIONS, TrainerConfig


@dataclass(frozen=True)
class FitResult:
    """What a fit came to. Seconds count training steps only, over all attempts when the run was resumed."""

    steps: int  # optimizer steps, all of them
    tokens: int  # input tokens trained on
    seconds: float  # of training
    tokens_per_second: float  # tokens / seconds
    resumed_at: int  # finished steps found in a checkpoint at the start of this attempt; 0 = fresh
    left_out: list[Span]  # steps whose data were left out, [first, end) pairs
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
    the run was killed and started again. They are left in ``module.model``, on the CPU; under parallel=fsdp that is another
    object than before, whole again on every rank.

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
        UserError: no step to train on, a checkpoint of another run or one that does not fit the model, several devices
            without processes to use them.
        Diverged: several steps in a row could not be used, or more spikes than rewinds allowed.
        SystemExit: 143 after SIGTERM, 75 after SIGUSR1, 130 after Ctrl-C, when a checkpoint has been written.
        KeyboardInterrupt: Ctrl-C twice.
    """
    if len(source) < 1:
        raise UserError(f"There is no step to train on ({description}): the data are smaller than one batch.")
    first, rewinds = first_process(config.processes), config.spikes.policy == "rewind"

    def due(step: int) -> bool:
        if step == 0:
            return rewinds  # a spike before the first checkpoint must find one too
        return bool(config.checkpoint_every_steps and step % config.checkpoint_every_steps == 0) or checkpoint_at(step)

    store = CheckpointStore(
        run.scratch / "checkpoints", config.keep_checkpoints, config.keep_best, config.keep_every_steps, regular=due
    )
    if first:
        store.clean()
    start = store.newest()
    resumed_at = step_of(start) if start else 0
    left_out = LeftOut(run.scratch / "left_out.json", config.left_out)
    identity = {
        "parameters": [[name, *parameter.shape] for name, parameter in module.model.named_parameters()],
        "steps": len(source),
        "tokens": source.tokens_at(len(source)),
        "optimizer": to_plain(module.optimizer_config),
    } | (fingerprint or {})
    module.gradient_clip = config.gradient_clip
    if config.strategy == "fsdp":
        module.prepare_sharding()
    io = StoreIO(store, config.checkpoint_async)
    wandb = config.wandb if first else WandbConfig(mode="disabled")
    with ExitStack() as stack:
        stack.enter_context(surroundings(config))
        stack.enter_context(engine(module.model, config.engine, config.accelerator))
        signals = stack.enter_context(StopSignals())
        sink = stack.enter_context(open_sink(run.metrics, wandb, run.folder, run.node or description, to_plain(config)))
        bar = stack.enter_context(progress(description, total=len(source), unit="steps"))
        stack.enter_context(collected_on_demand(config.gc_every_steps))
        stack.callback(io.finish)
        peak = config.peak_tflops * 1e12 or peak_here(config.accelerator, config.precision, config.engine.fp8 != "none")
        while True:
            if start is not None:
                check_checkpoint(start, identity, module)
            if first:
                run.metrics.truncate_after("step", step_of(start) if start else 0)
            module.guard = StepGuard(config.spikes)
            metrics = LogMetrics(sink, source, config.log_every_steps, peak)
            watch = WatchSteps(lambda step: due(step) or step % config.log_every_steps == 0 or step == len(source))
            save = SaveCheckpoints(store, due, signals, identity)
            every = [*callbacks, metrics, watch, ShowProgress(bar, metrics), CollectGarbage(config.gc_every_steps), save]
            trainer = _trainer(config, len(source), io, every, run.scratch)
            try:
                data = Steps(WithoutSpans(source, left_out), config)
                trainer.fit(module, datamodule=data, ckpt_path=start, weights_only=True)
                break
            except Rewind as spike:
                io.finish()
                start = _go_back(store, left_out, spike.step, config, first)
            except Stopped as stop:
                io.finish()
                at = step_of(store.files()[0]) if store.files() else 0
                print(
                    f"Stopped by {stop.signum.name} after {trainer.global_step} steps; the same command goes on from "
                    f"{'there' if at == trainer.global_step else f'step {at}, the newest checkpoint'}.",
                    file=sys.stderr,
                )
                raise SystemExit(EXIT_CODES[stop.signum]) from None
            except SystemExit:
                if signals.received == signal.SIGINT:  # the second: what Lightning makes of a KeyboardInterrupt
                    raise KeyboardInterrupt from None
                raise
            finally:
                module.trainer = None
    tokens = source.tokens_at(len(source)) - left_out.tokens(source)
    return FitResult(
        steps=len(source),
        tokens=tokens,
        seconds=metrics.seconds,
        tokens_per_second=tokens / max(metrics.seconds, 1e-9),
        resumed_at=resumed_at,
        left_out=left_out.spans,
        last=metrics.last,
    )


def _go_back(store: CheckpointStore, left_out: LeftOut, spike: int, config: TrainerConfig, first: bool) -> Path:
    """The checkpoint to go on from after a spike at step ``spike``; the data from there to the spike are recorded as left out."""
    spikes = config.spikes
    if len(left_out.added) >= spikes.max_rewinds:
        raise Diverged(
            f"Training diverged: a spike at step {spike}, and the run has gone back {len(left_out.added)} times already "
            "(trainer.spikes.max_rewinds). Lower optimizer.lr, or look at the data: `herd batch` shows those of a step."
        )
    # The first process decides: the others may not see yet what it has just written.
    start = _of_the_first(store.newest(max(0, spike - spikes.rewind_steps)) or store.newest(spike) if first else None)
    if start is None:
        raise Diverged(f"Training diverged: a spike at step {spike}, and no checkpoint before it is left in '{store.folder}'.")
    span = (step_of(start), spike + 1 + spikes.skip_after)
    if first:
        store.drop_after(step_of(start))  # first of all: killed between the two, the run comes to the same spike once more
    left_out.add(span, writes=first)
    if first:
        print(
            f"Spike at step {spike}: back to the checkpoint of step {span[0]}, and on without the data of the steps "
            f"{span[0]} to {span[1] - 1}.",
            file=sys.stderr,
        )
    return start


def _of_the_first(value: Path | None) -> Path | None:
    """The first rank's value, on all ranks."""
    if not torch.distributed.is_initialized():
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def _trainer(config: TrainerConfig, steps: int, io: StoreIO, callbacks: list[pl.Callback], scratch: Path) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.nodes,
        strategy=_strategy(config),
        precision=PRECISIONS[config.precision],  # type: ignore[arg-type]
        plugins=_plugins(config, io),
        callbacks=callbacks,
        max_steps=steps,
        max_epochs=-1,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=True,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_autolog_hparams=False,
        use_distributed_sampler=False,
        default_root_dir=scratch,
    )
    without_lightnings_own(trainer)
    return trainer


def _strategy(config: TrainerConfig) -> Strategy | str:
    backend = "gloo" if config.accelerator == "cpu" else "nccl"
    if config.strategy == "ddp":
        return DDPStrategy(process_group_backend=backend, gradient_as_bucket_view=True, static_graph=False)
    if config.strategy == "fsdp":
        return ModelParallelStrategy(
            data_parallel_size=config.processes,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=backend,
        )
    device = torch.device("cpu") if config.accelerator == "cpu" else torch.device("cuda", torch.cuda.current_device())
    return SingleDeviceStrategy(device=device)


def _plugins(config: TrainerConfig, io: StoreIO) -> list[Any]:
    if config.processes == 1:
        return [io, LightningEnvironment()]  # one process is one process, also inside a Slurm allocation
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():  # torchrun within a Slurm job: its ranks count
        return [io, SLURMEnvironment(auto_requeue=False)]  # the signals are ours
    return [io]
