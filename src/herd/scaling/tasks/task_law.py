"""Task law: the accuracy of a benchmark at a size and a number of tokens, in two steps, with the samples carried through both.

Step 1 gives the loss on the benchmark (NLL or bits per byte of the right answer), by one of three laws:
``surface``: E + A/N^a + B/D^b (Bhagia et al. 2024, the OLMo ladder); ``power_law``: ln loss linear in ln C; ``log_linear``: loss
linear in ln C, as in Llama 3's figure 4 (compute-optimal models only). Step 2 is the link from that loss to accuracy, on every
checkpoint and on models that step 1 may not use (Llama 3, section 3.2.1: there the Llama 2 family).

Replicates of step 1 redraw the losses about the fit, with a scatter drawn from its posterior; those of step 2 redraw the runs
(a Bayesian bootstrap: the checkpoints of one run are no independent points), or, where every run has one checkpoint, the
accuracies about the link. A sample of the forecast takes one replicate of each, the scatter of one more run at either step.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from herd.config.errors import UserError, nearest
from herd.runs.seeds import stream
from herd.scaling.curves.power_law import Interval, PowerLaw, fit_power_law
from herd.scaling.surface.batch import SurfaceBatch, refit_surface
from herd.scaling.surface.fit import Surface, fit_surface
from herd.scaling.tasks.link import Link, fit_link, refit_links
from herd.scaling.tasks.link_problem import Level
from herd.scaling.tasks.link_shapes import predict_links

STEPS = ("surface", "power_law", "log_linear")
_RUNS_TO_REDRAW = 6  # fewer runs with several checkpoints say too little about how runs differ


@dataclass(frozen=True)
class TaskHistory:
    """Evaluations of one run on one benchmark, in the order of training; a single one will do."""

    run: str  # name, unique
    parameters: float  # as step 1 counts them
    tokens: float  # at the last evaluation
    losses: Sequence[float]  # on the benchmark, any one unit
    accuracies: Sequence[float]  # shares from 0 to 1, as many
    flops: float | None = None  # training compute; None = 6 x parameters x tokens

    @property
    def compute(self) -> float:
        """Training FLOPs."""
        return 6 * self.parameters * self.tokens if self.flops is None else self.flops


@dataclass(frozen=True)
class TaskLawConfig:
    """Recipe of both steps. The defaults take every evaluation as it is."""

    step: str = "surface"  # law of step 1: surface | power_law | log_linear
    objective: str = "huber_log"  # of the surface: huber_log | squared_log | squared
    last: int = 1  # evaluations at a run's end whose mean is its loss in step 1
    skip: float = 0.0  # share of a run's first checkpoints that step 2 leaves out
    window: int = 1  # trailing mean over so many checkpoints in step 2; shorter at a run's beginning
    kind: str = "sigmoid"  # shape of the link
    chance: Level = None  # accuracy of guessing: pinned, bounded or free (None)
    ceiling: Level = None  # best accuracy, likewise
    anchors: Sequence[tuple[float, float]] = ()  # (loss, accuracy) that step 2 counts as points, e.g. (0, 1)
    questions: int | None = None  # of the benchmark: binomial weights; None = least squares
    confidence: float = 0.95  # of every interval
    replicates: int = 400  # samples behind the intervals
    seed: int = 0  # of the replicates

    def __post_init__(self) -> None:
        if self.step not in STEPS:
            raise UserError(f"Unknown step '{self.step}'.{nearest(self.step, STEPS)} Choices: {', '.join(STEPS)}.")
        if self.last < 1 or self.window < 1 or not 0 <= self.skip < 1:
            raise UserError("A task law needs last and window of 1 or more, and a skip in [0, 1).")
        if not 0 < self.confidence < 1 or self.replicates < 100:
            raise UserError("A task law needs a confidence between 0 and 1 and at least 100 replicates.")


@dataclass(frozen=True)
class TaskForecast:
    """What one more run should measure on the benchmark."""

    status: str  # ok | extrapolated_link (its loss lies outside the link's points) | a status of the law
    reason: str
    flops: float
    extrapolation_ratio: float  # flops / largest compute of step 1
    loss: float  # on the benchmark
    loss_interval: Interval
    accuracy: float
    accuracy_interval: Interval


@dataclass(frozen=True)
class TaskLaw:
    """Both fitted steps and their replicates."""

    status: str  # ok, or the worst of both steps
    reason: str
    config: TaskLawConfig
    loss_law: Surface | PowerLaw  # log_linear: the power law of e^loss
    link: Link
    largest_flops: float  # among the runs of step 1
    runs: int  # in step 1
    _replicates: "_Replicates" = field(repr=False)

    def loss(self, flops: float, parameters: float | None = None, tokens: float | None = None) -> float:
        """Loss on the benchmark by step 1."""
        if isinstance(self.loss_law, Surface):
            return float(self.loss_law.loss(*_size(parameters, tokens)))
        value = self.loss_law.predict(flops)
        return math.log(value) if self.config.step == "log_linear" else value

    def forecast(self, flops: float | None = None, parameters: float | None = None, tokens: float | None = None) -> TaskForecast:
        """Loss and accuracy of one more run, with intervals.

        Args:
            flops: training compute; by default 6 x parameters x tokens.
            parameters, tokens: of the run; the surface needs both.

        Raises:
            UserError: what the law needs was not given.
        """
        if flops is None:
            n, d = _size(parameters, tokens)
            flops = 6 * n * d
        if not (math.isfinite(flops) and flops > 0):
            raise UserError(f"Cannot forecast a run of {flops} FLOPs: give a number above 0.")
        loss = self.loss(flops, parameters, tokens)
        accuracy = float(self.link.predict(loss))
        losses = self._replicates.losses(self.loss_law, self.config.step, flops, parameters, tokens)
        accuracies = self._replicates.accuracies(self.link, losses, self.config.questions)
        status, reason = self.status, self.reason
        low, high = self.link.range
        if status == "ok" and not low <= loss <= high:
            status, reason = "extrapolated_link", f"loss {loss:.4g}; the link has points from {low:.4g} to {high:.4g}"
        return TaskForecast(
            status,
            reason,
            flops,
            flops / self.largest_flops,
            loss,
            _quantiles(losses, self.config.confidence),
            accuracy,
            _quantiles(accuracies, self.config.confidence),
        )


def fit_task_law(
    histories: Sequence[TaskHistory], config: TaskLawConfig | None = None, link_only: Sequence[TaskHistory] = ()
) -> TaskLaw:
    """Fit both steps.

    Args:
        histories: runs of one benchmark; both steps use them.
        config: recipe.
        link_only: further models for step 2 alone, such as an older family that is not compute-optimal.

    Raises:
        UserError: bad histories, too few runs for step 1, or accuracies on a plateau (no link).
    """
    config = config or TaskLawConfig()
    _check(histories, link_only)
    n, d, c = (np.array([getattr(run, name) for run in histories], dtype=float) for name in ("parameters", "tokens", "compute"))
    y = np.array([float(np.mean(run.losses[-config.last :])) for run in histories])
    law: Surface | PowerLaw
    if config.step == "surface":
        law = fit_surface(n, d, y, objective=config.objective)
    else:
        law = fit_power_law(c.tolist(), (np.exp(y) if config.step == "log_linear" else y).tolist(), config.confidence)
        if law.status != "ok":
            raise UserError("Step 1 of a task law needs three different budgets: two leave no interval. Add runs.")
    points = _LinkPoints.of([*histories, *link_only], config)
    options = {"chance": config.chance, "ceiling": config.ceiling, "questions": config.questions}
    link = fit_link(points.losses, points.accuracies, config.kind, **options)  # type: ignore[arg-type]
    steps = {"step 1": (law.status, getattr(law, "reason", "")), "step 2": (link.status, link.reason)}
    worst = next((status for status, _ in steps.values() if status != "ok"), "ok")
    reason = "; ".join(f"{name}: {status}, {why}" for name, (status, why) in steps.items() if status != "ok")
    replicates = _Replicates(
        _surfaces(law, n, d, config) if isinstance(law, Surface) else _lines(law, config),
        _scatter(law, config),
        _links(link, points, config),
        config.seed,
    )
    return TaskLaw(worst, reason, config, law, link, float(c.max()), len(histories), replicates)


def trailing_mean(values: Sequence[float] | np.ndarray, window: int) -> np.ndarray:
    """Mean of each value and up to ``window`` - 1 before it, (n,)."""
    total = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=float))])
    last = np.arange(1, len(total))
    first = np.maximum(last - window, 0)
    return np.asarray((total[last] - total[first]) / (last - first))


@dataclass(frozen=True)
class _LinkPoints:
    losses: np.ndarray  # (n,)
    accuracies: np.ndarray
    owner: np.ndarray  # (n,) index of the run, -1 for an anchor

    @classmethod
    def of(cls, histories: Sequence[TaskHistory], config: TaskLawConfig) -> "_LinkPoints":
        x, y, owner = [], [], []
        for index, run in enumerate(histories):
            first = math.ceil(config.skip * len(run.losses))
            x.append(trailing_mean(run.losses[first:], config.window))
            y.append(trailing_mean(run.accuracies[first:], config.window))
            owner.append(np.full(len(x[-1]), index))
        for loss, accuracy in config.anchors:
            x.append(np.array([loss]))
            y.append(np.array([accuracy]))
            owner.append(np.array([-1]))
        return cls(np.concatenate(x), np.concatenate(y), np.concatenate(owner))


@dataclass(frozen=True)
class _Replicates:
    law: "SurfaceBatch | tuple[np.ndarray, np.ndarray]"  # surfaces, or (mean ln y, slope), each (R,)
    scatter: np.ndarray  # (R,) of ln loss (log_linear: of loss) of one run about step 1
    links: np.ndarray  # (R, 5)
    seed: int

    def losses(
        self, law: Surface | PowerLaw, step: str, flops: float, parameters: float | None, tokens: float | None
    ) -> np.ndarray:
        """(R,) losses of one more run."""
        noise = stream(self.seed, "task law", "run").normal(size=len(self.scatter)) * self.scatter
        if isinstance(self.law, SurfaceBatch):
            return self.law.loss(*_size(parameters, tokens)) * np.exp(noise)
        assert isinstance(law, PowerLaw)
        level, slope = self.law
        folded = level + slope * (math.log(flops) - law.mean_log_x) + noise
        return np.asarray(folded if step == "log_linear" else np.exp(folded))

    def accuracies(self, link: Link, losses: np.ndarray, questions: int | None) -> np.ndarray:
        """(R,) accuracies measured at those losses."""
        curve = predict_links(link.kind, self.links, losses)
        noise = stream(self.seed, "task law", "accuracy").normal(size=len(curve))
        return np.clip(curve + noise * np.sqrt(link.noise_variance(curve, questions)), 0.0, 1.0)


def _posterior_std(std: float, freedom: int, config: TaskLawConfig) -> np.ndarray:
    """(R,) draws of a standard deviation that was estimated with ``freedom`` degrees of freedom."""
    rng = stream(config.seed, "task law", "std")
    return np.asarray(std * np.sqrt(freedom / rng.chisquare(freedom, config.replicates)))


def _scatter(law: Surface | PowerLaw, config: TaskLawConfig) -> np.ndarray:
    parameters = 5 if isinstance(law, Surface) else 2
    assert law.residual_std is not None
    return _posterior_std(law.residual_std, law.points - parameters, config)


def _surfaces(law: Surface, n: np.ndarray, d: np.ndarray, config: TaskLawConfig) -> SurfaceBatch:
    rng = stream(config.seed, "task law", "step 1")
    noise = rng.normal(size=(config.replicates, len(n))) * _scatter(law, config)[:, None]
    return refit_surface(law, n, d, law.loss(n, d) * np.exp(noise))


def _lines(law: PowerLaw, config: TaskLawConfig) -> tuple[np.ndarray, np.ndarray]:
    rng = stream(config.seed, "task law", "step 1")
    assert law.scatter is not None and law.residual_std is not None
    # Errors of level and slope are in proportion to the scatter; by least squares they are independent of each other.
    widened = _scatter(law, config) / max(law.residual_std, 1e-300)
    level = law.mean_log_y + rng.normal(size=config.replicates) * widened * math.sqrt(law.scatter.level)
    return level, law.exponent + rng.normal(size=config.replicates) * widened * math.sqrt(law.scatter.slope)


def _links(link: Link, points: _LinkPoints, config: TaskLawConfig) -> np.ndarray:
    """Refitted links (R, 5)."""
    rng = stream(config.seed, "task law", "step 2")
    runs, sizes = np.unique(points.owner[points.owner >= 0], return_counts=True)
    options: Mapping[str, object] = {"chance": config.chance, "ceiling": config.ceiling, "questions": config.questions}
    if len(runs) >= _RUNS_TO_REDRAW and sizes.max() > 1:
        drawn = rng.dirichlet(np.ones(len(runs)), config.replicates) * len(runs)
        weights = np.ones((config.replicates, len(points.owner)))
        belongs = points.owner >= 0
        weights[:, belongs] = drawn[:, np.searchsorted(runs, points.owner[belongs])]
        return refit_links(link, points.losses, points.accuracies, weights=weights, **options)  # type: ignore[arg-type]
    if link.freedom < 1:
        raise UserError(f"Step 2 has {link.points} points for as many parameters: pin the chance level, or add models.")
    curve = link.predict(points.losses)
    std = np.sqrt(link.noise_variance(curve, config.questions))
    factor = _posterior_std(1.0, link.freedom, config)[:, None]
    accuracies = np.clip(curve + rng.normal(size=(config.replicates, len(curve))) * std * factor, 0.0, 1.0)
    return refit_links(link, points.losses, accuracies, **options)  # type: ignore[arg-type]


def _quantiles(samples: np.ndarray, confidence: float) -> Interval:
    tail = (1 - confidence) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    return float(low), float(high)


def _size(parameters: float | None, tokens: float | None) -> tuple[float, float]:
    if parameters is None or tokens is None:
        raise UserError("A task law on a loss surface forecasts a size and a number of tokens: give parameters and tokens.")
    return parameters, tokens


def _check(histories: Sequence[TaskHistory], link_only: Sequence[TaskHistory]) -> None:
    names: set[str] = set()
    for run in [*histories, *link_only]:
        if run.run in names:
            raise UserError(f"Run '{run.run}' stands twice among the histories: keep one.")
        names.add(run.run)
        losses, accuracies = np.asarray(run.losses, dtype=float), np.asarray(run.accuracies, dtype=float)
        if losses.shape != accuracies.shape or losses.ndim != 1 or not len(losses):
            raise UserError(f"Run '{run.run}': give as many losses as accuracies, at least one.")
        if not (np.isfinite(losses).all() and (losses > 0).all()):
            raise UserError(f"Run '{run.run}': losses on the benchmark must be finite and above 0.")
    for run in histories:
        if not all(math.isfinite(v) and v > 0 for v in (run.parameters, run.tokens, run.compute)):
            raise UserError(f"Run '{run.run}': parameters, tokens and FLOPs must be finite and above 0.")
