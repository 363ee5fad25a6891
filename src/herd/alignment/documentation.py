"""Chat tasks about documented functions, answerable from the prompt alone.

Every user message holds the function's documentation, so an answer is right or wrong by what the reader can see,
held-out functions are a fair test, and a small model can learn the tasks by copying. Three tasks: what does the
function do (`what`), what is its signature (`signature`), write a call with given values (`call`).
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from herd.config.errors import UserError
from herd.dialog.messages import Message, Role
from herd.dialog.rows import Counted, Prompt

TASKS = ("what", "signature", "call")
COLUMNS = ["id", "split", "name", "signature", "summary"]


@dataclass(frozen=True)
class Entry:
    """One documented function, as a chat about it sees it."""

    id: str
    name: str  # last part of the qualified name
    signature: str  # "(x, ord=None)"
    summary: str  # first sentence of its documentation

    @property
    def documentation(self) -> str:
        return f"{self.name}{self.signature}\n{self.summary}"


@dataclass(frozen=True)
class EntryLimits:
    """Which entries make good short dialogs; lengths in characters."""

    max_signature: int = 60
    min_summary: int = 12
    max_summary: int = 90

    def __post_init__(self) -> None:
        if not 0 < self.min_summary <= self.max_summary or self.max_signature < 2:
            raise UserError("entries: need 0 < min_summary <= max_summary and max_signature >= 2")

    def reason(self, entry: Entry) -> str | None:
        """Why the entry is not used, as a word to count; None when it is."""
        if not entry.name.isidentifier() or entry.name.startswith("__"):
            return "name"
        if len(entry.signature) > self.max_signature:
            return "long_signature"
        if positional_parameters(entry.signature) is None:
            return "signature_does_not_parse"
        if not self.min_summary <= len(entry.summary) <= self.max_summary:
            return "summary_length"
        return None


def read_entries(path: Path, limits: EntryLimits, counted: Counted) -> dict[str, list[Entry]]:
    """Split -> usable entries of `entries.parquet`, in id order; others are counted by reason.

    A short name that both splits have would give the same question twice: it stays with the training split.
    """
    try:
        table = pq.read_table(path, columns=COLUMNS).sort_by("id").to_pylist()
    except (KeyError, ValueError, OSError) as error:
        raise UserError(
            f"{path}: not a table of entries ({str(error).splitlines()[0]:.120}); make it with `herd curate`"
        ) from None
    splits: dict[str, list[Entry]] = {"train": [], "heldout": []}
    for row in table:
        name = row["name"].rsplit(".", 1)[-1]
        signature = " ".join((row["signature"] or "").split())
        signature = signature[signature.index("(") :] if "(" in signature else signature  # some write the name before it
        entry = Entry(row["id"], name, signature, " ".join((row["summary"] or "").split()))
        reason = limits.reason(entry)
        if reason is None and row["split"] not in splits:
            reason = "unknown_split"
        if reason:
            counted.drop(reason)
            continue
        splits[row["split"]].append(entry)
    trained = {entry.documentation for entry in splits["train"]}
    fresh = [entry for entry in splits["heldout"] if entry.documentation not in trained]
    for _ in range(len(splits["heldout"]) - len(fresh)):
        counted.drop("heldout_entry_in_train")
    splits["heldout"] = fresh
    counted.kept += sum(map(len, splits.values()))
    return splits


@dataclass(frozen=True)
class Parameter:
    """A parameter that a call can fill by position."""

    name: str
    required: bool


def positional_parameters(signature: str) -> list[Parameter] | None:
    """Parameters before `*`, without self and cls; None for text that is no signature. Parsed, never executed."""
    try:
        statements = ast.parse(f"def f{signature}:\n pass").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    function = statements[0]
    if len(statements) > 1 or not isinstance(function, ast.FunctionDef):
        return None
    arguments = function.args.posonlyargs + function.args.args
    required = len(arguments) - len(function.args.defaults)
    parameters = [Parameter(a.arg, i < required) for i, a in enumerate(arguments)]
    return [p for p in parameters if p.name not in ("self", "cls")]


def random_value(rng: np.random.Generator) -> str:
    """A short Python literal."""
    kind = rng.integers(5)
    if kind == 0:
        return repr(round(float(rng.uniform(0, 10)), 1))
    if kind == 1:
        return repr(str(rng.choice(["a", "b", "x", "y", "on", "name"])))
    if kind == 2:
        return repr([int(v) for v in rng.integers(0, 10, size=2)])
    if kind == 3:
        return str(rng.choice(["True", "False", "None"]))
    return str(int(rng.integers(0, 100)))


def call_values(entry: Entry, rng: np.random.Generator, most: int = 3) -> list[tuple[str, str]] | None:
    """Values for the required parameters and perhaps some of the optional ones; None when no short call exists."""
    parameters = positional_parameters(entry.signature) or []
    required = sum(p.required for p in parameters)
    if not parameters or required > most:
        return None
    count = int(rng.integers(max(1, required), min(most, len(parameters)) + 1))
    return [(p.name, random_value(rng)) for p in parameters[:count]]


def ask(entry: Entry, task: str, rng: np.random.Generator) -> tuple[str, str] | None:
    """A task's question about the entry and the right answer; None when the entry does not allow the task."""
    if task == "what":
        return f"What does {entry.name} do?", entry.summary
    if task == "signature":
        return f"What is the signature of {entry.name}?", f"{entry.name}{entry.signature}"
    assert task == "call", task
    values = call_values(entry, rng)
    if values is None:
        return None
    given = " and ".join(f"{name} = {value}" for name, value in values)
    return f"Write a call of {entry.name} with {given}.", f"{entry.name}({', '.join(value for _, value in values)})"


def make_prompt(entry: Entry, task: str, rng: np.random.Generator) -> Prompt | None:
    """The prompt of one task with its reference answer; None when the entry does not allow the task."""
    asked = ask(entry, task, rng)
    if asked is None:
        return None
    question, reference = asked
    message = Message(Role.USER, f"{entry.documentation}\n\n{question}")
    return Prompt(f"{task}-{entry.id}", entry.id, task, (message,), reference)


def make_prompts(entries: Iterable[Entry], tasks: list[str], rng: np.random.Generator) -> list[Prompt]:
    """One prompt for each entry, the tasks taking turns; one that does not allow it takes the next."""
    prompts = []
    for turn, entry in enumerate(entries):
        for step in range(len(tasks)):
            prompt = make_prompt(entry, tasks[(turn + step) % len(tasks)], rng)
            if prompt is not None:
                prompts.append(prompt)
                break
    return prompts
