"""Prompts that chose a checkpoint do not score it, nor what comes from it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.cli import main
from herd.config.errors import UserError
from herd.config.loader import compose
from herd.evaluation.prompts_apart import choices_among, choices_behind, overlap, require_apart
from herd.recipe.graph import RecipeConfig, jobs_of
from herd.recipe.job import Job, make_job, require_unseen
from herd.recipe.node import Node
from herd.runs.stage import Artifact, Inputs, Stage, StageRun, execute

numbers = st.integers(0, 30)


@given(numbers, numbers, numbers, numbers)
def test_overlap_counts_common_indices(first: int, count: int, other: int, more: int) -> None:
    assert overlap(first, count, other, more) == len({*range(first, first + count)} & {*range(other, other + more)})


def test_the_message_names_a_way_out() -> None:
    require_apart(300, 200, "x", 0, 300)
    with pytest.raises(UserError, match="prompts 250 to 449, and 50 of them chose a checkpoint: x used 0 to 299"):
        require_apart(250, 200, "x", 0, 300)


@dataclass(frozen=True)
class Settings:
    first_prompt: int = 0
    prompts: int = 5
    seed: int = 0


def make(root: Path, command: str, seed: int = 0, models: dict[str, Artifact] | None = None, **inputs: Artifact) -> Artifact:
    def write(config: Settings, given: Inputs, run: StageRun) -> dict:
        if command == "dialogs":
            (run.folder / "heldout_prompts.jsonl").write_text(str(config.seed % 2))  # seeds 0 and 2 make the same prompts
        return {}

    stage = Stage(command, 1, Settings, write, "nothing", inputs=tuple(inputs), groups=("models",))
    paths = {name: artifact.path for name, artifact in inputs.items()}
    compared = {label: artifact.path for label, artifact in (models or {}).items()}
    return execute(stage, Settings(seed=seed), paths | {"models": compared}, root, "test", f"{command}-{seed}")


def test_a_choice_is_found_behind_the_rows_that_it_wrote(tmp_path: Path) -> None:
    dialogs, others = make(tmp_path, "dialogs"), make(tmp_path, "dialogs", 1)
    first = make(tmp_path, "sft", prompts=dialogs)
    best, elsewhere = make(tmp_path, "best", model=first, prompts=dialogs), make(tmp_path, "best", 1, model=first, prompts=others)
    rows = make(tmp_path, "reject", best=best, elsewhere=elsewhere)
    models = {"first": first, "second": make(tmp_path, "sft", 1, dialogs=rows)}
    assert [(label, manifest["node"]) for label, manifest in choices_behind(models, dialogs)] == [("second", "best-0")]
    assert [(label, manifest["node"]) for label, manifest in choices_behind(models, others)] == [("second", "best-1")]


def test_what_a_person_compared_is_found_beside_the_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No manifest of the models names the comparison: the one chosen is scored by hand, or trained on first."""
    dialogs, others, again = (make(tmp_path, "dialogs", seed) for seed in (0, 1, 2))
    one, two, stranger = (make(tmp_path, "sft", seed) for seed in (0, 1, 2))
    best = make(tmp_path, "best", 0, {"one": one, "two": two}, prompts=dialogs)
    make(tmp_path, "best", 1, {"one": one, "two": two}, prompts=others)
    child = make(tmp_path, "dpo", model=one)
    for asked, found in (({"a": one}, ["a"]), ({"b": child}, ["b"]), ({"c": stranger}, []), ({"c": stranger, "b": child}, ["b"])):
        for read in (dialogs, again):
            given = list(choices_among(asked, read, tmp_path / "nowhere"))
            assert [label for label, _ in given] == found and all(m["address"] == best.address for _, m in given)
    elsewhere = make(tmp_path / "mine", "best", 3, {"one": one, "two": two}, prompts=dialogs)  # of models of another root
    assert [m["address"] for _, m in choices_among({"a": two}, dialogs, elsewhere.path.parent)] == [
        elsewhere.address,
        best.address,
    ]
    # The bare command looks there, before anything is loaded.
    tokens = make(tmp_path, "tokenize")
    inputs = {
        "tokens": tokens.path,
        "documents": tokens.path,
        "dialogs": dialogs.path,
        "models": {"a": child.path, "b": stranger.path},
    }

    def job(*overrides: str, **other: Any) -> Job:
        pairs = "win_rate.pairs=[[a,b,judge]]"
        return replace(make_job("evaluate", compose("evaluate", [pairs, *overrides])), inputs=inputs | other)

    require_unseen(job("win_rate.first_prompt=5"))
    with pytest.raises(
        UserError, match=r"prompts 4 to 203, and 1 of them chose .*`herd best` \(best-0, .*\), which compared a or what"
    ):
        require_unseen(job("win_rate.first_prompt=4"))
    given = [f"inputs.{name}={path}" for name, path in inputs.items() if name != "models"]
    given += [f"inputs.models.{label}={path}" for label, path in inputs["models"].items()] + [f"run.root={tmp_path}"]
    with pytest.raises(SystemExit):
        main(["evaluate", *given, "win_rate.pairs=[[a,b,judge]]", "win_rate.first_prompt=4"])
    assert "herd: evaluate.win_rate asks held-out prompts 4 to 203, and 1 of them chose" in capsys.readouterr().err
    require_unseen(job("win_rate.first_prompt=4", "tasks=[needle]"))
    require_unseen(job("win_rate.first_prompt=4", models={"a": stranger.path, "b": tokens.path}))


def test_a_recipe_that_scores_on_prompts_that_choose_is_refused() -> None:
    """That those of conf/recipe/ do not, tests/recipe shows, which prints their plans."""

    def recipe(evaluate: list[str]) -> RecipeConfig:
        best = Node("best", inputs={"tokens": "tokens", "prompts": "dialogs", "reward": "tokens"})
        nodes = {"tokens": Node("tokenize"), "dialogs": Node("dialogs"), "round-1/best": best}
        nodes["evaluate"] = Node("evaluate", evaluate, inputs={"dialogs": "dialogs"})
        return RecipeConfig("r", "", "runs", dry_run=False, until=None, stages=nodes)

    early, pairs = "win_rate.first_prompt=299", "win_rate.pairs=[[a, b, judge]]"
    assert len(jobs_of(recipe([early]))) == len(jobs_of(recipe([pairs]))) == 4
    with pytest.raises(UserError, match=r"Stage 'evaluate' asks held-out prompts 299 to .* stage 'round-1/best' used 0 to 299"):
        jobs_of(recipe([early, pairs]))


def test_the_commands_own_defaults_keep_apart() -> None:
    best, evaluate, dialogs = (compose(command) for command in ("best", "evaluate", "dialogs"))
    require_apart(evaluate.win_rate.first_prompt, evaluate.win_rate.prompts, "x", best.first_prompt, best.prompts)
    assert dialogs.heldout_prompts >= evaluate.win_rate.first_prompt + evaluate.win_rate.prompts
