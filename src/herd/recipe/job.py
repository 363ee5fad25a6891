"""One stage command: composed configuration in, finished artifact out."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from herd.config.errors import UserError
from herd.config.loader import load
from herd.evaluation.prompts_apart import choices_among, require_apart
from herd.recipe.commands import COMMANDS, get_stage
from herd.runs.manifest import MANIFEST, read_manifest
from herd.runs.stage import Artifact, Stage, execute, open_input, open_inputs


@dataclass(frozen=True)
class RunConfig:
    """Where results go."""

    root: str = "runs"  # folder of all runs; results lie in its `store`, addressed by content
    name: str = "default"  # the run that asks: <root>/<name>/<node> links to the result
    node: str | None = None  # the stage's name within the run; its own name unless given

    def __post_init__(self) -> None:
        parts = Path(self.name).parts
        if not parts or ".." in parts or Path(self.name).is_absolute() or parts[0] == "store":
            raise UserError(f"run.name is '{self.name}': give a plain name, a folder below '{self.root}' other than its store.")


@dataclass(frozen=True)
class Job:
    """A stage with everything it needs to run."""

    stage: Stage
    config: Any
    inputs: dict[str, Any]
    run: RunConfig
    out: str | None = None  # folder that gets a copy of the result

    def execute(self) -> Artifact:
        """Run the stage, or return its finished result; copy it where the user wants it."""
        artifact = execute(self.stage, self.config, self.inputs, Path(self.run.root), self.run.name, self.run.node)
        if self.out:
            copy_result(artifact, Path(self.out))
        return artifact


def copy_result(artifact: Artifact, folder: Path) -> None:
    """Copy a result, manifest last, into ``folder``; what an earlier copy left there is replaced, other files stay.

    Raises:
        UserError: the folder is a file, or holds a result of another command.
    """
    manifest = folder / MANIFEST
    if folder.exists() and not folder.is_dir():
        raise UserError(f"out: '{folder}' is a file; give a folder.")
    if manifest.exists():
        before = read_manifest(folder)
        if before["stage"] != artifact.manifest["stage"]:
            raise UserError(f"out: '{folder}' holds a result of `herd {before['stage']}`; give another folder.")
        for name in before["outputs"]:
            (folder / name).unlink(missing_ok=True)
        manifest.unlink()
    for name in [*artifact.manifest["outputs"], MANIFEST]:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(artifact.path / name, target)


def make_job(command: str, composed: DictConfig) -> Job:
    """Check a composed configuration against the command's schema; fill unset inputs from the run's earlier stages."""
    stage = get_stage(command)
    values, run, inputs = _read(command, composed)
    out = values.pop("out", None)  # only commands whose YAML lists it have it
    return Job(stage, load(stage.config, values), inputs, run, out)


def require_inputs(command: str, composed: DictConfig) -> None:
    """UserError for the first input that is no finished stage, before the libraries that the command needs are imported.

    What the table of commands does not know (an unknown name, groups) is left to the stage, which declares its inputs.
    """
    _, _, inputs = _read(command, composed)
    if {*(name for name, value in inputs.items() if not isinstance(value, Mapping))} <= {*COMMANDS[command].inputs}:
        for name, value in inputs.items():
            for label, folder in value.items() if isinstance(value, Mapping) else (("", value),):
                open_input(f"inputs.{name}{label and f'.{label}'}", folder)


def _read(command: str, composed: DictConfig) -> tuple[dict[str, Any], RunConfig, dict[str, Any]]:
    """The command's own values, where its results go, and its inputs."""
    plain = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(plain, dict)
    values: dict[str, Any] = {str(key): value for key, value in plain.items() if key != "hydra"}
    run = load(RunConfig, values.pop("run"))
    inputs, table = _folders(values.pop("inputs") or {}), COMMANDS[command]
    for name, node in ({} if values.get(table.unless) else table.inputs).items():
        earlier = Path(run.root) / run.name / node
        if name not in inputs and (name not in table.optional or earlier.exists()):
            inputs[name] = str(earlier)
    if gathers := table.gathers:
        given = inputs.get(gathers)
        if not isinstance(given, Mapping):
            inputs[gathers] = stages_of(Path(given) if given else Path(run.root) / run.name, command)
        if given and not inputs[gathers]:
            raise UserError(
                f"inputs.{gathers}: '{given}' holds no finished stages: give the folder of a run, as <root>/<name>, or single "
                f"stages as inputs.{gathers}.LABEL=FOLDER."
            )
    return values, run, inputs


def require_unseen(job: Job) -> None:
    """UserError when a command given alone would score models on prompts on which `herd best` has compared them.

    Among the stages of a recipe the graph shows it; here what lies in the store, or beside the models, does.
    """
    if job.stage.name != "evaluate" or not job.config.scores_answers or "dialogs" not in job.inputs:
        return
    inputs = open_inputs(job.stage, job.inputs)
    models, dialogs = inputs.group("models"), inputs["dialogs"]
    used = job.config.win_rate.over(tuple(models))
    asked = {label: models[label] for label in used.asked()}
    for label, best in choices_among(asked, dialogs, Path(job.run.root) / "store"):
        chose = best["config"]
        by = f"`herd best` ({best['node']}, {best['address'][:16]}), which compared {label} or what it comes from,"
        require_apart(used.first_prompt, used.prompts, by, chose["first_prompt"], chose["prompts"])


def _folders(inputs: Any) -> dict[str, Any]:
    """The inputs that are set: name -> folder, or label -> folder; UserError for anything else."""
    if not isinstance(inputs, Mapping):
        raise UserError(f"inputs={inputs}: which one? Give inputs.NAME=FOLDER.")
    for name, value in inputs.items():
        for label, folder in value.items() if isinstance(value, Mapping) else (("", value),):
            if not isinstance(folder, str | None):
                raise UserError(f"inputs.{name}{label and f'.{label}'} must be a folder, not {folder!r:.60}.")
    given = {n: {k: v for k, v in value.items() if v} if isinstance(value, Mapping) else value for n, value in inputs.items()}
    return {str(name): value for name, value in given.items() if value}


def stages_of(run: Path, but: str) -> dict[str, str]:
    """Name -> folder of every finished stage of a run but those of the command ``but``, in the order they were made."""
    links = [path for path in run.rglob("*") if path.is_symlink() and (path / MANIFEST).is_file()]
    made = [(link, read_manifest(link)) for link in links]
    made.sort(key=lambda one: (str(one[1].get("finished")), (one[0] / MANIFEST).stat().st_mtime_ns))  # seconds, then finer
    return {str(link.relative_to(run)): str(link) for link, manifest in made if manifest["stage"] != but}


def input_overrides(inputs: Mapping[str, Any]) -> list[str]:
    """``{"models": {"sft": path}}`` as Hydra overrides."""
    overrides: list[str] = []
    for name, value in inputs.items():
        if isinstance(value, Mapping):
            overrides += [f"++inputs.{name}.{label}='{path}'" for label, path in value.items()]
        else:
            overrides.append(f"++inputs.{name}='{value}'")
    return overrides
