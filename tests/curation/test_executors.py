"""Executors: one interface, results in order, errors as they were; the optional ones say what is missing."""

import importlib.util
import multiprocessing
import os
import signal

import pytest

from herd.config.errors import UserError
from herd.curation.executors import ExecutorConfig, make_executor

KINDS = ["processes", "ray", "slurm"]
MODULES = {"ray": "ray", "slurm": "submitit"}


def square(task: int) -> int:
    if task < 0:
        raise UserError(f"{task} is no side.")
    return task * task


def die(task: int) -> int:
    if task == 1 and multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def executor_of(kind: str, workers: int, folder):
    if kind in MODULES and importlib.util.find_spec(MODULES[kind]) is None:
        pytest.skip(f"{MODULES[kind]} is not installed (extra `cluster`)")
    return make_executor(ExecutorConfig(kind=kind, cluster="local", minutes=5, memory_gb=1), workers, folder)


@pytest.mark.parametrize("kind", KINDS)
def test_results_in_order_and_errors_as_they_were(kind, tmp_path):
    with executor_of(kind, 2, tmp_path) as executor:
        assert list(executor.map(square, [3, 1, 2])) == [9, 1, 4]
        assert list(executor.map(square, [])) == []
        with pytest.raises(UserError, match="-1 is no side") if kind != "slurm" else pytest.raises(UserError):
            list(executor.map(square, [1, -1]))


def test_one_worker_works_in_this_process(tmp_path):
    with make_executor(ExecutorConfig(), 1, tmp_path) as executor:
        assert list(executor.map(lambda task: task + os.getpid() * 0, [1, 2])) == [1, 2]  # a lambda could not be sent elsewhere


def test_a_dead_worker_is_said_in_one_line(tmp_path):
    with make_executor(ExecutorConfig(), 2, tmp_path) as executor, pytest.raises(UserError, match="A worker process died"):
        list(executor.map(die, [0, 1, 2]))


@pytest.mark.parametrize(("kind", "module"), MODULES.items())
def test_what_is_not_installed_is_named(kind, module, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(UserError, match=rf"executor\.kind={kind} needs the extra `cluster`"):
        make_executor(ExecutorConfig(kind=kind), 2, tmp_path)


def test_unknown_kind_is_refused():
    with pytest.raises(UserError, match=r"'rays' is none of.*Did you mean 'ray'"):
        ExecutorConfig(kind="rays")
