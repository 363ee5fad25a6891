"""`herd <command> --help`: what a command does, the inputs it takes, the groups and keys it can be given."""

import re
from collections.abc import Iterable, Iterator

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
    comments = dict(_comments(command, ""))
    for path, line in _keyed(OmegaConf.to_yaml(composed).splitlines()):
        yield f"  {line}   # {comments[path]}" if path in comments else f"  {line}"


def _inputs(command: str) -> Iterator[str]:
    stage, defaults = get_stage(command), COMMANDS[command].inputs
    kinds = dict.fromkeys(stage.inputs, "required") | dict.fromkeys(stage.optional, "optional")
    if kinds or stage.groups:
        yield "\nInputs: folders of finished stages"
    for name, kind in kinds.items():
        default = f", <run.root>/<run.name>/{defaults[name]} unless given" if name in defaults else ""
        yield f"  inputs.{name}=FOLDER   {kind}{default}"
    for name in stage.groups:
        gathered = ", every finished stage of <run.root>/<run.name> unless given" if name == COMMANDS[command].gathers else ""
        yield f"  inputs.{name}.LABEL=FOLDER   any number{gathered}"
        if gathered:
            yield f"  inputs.{name}=FOLDER   those of another run: its folder, e.g. runs/laptop"


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


def _comments(file: str, package: str) -> Iterator[tuple[str, str]]:
    """(dotted key, comment beside it) of a file below conf/ and of those that its defaults list names."""
    lines = (conf_root() / f"{file}.yaml").read_text(encoding="utf-8").splitlines()
    group = file.rpartition("/")[0]
    defaults = OmegaConf.to_container(OmegaConf.load(conf_root() / f"{file}.yaml"))
    assert isinstance(defaults, dict)
    for default in defaults.get("defaults", []):
        for key, chosen in (default if isinstance(default, dict) else {"": default}).items():
            name, _, place = str(key).removeprefix("override ").lstrip("/").partition("@")
            own = "" if not key or place == "_here_" else place or name.replace("/", ".")
            place = ".".join(part for part in (package, own) if part)
            for choice in chosen if isinstance(chosen, list) else [chosen]:
                if choice not in (None, "_self_"):
                    yield from _comments("/".join(part for part in (name or group, choice) if part), place)
    for path, line in _keyed(lines):
        if path and (comment := re.search(r"\s#\s?(.*)$", line)):
            yield f"{package}.{path}".lstrip("."), comment[1]


def _keyed(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(dotted key, line) of YAML in block style; lines without a key have the key ''."""
    parents: list[tuple[int, str]] = []
    for line in lines:
        found = re.match(r"( *)([^\s#\-{\[][^:]*):(\s|$)", line)
        if found:
            parents = [parent for parent in parents if parent[0] < len(found[1])] + [(len(found[1]), found[2])]
        yield ".".join(name for _, name in parents) if found else "", line
