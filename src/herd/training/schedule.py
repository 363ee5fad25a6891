"""Learning-rate schedules: shares of the peak as pure functions of how far a stage has come."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from herd.config.errors import UserError
from herd.config.registry import Registry

# Progress in [0, 1] after the warm-up -> share of the peak learning rate.
SCHEDULES: Registry[Callable[[float, "ScheduleConfig"], float]] = Registry("schedule")


@dataclass(frozen=True)
class ScheduleConfig:
    """Linear warm-up from 0 to ``start``, then ``kind`` down to ``final``. All three are shares of the optimizer's
    peak rate.
    """

    kind: str = "cosine"  # cosine | linear | constant | wsd
    warmup_steps: int = 0  # optimizer steps of warm-up; or
    warmup_share: float = 0.0  # share of the stage that is warm-up
    start: float = 1.0  # share of the peak after the warm-up
    final: float = 0.1  # share of the peak at the end (`constant` has none)
    decay_share: float = 0.2  # wsd: the last share of the stage after its warm-up, in which the rate falls linearly
    # 0: progress is counted in tokens, to the stage's end. Above 0: in steps, and `final` is reached at this step
    # (the paper states its cosine over 1,200,000 steps).
    horizon_steps: int = 0

    def __post_init__(self) -> None:
        SCHEDULES.get(self.kind)
        if self.warmup_steps and self.warmup_share:
            raise UserError("schedule: give warmup_steps or warmup_share, not both.")
        if not 0 <= self.warmup_share < 1:
            raise UserError(f"schedule.warmup_share = {self.warmup_share}: a share in [0, 1) is needed.")
        if not 0 < self.decay_share <= 1:
            raise UserError(f"schedule.decay_share = {self.decay_share}: a share in (0, 1] is needed.")
        for name in ("warmup_steps", "horizon_steps", "start", "final"):
            if getattr(self, name) < 0:
                raise UserError(f"schedule.{name} = {getattr(self, name)}: 0 or more is needed.")


@SCHEDULES.register("constant")
def constant(progress: float, config: ScheduleConfig) -> float:
    """``start`` throughout."""
    return config.start


@SCHEDULES.register("linear")
def linear(progress: float, config: ScheduleConfig) -> float:
    """A straight line from ``start`` to ``final``."""
    return config.start + (config.final - config.start) * progress


@SCHEDULES.register("cosine")
def cosine(progress: float, config: ScheduleConfig) -> float:
    """Half a cosine from ``start`` to ``final`` (Loshchilov & Hutter 2017, eq. 5, one cycle)."""
    return config.final + (config.start - config.final) * 0.5 * (1 + math.cos(math.pi * progress))


@SCHEDULES.register("wsd")
def wsd(progress: float, config: ScheduleConfig) -> float:
    """Warm-up, stable, decay (Hu et al. 2024): ``start``, then linearly to ``final`` over the last ``decay_share`` of what
    follows the warm-up.
    """
    into_decay = max(0.0, (progress - (1 - config.decay_share)) / config.decay_share)
    return config.start + (config.final - config.start) * into_decay


def share_at(config: ScheduleConfig, before: float, after: float, warmup: float, total: float) -> float:
    """Share of the peak rate for a step that takes a stage from position ``before`` to ``after``.

    The warm-up is read at the end of the step, so that the first step does something; the decay at its beginning, so
    that the last one does.

    Args:
        before, after, warmup, total: positions in one unit, tokens or steps; ``warmup`` is where the warm-up ends and
            ``total`` where the stage does.
    """
    if after < warmup:
        return config.start * after / warmup
    progress = max(0.0, before - warmup) / max(total - warmup, 1e-9)
    return SCHEDULES.get(config.kind)(min(1.0, progress), config)


def step_schedule(config: ScheduleConfig, lr: float, steps: int) -> Callable[[int], float]:
    """Learning rate by step for a run of ``steps`` equal steps without stages (reward model, SFT, DPO)."""
    warmup = config.warmup_steps or config.warmup_share * steps
    total = config.horizon_steps or steps
    return lambda step: lr * share_at(config, step, step + 1, warmup, total)
