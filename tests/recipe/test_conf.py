"""Every configuration file composes, and lists every key of its schema."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from herd.config.errors import UserError
from herd.config.loader import compose, conf_root, data_root, load, to_plain
from herd.recipe.commands import COMMANDS
from herd.recipe.graph import Node, RecipeConfig, plan_lines
from herd.recipe.job import make_job

RECIPES = sorted(path.stem for path in (conf_root() / "recipe").glob("*.yaml"))


@pytest.mark.parametrize("command", COMMANDS)
def test_command_composes_and_lists_every_key(command: str) -> None:
    composed = compose(command)
    job = make_job(command, composed)
    listed = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(listed, dict)
    assert {*to_plain(job.config)} == {*listed} - {"run", "inputs", "hydra"}


def _options() -> list[tuple[str, str, str]]:
    """(command, group, option) for every group option that a primary configuration's defaults list can take."""
    found = []
    for command in [*COMMANDS, "recipe"]:
        primary = OmegaConf.load(conf_root() / f"{command}.yaml")
        for default in primary.get("defaults", []):
            if isinstance(default, str):
                continue
            for key in default:
                group = str(key).removeprefix("override ").split("@")[0].strip("/")
                folder = conf_root() / group
                if group != "common" and folder.is_dir():
                    found += [(command, str(key).split(" ")[-1], path.stem) for path in sorted(folder.glob("*.yaml"))]
    return found


@pytest.mark.parametrize(("command", "group", "option"), _options())
def test_every_group_option_composes(command: str, group: str, option: str) -> None:
    composed = compose(command, [f"{group}={option}"])
    if command == "recipe":
        load(RecipeConfig, composed)
    else:
        make_job(command, composed)


@pytest.mark.parametrize("path", sorted((data_root() / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_sweep_composes(path: Path) -> None:
    command = OmegaConf.load(path).get("herd_command", "pretrain")
    make_job(command, compose(command, [f"+sweeps={path.stem}"]))


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_prints_its_plan(recipe: str) -> None:
    loaded = load(RecipeConfig, compose("recipe", [f"recipe={recipe}"]))
    lines = list(plan_lines(loaded))
    assert len(lines) > len(loaded.stages)


def test_the_papers_recipe_carries_the_papers_numbers() -> None:
    loaded = load(RecipeConfig, compose("recipe", ["recipe=llama3_405b"]))
    text = "\n".join(plan_lines(loaded))
    assert loaded.dry_run
    assert "405,853,388,800" in text
    assert sum(name.endswith("/dpo") for name in loaded.stages) == 6


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
