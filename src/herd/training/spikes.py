"""Steps that would do harm, judged on the device before the optimizer moves a weight.

A loss or gradient that is not finite leaves the weights and the optimizer's state as they are, always. A spike, far above
what the steps before it had, does so when the configuration asks for it (section 3.4.1 of OLMo 2, arXiv 2501.00656, leaves out
updates more than six standard deviations above the last 128 steps). The host learns of it at the next row of metrics;
the device waits for nobody.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from herd.config.errors import UserError

POLICIES = ("none", "skip_step", "rewind")
_KNOWN = 0  # place of the number of steps in the window in `StepGuard.numbers`


@dataclass(frozen=True)
class SpikeConfig:
    """What to do about a step whose loss or gradient norm is far above those before it."""

    # none: nothing. skip_step: that step moves no weight. rewind: back to the checkpoint before the spike, and on without
    # the data of the steps from there to the spike (PaLM, section 5.1).
    policy: str = "none"  # none | skip_step | rewind
    window: int = 128  # steps whose losses and gradient norms are remembered
    least: int = 32  # steps to remember before anything is called a spike
    sigma: float = 6.0  # standard deviations above the window's mean
    in_row: int = 5  # steps in a row without an update (not finite, or spikes) after which the run has diverged
    rewind_steps: int = 0  # rewind: go back at least so many steps before the spike
    skip_after: int = 0  # rewind: steps after the spike whose data are left out too
    max_rewinds: int = 5  # rewind: after so many, the next spike ends the run

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise UserError(f"Unknown trainer.spikes.policy '{self.policy}'. Choices: {', '.join(POLICIES)}.")
        if not 2 <= self.least <= self.window:
            raise UserError(
                f"trainer.spikes: least = {self.least} must be 2 or more, and window = {self.window} no less than it."
            )
        if not self.sigma > 0 or self.in_row < 1:
            raise UserError("trainer.spikes: sigma must exceed 0, and in_row be 1 or more.")
        for name in ("rewind_steps", "skip_after", "max_rewinds"):
            if getattr(self, name) < 0:
                raise UserError(f"trainer.spikes.{name} = {getattr(self, name)}: 0 or more is needed.")


class Diverged(UserError):
    """Training has left the region in which it can go on."""


class Rewind(Exception):
    """A spike, after which the run goes back to an earlier checkpoint."""

    def __init__(self, step: int) -> None:
        super().__init__(f"spike at step {step}")
        self.step = step


@dataclass(frozen=True)
class Findings:
    """What the device has judged so far."""

    nonfinite: int  # steps left out because the loss or the gradient's norm was not finite
    spikes: int  # steps that were spikes
    first_spike: int | None  # step of the first of them since the checkpoint that training started from
    diverged_at: int | None  # step at which too many in a row had been left out


class StepGuard:
    """Decides on the device whether a step's update is made; its state is part of every checkpoint.

    A spike enters the window at the height of the threshold, so that it does not hide the next one, and so that a new level
    is learnt after a while all the same.
    """

    def __init__(self, config: SpikeConfig) -> None:
        self.config = config
        self.window = torch.zeros(2, config.window)  # losses and gradient norms, newest last
        # Steps in the window, left out in a row, not finite, spikes; step of the first spike, and of divergence, or -1.
        self.numbers = torch.tensor([0, 0, 0, 0, -1, -1])

    def to(self, device: torch.device) -> None:
        """Move to where losses are."""
        self.window, self.numbers = self.window.to(device), self.numbers.to(device)

    def forget(self) -> None:
        """Begin a new window: another mix, length or batch has another level."""
        self.numbers[_KNOWN] = 0

    def judge(self, loss: Tensor, norm: Tensor, step: int) -> Tensor:
        """Whether to leave out the update of ``step``, (1 = leave it out, 0 = make it), float32 scalar on the device.

        Args:
            loss: mean loss of the global batch, scalar.
            norm: norm of its gradient before clipping, scalar.
        """
        values = torch.stack((loss.detach().float(), norm.detach().float()))
        finite = torch.isfinite(values).all()
        spike = torch.zeros_like(finite) if self.config.policy == "none" else self._spike(values, finite)
        known, in_row, nonfinite, spikes, first, diverged = self.numbers
        bad = ~finite | spike
        entered = finite.long() if self.config.policy != "none" else 0  # in the window
        in_row = torch.where(bad, in_row + 1, 0)
        self.numbers = torch.stack(
            (
                (known + entered).clamp(max=self.config.window),
                in_row,
                nonfinite + (~finite).long(),
                spikes + spike.long(),
                torch.where(spike & (first < 0), step, first),
                torch.where((in_row >= self.config.in_row) & (diverged < 0), step, diverged),
            )
        )
        return bad.float()

    def _spike(self, values: Tensor, finite: Tensor) -> Tensor:
        """Whether ``values`` stand out of the window, into which they are then taken."""
        config, known = self.config, self.numbers[_KNOWN]
        seen = torch.arange(config.window, device=values.device) >= config.window - known
        count = known.clamp(min=1)
        mean = (self.window * seen).sum(1) / count
        deviation = (((self.window - mean[:, None]) * seen).square().sum(1) / count).sqrt()
        # The last term is rounding: equal values do not stand out of each other.
        height = mean + config.sigma * deviation + 1e-5 * mean.abs()
        judged = known >= config.least
        taken = torch.where(judged, torch.minimum(values, height), values)
        self.window = torch.where(finite, torch.cat((self.window[:, 1:], taken[:, None]), 1), self.window)
        return finite & judged & (values > height).any()

    def look(self) -> Findings:
        """What was found, with one synchronisation."""
        _, _, nonfinite, spikes, first, diverged = self.numbers.tolist()
        return Findings(nonfinite, spikes, first if first >= 0 else None, diverged if diverged >= 0 else None)

    def state_dict(self) -> dict[str, Tensor]:
        return {"window": self.window, "numbers": self.numbers}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on with ``state``, or with a new window where another length of it is configured now."""
        if state["window"].shape == self.window.shape:
            self.window, self.numbers = state["window"].to(self.window.device), state["numbers"].to(self.numbers.device)


def guarded_step(optimizer: torch.optim.Optimizer, leave_out: Tensor) -> None:
    """One step of ``optimizer`` unless ``leave_out`` is 1; then neither weights nor the optimizer's state change.

    Fused optimizers ask a tensor on the device themselves (the switch that gradient scaling has for float16); of others the
    host asks, which costs a synchronisation.

    Args:
        optimizer: Lightning's wrapper or torch's own.
        leave_out: float32 scalar, 0 or 1.
    """
    inner: Any = getattr(optimizer, "optimizer", optimizer)
    if getattr(inner, "_step_supports_amp_scaling", False):
        inner.found_inf = leave_out
    elif bool(leave_out):
        optimizer.zero_grad()  # a step without gradients changes nothing, and Lightning counts it
    optimizer.step()
