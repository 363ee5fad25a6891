"""What a command takes for its inputs when they are not spelled out one by one."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from omegaconf import DictConfig

from herd.cli import main
from herd.config.errors import UserError
from herd.config.loader import compose
from herd.recipe.commands import COMMANDS, get_stage
from herd.recipe.job import make_job, require_inputs, stages_of
from herd.runs.atomic import write_json
from herd.runs.manifest import MANIFEST, read_manifest
from herd.runs.stage import Stage, execute


@dataclass(frozen=True)
class Nothing:
    seed: int = 0


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of five finished stages, made in an order that is not that of their names, and one that is not finished."""
    for command, node in (("curate", "z"), ("tokenize", "tokens"), ("sft", "round-1/sft"), ("best", "b"), ("report", "report")):
        stage = Stage(command, 1, Nothing, lambda config, inputs, stage_run: {}, "")
        execute(stage, Nothing(len(node)), {}, tmp_path / "runs", "mine", node)
    (tmp_path / "runs" / "mine" / "broken").symlink_to("../store/pretrain-0123")
    return tmp_path / "runs" / "mine"


def test_every_finished_stage_of_a_run_is_found_in_the_order_they_were_made(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = stages_of(run, "report")
    assert list(found) == ["z", "tokens", "round-1/sft", "b"]  # no report of a report, nothing unfinished
    assert all(Path(folder).resolve().parent.name == "store" for folder in found.values())
    monkeypatch.chdir(run.parents[1])
    for given in ("run.name=mine", f"++inputs.stages={run}"):
        job = make_job("report", compose("report", [given]))
        assert {name: Path(folder).resolve() for name, folder in job.inputs["stages"].items()} == {
            name: Path(folder).resolve() for name, folder in found.items()
        }
    single = make_job("report", compose("report", ["run.name=mine", f"++inputs.stages.one={run / 'b'}"]))
    assert single.inputs["stages"] == {"one": str(run / "b")}
    assert make_job("report", compose("report", ["run.name=other"])).inputs["stages"] == {}  # a recipe's first day


def test_the_date_in_the_manifest_decides_not_that_of_the_file(run: Path) -> None:
    manifest = read_manifest(run / "b")
    write_json((run / "b").resolve() / MANIFEST, manifest | {"finished": "2020-01-01T00:00:00+00:00"})  # a copied run
    assert list(stages_of(run, "report")) == ["b", "z", "tokens", "round-1/sft"]


def test_a_run_is_named_as_people_name_it(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(run.parents[1])
    main(["report", "run=mine", "notebook=null"])
    said = capsys.readouterr()
    assert "report: 4 stages" in said.err and "index.html" in said.err
    assert (run / "report").resolve() == Path(said.out.strip())


def test_the_table_knows_which_inputs_a_stage_can_do_without() -> None:
    for name, command in COMMANDS.items():
        stage = get_stage(name)
        assert {*command.optional} == {*command.inputs} - {*stage.inputs}, name
        assert {*command.inputs} <= {*stage.inputs, *stage.optional}, name
        assert command.gathers in (*stage.groups, ""), name


def test_inputs_are_looked_at_before_the_stage_is_imported(run: Path) -> None:
    def given(*overrides: str) -> DictConfig:
        return compose("reject", [f"run.root={run.parent}", "run.name=mine", "++inputs.prompts=" + str(run / "b"), *overrides])

    tokens, reward = (f"++inputs.{name}={run / 'z'}" for name in ("tokens", "reward"))
    require_inputs("reject", given(tokens, reward))  # no generator: the stage may do without
    require_inputs("reject", given("++inputs.promts=/nowhere"))  # a name for the stage to refuse, which knows the nearest
    require_inputs("reject", given(tokens, reward, "++inputs.models.a=null"))
    for wrong, named in ((["++inputs.reward=/x", tokens], "reward: '/x'"), ([tokens], "reward: .*/mine/reward'")):
        with pytest.raises(UserError, match=f"^inputs.{named} is no finished stage"):
            require_inputs("reject", given(*wrong))
    with pytest.raises(UserError, match=r"^inputs.models.a: '/x' is no finished stage"):
        require_inputs("reject", given(tokens, reward, "++inputs.models.a=/x"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("++inputs.stages=/nowhere", "inputs.stages: '/nowhere' holds no finished stages: give the folder of a run"),
        ("++inputs.stages=[a]", r"inputs.stages must be a folder, not \['a'\]"),
        ("++inputs.stages.a=3", r"inputs.stages.a must be a folder, not 3"),
        ("++inputs=/nowhere", r"inputs=/nowhere: which one\? Give inputs.NAME=FOLDER"),
    ],
)
def test_what_is_no_folder_is_refused(given: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make_job("report", compose("report", [given]))
