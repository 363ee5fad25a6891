"""The schema of ``trainer``: how to train, whatever the model."""

from dataclasses import dataclass, field
from typing import Any

from herd.config.errors import UserError
from herd.training.engine import EngineConfig
from herd.training.logger import WandbConfig
from herd.training.spikes import SpikeConfig

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}  # bf16: fp32 weights, autocast
ACCELERATORS = ("cpu", "gpu")
STRATEGIES = ("single", "ddp", "fsdp")

# What decides where and how fast a run goes, and its result by no more than the rounding of a sum taken in another order: a
# killed run goes on with other values of these, and a finished one is found under any.
EXECUTION = tuple(
    f"trainer.{key}"
    for key in (
        "devices",
        "nodes",
        "threads",
        "micro_batch_tokens",
        "num_workers",
        "strategy",
        "checkpoint_every_steps",
        "checkpoint_async",
        "keep_checkpoints",
        "keep_best",
        "keep_every_steps",
        "log_every_steps",
        "peak_tflops",
        "gc_every_steps",
        "engine.attention",
        "engine.compile",
        "engine.recompute",
        "wandb",
    )
)


@dataclass(frozen=True)
class TrainerConfig:
    """How to train, whatever the model: filled by the groups hardware, precision, parallel and logger."""

    accelerator: str = "cpu"  # cpu | gpu
    devices: int = 1  # processes a node: GPUs, or CPU processes
    nodes: int = 1  # machines
    threads: int = 0  # torch threads a process on the CPU; 0 = leave as it is
    micro_batch_tokens: int = 8192  # input tokens of one forward and backward pass on one device, at most
    num_workers: int = 0  # processes that prepare batches; 0 = the training process itself
    precision: str = "fp32"  # fp32 | bf16 (autocast; weights stay fp32; see herd.products)
    strategy: str = "single"  # single | ddp | fsdp
    gradient_clip: float = 1.0  # largest norm of the gradient; 0 = no clipping
    checkpoint_every_steps: int = 100  # optimizer steps between checkpoints; 0 = at the end of curriculum stages only
    checkpoint_async: bool = True  # write checkpoints in a thread, from a copy in host memory
    keep_checkpoints: int = 2  # newest checkpoints kept
    keep_best: int = 0  # checkpoints with the lowest eval_loss kept besides, of those made where a run evaluates
    keep_every_steps: int = 0  # checkpoints of each so-many-th step stay until the run is finished; 0 = none
    log_every_steps: int = 10  # optimizer steps between rows of metrics, see herd.training.rows
    peak_tflops: float = 0.0  # TFLOP/s of one device at best in its precision, for MFU; 0 = by the GPU's name, unknown on a CPU
    gc_every_steps: int = 50  # optimizer steps between Python's garbage collections, on all ranks together; 0 = as Python likes
    engine: EngineConfig = field(default_factory=EngineConfig)
    spikes: SpikeConfig = field(default_factory=SpikeConfig)
    # Steps whose data are left out, as [first, end) pairs: what the manifest of a run that went back records, to repeat it.
    left_out: list[list[int]] = field(default_factory=list)
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
        for name in (
            "threads",
            "num_workers",
            "gradient_clip",
            "checkpoint_every_steps",
            "keep_best",
            "keep_every_steps",
            "peak_tflops",
            "gc_every_steps",
        ):
            if getattr(self, name) < 0:
                raise UserError(f"trainer.{name} = {getattr(self, name)}: 0 or more is needed.")
        for span in self.left_out:
            if len(span) != 2 or not 0 <= span[0] < span[1]:
                raise UserError(f"trainer.left_out: {span} is no pair [first, end) of steps with 0 <= first < end.")

    @property
    def processes(self) -> int:
        """Data-parallel ranks."""
        return self.devices * self.nodes


def processes_of(config: Any) -> int:
    """How many processes share a stage whose configuration has a ``trainer``."""
    trainer: TrainerConfig = config.trainer
    return trainer.processes
