"""Processes of one launch at one stage: the first makes the result, the others take part; none waits for what will not come."""

import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from herd.config.errors import UserError
from herd.runs import ranks
from herd.runs.lock import is_locked, locked
from herd.runs.ranks import OwnError, find_launch, first_process, in_turn, place_among, speaks
from herd.runs.stage import Inputs, Stage, StageRun, execute

VARIABLES = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")
SLURM = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "SLURM_JOB_ID", "SLURM_STEP_ID")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, *SLURM):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ranks, "PATIENCE", 1.0)
    monkeypatch.setattr(ranks, "GRACE", 0.5)


@dataclass(frozen=True)
class Config:
    text: str = "a"


BARRIER = multiprocessing.get_context("fork").Barrier(2)


def together(config: Config, inputs: Inputs, run: StageRun) -> dict:
    """As a process group: nobody leaves before both have come."""
    rank = os.environ["RANK"]
    BARRIER.wait(10)
    (run.scratch / f"seen-by-{rank}").write_text("")
    if config.text == "fails" and rank == "0":
        raise UserError("broken")
    (run.folder / f"by-{rank}.txt").write_text(config.text)
    return {"by": int(rank)}


TOGETHER = Stage("together", 1, Config, together, "two processes", processes=lambda config: 2)


def launch(*works: Callable[[], None], world: int = 2) -> list[int]:
    """Each of ``works`` in a forked process of one launch; their exit codes: 0, 2 for a UserError, 1 otherwise."""

    def run(rank: int, work: Callable[[], None]) -> None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
        try:
            work()
        except UserError as error:
            print(f"{type(error).__name__} of {rank}: {error}", flush=True)
            os._exit(2)

    BARRIER.reset()
    children = [multiprocessing.get_context("fork").Process(target=run, args=item) for item in enumerate(works)]
    for child in children:
        child.start()
    for child in children:
        child.join(timeout=20)
    codes = [child.exitcode for child in children]
    for child in children:
        child.kill()
    return [-99 if code is None else code for code in codes]


def asking(root: Path, text: str = "a", after: float = 0.0, stage: Stage = TOGETHER) -> Callable[[], None]:
    def work() -> None:
        time.sleep(after)
        execute(stage, Config(text), {}, root, "run")

    return work


@pytest.mark.parametrize(("first", "second"), [(0.0, 0.0), (0.4, 0.0), (0.0, 0.4)])
def test_the_first_makes_the_result_and_the_other_takes_part(tmp_path: Path, first: float, second: float) -> None:
    assert launch(asking(tmp_path, after=first), asking(tmp_path, after=second)) == [0, 0]
    found = execute(TOGETHER, Config(), {}, tmp_path, "again")
    assert found.metrics == {"by": 0}
    assert set(found.manifest["outputs"]) == {"by-0.txt"}
    assert (tmp_path / "run" / "together").resolve() == found.path
    assert not list(tmp_path.glob("store/.ranks/*"))
    assert not list(tmp_path.glob("store/.partial-*"))


def test_a_finished_stage_is_returned_without_the_others(tmp_path: Path) -> None:
    assert launch(asking(tmp_path), asking(tmp_path)) == [0, 0]
    never = Stage("together", 1, Config, lambda *_: pytest.fail("made again"), "", processes=lambda config: 2)
    assert launch(asking(tmp_path, stage=never)) == [0]
    assert launch(asking(tmp_path, stage=never), asking(tmp_path, stage=never)) == [0, 0]


def test_what_a_killed_launch_of_the_same_name_left_is_no_answer(tmp_path: Path) -> None:
    def die(*_: object) -> dict:
        os._exit(9)

    killed = Stage("together", 1, Config, die, "", processes=lambda config: 2)
    assert launch(asking(tmp_path, stage=killed), asking(tmp_path, stage=killed)) == [9, 9]
    assert len(list(tmp_path.glob("store/.ranks/*"))) == 2
    assert launch(asking(tmp_path, after=0.4), asking(tmp_path)) == [0, 0]


def test_the_others_hear_of_it_when_the_first_fails_or_dies(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def die(config: Config, inputs: Inputs, run: StageRun) -> dict:
        if os.environ["RANK"] == "0":
            os._exit(9)
        return {}

    assert launch(asking(tmp_path, "fails"), asking(tmp_path, "fails")) == [2, 2]
    assert "ended without a result" in capfd.readouterr().out
    killed = Stage("together", 1, Config, die, "", processes=lambda config: 2)
    assert launch(asking(tmp_path, stage=killed), asking(tmp_path, stage=killed)) == [9, 2]
    assert "ended without a result" in capfd.readouterr().out


def test_what_all_refuse_at_once_ends_all_at_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def refuse(*_: object) -> dict:
        raise UserError("no")

    refusing = Stage("together", 1, Config, refuse, "", processes=lambda config: 2)
    assert launch(asking(tmp_path, stage=refusing), asking(tmp_path, stage=refusing)) == [2, 2]
    said = sorted(capfd.readouterr().out.splitlines())
    assert said[0] == "UserError of 0: no" and said[1].startswith("UserError of 1: ")  # not its own: it keeps quiet


def test_a_first_process_that_ends_at_once_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> dict:
        raise UserError("no")

    def seldom() -> None:  # so that it sees neither the beginning nor the end
        ranks._GLANCE = 0.6
        asking(tmp_path, stage=refusing)()

    monkeypatch.setattr(ranks, "PATIENCE", 60.0)  # `launch` gives up before
    refusing = Stage("together", 1, Config, refuse, "", processes=lambda config: 2)
    assert launch(asking(tmp_path, stage=refusing), seldom) == [2, 2]


def test_what_one_alone_refuses_is_its_own_to_say(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def refuse(config: Config, inputs: Inputs, run: StageRun) -> dict:
        if os.environ["RANK"] == "1":
            raise UserError("a damaged row of mine")
        time.sleep(1.5)
        return {}

    refusing = Stage("together", 1, Config, refuse, "", processes=lambda config: 2)
    assert launch(asking(tmp_path, stage=refusing), asking(tmp_path, stage=refusing)) == [0, 2]
    assert capfd.readouterr().out == "OwnError of 1: a damaged row of mine\n"


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "1", "LOCAL_RANK": "1"}, False),
        ({"RANK": "2", "LOCAL_RANK": "0"}, True),  # of another machine, where another fault may be
        ({"RANK": "1", "LOCAL_RANK": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, False),
        ({"SLURM_PROCID": "3", "SLURM_LOCALID": "1"}, True),  # perhaps of a command of its own
    ],
)
def test_one_process_of_a_machine_speaks(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], first: bool) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert speaks(UserError("no")) is first
    assert speaks(OwnError("no"))


def test_a_process_that_never_comes_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def nothing() -> None:
        pass

    assert launch(asking(tmp_path), nothing) == [2, 0]
    assert "Only 1 of the 2 processes of this launch came within 1 s" in capfd.readouterr().out
    assert launch(nothing, asking(tmp_path)) == [0, 2]
    assert "The first process of this launch did not come within 1 s" in capfd.readouterr().out


def test_a_launch_waits_for_another_one_at_the_same_stage(tmp_path: Path) -> None:
    def hold() -> None:
        with locked(folder):
            time.sleep(2.0)  # longer than patience with nobody at work

    alone = Stage("together", 1, Config, lambda *_: {}, "")
    folder = tmp_path / "store" / execute(alone, Config(), {}, tmp_path / "elsewhere", "run").path.name
    holder = multiprocessing.get_context("fork").Process(target=hold)
    holder.start()
    while not is_locked(folder):
        time.sleep(0.01)
    assert launch(asking(tmp_path), asking(tmp_path)) == [0, 0]
    holder.join()


def test_a_stage_of_one_process_is_made_once_by_whichever_is_there(tmp_path: Path) -> None:
    def alone(config: Config, inputs: Inputs, run: StageRun) -> dict:
        with open(tmp_path / "calls", "a") as file:
            file.write("x")
        return {}

    one = Stage("alone", 1, Config, alone, "")
    assert launch(asking(tmp_path, stage=one, after=0.2), asking(tmp_path, stage=one)) == [0, 0]
    assert (tmp_path / "calls").read_text() == "x"


def test_another_number_of_processes_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert launch(asking(tmp_path), asking(tmp_path), asking(tmp_path), world=3) == [2, 2, 2]
    assert "started as 3 processes, and trainer.devices x trainer.nodes is 2" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("variables", "rank"),
    [
        ({"RANK": "3", "LOCAL_RANK": "0", "WORLD_SIZE": "4"}, "3"),
        ({"LOCAL_RANK": "0", "NODE_RANK": "0", "WORLD_SIZE": "4"}, "0"),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1", "WORLD_SIZE": "4"}, "1.0"),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}, "2"),
        ({"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, "1"),
    ],
)
def test_ranks_are_read_as_launchers_set_them(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], rank: str) -> None:
    assert find_launch(4) is None
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = find_launch(4)
    assert found is not None
    assert found.rank == rank
    assert found.first == first_process(4) == (rank == "0")
    assert find_launch(1) is None
    assert first_process(1)


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({}, (0, 0)),
        ({"RANK": "3", "LOCAL_RANK": "1"}, (3, 1)),
        ({"LOCAL_RANK": "1", "NODE_RANK": "1"}, (3, 1)),
        ({"SLURM_PROCID": "2", "SLURM_LOCALID": "0"}, (2, 0)),
        ({"RANK": "1", "LOCAL_RANK": "1", "SLURM_PROCID": "0"}, (1, 1)),
    ],
)
def test_a_process_knows_its_place_in_the_run_and_on_its_machine(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], place: tuple[int, int]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert place_among(devices=2, nodes=2) == place
    assert place_among(devices=1, nodes=1) == (0, 0)


def test_every_process_comes_to_every_piece_beginning_with_its_own() -> None:
    orders = [in_turn(10, rank, 3) for rank in range(3)]
    assert orders[1] == [1, 4, 7, 8, 5, 2, 9, 6, 3, 0]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert sorted(piece for order, own in zip(orders, (4, 3, 3), strict=True) for piece in order[:own]) == list(range(10))
    assert sorted(in_turn(2, 5, 8)) == [0, 1]
