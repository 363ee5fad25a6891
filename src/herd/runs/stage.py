"""A stage is a function of its configuration and inputs; its output is stored under the hash of both.

``execute`` looks the address up in the store: a finished stage is skipped, an unfinished one is run again in the same
partial folder (where it finds its own checkpoints), and only a whole result, every file hashed, is renamed into place.
A readable link ``<runs>/<name>/<node>`` points at it. Of the processes that share a stage (torchrun, srun) the first makes the
result; the others take part in the work, and write nothing.
"""

import contextlib
import json
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from herd.config.errors import UserError, nearest
from herd.config.loader import to_plain
from herd.runs.atomic import fsync_folder, sha256_json, write_json
from herd.runs.lock import locked
from herd.runs.manifest import MANIFEST, commit, hash_outputs, now, read_manifest, versions
from herd.runs.memory import PeakMemory
from herd.runs.metrics import MetricsWriter
from herd.runs.ranks import find_launch

_unfinished: list[tuple[str, Path]] = []  # node and partial folder of each stage that this process has begun and not ended
InputPaths = Mapping[str, "str | Path | Mapping[str, str | Path]"]


@dataclass(frozen=True)
class Stage:
    """One command of the recipe.

    ``run(config, inputs, stage_run)`` writes its files into ``stage_run.folder`` and returns plain metrics for the manifest.
    """

    name: str  # the command's name, also the prefix of its folder in the store
    version: int  # raise it when the same configuration would now give another result
    config: type  # frozen dataclass, the schema
    run: Callable[[Any, "Inputs", "StageRun"], dict[str, Any]]
    summary: str  # one line for `herd --help`
    inputs: tuple[str, ...] = ()  # inputs that must be given
    optional: tuple[str, ...] = ()  # inputs that may be given
    groups: tuple[str, ...] = ()  # inputs that are a mapping label -> stage folder
    # What outside the configuration decides the result (content of user files, versions of a source): hashed into the address.
    fingerprint: Callable[[Any], Any] | None = None
    # Keys of the configuration that say how to compute, not what, as `trainer.num_workers`: not in the address.
    execution: tuple[str, ...] = ()
    # Of a configuration: how many processes of one launch run the stage together. One, unless given.
    processes: Callable[[Any], int] = lambda config: 1
    show: Callable[["Artifact"], None] | None = None  # prints the finished result for the person who gave the command
    headline: tuple[str, ...] = ()  # metrics of the closing line, each with its `NAME_interval`; none: the first plain numbers


@dataclass(frozen=True)
class Artifact:
    """A finished stage's folder."""

    path: Path
    manifest: dict[str, Any] = field(repr=False)

    @classmethod
    def open(cls, path: str | Path) -> "Artifact":
        """Open a finished folder (or a link to one); UserError when it is not finished."""
        resolved = Path(path).resolve()
        return cls(resolved, read_manifest(resolved))

    @property
    def address(self) -> str:
        """Hash of the stage's version, configuration and inputs."""
        return str(self.manifest["address"])

    @property
    def metrics(self) -> dict[str, Any]:
        """What the stage measured."""
        return dict(self.manifest["metrics"])

    def __truediv__(self, name: str) -> Path:
        """Path of a file or folder inside; UserError when the stage did not make it."""
        path = self.path / name
        if not path.exists():
            stage = self.manifest["stage"]
            raise UserError(f"'{self.path}' (made by `herd {stage}`) has no '{name}': is it the input you meant?")
        return path


class Inputs:
    """The finished stages that a stage reads."""

    def __init__(self, single: Mapping[str, Artifact], groups: Mapping[str, Mapping[str, Artifact]]) -> None:
        self._single, self._groups = dict(single), {name: dict(group) for name, group in groups.items()}

    def __getitem__(self, name: str) -> Artifact:
        return self._single[name]

    def get(self, name: str) -> Artifact | None:
        """The input, or None when this optional one was not given."""
        return self._single.get(name)

    def group(self, name: str, least: int = 0) -> dict[str, Artifact]:
        """Label -> artifact, in the order given; empty when the group was not given. UserError for fewer than ``least``."""
        found = dict(self._groups.get(name, {}))
        if len(found) < least:
            one = "" if least == 1 else f", {least} of them at least"
            raise UserError(f"inputs.{name} is missing: give inputs.{name}.LABEL=FOLDER{one}, the folder of a finished stage.")
        return found

    def addresses(self) -> dict[str, Any]:
        """Name -> address, for hashing."""
        single = {name: artifact.address for name, artifact in self._single.items()}
        return single | {n: {label: a.address for label, a in g.items()} for n, g in self._groups.items() if g}

    def order(self) -> dict[str, list[str]]:
        """Group -> its labels in the order given."""
        return {name: list(group) for name, group in self._groups.items() if group}

    def paths(self, relative_to: Path) -> dict[str, Any]:
        """Name -> folder relative to ``relative_to``, for the manifest."""

        def relative(artifact: Artifact) -> str:
            return os.path.relpath(artifact.path, relative_to)

        single: dict[str, Any] = {name: relative(artifact) for name, artifact in self._single.items()}
        return single | {n: {label: relative(a) for label, a in g.items()} for n, g in self._groups.items() if g}


class StageRun:
    """What a running stage is given: a folder to write in and a place to report to.

    Args:
        scratch: of the first process, when this is another one of those that share the stage; what this one writes in
            ``folder`` is thrown away.
    """

    def __init__(self, folder: Path, seed: int, node: str = "", scratch: Path | None = None) -> None:
        self.folder = Path(folder)
        self.writes = scratch is None  # whether files in `folder` will be read: large ones need not be made otherwise
        self._scratch = scratch or self.folder / ".scratch"
        self.seed = seed
        self.node = node
        self.folder.mkdir(parents=True, exist_ok=True)
        self.metrics = MetricsWriter(self.folder / "metrics.jsonl")
        self.costs: dict[str, float | None] = {"tokens": 0, "flops_6N": None}

    @property
    def scratch(self) -> Path:
        """Folder for checkpoints and the like: kept while the stage is unfinished, deleted when it succeeds."""
        self._scratch.mkdir(parents=True, exist_ok=True)
        return self._scratch

    def cost(self, tokens: int = 0, flops_6n: float | None = None) -> None:
        """Add to the tokens processed and floating-point operations spent, for the manifest.

        Args:
            tokens: trained on, read or drawn.
            flops_6n: 6N for each token that is trained on and 2N for each that is only read, N as
                ``herd.model.counts.parameter_count(config, "6N")`` counts: attention's scores are left out, as in scaling laws,
                and stages may be added up. None: not counted; ``flops_6N`` of a stage that counts none is null, not 0.
        """
        self.costs["tokens"] = int(self.costs["tokens"] or 0) + int(tokens)
        if flops_6n is not None:
            self.costs["flops_6N"] = (self.costs["flops_6N"] or 0.0) + float(flops_6n)


def open_inputs(stage: Stage, given: InputPaths) -> Inputs:
    """Open what ``given`` names, checked against what the stage declares.

    Raises:
        UserError: an unknown or missing input, or one whose folder is not finished.
    """
    known = (*stage.inputs, *stage.optional, *stage.groups)
    for name in given:
        if name not in known:
            expected = f" It takes: {', '.join(known)}." if known else " It takes none."
            raise UserError(f"`herd {stage.name}` has no input '{name}'.{nearest(name, known)}{expected}")
    missing = [name for name in stage.inputs if not given.get(name)]
    if missing:
        raise UserError(f"`herd {stage.name}` needs inputs.{missing[0]}=FOLDER (a finished stage's folder).")
    single: dict[str, Artifact] = {}
    groups: dict[str, dict[str, Artifact]] = {}
    for name, value in given.items():
        if name in stage.groups:
            if not isinstance(value, Mapping):
                raise UserError(f"inputs.{name} of `herd {stage.name}` is a group: give inputs.{name}.LABEL=FOLDER.")
            groups[name] = {label: open_input(f"inputs.{name}.{label}", path) for label, path in value.items()}
        elif isinstance(value, Mapping):
            raise UserError(f"inputs.{name} of `herd {stage.name}` is one folder, not a group of them.")
        elif value:
            single[name] = open_input(f"inputs.{name}", value)
    return Inputs(single, groups)


def open_input(name: str, path: str | Path) -> Artifact:
    """Open the finished folder that is given as the input ``name``; UserError naming both when it is not finished."""
    try:
        return Artifact.open(path)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


def address_of(stage: Stage, config: Any, inputs: Inputs) -> str:
    """Hash of everything that decides the result: stage, version, configuration, inputs, fingerprint."""
    outside = stage.fingerprint(config) if stage.fingerprint else None
    decisive = _without(to_plain(config), stage.execution)
    key = {
        "stage": stage.name,
        "version": stage.version,
        "config": decisive,
        "inputs": inputs.addresses(),
        # JSON is hashed with sorted keys, but the order of a group counts: the last round is the newest.
        "order": inputs.order(),
        "outside": to_plain(outside),
    }
    return sha256_json(key)


def _without(values: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """``values`` but for these dotted keys."""
    heads = {key: tuple(k.partition(".")[2] for k in keys if k.startswith(f"{key}.")) for key in values}
    return {
        key: _without(value, heads[key]) if heads[key] and isinstance(value, dict) else value
        for key, value in values.items()
        if key not in keys
    }


def stored(stage: Stage, config: Any, inputs: InputPaths, root: Path) -> Artifact | None:
    """The finished result of this configuration and these inputs, or None when it was never made."""
    address = address_of(stage, config, open_inputs(stage, inputs))
    folder = _folder(stage, address, Path(root))
    return Artifact.open(folder) if (folder / MANIFEST).exists() else None


def execute(stage: Stage, config: Any, inputs: InputPaths, root: Path, name: str, node: str | None = None) -> Artifact:
    """Run a stage, or return its finished result.

    Args:
        stage: what to run.
        config: an instance of ``stage.config``.
        inputs: name -> folder of a finished stage (label -> folder for a group).
        root: folder of all runs (``runs``); results lie in ``root/store``.
        name: the run that asks; ``root/name/node`` becomes a link to the result.
        node: the stage's name within that run, ``stage.name`` unless given.
    """
    root, node = Path(root).absolute(), node or stage.name
    link = _inside(root / name, node)
    opened = open_inputs(stage, inputs)
    address = address_of(stage, config, opened)
    folder = _folder(stage, address, root)
    launch = find_launch(stage.processes(config))
    if launch is None or launch.first:
        with locked(folder):
            if not (folder / MANIFEST).exists():
                _partial(folder).mkdir(exist_ok=True)
                with launch.gathered(folder) if launch else contextlib.nullcontext():
                    _make(stage, config, opened, address, folder, node)
    else:
        with launch.joined(folder) as unfinished:
            if unfinished:
                _take_part(stage, config, opened, folder, node)
    _link(link, folder)
    return Artifact.open(folder)


def _make(stage: Stage, config: Any, inputs: Inputs, address: str, folder: Path, node: str) -> None:
    partial = _partial(folder)
    run = StageRun(partial, seed=_seed(config), node=node)
    _unfinished.append((node, partial))
    started, clock = now(), time.monotonic()
    # Seconds of earlier, interrupted attempts count too: they were paid for.
    spent_file = run.scratch / "seconds.json"
    before = float(json.loads(spent_file.read_text())) if spent_file.exists() else 0.0
    try:
        with PeakMemory() as memory:
            metrics = stage.run(config, inputs, run)
    except BaseException as error:
        if isinstance(error, UserError) and _is_empty(partial):
            shutil.rmtree(partial, ignore_errors=True)  # nothing to go on from; mended input has another address
        elif partial.exists():
            with contextlib.suppress(OSError):
                write_json(spent_file, before + time.monotonic() - clock)
        raise
    seconds = before + time.monotonic() - clock
    shutil.rmtree(partial / ".scratch", ignore_errors=True)
    manifest = {
        "stage": stage.name,
        "version": stage.version,
        "address": address,
        "node": node,
        "config": to_plain(config),
        "inputs": inputs.paths(folder.parent),
        "input_addresses": inputs.addresses(),
        "outputs": hash_outputs(partial),
        "seed": run.seed,
        "versions": versions(),
        "commit": commit(),
        "command": sys.argv,
        "metrics": to_plain(metrics),
        "cost": {"seconds": round(seconds, 3), **run.costs},
        "peak_memory_bytes": memory.bytes,
        "started": started,
        "finished": now(),
    }
    write_json(partial / MANIFEST, manifest)
    if folder.exists():  # a folder without a manifest is no result
        shutil.rmtree(folder)
    os.replace(partial, folder)
    fsync_folder(folder.parent)
    _unfinished.remove((node, partial))


def what_is_kept() -> str:
    """Of the stage at work when this process is stopped: whether the same command goes on from there, or begins it again."""
    if not _unfinished:
        return "the same command goes on from here"
    node, partial = _unfinished[-1]
    if _is_empty(partial):
        return f"{node} had not kept anything yet, the same command begins it again"
    return f"what {node} has done is kept, the same command goes on from there"


def _take_part(stage: Stage, config: Any, inputs: Inputs, folder: Path, node: str) -> None:
    """Run a stage whose result another process makes, on that one's checkpoints."""
    with tempfile.TemporaryDirectory(prefix="herd-") as own:
        stage.run(config, inputs, StageRun(Path(own), _seed(config), node, scratch=_partial(folder) / ".scratch"))


def _partial(folder: Path) -> Path:
    return folder.with_name(f".partial-{folder.name}")


def _seed(config: Any) -> int:
    return int(getattr(config, "seed", 0))


def _is_empty(partial: Path) -> bool:
    """Whether an attempt has left nothing but the note of its time."""
    return not any(path.is_file() and path.name != "seconds.json" for path in partial.rglob("*"))


def _folder(stage: Stage, address: str, root: Path) -> Path:
    return root / "store" / f"{stage.name}-{address[:16]}"


def _inside(base: Path, node: str) -> Path:
    path = base / node
    if ".." in Path(node).parts or Path(node).is_absolute():
        raise UserError(f"'{node}' leaves the run folder '{base}': give a plain name.")
    if path.exists() and not path.is_symlink():
        raise UserError(f"'{path}' is a real file or folder, not a link made by herd: move it away or use another run.name.")
    return path


def _link(link: Path, folder: Path) -> None:
    """Point ``link`` at ``folder``, replacing an earlier link in one step; ``_inside`` has refused a real folder in its place."""
    link.parent.mkdir(parents=True, exist_ok=True)
    temporary = link.with_name(f".{link.name}.{secrets.token_hex(8)}.tmp")  # process ids repeat on other nodes
    temporary.symlink_to(os.path.relpath(folder, link.parent), target_is_directory=True)
    os.replace(temporary, link)
