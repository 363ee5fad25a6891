"""`herd dialogs`: documentation entries -> prompts with references, and seed dialogs for the first SFT."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from herd.alignment.documentation import TASKS, EntryLimits, make_prompts, read_entries
from herd.alignment.flaws import FLAWS, add_flaws, random_flaws
from herd.config.errors import UserError, nearest
from herd.dialog.messages import Message, Role
from herd.dialog.rows import Counted, Prompt, write_jsonl
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
    seed_flaws: float  # share of seed dialogs with a human's flaw: an opening phrase, exclamation marks, an abrupt end
    entries: EntryLimits = field(default_factory=EntryLimits)

    def __post_init__(self) -> None:
        for task in self.tasks:
            if task not in TASKS:
                raise UserError(f"tasks: unknown task `{task}`; use {', '.join(TASKS)}.{nearest(task, TASKS)}")
        if not self.tasks:
            raise UserError(f"tasks: give at least one of {', '.join(TASKS)}")
        if min(self.seed_dialogs, self.train_prompts, self.heldout_prompts) < 1:
            raise UserError("seed_dialogs, train_prompts and heldout_prompts must be at least 1")
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
    prompts = {}
    for split, entries in splits.items():
        rng = stream(config.seed, "dialogs", split)
        prompts[split] = make_prompts([entries[i] for i in rng.permutation(len(entries))], config.tasks, rng)
    # A small corpus is shared in the proportion asked for, so that neither part is left empty.
    wanted, available = config.seed_dialogs + config.train_prompts, len(prompts["train"])
    seeds = min(config.seed_dialogs, max(1, available * config.seed_dialogs // wanted))
    train = prompts["train"][seeds : seeds + config.train_prompts]
    heldout = prompts["heldout"][: config.heldout_prompts]
    dialogs = [seed_dialog(config, prompts["train"], i) for i in range(seeds)]
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


def seed_dialog(config: DialogsConfig, prompts: list[Prompt], index: int) -> dict[str, Any]:
    """The prompt's reference as a person might have typed it."""
    prompt = prompts[index]
    rng = stream(config.seed, "seed dialog", prompt.id)
    names = random_flaws(rng, most=1, choices=SEED_FLAWS) if rng.random() < config.seed_flaws else []
    answer = add_flaws(prompt.reference, "", names, rng)
    names = names if answer != prompt.reference else []
    messages = (*prompt.messages, Message(Role.ASSISTANT, answer))
    row = {"id": f"seed-{prompt.id}", "entry_id": prompt.entry_id, "task": prompt.task, "flaws": names}
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
