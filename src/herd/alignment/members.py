"""Is the mean of several models' weights as good as the best of them? On the same held-out examples, with an interval."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from herd.config.errors import UserError
from herd.runs.seeds import stream
from herd.runs.stage import Artifact
from herd.runs.statistics import bootstrap_ratios, cluster_sums, percentile_interval


@dataclass(frozen=True, eq=False)
class Measure:
    """One number of one model: the sum of `values` over examples, divided by that of `weights`."""

    values: np.ndarray  # (n,)
    weights: np.ndarray  # (n,), tokens of each example, or ones
    clusters: Sequence[Hashable]  # (n,), the prompt of each example
    higher_is_better: bool

    @property
    def mean(self) -> float:
        return float(self.values.sum() / self.weights.sum())


@dataclass(frozen=True)
class AgainstBest:
    """The mean of the weights against the member that is best by one measure."""

    best_member: str
    difference: float  # by how much the mean is better, in the measure's unit; negative where it is worse
    interval: list[float]  # 95%, paired bootstrap over prompts
    status: str  # better | no_difference_seen | worse: whether the interval lies above 0, around it or below
    reason: str


def reason_of(compared: Mapping[str, AgainstBest]) -> str:
    """What :func:`against_best` found in several measures, in one sentence, the worst first."""
    said = {
        "worse": "worse by more than the interval than its best member in {}: use that one",
        "better": "better by more than the interval than its best member in {}",
        "no_difference_seen": "no difference seen to its best member in {}",
    }
    parts = []
    for status, text in said.items():
        found = [f"{name} ({one.best_member})" for name, one in compared.items() if one.status == status]
        parts += [text.format(", ".join(found))] if found else []
    return f"the mean is {'; '.join(parts)}" if parts[0].startswith(("worse", "better")) else "; ".join(parts)


def require_different(command: str, models: Mapping[str, Artifact]) -> None:
    """UserError when two labels name the same model: a comparison or a mean of the two would say nothing."""
    labels: dict[str, str] = {}
    for label, artifact in models.items():
        first = labels.setdefault(artifact.address, label)
        if first != label:
            raise UserError(f"{command}: inputs.models.{first} and inputs.models.{label} are the same model: give different ones")


def against_best(name: str, mean: Measure, members: Mapping[str, Measure], resamples: int = 2000) -> AgainstBest:
    """Compares a mean with the best of its members.

    Each resample chooses its own best member, so that the interval holds the luck of the choice; the difference itself is
    against the member that is best on all examples, which is flattered by having been chosen on them.
    """
    sign = 1.0 if mean.higher_is_better else -1.0
    best = max(members, key=lambda label: sign * members[label].mean)
    models = [mean, *members.values()]
    sums, weights = (
        np.stack([cluster_sums(getattr(model, part), mean.clusters)[0] for model in models], axis=1)
        for part in ("values", "weights")
    )
    drawn = sign * bootstrap_ratios(sums, weights, stream(0, "against best", name), resamples)
    interval = percentile_interval(drawn[:, 0] - drawn[:, 1:].max(axis=1))
    status = "better" if interval.low > 0 else "worse" if interval.high < 0 else "no_difference_seen"
    said = {
        "better": f"the mean is better than its best member, {best}, by more than the interval",
        "no_difference_seen": f"{len(set(mean.clusters))} prompts show no difference to its best member, {best}",
        "worse": f"the mean is worse than its best member, {best}, by more than the interval: use {best}",
    }
    return AgainstBest(best, sign * (mean.mean - members[best].mean), interval.to_list(), status, said[status])
