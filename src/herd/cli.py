"""``herd <command> [overrides]``: the only entrance.

Heavy libraries are imported by the command that needs them, so that ``herd --help`` answers at once.
"""

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from herd import __version__
from herd.config.errors import UserError, nearest

USAGE = """herd {version}: the Llama 3 recipe, from raw pages to an aligned, measured model and its forecast.

  herd <command> [key=value ...]      run a command; Hydra overrides, e.g. herd pretrain model=tiny seed=1
  herd <command> --help               its inputs, groups and keys
  herd <command> --cfg job            show the composed configuration
  herd <command> -m key=a,b           run a sweep; e.g. herd pretrain -m +sweeps=isoflop_laptop

Commands
  recipe             the whole graph of stages: herd recipe recipe=laptop (or ci, llama3_405b)
{stages}
{tools}
  lineage PATH       what made a file: stages, configurations, commits, digests; PATH#ID: what made a row of post-training data
  why ID [FOLDER]    what happened to a document (id, its beginning, or URL) in a `herd curate`, to a dialog in a `herd prune`
  curriculum [KEYS]  draw a pre-training curriculum (keys of pretrain; out=curriculum.png) and list its phases
  batch [FOLDER] step=N   which documents were in a step of a `herd pretrain`
  doctor             what this machine has, and what is missing
"""

# Faults of disks, permissions and paths: no fault of the program, so no traceback.
_OF_THE_MACHINE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; exits with 0, 1 (a stage failed) or 2 (the user can mend it)."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _saying_what_is_kept():
            _dispatch(argv)
        sys.stdout.flush()
    except UserError as error:
        from herd.runs.ranks import speaks

        if speaks(error):
            print(f"herd: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:  # the reader of a pipe has seen enough (`herd ... | head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except OSError as error:
        if error.errno not in _OF_THE_MACHINE:
            raise
        print(
            f"herd: {error.filename or 'writing'}: {error.strerror}; the same command goes on when that is mended",
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(f"herd: interrupted; {_what_is_kept()}", file=sys.stderr)
        raise SystemExit(130) from None


@contextlib.contextmanager
def _saying_what_is_kept() -> Iterator[None]:
    """A SIGTERM that no training catches ends the process as ever, at once, after one line; its forked workers say nothing."""
    owner, tells = os.getpid(), threading.current_thread() is threading.main_thread()
    tells = tells and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:
            os.write(2, f"herd: stopped by SIGTERM; {_what_is_kept()}\n".encode())
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    if tells:
        signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        if tells:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _what_is_kept() -> str:
    stages = sys.modules.get("herd.runs.stage")  # not imported: no stage has begun
    return stages.what_is_kept() if stages else "nothing had begun"


def _dispatch(argv: list[str]) -> None:
    from herd.recipe.commands import COMMANDS, TOOLS

    others: dict[str, Callable[[list[str]], None]] = {
        "recipe": _recipe,
        "lineage": _lineage,
        "why": _why,
        "curriculum": _curriculum,
        "batch": _batch,
        "doctor": _doctor,
    }
    if not argv or argv[0] in ("-h", "--help", "help"):
        stages = "\n".join(f"  {name:<18} {command.summary}" for name, command in COMMANDS.items())
        tools = "\n".join(f"  {name:<18} {summary}" for name, (_, summary) in TOOLS.items())
        print(USAGE.format(version=__version__, stages=stages, tools=tools))
        return
    if argv[0] in ("-V", "--version"):
        print(f"herd {__version__}")
        return
    command, rest = argv[0], argv[1:]
    if any(argument in ("-h", "--help") for argument in rest) and command in (*others, *COMMANDS, *TOOLS):
        _help(command)
    elif command in others:
        others[command](rest)
    elif command in COMMANDS:
        _stage(command, rest)
    elif command in TOOLS:
        _tool(command, rest)
    else:
        raise UserError(f"No command '{command}'.{nearest(command, [*COMMANDS, *TOOLS, *others])} `herd --help` lists them.")


def _stage(command: str, argv: list[str]) -> None:
    from herd.recipe.commands import COMMANDS, get_stage

    texts, argv = _verbatim(argv, COMMANDS[command].verbatim)
    overrides = [_open(argument) for argument in argv]
    if any(argument.startswith("-") for argument in argv):
        _hydra(command, overrides)
        return
    from herd.config.loader import compose
    from herd.recipe.graph import closing, say
    from herd.runs.stage import Artifact

    composed = compose(command, overrides)
    for key, given in texts.items():
        composed[key] = given[-1].replace("${", r"\${")
    result = run_command(command, composed)
    folder = result.pop("artifact")
    stage = get_stage(command)
    if stage.show is not None:
        stage.show(Artifact.open(folder))
    else:
        say(closing(f"{command}: done", result, stage.headline))
    print(folder)


def _open(argument: str) -> str:
    """Hydra adds ``inputs.x=path`` and ``stages.x.extra=[...]`` though no YAML lists these keys: stages declare their inputs.

    A stage's name may hold a slash, which Hydra's keys cannot: ``stages.round-1/sft.extra=[...]`` is handed over as a mapping.
    ``run=laptop`` is short for ``run.name=laptop``.
    """
    if argument.startswith("run=") and not argument.startswith("run={"):
        return argument.replace("run=", "run.name=", 1)
    if not argument.startswith(("inputs.", "stages.")):
        return argument
    key, equals, value = argument.partition("=")
    if "/" not in key or not equals:
        return f"++{argument}"
    first, *rest = key.split(".")
    for part in reversed(rest):
        value = f"{{{part}: {value}}}"
    return f"++{first}={value}"


def run_command(command: str, composed: Any) -> dict[str, Any]:
    """Check and run one stage command; what a multirun's sweeper receives as the job's return value."""
    from herd.recipe.job import make_job, require_inputs, require_unseen

    require_inputs(command, composed)
    job = make_job(command, composed)
    require_unseen(job)
    artifact = job.execute()
    return {**artifact.metrics, "artifact": str(artifact.path)}


def _tool(command: str, argv: list[str]) -> None:
    from herd.config.loader import compose
    from herd.recipe.commands import get_tool

    texts, overrides = _verbatim(argv, get_tool(command).verbatim)
    if any(argument.startswith("-") for argument in overrides):
        _hydra(command, overrides)
    else:
        _run_tool(command, compose(command, overrides), texts)


def _verbatim(argv: list[str], keys: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Values of ``keys``, in the order given, and the other arguments.

    Text and paths go past Hydra, whose grammar gives meaning to quotes, commas and dollars, and for which `model` and
    `source` are groups in every command.
    """
    texts: dict[str, list[str]] = {}
    others = []
    for argument in argv:
        key, equals, text = argument.partition("=")
        if equals and key in keys:
            texts.setdefault(key, []).append(text)
        else:
            others.append(argument)
    return texts, others


def _run_tool(command: str, composed: Any, texts: dict[str, list[str]]) -> None:
    from omegaconf import OmegaConf

    from herd.config.loader import load
    from herd.recipe.commands import get_tool

    tool = get_tool(command)
    values: Any = OmegaConf.to_container(composed, resolve=True)
    values.pop("hydra", None)
    for key, given in texts.items():
        values[key] = given if isinstance(values[key], list) else given[-1]
    tool.run(load(tool.config, values))


def _hydra(command: str, argv: list[str]) -> None:
    """Flags (-m, --cfg, --info, ...) are Hydra's own: hand the command line over."""
    import hydra

    from herd.config.loader import conf_root, explain, spell_out
    from herd.recipe.commands import TOOLS

    def job(composed: Any) -> Any:
        return _run_tool(command, composed, {}) if command in TOOLS else run_command(command, composed)

    # Errors come back to us instead of being printed as tracebacks.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = [f"herd {command}", *(spell_out(argument) for argument in argv)]
    try:
        hydra.main(version_base="1.3", config_path=str(conf_root()), config_name=command)(job)()
    except Exception as error:
        raise explain(error, command, argv) from error


def _recipe(argv: list[str]) -> None:
    from herd.config.loader import compose, load
    from herd.recipe.graph import RecipeConfig, plan_lines, run_recipe

    overrides = [_open(argument) for argument in argv]
    if any(argument.startswith("-") for argument in argv):
        _hydra("recipe", overrides)
        return
    recipe = load(RecipeConfig, compose("recipe", overrides))
    if recipe.dry_run:
        print("\n".join(plan_lines(recipe)))
    else:
        run_recipe(recipe)


def _help(command: str) -> None:
    """What to give a command; Hydra's own page (--hydra-help) tells of its flags."""
    if command in ("lineage", "why", "curriculum", "batch", "doctor"):
        print(next(line.strip() for line in USAGE.splitlines() if line.startswith(f"  {command}")))
        return
    from herd.recipe.usage import usage_lines

    print("\n".join(usage_lines(command)))


def _lineage(argv: list[str]) -> None:
    from herd.runs.lineage import lineage

    if len(argv) != 1:
        raise UserError("`herd lineage` takes one path, e.g. herd lineage runs/laptop/pretrain/model.")
    path, mark, row = argv[0].partition("#")
    if mark and not Path(argv[0]).exists():
        from herd.alignment.lineage import row_lineage

        lines = row_lineage(Path(path), row)
    else:
        lines = lineage(Path(argv[0]))
    for line in lines:
        print(line)


def _why(argv: list[str]) -> None:
    from herd.runs.stage import Artifact

    if not 1 <= len(argv) <= 2:
        raise UserError("`herd why` takes an id or a URL, and a folder: herd why 3fa94c runs/laptop/curate.")
    folder = Path(argv[1]) if len(argv) == 2 else _only("curate", f"herd why {argv[0]} runs/laptop/curate")
    if Artifact.open(folder).manifest["stage"] == "prune":
        from herd.alignment.quality.why import explain
    else:
        from herd.curation.why import explain
    for line in explain(argv[0], folder):
        print(line)


def _only(stage: str, example: str) -> Path:
    """The folder of the only finished ``stage`` under runs/; UserError unless there is exactly one."""
    found = sorted({path.resolve() for path in Path("runs").glob(f"*/{stage}")})
    if len(found) != 1:
        reason = "there is none under runs/" if not found else f"there are {len(found)} under runs/"
        raise UserError(f"Which `herd {stage}`? Its folder is needed ({reason}): {example}.")
    return found[0]


def _batch(argv: list[str]) -> None:
    from herd.training.step_documents import batch_lines

    steps = [argument.removeprefix("step=") for argument in argv if argument.startswith("step=")]
    folders = [argument for argument in argv if not argument.startswith("step=")]
    if len(steps) != 1 or not steps[0].isdigit() or len(folders) > 1:
        raise UserError("`herd batch` takes a folder and a step, counted from 0: herd batch runs/laptop/pretrain step=120.")
    folder = Path(folders[0]) if folders else _only("pretrain", f"herd batch runs/laptop/pretrain step={steps[0]}")
    for line in batch_lines(folder, int(steps[0])):
        print(line)


def _curriculum(argv: list[str]) -> None:
    from herd.config.loader import compose
    from herd.recipe.job import make_job
    from herd.report.figures_curriculum import curriculum_figure
    from herd.report.style import png
    from herd.runs.atomic import write_bytes
    from herd.training.curriculum import Curriculum
    from herd.training.pretrain_stage import plan_lines

    out = next((argument.removeprefix("out=") for argument in argv if argument.startswith("out=")), "curriculum.png")
    if Path(out).suffix != ".png":
        raise UserError(f"out: the picture is a PNG, and '{out}' does not end in .png: give out=NAME.png.")
    config = make_job("pretrain", compose("pretrain", [a for a in argv if not a.startswith("out=")])).config
    curriculum = Curriculum(config.curriculum, config.mix.weights, config.optimizer.lr)
    for line in plan_lines(config):
        print(line)
    write_bytes(Path(out), png(curriculum_figure(curriculum)))
    print(out)


def _doctor(argv: list[str]) -> None:
    from herd.recipe.doctor import findings

    if argv:
        raise UserError(f"`herd doctor` takes no arguments, not '{argv[0]}'.")
    for line in findings():
        print(line)


if __name__ == "__main__":
    main()
