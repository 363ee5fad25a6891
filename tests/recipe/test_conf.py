"""Every configuration file composes, and lists every key of its schema."""

from collections.abc import Sequence
from functools import cache
from itertools import combinations, zip_longest
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from herd.config.errors import UserError
from herd.config.loader import compose, conf_root, data_root, load, to_plain
from herd.recipe import graph
from herd.recipe.commands import COMMANDS
from herd.recipe.graph import Node, RecipeConfig, job_of, plan_lines
from herd.recipe.job import make_job
from herd.scaling.sweep.plan import plan_cells
from herd.training.curriculum import Curriculum

# What only the user can say.
NEEDED = {"mix-fit": ["table=mixes.csv"], "scaling-next": ["budget=1e12"]}
RECIPES = sorted(path.stem for path in (conf_root() / "recipe").glob("*.yaml"))


@cache
def _composed(command: str, overrides: tuple[str, ...]) -> DictConfig:
    return compose(command, overrides)


@pytest.fixture(autouse=True)
def each_stage_is_composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper's recipe has some 60 stages, and composing one takes a fifth of a second."""

    def once(command: str, overrides: Sequence[str]) -> DictConfig:
        return _composed(command, tuple(overrides)).copy()

    monkeypatch.setattr(graph, "compose", once)


@pytest.mark.parametrize("command", COMMANDS)
def test_command_composes_and_lists_every_key(command: str) -> None:
    composed = compose(command, NEEDED.get(command, ()))
    job = make_job(command, composed)
    listed = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(listed, dict)
    assert {*to_plain(job.config)} == {*listed} - {"run", "inputs", "hydra", "out"}


def _choices() -> list[tuple[str, tuple[str, ...]]]:
    """(command, overrides) such that every option of every group that a command's defaults list can take is among them.

    One option of each group at a time, for composing costs: where a group has fewer than another, its own default stands.
    """
    found = []
    for command in [*COMMANDS, "recipe"]:
        primary = OmegaConf.load(conf_root() / f"{command}.yaml")
        groups = []
        for default in primary.get("defaults", []):
            if isinstance(default, str):
                continue
            for key in default:
                group = str(key).removeprefix("override ").split("@")[0].strip("/")
                folder = conf_root() / group
                if group != "common" and folder.is_dir():
                    groups.append([f"{str(key).split(' ')[-1]}={path.stem}" for path in sorted(folder.glob("*.yaml"))])
        found += [(command, tuple(filter(None, choice))) for choice in zip_longest(*groups)]
    return found


@pytest.mark.parametrize(
    ("command", "choice"), _choices(), ids=lambda value: value if isinstance(value, str) else ",".join(value)
)
def test_every_group_option_composes(command: str, choice: tuple[str, ...]) -> None:
    composed = compose(command, [*choice, *NEEDED.get(command, ())])
    for key in OmegaConf.missing_keys(composed):  # what only the user can say, as source.path
        OmegaConf.update(composed, key, "somewhere")
    if command == "recipe":
        load(RecipeConfig, composed)
    else:
        make_job(command, composed)


@pytest.mark.parametrize("path", sorted((data_root() / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_sweep_composes(path: Path) -> None:
    command = OmegaConf.load(path).get("herd_command", "pretrain")
    # A multirun names its jobs' folders, by their number for example.
    make_job(command, compose(command, [f"+sweeps={path.stem}", "run.node=job"]))


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "llama3_405b"])  # the paper's own is the next test's
def test_recipe_prints_its_plan(recipe: str) -> None:
    loaded = load(RecipeConfig, compose("recipe", [f"recipe={recipe}"]))
    lines = list(plan_lines(loaded))
    assert len(lines) > len(loaded.nodes)


def test_the_papers_recipe_carries_the_papers_numbers() -> None:
    loaded = load(RecipeConfig, compose("recipe", ["recipe=llama3_405b"]))
    lines = list(plan_lines(loaded))
    text = "\n".join(lines)
    assert loaded.dry_run and len(lines) > len(loaded.nodes)
    assert "405,853,388,800" in text
    assert sum(name.endswith("/dpo") for name in loaded.nodes) == 6


def test_the_papers_sweep_has_rows_of_8192_and_one_batch_a_budget() -> None:
    plan = make_job("scaling-plan", compose("scaling-plan", ["plan=isoflop_llama3"])).config.plan
    cells = plan_cells(plan).cells
    batches: dict[float, set[int]] = {}
    for cell in cells:
        batches.setdefault(cell.budget, set()).add(cell.batch_tokens)
    assert len(batches) == 10 and all(len(found) == 1 for found in batches.values())
    assert min(batches[6e18]) == pytest.approx(250_000, rel=0.05) and min(batches[1e22]) == pytest.approx(4e6, rel=0.06)
    for cell in (cells[0], cells[-1]):
        config = make_job("pretrain", compose("pretrain", cell.overrides)).config
        curriculum = Curriculum(config.curriculum, config.mix.weights, config.optimizer.lr)
        curriculum.check_lengths(config.model.max_seq_len)
        assert {(phase.seq_len, phase.batch_tokens) for phase in curriculum.phases} == {(8192, cell.batch_tokens)}
        assert curriculum.tokens == cell.tokens and config.eval_seq_len == 8192
        rates = [curriculum.learning_rate(step) for step in (999, 1999, len(curriculum) - 1)]
        assert rates[0] == pytest.approx(cell.lr / 2, rel=0.01) and rates[1] == pytest.approx(cell.lr, rel=0.01)
        assert rates[2] == pytest.approx(0.1 * cell.lr, rel=0.01)


# ci samples from the prompts of its preferences: its corpus has about 200 in all, and its numbers mean nothing.
@pytest.mark.parametrize("name", [name for name in RECIPES if name != "ci"])
def test_prompts_of_rejection_sampling_are_none_that_a_reward_model_learns(name: str) -> None:
    loaded = load(RecipeConfig, compose("recipe", [f"recipe={name}"]))
    jobs = {node: job_of(loaded, node).config for node in loaded.nodes}
    [available] = [jobs[node].train_prompts for node, stage in loaded.nodes.items() if stage.command == "dialogs"]
    spans = {
        node: range(jobs[node].first_prompt, jobs[node].first_prompt + jobs[node].prompts)
        for node, stage in loaded.nodes.items()
        if stage.command in ("preferences", "reject")
    }
    assert len(spans) >= 4
    for one, other in combinations(spans, 2):
        assert not set(spans[one]) & set(spans[other]), (one, other)
    assert all(span.stop <= available for span in spans.values())


def recipe(stages: dict[str, Node], **changes: Any) -> RecipeConfig:
    values = {"name": "r", "description": "", "root": "runs", "dry_run": False, "until": None, **changes}
    return RecipeConfig(stages=stages, **values)


def test_recipe_refuses_unknown_and_later_inputs() -> None:
    with pytest.raises(UserError, match="needs 'tokn', which does not exist"):
        recipe({"tokenize": Node("tokenize"), "p": Node("pretrain", inputs={"tokens": "tokn"})})
    with pytest.raises(UserError, match="needs 'b', which comes later"):
        recipe({"a": Node("tokenize", inputs={"documents": "b"}), "b": Node("curate")})
    with pytest.raises(UserError, match="has no stage 'z'"):
        recipe({"a": Node("curate")}, until="z")
