"""The dialogs that are pruned, with what becomes known of each, and the ledger of those that went."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from herd.config.errors import UserError
from herd.curation.mix import place
from herd.dialog.messages import Message, Role, parse_messages, reject_reason
from herd.dialog.rows import read_jsonl

NOTES, DROPPED = "quality", "dropped"  # keys that a row gets


@dataclass(frozen=True)
class Dialog:
    """One SFT row."""

    source: str  # label of the input that it came from
    id: str  # unique within its source
    messages: tuple[Message, ...]
    row: dict[str, Any]  # as it was read: its keys, lineage among them, are kept
    notes: dict[str, Any] = field(default_factory=dict)  # topic, scores, ...: grows from step to step

    @property
    def answers(self) -> list[str]:
        """Texts of the assistant's messages; calls of tools are no text."""
        return [m.content for m in self.messages if m.role is Role.ASSISTANT]

    @property
    def text(self) -> str:
        """All that was said, calls included, a blank line between messages."""
        return "\n\n".join(map(said, self.messages))

    @property
    def transcript(self) -> str:
        """As `text`, each message under the name of its role: what a judge reads."""
        return "\n\n".join(f"[{m.role.wire}]\n{said(m)}" for m in self.messages)

    @property
    def name(self) -> str:
        """Unique among all sources."""
        return f"{self.source}/{self.id}"

    def place(self, seed: int, purpose: str) -> float:
        """Where it stands in [0, 1): a hash, so that choices by chance do not depend on the order of rows."""
        return place(f"{purpose}\x1f{self.name}", seed)

    def to_row(self) -> dict[str, Any]:
        """The row that `herd sft` reads: what was there, the messages as they are now, and the notes."""
        kept = {key: value for key, value in self.row.items() if key != DROPPED}
        kept |= {"id": self.id, "messages": [m.to_dict() for m in self.messages]}
        return kept | {NOTES: {"source": self.source} | self.notes}


def said(message: Message) -> str:
    """A message's text and, a line each, its calls of tools."""
    calls = [json.dumps(call.to_dict()["function"], sort_keys=True) for call in message.tool_calls or ()]
    return "\n".join(part for part in (message.content, message.call, *calls) if part)


@dataclass
class Ledger:
    """What went, and by which rule; rules are counted in the order in which they first removed something."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    modified: Counter[str] = field(default_factory=Counter)  # rule -> dialogs whose text it changed

    def drop(self, dialog: Dialog, rule: str, why: str, **facts: Any) -> None:
        """Enter a dialog: the rule, a sentence, and the numbers behind it (`value`, `limit`, `duplicate_of`)."""
        self.rows.append(dialog.to_row() | {DROPPED: {"rule": rule, "why": why} | facts})

    def divide(self, dialogs: Iterable[Dialog], gone: Collection[str], rule: str, why: str, **facts: Any) -> list[Dialog]:
        """Enters the dialogs whose names are in `gone`, all for one reason; returns the others."""
        kept = []
        for dialog in dialogs:
            if dialog.name in gone:
                self.drop(dialog, rule, why, **facts)
            else:
                kept.append(dialog)
        return kept

    def removed(self) -> dict[str, int]:
        """Rule -> dialogs that it removed."""
        return dict(Counter(row[DROPPED]["rule"] for row in self.rows))


def read_dialogs(source: str, path: Path) -> list[Dialog]:
    """Dialogs of one file of rows with `messages`; one without an `id` is called by its line.

    Raises:
        UserError: a line that is no dialog, or two rows of one id.
    """
    dialogs: list[Dialog] = []
    seen: dict[str, str] = {}
    for where, row in read_jsonl(path):
        name = row.get("id", where.rpartition(", ")[2])
        if not isinstance(name, str) or not name:
            raise UserError(f"{where}: `id` must be text, not {name!r:.60}")
        if name in seen:
            raise UserError(f"{where}: the id '{name}' was there before ({seen[name]}); give each row one of its own")
        seen[name] = where
        dialogs.append(Dialog(source, name, parse_messages(row.get("messages"), where), row))
    return dialogs


def trainable(dialogs: Iterable[Dialog], ledger: Ledger) -> list[Dialog]:
    """The dialogs that `herd sft` would train on; the others go with its own reason."""
    kept = []
    for dialog in dialogs:
        reason = reject_reason(dialog.messages)
        if reason is None:
            kept.append(dialog)
        else:
            ledger.drop(dialog, "not_trainable", f"nothing to train on: {reason.replace('_', ' ')}")
    return kept
