"""Scores of benchmarks from a run table: the columns ``task/<name>``, and ``task/<name>/loss`` where there is one.

Step 1 forecasts a loss, step 2 links it to the score (:mod:`herd.scaling.tasks.task_law`). The loss is that of the benchmark's
own right answers where the table has it, else the held-out loss, which predicts a benchmark less well and is said to be in use.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from herd.config.errors import UserError, nearest
from herd.scaling.records.record import TASK, Record, usable
from herd.scaling.tasks.link_shapes import LINKS
from herd.scaling.tasks.task_law import TaskHistory, TaskLawConfig, fit_task_law


@dataclass(frozen=True)
class TaskOptions:
    """One benchmark."""

    chance: float  # score of guessing, 0 to 1: 0.25 for four options
    ceiling: float | None = None  # best possible score; null = fitted
    questions: int | None = None  # in the benchmark, for binomial weights; null = plain least squares
    kind: str = "sigmoid"  # shape of the link

    def __post_init__(self) -> None:
        LINKS.get(self.kind)
        if not 0 <= self.chance < 1:
            raise UserError(f"tasks: chance {self.chance} is no share from 0 to 1.")


def forecast_tasks(
    records: Sequence[Record],
    tasks: Mapping[str, TaskOptions],
    sizes: Sequence[tuple[float, float]],
    confidence: float,
    replicates: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Forecast the named benchmarks for runs of ``sizes``.

    Args:
        records: the table; scores are shares from 0 to 1.
        tasks: benchmark -> its chance level and link.
        sizes: (parameters, tokens) of each run; parameters as the FLOPs see them.
        confidence, replicates, seed: of the intervals.

    Returns:
        One entry per benchmark: name, status, reason, what loss was used, runs, and a forecast per size (None where a law could
        not be fitted).

    Raises:
        UserError: a benchmark that the table does not have.
    """
    rows = usable(records)
    names = sorted({name for row in rows for name in row.tasks if not name.endswith("/loss")})
    result = []
    for name, options in tasks.items():
        if name not in names:
            listed = f" It has: {', '.join(names)}." if names else " It has none."
            raise UserError(f"tasks: the table has no scores '{TASK}{name}'.{nearest(name, names)}{listed}")
        scored = [row for row in rows if name in row.tasks]
        own = all(f"{name}/loss" in row.tasks for row in scored)
        histories = [
            TaskHistory(
                row.cell,
                row.flops / (6 * row.tokens),
                row.tokens,
                [row.tasks[f"{name}/loss"] if own else row.loss],
                [row.tasks[name]],
                row.flops,
            )
            for row in scored
        ]
        config = TaskLawConfig(
            kind=options.kind,
            chance=options.chance,
            ceiling=options.ceiling,
            questions=options.questions,
            confidence=confidence,
            replicates=replicates,
            seed=seed,
        )
        entry: dict[str, Any] = {
            "task": name,
            "loss": "task" if own else "held-out",
            "runs": len(scored),
            "chance": options.chance,
        }
        try:
            law = fit_task_law(histories, config)
        except UserError as error:
            result.append(entry | {"status": "no_law", "reason": str(error), "forecasts": None})
            continue
        forecasts = [asdict(law.forecast(parameters=n, tokens=d)) for n, d in sizes]
        result.append(entry | {"status": law.status, "reason": law.reason, "forecasts": forecasts})
    return result
