"""Mixture law: a held-out loss as a function of the shares of the training sources, with its error on mixtures it has not seen.

Llama 3, section 3.1.2: several small models on data mixes predict the loss of a large model on that mix. The kinds of laws and
their sources stand in `mixture_kinds`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from herd.config.errors import UserError
from herd.runs.seeds import stream
from herd.scaling.mixture.kinds import KINDS, Fitted

_SUM = 0.01  # a mixture's shares may miss 1 by this much (published tables are rounded); they are scaled to 1
_ILL = 1e6  # condition number of the shares above which sources cannot be told apart
_WHOLE_FOLDS = 20  # rows up to which each fold is one row


@dataclass(frozen=True)
class HeldOut:
    """Error of a law on rows that its fit has not seen, by cross-validation."""

    folds: int
    spearman: float  # rank correlation of predicted and measured
    rmse: float  # nats
    r2: float  # share of the variance that is explained; below 0 worse than the mean
    predicted: tuple[float, ...]  # of each row, from the fold without it


@dataclass(frozen=True)
class MixtureLaw:
    """A fitted law of one loss; shares in the order of ``sources``."""

    status: str  # ok | ill_determined (sources rise and fall together) | no_skill (held-out R2 at or below 0) | not_converged
    reason: str
    kind: str  # exponential | gbdt | linear | log_linear
    sources: tuple[str, ...]
    parameters: dict[str, Any]  # plain values: c and t; coefficients; trees
    held_out: HeldOut
    rows: int
    size: float | None  # the size that predictions take unless told: the largest fitted; None without sizes
    mixtures: np.ndarray = field(repr=False)  # (n, k) that were fitted
    losses: np.ndarray = field(repr=False)  # (n,)
    smooth: bool = True  # the law has no steps
    _sizes: np.ndarray | None = field(repr=False, default=None)  # (n,) relative to _reference
    _reference: float = 1.0
    _fitted: Fitted | None = field(repr=False, default=None)

    def predict(self, mixtures: np.ndarray, size: float | None = None) -> np.ndarray:
        """Losses (m,) of mixtures (m, k), at ``size`` where the law has sizes."""
        assert self._fitted is not None
        at = np.atleast_2d(np.asarray(mixtures, dtype=float))
        return np.asarray(self._fitted.predict(at, self._relative(size, len(at)))[0])

    def replicates(self, count: int, seed: int = 0) -> "Replicates":
        """The law refitted to reweighted rows (the Bayesian bootstrap, Rubin 1981): a few rows less would undo a law of few.

        The weights scatter more widely than the plain bootstrap's: by n / (n - parameters) in the variance, and by how much
        wider Student's t is than the normal distribution.
        """
        rng = stream(seed, "mixture replicates")
        used = 0 if self.kind == "gbdt" else self.mixtures.shape[1] + 1 + (0 if self._sizes is None else 2)
        freedom = self.rows - used
        narrow = float(stats.norm.ppf(0.975) / stats.t.ppf(0.975, freedom)) ** 2
        drawn = rng.dirichlet(np.full(self.rows, narrow * freedom / self.rows), count) * self.rows
        return Replicates(self, KINDS.get(self.kind)(self.mixtures, self.losses, drawn, self._sizes))

    def _relative(self, size: float | None, count: int) -> np.ndarray | None:
        if self._sizes is None:
            if size is not None:
                raise UserError("This mixture law was fitted without sizes: it cannot predict for another size.")
            return None
        chosen = self.size if size is None else size
        assert chosen is not None
        return np.full(count, chosen / self._reference)


@dataclass(frozen=True)
class Replicates:
    """R refitted laws."""

    law: MixtureLaw
    fitted: Fitted

    def predict(self, mixtures: np.ndarray, size: float | None = None) -> np.ndarray:
        """Losses (R, m) of mixtures (m, k)."""
        at = np.atleast_2d(np.asarray(mixtures, dtype=float))
        return self.fitted.predict(at, self.law._relative(size, len(at)))

    def only(self, row: int) -> "Replicates":
        """The replicate ``row`` alone."""
        return Replicates(self.law, self.fitted.only(row))


def fit_mixture(
    mixtures: np.ndarray,
    losses: np.ndarray,
    kind: str = "exponential",
    sources: Sequence[str] | None = None,
    sizes: np.ndarray | None = None,
    folds: int = 5,
    seed: int = 0,
) -> MixtureLaw:
    """Fit one loss.

    Args:
        mixtures: (n, k) shares, 0 or more, each row summing to 1.
        losses: (n,) held-out losses, nats per token, above 0.
        kind: ``exponential``, ``gbdt``, ``linear`` or ``log_linear``.
        sources: k names; by default their numbers.
        sizes: (n,) parameters (or FLOPs) of each row's model, to fit jointly; at least two different ones. None = all alike.
        folds: of the cross-validation; up to 20 rows are left out one by one.
        seed: of the folds.

    Raises:
        UserError: bad shares or losses, a source that no mixture has, or fewer rows than the law has parameters and two more.
    """
    fitter = KINDS.get(kind)
    x, y, names = _checked(mixtures, losses, sources)
    relative, reference, largest = None, 1.0, None
    if sizes is not None:
        own = np.asarray(sizes, dtype=float)
        if own.shape != y.shape or not (np.isfinite(own).all() and (own > 0).all()) or len(np.unique(own)) < 2:
            raise UserError("sizes: one finite number above 0 for each mixture, with at least two different ones.")
        reference, largest = float(np.exp(np.log(own).mean())), float(own.max())
        relative = own / reference
    if folds < 2:
        raise UserError(f"folds {folds}: at least 2.")
    needed = 4 if kind == "gbdt" else x.shape[1] + 3 + (0 if relative is None else 2)
    if len(y) < needed:
        raise UserError(
            f"The {kind} law of {x.shape[1]} sources needs at least {needed} mixtures to be fitted and checked; there are "
            f"{len(y)}. Train more, or merge sources."
        )
    fitted = fitter(x, y, np.ones((1, len(y))), relative)
    held_out = _cross_validate(kind, x, y, relative, len(y) if len(y) <= _WHOLE_FOLDS else folds, seed)
    status, reason = "ok", ""
    if held_out.r2 <= 0:
        status, reason = "no_skill", f"held-out R2 is {held_out.r2:.2f}: on unseen mixtures the law is no better than the mean"
    condition = float(np.linalg.cond(x))
    if kind != "gbdt" and condition > _ILL:
        status, reason = "ill_determined", f"condition number {condition:.1e}: some sources always rise and fall together"
    if not fitted.converged[0]:
        status, reason = "not_converged", "the solver stopped before the optimum"
    return MixtureLaw(
        status=status,
        reason=reason,
        kind=kind,
        sources=names,
        parameters=fitted.parameters[0],
        held_out=held_out,
        rows=len(y),
        size=largest,
        mixtures=x,
        losses=y,
        smooth=fitted.smooth,
        _sizes=relative,
        _reference=reference,
        _fitted=fitted,
    )


def _cross_validate(kind: str, x: np.ndarray, y: np.ndarray, sizes: np.ndarray | None, folds: int, seed: int) -> HeldOut:
    folds = min(folds, len(y))
    fold = stream(seed, "mixture folds").permutation(np.arange(len(y)) % folds)
    weights = (fold[None] != np.arange(folds)[:, None]).astype(float)  # (folds, n)
    predicted = KINDS.get(kind)(x, y, weights, sizes).predict(x, sizes)[fold, np.arange(len(y))]
    spread = float(((y - y.mean()) ** 2).sum())
    error = float(((predicted - y) ** 2).sum())
    constant = np.ptp(predicted) == 0 or np.ptp(y) == 0
    return HeldOut(
        folds=folds,
        spearman=0.0 if constant else float(stats.spearmanr(predicted, y).statistic),
        rmse=float(np.sqrt(error / len(y))),
        r2=1 - error / spread if spread > 0 else 0.0,
        predicted=tuple(predicted.tolist()),
    )


def _checked(
    mixtures: np.ndarray, losses: np.ndarray, sources: Sequence[str] | None
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    x, y = np.asarray(mixtures, dtype=float), np.asarray(losses, dtype=float)
    if x.ndim != 2 or y.shape != x.shape[:1] or x.shape[1] < 2:
        raise UserError("A mixture law needs a table of shares (mixtures x at least 2 sources) and one loss for each mixture.")
    names = tuple(sources) if sources is not None else tuple(map(str, range(x.shape[1])))
    if len(names) != x.shape[1] or len(set(names)) != len(names):
        raise UserError(f"sources: {x.shape[1]} different names are needed, not {', '.join(names)}.")
    for number, (row, loss) in enumerate(zip(x, y, strict=True), 1):
        if not (np.isfinite(row).all() and (row >= 0).all() and abs(row.sum() - 1) <= _SUM):
            raise UserError(f"Mixture {number}: shares must be 0 or more and sum to 1, not {row.sum():.4g}.")
        if not (np.isfinite(loss) and loss > 0):
            raise UserError(f"Mixture {number}: the loss {loss} must be finite and above 0.")
    absent = [name for name, column in zip(names, x.T, strict=True) if not column.any()]
    if absent:
        raise UserError(f"Source '{absent[0]}' is in no mixture: leave its column out.")
    return x / x.sum(axis=1, keepdims=True), y, names
