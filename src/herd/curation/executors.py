"""Where tasks run: one interface, ``map(function, tasks)``, over processes of this machine, a Ray cluster or Slurm arrays.

A task is a top-level function and a picklable argument; it writes files and returns a small value. Results come in the order of
the tasks, and no result depends on the kind of executor or on how many workers it has: `workers` and `executor` are not part of
the stage's address.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

from herd.config.errors import UserError, nearest

I = TypeVar("I")  # noqa: E741
O = TypeVar("O")  # noqa: E741

KINDS = ("processes", "ray", "slurm")


@dataclass(frozen=True)
class ExecutorConfig:
    """Where the tasks of the stage run."""

    kind: str = "processes"  # processes, ray (extra `cluster`) or slurm (arrays through submitit, extra `cluster`)
    address: str = ""  # ray: of a running cluster, "auto" to find it; "" = one of `workers` processes on this machine
    partition: str = ""  # slurm: partition, "" = the default one
    account: str = ""  # slurm: account, "" = the default one
    minutes: int = 240  # slurm: time limit of a task
    memory_gb: int = 8  # slurm: memory of a task
    cluster: str = "slurm"  # submitit's name of the cluster; "local" runs the arrays as processes of this machine

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"executor.kind: '{self.kind}' is none of {', '.join(KINDS)}.{nearest(self.kind, KINDS)}")
        if min(self.minutes, self.memory_gb) < 1:
            raise UserError("executor: minutes and memory_gb must be at least 1.")


class Executor(Protocol):
    """Used in a ``with`` statement; leaving it frees the workers."""

    def __enter__(self) -> "Executor": ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def map(self, function: Callable[[I], O], tasks: Sequence[I]) -> Iterator[O]:
        """Apply ``function`` to each task; results in the order of the tasks."""
        ...


def make_executor(config: ExecutorConfig, workers: int, folder: Path) -> Executor:
    """The executor that the configuration names.

    Args:
        config: which kind, and its settings.
        workers: processes, or tasks of an array at a time.
        folder: where Slurm jobs leave their logs; must be visible to all of them.

    Raises:
        UserError: the library behind it is not installed.
    """
    if config.kind == "ray":
        return RayExecutor(config, workers)
    if config.kind == "slurm":
        return SlurmExecutor(config, workers, folder)
    return ProcessExecutor(workers)


class ProcessExecutor:
    """Processes of this machine; with one worker everything happens in this process."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def __enter__(self) -> "ProcessExecutor":
        from concurrent.futures import ProcessPoolExecutor

        # Spawned, not forked: this process may hold threads of numerical libraries. Started when the first task comes.
        self._pool = ProcessPoolExecutor(self.workers, mp_context=get_context("spawn")) if self.workers > 1 else None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[[I], O], tasks: Sequence[I]) -> Iterator[O]:
        """Apply a top-level function to each task, results in order."""
        from concurrent.futures.process import BrokenProcessPool

        if self._pool is None or len(tasks) < 2:
            yield from map(function, tasks)
            return
        try:
            yield from self._pool.map(function, tasks)
        except BrokenProcessPool as error:
            raise UserError(
                "A worker process died (killed, or out of memory): the same command goes on from here; "
                "lower workers or raise partitions if memory was short."
            ) from error


class RayExecutor:
    """Tasks of a Ray cluster, or of a local one of ``workers`` processes."""

    def __init__(self, config: ExecutorConfig, workers: int) -> None:
        try:
            import ray
        except ImportError as error:
            raise UserError("executor.kind=ray needs the extra `cluster`: pip install 'herd[cluster]'.") from error
        self._ray, self._config, self._workers = ray, config, workers

    def __enter__(self) -> "RayExecutor":
        self._ours = not self._ray.is_initialized()
        if self._ours:
            where: dict[str, Any] = {"address": self._config.address} if self._config.address else {"num_cpus": self._workers}
            try:
                self._ray.init(include_dashboard=False, log_to_driver=False, **where)
            except TypeError:  # options of a local cluster, refused when an address is given
                self._ray.init(**where)
            except ConnectionError as error:
                raise UserError(f"executor.address: no Ray cluster at '{self._config.address}' ({error}).") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._ours:
            self._ray.shutdown()

    def map(self, function: Callable[[I], O], tasks: Sequence[I]) -> Iterator[O]:
        """Submit all tasks; results in order. An error of a task is raised as it was."""
        remote = self._ray.remote(num_cpus=1, max_retries=2)(function)
        waiting = [remote.remote(task) for task in tasks]
        for reference in waiting:
            try:
                yield self._ray.get(reference)
            except self._ray.exceptions.RayTaskError as error:
                raise (error.cause if isinstance(getattr(error, "cause", None), Exception) else error) from error
            except self._ray.exceptions.RayError as error:
                reason = str(error).strip().split("\n")[0][:200]
                raise UserError(f"A Ray worker was lost ({reason}): the same command goes on from here.") from error


class SlurmExecutor:
    """A Slurm array a phase, through submitit; at most ``workers`` of its tasks run at a time."""

    def __init__(self, config: ExecutorConfig, workers: int, folder: Path) -> None:
        try:
            import submitit
        except ImportError as error:
            raise UserError("executor.kind=slurm needs the extra `cluster`: pip install 'herd[cluster]'.") from error
        try:
            self._executor = submitit.AutoExecutor(folder=folder / "%j", cluster=config.cluster)
        except RuntimeError as error:  # submitit looks for srun
            raise UserError(f"executor.kind=slurm: {str(error).strip()} (executor.cluster={config.cluster})") from error
        self._executor.update_parameters(
            name="herd-curate",
            timeout_min=config.minutes,
            mem_gb=config.memory_gb,
            cpus_per_task=1,
            slurm_array_parallelism=workers,
            **({"slurm_partition": config.partition} if config.partition else {}),
            **({"slurm_account": config.account} if config.account else {}),
        )

    def __enter__(self) -> "SlurmExecutor":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """The array ends by itself; what it finished is found by the next attempt."""

    def map(self, function: Callable[[I], O], tasks: Sequence[I]) -> Iterator[O]:
        """Submit the tasks as one array and wait for its results."""
        from submitit.core.utils import FailedJobError, UncompletedJobError

        if not tasks:
            return
        for job in self._executor.map_array(function, list(tasks)):
            try:
                yield job.result()
            except (FailedJobError, UncompletedJobError) as error:
                reason = [line for line in str(error).splitlines() if line.strip()][-1][:200]
                raise UserError(f"Slurm task {job.job_id} failed ({reason}); its log: {job.paths.stderr}.") from error
