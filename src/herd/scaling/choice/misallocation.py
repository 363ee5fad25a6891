"""What it costs to train another size than the compute-optimal one.

A size is chosen from a fitted law, and the law is uncertain. On the true surface the chosen run reaches a loss above the best
one of its budget; a smaller budget, spent at the optimum, would have reached the same loss, and the difference was wasted. Nobody
knows the true surface; so the cost is computed on each of many surfaces drawn from the posterior, and its interval is that of the
draws.

Along the optimum a surface falls as L*(C) = E + K C^-g, g = ab / (a + b): at the optimum both terms are in the fixed ratio b : a,
and both fall as C^-g. So the budget that reaches a loss L at the optimum is C ((L - E) / (L*(C) - E))^(-1/g).
"""

import math
from dataclasses import dataclass

import numpy as np

from herd.config.errors import UserError
from herd.scaling.choice.posterior import Posterior
from herd.scaling.curves.power_law import Interval
from herd.scaling.surface.batch import SurfaceBatch


@dataclass(frozen=True)
class Misallocation:
    """The cost of training ``parameters`` at ``flops``; intervals are two-sided, from the posterior's draws."""

    status: str  # ok | the fit's status
    reason: str
    flops: float
    parameters: float  # N that was chosen
    excess_loss: float  # L(N, C / 6N) - L*(C) on the fitted surface, nats
    excess_loss_mean: float  # over the posterior's draws: above 0 also for the fitted optimum, which is not the true one
    excess_loss_interval: Interval
    wasted_flops: float  # FLOPs that the optimum would not have needed for the same loss, on the fitted surface
    wasted_flops_mean: float
    wasted_flops_interval: Interval
    confidence: float
    extrapolation_ratio: float  # flops / largest fitted compute

    @property
    def wasted_share(self) -> float:
        """Share of the budget that is wasted."""
        return self.wasted_flops / self.flops


def cost_of_size(surfaces: SurfaceBatch, flops: float, parameters: float) -> tuple[np.ndarray, np.ndarray]:
    """Excess loss in nats and wasted FLOPs, each (R,), of a run of ``parameters`` at ``flops`` on every surface (R,)."""
    optimal_tokens = surfaces.optimal_tokens(flops)
    best = surfaces.loss(flops / 6 / optimal_tokens, optimal_tokens)
    reached = surfaces.loss(parameters, flops / 6 / parameters)
    excess = np.maximum(reached - best, 0.0)  # below 0 by rounding only
    g = surfaces.a * surfaces.b / (surfaces.a + surfaces.b)
    reducible = best - surfaces.E
    return excess, -flops * np.expm1(-np.log1p(excess / reducible) / g)


def misallocation(
    posterior: Posterior, flops: float, parameters: float, confidence: float = 0.9, draws: int = 2000, seed: int = 0
) -> Misallocation:
    """The cost of training ``parameters`` at ``flops``, by the fitted surface, with the interval of the posterior.

    Args:
        posterior: of the law ``surface``.
        flops: compute of the run.
        parameters: size that was or would be chosen, so that tokens are flops / (6 parameters).
        confidence: of the intervals.
        draws: surfaces drawn.
        seed: of the draws.

    Raises:
        UserError: numbers out of range, or a posterior of another law.
    """
    if posterior.law != "surface":
        raise UserError(f"The cost of misallocation needs the law 'surface', not '{posterior.law}': parabolas have no E.")
    for name, value in (("flops", flops), ("parameters", parameters)):
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"misallocation: {name} is {value}; give a number above 0.")
    if not 0 < confidence < 1:
        raise UserError(f"confidence {confidence}: give a fraction between 0 and 1, such as 0.9.")
    with np.errstate(all="ignore"):
        fitted = cost_of_size(posterior.batch(posterior.theta[:, None]), flops, parameters)
        drawn = cost_of_size(posterior.surfaces(draws, seed), flops, parameters)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    finite = [values[np.isfinite(values)] for values in drawn]
    intervals = [np.quantile(values, tails).tolist() for values in finite]
    return Misallocation(
        status=posterior.status,
        reason=posterior.reason,
        flops=flops,
        parameters=parameters,
        excess_loss=float(fitted[0][0]),
        excess_loss_mean=float(finite[0].mean()),
        excess_loss_interval=(intervals[0][0], intervals[0][1]),
        wasted_flops=float(fitted[1][0]),
        wasted_flops_mean=float(finite[1].mean()),
        wasted_flops_interval=(intervals[1][0], intervals[1][1]),
        confidence=confidence,
        extrapolation_ratio=flops / posterior.largest_flops,
    )
