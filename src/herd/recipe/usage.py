"""`herd <command> --help`: what a command does, the inputs it takes, the groups and keys it can be given."""

from collections.abc import Iterator

from omegaconf import OmegaConf

from herd.config.loader import compose, conf_root
from herd.recipe.commands import COMMANDS, TOOLS, get_stage, get_tool


def usage_lines(command: str) -> Iterator[str]:
    """Lines for a person; ``command`` is a stage's, a tool's or ``recipe``."""
    summary = COMMANDS[command].summary if command in COMMANDS else TOOLS.get(command, ("", "the whole graph of stages"))[1]
    yield f"herd {command} [key=value ...]: {summary}"
    if command in COMMANDS:
        yield from _inputs(command)
    elif command in TOOLS:
        yield f"\n{get_tool(command).help}"
    groups = list(_groups(command))
    if groups:
        yield "\nGroups of configuration"
        yield from groups
    yield "\nKeys, and their values unless others are given"
    composed = OmegaConf.to_container(compose(command))
    assert isinstance(composed, dict)
    if command in TOOLS:
        composed.pop("hydra", None)
    if composed.pop("stages", None):  # the graph itself is what dry_run=true shows
        yield "  stages.<stage>.extra: []   # your overrides of one stage, e.g. 'stages.pretrain.extra=[\"model=tiny\"]'"
    yield from (f"  {line}" for line in OmegaConf.to_yaml(composed).splitlines())


def _inputs(command: str) -> Iterator[str]:
    stage, defaults = get_stage(command), COMMANDS[command].inputs
    kinds = dict.fromkeys(stage.inputs, "required") | dict.fromkeys(stage.optional, "optional")
    if kinds or stage.groups:
        yield "\nInputs: folders of finished stages"
    for name, kind in kinds.items():
        default = f", <run.root>/<run.name>/{defaults[name]} unless given" if name in defaults else ""
        yield f"  inputs.{name}=FOLDER   {kind}{default}"
    yield from (f"  inputs.{name}.LABEL=FOLDER   any number" for name in stage.groups)


def _groups(command: str) -> Iterator[str]:
    primary = OmegaConf.to_container(OmegaConf.load(conf_root() / f"{command}.yaml"))
    assert isinstance(primary, dict)
    for default in primary.get("defaults", []):
        if isinstance(default, str):
            continue
        for key, chosen in default.items():
            group = str(key).split("@")[0]
            if group != "common":
                options = sorted(path.stem for path in (conf_root() / group).glob("*.yaml"))
                yield f"  {group}={chosen}   of {', '.join(options)}"
