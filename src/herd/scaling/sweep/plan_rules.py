"""The rules of a plan: which sizes a budget samples, what learning rate and batch a cell gets, how long it takes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Optional

import numpy as np

from herd.config.errors import UserError
from herd.scaling.records.record import Record


@dataclass(frozen=True)
class TokensLaw:
    """A prior law of the compute-optimal tokens, D*(C) = coefficient x C^exponent (Llama 3, section 3.2.1: 0.299, 0.537)."""

    coefficient: float
    exponent: float

    def __post_init__(self) -> None:
        if not (self.coefficient > 0 and 0 < self.exponent < 1):
            raise UserError("sizes.law: coefficient must be above 0 and exponent between 0 and 1.")


@dataclass(frozen=True)
class SizeRule:
    """Which model sizes a budget samples: `count` sizes, evenly spaced in the logarithm, about an optimum by law or guess."""

    count: int = 5  # sizes per budget
    span: float = 16.0  # largest size / smallest size within a budget
    centre_parameters: float = 1.3e5  # guessed compute-optimal parameters at centre_flops
    centre_flops: float = 1.0e12  # FLOPs
    centre_exponent: float = 0.5  # growth of the optimal size with compute
    law: Optional[TokensLaw] = None  # noqa: UP045 (OmegaConf) a prior law in place of the guess: centre = C / 6 D*(C)

    def __post_init__(self) -> None:
        if self.count < 1 or self.span < 1 or self.centre_parameters <= 0 or self.centre_flops <= 0:
            raise UserError("sizes: count and span must be at least 1, centre_parameters and centre_flops above 0.")

    def centre(self, budget: float) -> float:
        """Parameters about which a budget in FLOPs is sampled."""
        if self.law is not None:
            return budget / 6 / (self.law.coefficient * budget**self.law.exponent)
        return self.centre_parameters * (budget / self.centre_flops) ** self.centre_exponent

    def sizes(self, budget: float) -> list[float]:
        """Target parameters for a budget in FLOPs, ascending."""
        centre = self.centre(budget)
        if self.count == 1:
            return [centre]
        return [centre * self.span ** (i / (self.count - 1) - 0.5) for i in range(self.count)]


@dataclass(frozen=True)
class TrainingRule:
    """Peak learning rate by model size and batch by budget, both power laws within limits."""

    lr: float = 3e-3  # peak learning rate at lr_parameters
    lr_parameters: float = 3e5  # parameters
    lr_exponent: float = -0.6  # lr grows as parameters ^ lr_exponent
    lr_min: float = 1e-4
    lr_max: float = 6e-3
    batch_tokens: float = 1024  # tokens of one optimizer step at batch_flops
    batch_flops: float = 1e12  # FLOPs
    batch_exponent: float = 0.33  # the batch grows as compute ^ batch_exponent
    batch_min: int = 256  # tokens
    batch_max: int = 65536  # tokens
    min_steps: int = 100  # optimizer steps a run needs: a smaller batch is taken before a run is too short
    max_steps: int = 100000  # optimizer steps a run may take: a larger batch is taken before a run is too slow

    def __post_init__(self) -> None:
        if not 0 < self.lr_min <= self.lr_max or self.lr <= 0 or self.lr_parameters <= 0:
            raise UserError("training: learning rates must be above 0 and lr_min at most lr_max.")
        if not 0 < self.batch_min <= self.batch_max or self.batch_tokens <= 0 or self.batch_flops <= 0:
            raise UserError("training: batches must be above 0 and batch_min at most batch_max.")
        if not 0 < self.min_steps <= self.max_steps:
            raise UserError("training: min_steps must be above 0 and at most max_steps.")

    def learning_rate(self, parameters: float) -> float:
        """Peak learning rate of a model, three significant digits."""
        rate = self.lr * (parameters / self.lr_parameters) ** self.lr_exponent
        return float(f"{min(max(rate, self.lr_min), self.lr_max):.3g}")

    def batch(self, budget: float, tokens: float, seq_len: int) -> int:
        """Tokens of one optimizer step, a multiple of ``seq_len``: the budget's batch, within the limits on steps."""
        batch = self.batch_tokens * (budget / self.batch_flops) ** self.batch_exponent
        batch = min(max(batch, self.batch_min), self.batch_max)
        batch = min(max(batch, tokens / self.max_steps), tokens / self.min_steps)
        return max(round(batch / seq_len), 1) * seq_len


@dataclass(frozen=True)
class SpeedRule:
    """How fast one job trains: seconds = FLOPs / (devices x flops_per_second) + steps x seconds_per_step."""

    hardware: str = "a CPU core"  # name of one device
    devices: int = 1  # of one job
    flops_per_second: float = 3e10  # training FLOPs that one device gets through
    peak_flops_per_second: Optional[float] = None  # noqa: UP045 (OmegaConf) of the device, dense, at the precision trained in
    seconds_per_step: float = 0.0  # overhead of one optimizer step
    source: str = "assumed"  # where the speed comes from: a measurement, a paper

    def __post_init__(self) -> None:
        if self.devices < 1 or not self.flops_per_second > 0 or self.seconds_per_step < 0:
            raise UserError("speed: devices must be at least 1, flops_per_second above 0, seconds_per_step 0 or more.")
        if self.peak_flops_per_second is not None and self.peak_flops_per_second < self.flops_per_second:
            raise UserError(
                f"speed: {self.flops_per_second:.3g} FLOPs a second exceed the device's peak, {self.peak_flops_per_second:.3g}."
            )

    def seconds(self, flops: float, steps: int) -> float:
        """Training time of one cell."""
        return flops / (self.devices * self.flops_per_second) + steps * self.seconds_per_step

    def describe(self) -> str:
        """What the hours assume, in one line."""
        peak = self.peak_flops_per_second
        mfu = f" ({self.flops_per_second / peak:.1%} of its peak of {peak:.3g})" if peak else ""
        step = f", {self.seconds_per_step * 1000:.3g} ms a step beside them" if self.seconds_per_step else ""
        return f"{self.devices} x {self.hardware} a job at {self.flops_per_second:.3g} FLOPs a second{mfu}{step}; {self.source}"

    def measured(self, records: Sequence[Record], source: str) -> "SpeedRule":
        """The speed that the finished cells of a sweep had: least squares of relative error, both costs at 0 or more.

        Raises:
            UserError: fewer than two cells with their time.
        """
        from scipy.optimize import nnls

        timed = [r for r in records if r.status == "ok" and r.seconds and r.steps]
        if len(timed) < 2:
            raise UserError(f"{source} has {len(timed)} cells with their seconds and steps; 2 are needed to measure a speed.")
        seconds = np.array([record.seconds for record in timed], dtype=float)
        costs = np.array([[record.flops / self.devices, record.steps] for record in timed], dtype=float)
        per_flop, per_step = nnls(costs / seconds[:, None], np.ones(len(timed)))[0]
        error = np.abs(costs @ np.array([per_flop, per_step]) / seconds - 1)
        rate = 1 / per_flop if per_flop > 0 else self.peak_flops_per_second or 1e18  # steps alone explain the time
        text = f"measured on {len(timed)} cells of {source}, mean error {error.mean():.0%}"
        return replace(self, flops_per_second=float(rate), seconds_per_step=float(per_step), source=text)
