"""The only way into a configuration: compose with Hydra, then check every key against a frozen dataclass.

Hydra accepts ``+typo=1`` and ``++typo=1`` by design, and ``OmegaConf.to_object`` drops unknown keys without a word. So the
composed tree is walked beside the schema first, and any key without a field ends the run with the nearest valid name.
Values are then checked by pydantic: OmegaConf cannot merge into nested frozen dataclasses (they are read-only nodes).
"""

import copy
import dataclasses
import functools
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from herd.config.errors import UserError, nearest

T = TypeVar("T")

_PACKAGE = Path(__file__).resolve().parents[1]
# Groups that every training command places below `trainer`; `precision=bf16` is short for `precision@trainer=bf16`.
_IN_TRAINER = re.compile(r"([+~]{0,2})(hardware|precision|parallel|logger)(=|$)")


def data_root() -> Path:
    """Folder that holds ``conf/``, ``sweeps/`` and ``notebooks/``: the checkout, or the copy inside an installed wheel."""
    checkout = _PACKAGE.parents[1]
    return checkout if (checkout / "conf").is_dir() else _PACKAGE / "_data"


def conf_root() -> Path:
    """The Hydra tree, ``conf/``."""
    return data_root() / "conf"


def compose(command: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Compose ``conf/<command>.yaml`` with Hydra overrides, as the command line does.

    Raises:
        UserError: unknown command, group option or key, with Hydra's reason and the nearest valid name.
    """
    if not (conf_root() / f"{command}.yaml").exists():
        commands = [p.stem for p in conf_root().glob("*.yaml")]
        raise UserError(f"No command '{command}' (conf/{command}.yaml).{nearest(command, commands)}")
    try:
        return _compose(command, overrides)
    except Exception as error:
        raise explain(error, command, overrides) from error


def spell_out(override: str) -> str:
    """``precision=bf16`` as Hydra wants it, ``precision@trainer=bf16``; any other override as it is."""
    return _IN_TRAINER.sub(r"\1\2@trainer\3", override, count=1) if _IN_TRAINER.match(override) else override


def _compose(command: str, overrides: Sequence[str]) -> DictConfig:
    return copy.deepcopy(_composed(conf_root(), command, tuple(spell_out(override) for override in overrides)))


@functools.lru_cache(maxsize=128)
def _composed(root: Path, command: str, overrides: tuple[str, ...]) -> DictConfig:
    """A composition takes a tenth of a second, and a recipe asks for those of its stages more than once."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    # A compose inside a running Hydra application (a recipe's stages) must leave the outer one as it was.
    outer = dict(GlobalHydra.instance().__dict__)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(root), version_base="1.3"):
            return hydra_compose(config_name=command, overrides=list(overrides))
    finally:
        GlobalHydra.instance().__dict__.update(outer)


def explain(error: BaseException, command: str, overrides: Sequence[str] = ()) -> BaseException:
    """Turn Hydra's and OmegaConf's composition errors into one line with the nearest valid key; others pass through."""
    from hydra.errors import HydraException, OverrideParseException

    if not isinstance(error, HydraException | OmegaConfBaseException):
        return error
    text = str(error)
    if isinstance(error, OverrideParseException):
        quoting = """'source.path="a,b.jsonl"'"""
        return UserError(
            f"'{error.override}' is no key=value that Hydra can read: "
            f"quote a value that holds any of = , : {{ }} [ ], twice for the shell's sake: {quoting}."
        )
    key = re.search(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)' is not in struct", text)
    if key:
        full = re.search(r"full_key: (\S+)", text)
        name = full.group(1) if full and "." in full.group(1) else key.group(1)
        if (conf_root() / name.split("@")[0]).is_dir():
            return UserError(f"`herd {command}` has no group '{name}': `herd {command} --help` lists its groups and keys.")
        keys = known_keys(command, overrides)
        if name in keys:  # a mapping whose keys are the user's: Hydra takes it for a fixed set
            return UserError(f"'{name}' for `herd {command}` takes names of your own: write ++{name}.NAME=VALUE.")
        parent, _, own = name.rpartition(".")
        if parent in keys and not any(known.startswith(f"{parent}.") for known in keys):
            return UserError(f"'{parent}' for `herd {command}` takes names of your own: write ++{parent}.{own}=VALUE.")
        return UserError(f"Unknown key '{name}' for `herd {command}`.{nearest(name, keys)}")
    first, *rest = [line.strip() for line in text.splitlines() if line.strip()]
    if re.match(r"In '[^']+': Could not find", first) or "Could not find" in first:
        options = [line for line in rest if line and not line.startswith(("Config search path", "provider="))]
        wanted = re.search(r"Could not find '([^']+)'", first)
        choices = [o.strip("\t ") for o in options if " " not in o and ":" not in o]
        hint = nearest(wanted.group(1).split("/")[-1], choices) if wanted else ""
        listed = f" Choices: {', '.join(choices)}." if choices else ""
        return UserError(f"{first}.{hint}{listed}")
    return UserError(" ".join([first, *rest])[:600])


def known_keys(command: str, overrides: Sequence[str] = ()) -> list[str]:
    """Every dotted key that ``conf/<command>.yaml`` composes to with the group options among ``overrides``, for suggestions."""
    keys: list[str] = []

    def walk(node: Any, prefix: str) -> None:
        if isinstance(node, Mapping):
            for name, value in node.items():
                keys.append(f"{prefix}{name}")
                walk(value, f"{prefix}{name}.")

    groups = [p.name for p in conf_root().iterdir() if p.is_dir()]
    options = [override for override in overrides if override.split("=")[0] in groups]
    try:
        walk(OmegaConf.to_container(_compose(command, options)), "")
    except Exception:  # the tree itself does not compose: no suggestions, the first error stands
        return []
    return keys + groups


def load(schema: type[T], config: DictConfig | Mapping[str, Any]) -> T:
    """Build the frozen dataclass ``schema`` from a composed tree; nothing unknown, nothing missing, types checked.

    Raises:
        UserError: unknown key (with the nearest field), missing value, wrong type, or a check of ``__post_init__``.
    """
    plain = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else dict(config)
    assert isinstance(plain, dict)
    _refuse_unknown(schema, plain, "")
    try:
        return TypeAdapter(schema).validate_python(plain)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        reason = first.get("ctx", {}).get("error")
        if isinstance(reason, UserError):  # raised by a __post_init__
            raise reason from error
        where = ".".join(str(part) for part in first["loc"])
        given = "" if first["type"] == "missing" else f", not {str(first['input'])[:80]!r}"
        raise UserError(f"'{where}' of {schema.__name__}: {first['msg']}{given}.") from error


def from_dict(schema: type[T], values: Mapping[str, Any]) -> T:
    """As :func:`load`, for a plain mapping (a JSON file, a preset)."""
    return load(schema, values)


def to_plain(value: Any) -> Any:
    """Plain dicts, lists and scalars of a dataclass tree, ready for JSON and hashing."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(v) for v in value]
    if isinstance(value, Enum):
        return value.name
    return str(value) if isinstance(value, Path) else value


def _refuse_unknown(schema: Any, values: Any, where: str) -> None:
    """Walk ``values`` beside the types of ``schema``; raise for the first key that has no field, no value (``???``) or NaN."""
    if isinstance(values, str) and values == "???":
        raise UserError(f"'{where}' is not set: give {where}=VALUE.")
    if isinstance(values, float) and not math.isfinite(values):  # no comparison with a limit holds for NaN, and JSON has neither
        raise UserError(f"'{where}' is {values}: give a finite number.")
    schema = _strip_optional(schema)
    if dataclasses.is_dataclass(schema) and isinstance(values, Mapping):
        hints = typing.get_type_hints(schema)
        fields = {f.name: hints[f.name] for f in dataclasses.fields(schema)}
        for name, value in values.items():
            if name not in fields:
                parent = f" in '{where}'" if where else ""
                hint = nearest(str(name), fields) or f" Choices: {', '.join(sorted(fields))}."
                raise UserError(f"Unknown key '{where + '.' if where else ''}{name}'{parent}.{hint}")
            _refuse_unknown(fields[name], value, f"{where}.{name}" if where else str(name))
        return
    arguments = typing.get_args(schema)
    if typing.get_origin(schema) in (list, tuple, Sequence) and isinstance(values, list) and arguments:
        for i, value in enumerate(values):
            _refuse_unknown(arguments[0], value, f"{where}[{i}]")
    elif typing.get_origin(schema) is dict and isinstance(values, Mapping) and len(arguments) == 2:
        for name, value in values.items():
            _refuse_unknown(arguments[1], value, f"{where}.{name}")


def _strip_optional(schema: Any) -> Any:
    if typing.get_origin(schema) in (typing.Union, types.UnionType):
        rest = [a for a in typing.get_args(schema) if a is not type(None)]
        return rest[0] if len(rest) == 1 else schema
    return schema
