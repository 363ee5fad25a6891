"""Hydra sweeper `herd_cells`: runs the paired cells of a plan with any launcher.

Hydra's own sweepers take the Cartesian product of their arguments; an IsoFLOP sweep needs pairs (this size with these tokens).
Cells come from a file of `herd scaling-plan` (``hydra.sweeper.cells``) or from the plan itself (``hydra.sweeper.plan``). The
command line's overrides apply to every cell. Finished cells are skipped, failing ones are recorded, the costliest start first.
"""

import logging
import math
import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:  # imported when a sweep runs: Hydra imports every plugin at each start
    from herd.scaling.sweep.folder import Job, SweepFolder
    from herd.scaling.sweep.plan import Plan

log = logging.getLogger(__name__)

# Set by a process that starts a sweep as its child: the sweep ends with it, however it ends.
PARENT = "HERD_SWEEP_PARENT"


class CellSweeper(Sweeper):
    """See the module.

    Args:
        cells: path of a ``cells.json``; overrides ``plan``.
        plan: fields of :class:`herd.scaling.sweep.plan.PlanConfig`.
        batch_size: cells handed to the launcher at a time, 0 = all of them.
        attempts: how often a cell is started whose worker dies without a word (killed, out of memory).
        diverged_above: nats; a loss above it marks a cell as diverged. null = ln(vocabulary), or no limit if that is unknown.
        cell_overrides: overrides of every cell, in which ``{cell}`` stands for its id.
        before: path of a table of earlier cells, which the law so far is fitted to as well.
    """

    def __init__(
        self,
        cells: str | None = None,
        plan: DictConfig | None = None,
        batch_size: int = 0,
        attempts: int = 2,
        diverged_above: float | None = None,
        cell_overrides: Sequence[str] = (),
        before: str | None = None,
    ) -> None:
        self.cells, self.plan, self.batch_size, self.attempts = cells, plan, batch_size, attempts
        self.diverged_above, self.cell_overrides, self.before = diverged_above, list(cell_overrides), before

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from herd.scaling.sweep.folder import Recorder

        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=Recorder(task_function), config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run the cells; returns their records. UserError when none of them has a loss."""
        from herd.config.errors import UserError
        from herd.scaling.records.readers import read_table
        from herd.scaling.sweep.folder import SweepFolder

        _end_with_parent()
        arguments = [*arguments, *self._pinned_inputs()]
        plan, vocabulary = self._plan()
        self._check_arguments(arguments, plan)
        jobs = [self._job(cell, arguments) for cell in plan.cells]
        above = self.diverged_above or (math.log(vocabulary) if vocabulary else math.inf)
        root = Path(str(self.config.hydra.sweep.dir)).absolute()
        root.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, root / "multirun.yaml")
        folder = SweepFolder(root, jobs, plan.metric, above, read_table(Path(self.before)) if self.before else ())
        waiting = folder.prepare()
        skipped = len(jobs) - len(waiting)
        _say(f"Sweep of {len(jobs)} cells, {plan.flops:.3g} FLOPs{f', {skipped} finished before' if skipped else ''}: {root}")
        size = self.batch_size or max(len(waiting), 1)
        number = 0
        for first in range(0, len(waiting), size):
            number = self._run(folder, waiting[first : first + size], number)
        records = folder.rows()
        counts = {status: sum(r.status == status for r in records) for status in ("ok", "failed", "diverged")}
        _say(f"Sweep done: {', '.join(f'{count} {status}' for status, count in counts.items() if count)}; {root}/table.csv")
        if not counts["ok"]:
            first_error = next((record.error for record in records if record.error), "")
            raise UserError(f"None of the {len(records)} cells has a usable loss; the first says: {first_error}")
        return records

    def _plan(self) -> "tuple[Plan, int]":
        from herd.config.errors import UserError
        from herd.config.loader import load
        from herd.scaling.sweep.plan import PlanConfig, plan_cells, read_plan, vocabulary_of

        tokens = OmegaConf.select(self.config, "inputs.tokens")
        if self.cells:
            plan = read_plan(Path(self.cells))
            return plan, vocabulary_of(Path(tokens)) if tokens else 0
        if not self.plan:
            raise UserError(
                "The sweeper herd_cells has no cells: give hydra.sweeper.cells=FILE (cells.json of `herd scaling-plan`)."
            )
        config = load(PlanConfig, self.plan)
        vocabulary = config.vocab_size or (vocabulary_of(Path(tokens)) if tokens else 0)
        return plan_cells(config, vocabulary), vocabulary

    def _pinned_inputs(self) -> list[str]:
        """The run's own tokenized corpus, named by what its link points at, so that a cell is tied to it for good."""
        run, given = OmegaConf.select(self.config, "run"), OmegaConf.select(self.config, "inputs.tokens")
        if run is None:
            return []
        path = Path(given) if given else Path(run.root) / run.name / "tokenize"
        if not path.exists():
            return []
        self.config = self.config.copy()
        OmegaConf.update(self.config, "inputs.tokens", str(path.resolve()), force_add=True)
        return [f"++inputs.tokens='{path.resolve()}'"]

    def _check_arguments(self, arguments: list[str], plan: "Plan") -> None:
        from hydra.core.override_parser.overrides_parser import OverridesParser

        from herd.config.errors import UserError

        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        own = {override.split("=")[0].lstrip("+~") for cell in plan.cells for override in cell.overrides}
        for override in parser.parse_overrides(arguments):
            if override.is_sweep_override():
                raise UserError(
                    f"'{override.input_line}' is a product of values, but cells are pairs: put the values into the plan, or "
                    "use hydra/sweeper=basic."
                )
            if override.key_or_group in own:
                raise UserError(f"'{override.input_line}': the cells set {override.key_or_group} themselves; change the plan.")

    def _job(self, cell: Any, arguments: list[str]) -> "Job":
        """Compose the cell's configuration now: a mistake in it ends the sweep before any cell has run."""
        from herd.scaling.sweep.folder import Job, digest_of

        own = [text.format(cell=cell.id) for text in self.cell_overrides]
        overrides = [*arguments, *cell.overrides, *own, f"hydra.sweep.subdir={cell.id}"]
        composed = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        plain = OmegaConf.to_container(composed, resolve=False)
        assert isinstance(plain, dict)
        return Job(cell, overrides, digest_of({str(key): value for key, value in plain.items()}))

    def _run(self, folder: "SweepFolder", jobs: "list[Job]", number: int) -> int:
        """Launch cells until each has a result or was given up; returns the next job number."""
        attempts = dict.fromkeys((job.cell.id for job in jobs), 0)
        while jobs:
            for job in jobs:
                folder.reset(job)
            failure: Exception | None = None
            returns: Sequence[JobReturn] = ()
            with folder.watched():
                try:
                    returns = self.launcher.launch([job.overrides for job in jobs], initial_job_idx=number)
                except Exception as error:  # a dead worker takes the launcher's whole answer with it
                    failure = error
            number += len(jobs)
            for job, answer in zip(jobs, returns, strict=False):
                if job.cell.id not in folder.records and answer.status == JobStatus.FAILED:
                    folder.fail(job, f"{type(answer._return_value).__name__}: {answer._return_value}")
            jobs = [job for job in jobs if job.cell.id not in folder.records]
            begun = [job for job in jobs if folder.started(job)]
            if failure is not None and not begun and jobs:
                raise failure  # the launcher itself is at fault
            for job in begun if failure is not None else jobs:
                attempts[job.cell.id] += 1
                if attempts[job.cell.id] >= self.attempts or failure is None:
                    reason = f"{type(failure).__name__}: {failure}" if failure else "the job left no result"
                    folder.fail(job, reason.splitlines()[0][:500])
            jobs = [job for job in jobs if job.cell.id not in folder.records]
        return number


def _say(text: str) -> None:
    import sys

    print(f"  {text}", file=sys.stderr, flush=True)


def _end_with_parent() -> None:
    """If a parent asked for it, end this process group when that parent is gone, so that no cell trains on unattended."""
    parent = os.environ.get(PARENT)
    if not parent:
        return

    def watch() -> None:
        while not threading.Event().wait(1.0):
            if os.getppid() != int(parent):
                os.killpg(os.getpgid(0), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
