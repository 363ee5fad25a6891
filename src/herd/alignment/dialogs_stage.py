"""`herd dialogs`: documentation entries -> prompts with references, and seed dialogs for the first SFT."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from herd.alignment.documentation import TASKS, Entry, EntryLimits, ask, make_prompts, read_entries
from herd.alignment.flaws import FLAWS, add_flaws, random_flaws
from herd.config.errors import UserError, nearest
from herd.dialog.messages import Message, Role
from herd.dialog.rows import Counted, write_jsonl
from herd.runs.seeds import stream
from herd.runs.stage import Inputs, Stage, StageRun


@dataclass(frozen=True)
class DialogsConfig:
    """Schema of conf/dialogs.yaml."""

    seed: int
    tasks: list[str]  # what | signature | call, in turn
    seed_dialogs: int  # dialogs for the first SFT, from training entries that no prompt uses
    train_prompts: int  # at most; fewer when the documentation has fewer entries
    heldout_prompts: int  # at most; from held-out entries only
    seed_turns: int  # questions about the function of a seed dialog, at most one of each task
    seed_flaws: float  # share of answers in seed dialogs with a human's flaw: chatter, exclamation marks, an abrupt end
    entries: EntryLimits = field(default_factory=EntryLimits)

    def __post_init__(self) -> None:
        for task in self.tasks:
            if task not in TASKS:
                raise UserError(f"tasks: unknown task `{task}`; use {', '.join(TASKS)}.{nearest(task, TASKS)}")
        if not self.tasks:
            raise UserError(f"tasks: give at least one of {', '.join(TASKS)}")
        if min(self.seed_dialogs, self.seed_turns, self.train_prompts, self.heldout_prompts) < 1:
            raise UserError("seed_dialogs, seed_turns, train_prompts and heldout_prompts must be at least 1")
        if not 0.0 <= self.seed_flaws <= 1.0:
            raise UserError(f"seed_flaws is a share in [0, 1], not {self.seed_flaws}")


# The flaws that a human writer's demonstrations have; wrong facts are not among them.
SEED_FLAWS = ("chatter", "exclamation", "truncated", "missing_parenthesis", "repeated_tail")


def run(config: DialogsConfig, inputs: Inputs, stage_run: StageRun) -> dict[str, Any]:
    counted = Counted()
    splits = read_entries(inputs["documents"] / "entries.parquet", config.entries, counted)
    for split, entries in splits.items():
        if len(entries) < 2:
            raise UserError(
                f"{inputs['documents'].path}: {len(entries)} usable {split} entries, need at least 2 "
                f"(dropped: {counted.dropped}); widen `entries` or curate more documentation"
            )
    shuffled = {}
    for split, entries in splits.items():
        order = stream(config.seed, "dialogs", split).permutation(len(entries))
        shuffled[split] = [entries[i] for i in order]
    # A small corpus is shared in the proportion asked for, so that neither part is left empty.
    wanted, available = config.seed_dialogs + config.train_prompts, len(shuffled["train"])
    seeds = min(config.seed_dialogs, max(1, available * config.seed_dialogs // wanted))
    dialogs = [seed_dialog(config, entry, turn) for turn, entry in enumerate(shuffled["train"][:seeds])]
    rng = stream(config.seed, "prompts")
    train = make_prompts(shuffled["train"][seeds : seeds + config.train_prompts], config.tasks, rng)
    heldout = make_prompts(shuffled["heldout"][: config.heldout_prompts], config.tasks, rng)
    write_jsonl(stage_run.folder / "train_prompts.jsonl", (p.to_dict() for p in train))
    write_jsonl(stage_run.folder / "heldout_prompts.jsonl", (p.to_dict() for p in heldout))
    write_jsonl(stage_run.folder / "seed_dialogs.jsonl", dialogs)
    return {
        "train_prompts": len(train),
        "heldout_prompts": len(heldout),
        "seed_dialogs": len(dialogs),
        "seed_dialogs_flawed": sum(bool(d["flaws"]) for d in dialogs),
        "prompts_by_task": {task: sum(p.task == task for p in train) for task in config.tasks},
        "entries": counted.to_dict(),
    }


def seed_dialog(config: DialogsConfig, entry: Entry, turn: int) -> dict[str, Any]:
    """A dialog of several turns about one function, its answers as a person might have typed them."""
    rng = stream(config.seed, "seed dialog", entry.id)
    tasks = [config.tasks[(turn + i) % len(config.tasks)] for i in range(len(config.tasks))]
    asked = [(task, *pair) for task in tasks if (pair := ask(entry, task, rng)) is not None]
    asked = asked[: config.seed_turns]
    messages: list[Message] = []
    flaws: list[str] = []
    for _, question, reference in asked:
        names = random_flaws(rng, most=1, choices=SEED_FLAWS) if rng.random() < config.seed_flaws else []
        answer = add_flaws(reference, "", names, rng)
        flaws += names if answer != reference else []
        question = question if messages else f"{entry.documentation}\n\n{question}"
        messages += [Message(Role.USER, question), Message(Role.ASSISTANT, answer)]
    tasks = [task for task, _, _ in asked]
    row = {"id": f"seed-{entry.id}", "entry_id": entry.id, "tasks": tasks, "flaws": flaws}
    return row | {"messages": [m.to_dict() for m in messages]}


STAGE = Stage(
    name="dialogs",
    version=1,
    config=DialogsConfig,
    run=run,
    summary="documentation to chat prompts and seed dialogs",
    inputs=("documents",),
)
assert set(SEED_FLAWS) <= set(FLAWS.names())
