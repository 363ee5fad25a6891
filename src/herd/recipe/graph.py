"""A recipe: a graph of stages, each named, each taking its inputs from earlier ones."""

import shutil
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from herd.config.errors import UserError, nearest
from herd.config.loader import compose
from herd.evaluation.prompts_apart import CHOOSES, require_apart
from herd.recipe.job import Job, make_job
from herd.recipe.node import Node
from herd.recipe.rounds import RoundsConfig
from herd.runs.stage import Artifact, stored

_FIXED_SPACE = "\u00a0"  # at which no line is broken


@dataclass(frozen=True)
class RecipeConfig:
    """Schema of ``conf/recipe.yaml``."""

    name: str  # the run's name: results are linked below <root>/<name>
    description: str  # one line: what it is and what it costs
    root: str  # folder of all runs
    dry_run: bool  # print the plan and stop
    until: str | None  # last node to run; all of them unless given
    stages: dict[str, Node]  # node -> stage, in the order they run; one of a round's name changes that stage
    rounds: RoundsConfig | None = None  # rounds of post-training, which become stages of their own

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for name, node in self.nodes.items():
            for needed in node.needs():
                if needed not in seen:
                    problem = "comes later" if needed in self.nodes else "does not exist"
                    raise UserError(
                        f"Recipe '{self.name}': stage '{name}' needs '{needed}', which {problem}.{nearest(needed, seen)}"
                    )
            seen.add(name)
        if self.until is not None and self.until not in self.nodes:
            raise UserError(f"Recipe '{self.name}' has no stage '{self.until}'.{nearest(self.until, self.nodes)}")

    @cached_property
    def nodes(self) -> dict[str, Node]:
        """Every stage, those of the rounds in their place, in the order they run; patterns are spelled out."""
        own = {name: node for name, node in self.stages.items() if node.command}
        inside = self.rounds.nodes() if self.rounds else {}
        if self.rounds and self.rounds.after not in own:
            raise UserError(
                f"Recipe '{self.name}': rounds.after='{self.rounds.after}' is no stage.{nearest(self.rounds.after, own)}"
            )
        for name, node in self.stages.items():
            if name in inside and node.command:
                raise UserError(f"Recipe '{self.name}': stage '{name}' is a round's: give its overrides alone, no command.")
            if not node.command and name not in inside:  # a mistyped `stages.curat.extra=[...]` adds a stage of that name
                raise UserError(f"Recipe '{self.name}' has no stage '{name}'.{nearest(name, [*own, *inside])}")
        placed: dict[str, Node] = {}
        for name, node in own.items():
            placed[name] = node.spelled_out(name, placed)
            if self.rounds and name == self.rounds.after:
                placed |= {one: stage.changed_by(self.stages.get(one, Node())) for one, stage in inside.items()}
        return placed

    def selected(self) -> dict[str, Node]:
        """The stages up to and including ``until``."""
        names = list(self.nodes)
        last = names.index(self.until) + 1 if self.until else len(names)
        return {name: self.nodes[name] for name in names[:last]}


def job_of(recipe: RecipeConfig, name: str) -> Job:
    """The checked job of one node; its inputs are links below the run's folder."""
    node = recipe.nodes[name]
    base = Path(recipe.root) / recipe.name
    where = [f"run.root='{recipe.root}'", f"run.name='{recipe.name}'", f"run.node='{name}'"]
    try:
        job = make_job(node.command, compose(node.command, [*node.overrides, *node.extra, *where]))
    except UserError as error:
        raise UserError(f"Stage '{name}' of recipe '{recipe.name}': {error}") from error
    single: dict[str, Any] = {key: str(base / source) for key, source in node.inputs.items()}
    groups = {key: {label: str(base / n) for label, n in group.items()} for key, group in node.groups.items()}
    return Job(job.stage, job.config, single | groups, job.run)


def jobs_of(recipe: RecipeConfig) -> dict[str, Job]:
    """The checked jobs of the selected stages.

    Raises:
        UserError: a configuration is wrong, or an evaluation would score models on prompts that chose a checkpoint.
    """
    jobs = {name: job_of(recipe, name) for name in recipe.selected()}
    for name, job in jobs.items():
        if job.stage.name == "evaluate" and job.config.scores_answers:
            used = job.config.win_rate
            for other, best in jobs.items():
                if best.stage.name == CHOOSES and best.inputs["prompts"] == job.inputs.get("dialogs"):
                    where, by, chose = f"Stage '{name}'", f"stage '{other}'", best.config
                    require_apart(used.first_prompt, used.prompts, by, chose.first_prompt, chose.prompts, where)
    return jobs


def run_recipe(recipe: RecipeConfig) -> Artifact:
    """Run the stages in order; a finished one is skipped, an interrupted one goes on. Returns the last one's result.

    Every stage's configuration is composed and checked before the first one starts.
    """
    jobs = jobs_of(recipe)
    start = time.monotonic()
    artifact: Artifact | None = None
    for number, (name, job) in enumerate(jobs.items(), 1):
        title = f"[{number}/{len(jobs)}] {name}"
        if stored(job.stage, job.config, job.inputs, Path(recipe.root)):
            artifact = job.execute()  # renews the link
            say(f"{title}: finished before, skipped")
            continue
        say(f"{title}: {job.stage.summary}")
        clock = time.monotonic()
        artifact = job.execute()
        say(closing(f"{title}: done in {time.monotonic() - clock:.1f} s", artifact.metrics, job.stage.headline))
    assert artifact is not None, "a recipe has at least one stage"
    say(f"{recipe.name}: {len(jobs)} stages, {time.monotonic() - start:.0f} s")
    publish(artifact, Path(recipe.root) / recipe.name)
    return artifact


def publish(last: Artifact, folder: Path) -> None:
    """Copy the report's summary.json to the top of the run, where people and scripts look for it."""
    summary = last.path / "summary.json"
    if summary.exists():
        shutil.copyfile(summary, folder / "summary.json")
        say(f"Report: {folder / 'report' / 'index.html'}\nSummary: {folder / 'summary.json'}")


def closing(opening: str, metrics: dict[str, Any], headline: Sequence[str] = (), most: int = 4, columns: int = 100) -> str:
    """What is said when a stage has ended: the metrics of its ``headline``, each with its interval where there is one.

    Without a headline, the first few plain numbers. A metric that the stage had nothing to make of is left out, and so is a
    count of what was dropped where nothing was. A sentence that gives the `reason` stands last. What is longer than ``columns``
    goes on in indented lines; a metric and its value stay in one.
    """
    numbers = [key for key, value in metrics.items() if isinstance(value, int | float) and not isinstance(value, bool)]
    told = [key for key in headline if metrics.get(key) is not None and (metrics[key] or not key.startswith("dropped"))]
    chosen = [key for key in told if key != "reason"] or numbers[:most]
    shown = [f"{key} {_plain(metrics[key])}{_bounds(metrics.get(f'{key}_interval'))}" for key in chosen]
    whole = [part.replace(" ", _FIXED_SPACE).replace(f";{_FIXED_SPACE}", "; ") for part in shown]
    text = opening + (f" ({', '.join(whole)})" if whole else "") + (f": {metrics['reason']}" if "reason" in told else "")
    lines = textwrap.wrap(text, columns, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace(_FIXED_SPACE, " ")


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_plain(one)}" for key, one in value.items())
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _bounds(interval: Sequence[float] | None) -> str:
    return f" [{', '.join(f'{bound:,.4g}' for bound in interval)}]" if interval else ""


def plan_lines(recipe: RecipeConfig) -> Iterator[str]:
    """What a recipe would do: every stage with its inputs and overrides, and the details a stage can plan ahead."""
    yield f"{recipe.name}: {recipe.description}"
    for number, (name, job) in enumerate(jobs_of(recipe).items(), 1):
        node = recipe.nodes[name]
        needs = f" <- {', '.join(dict.fromkeys(node.needs()))}" if node.needs() else ""
        yield f"{number:>3}. {name}: herd {node.command} {' '.join([*node.overrides, *node.extra])}".rstrip() + needs
        if node.command == "pretrain":
            yield from (f"       {line}" for line in _pretraining_plan(job.config))


def _pretraining_plan(config: Any) -> Iterator[str]:
    from herd.training.pretrain_stage import plan_lines

    yield from plan_lines(config)


def say(text: str) -> None:
    """One line to the person who waits, on stderr as all progress."""
    print(text, file=sys.stderr, flush=True)
