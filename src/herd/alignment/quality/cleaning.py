"""Cleaning rules (paper, section 4.2.3): emoji, exclamation marks, over-used phrases; taken out, dropped, or balanced.

Rules that change text act first, in the alphabetic order of their names, then those that drop, then those that balance. The
share that a balanced rule asks for holds at the end of the step, for all such rules together.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from herd.alignment.quality.dialogs import Dialog, Ledger, said
from herd.alignment.quality.patterns import PATTERNS, replaced, spans
from herd.config.errors import UserError, nearest
from herd.curation.text import words
from herd.dialog.messages import Message, Role

ACTIONS = ("balance", "drop", "modify", "report")


@dataclass(frozen=True)
class CleaningRule:
    """One rule. It hits an answer (an assistant's message) in which it finds more than `allowed` places."""

    kind: str  # emoji, exclamation, opening, phrase or regex
    action: str  # modify (take out), drop (the dialog), balance (dialogs down to a share) or report (only count)
    phrases: list[str] = field(default_factory=list)  # opening, phrase: what is looked for, whatever its case
    pattern: str = ""  # regex: Python's syntax
    allowed: int = 0  # places in an answer that are no fault
    replacement: str = ""  # modify: what is put in the place
    share: float = 0.0  # balance: largest share of dialogs with a hit, in [0, 1)

    def __post_init__(self) -> None:
        PATTERNS.get(self.kind)
        if self.action not in ACTIONS:
            raise UserError(f"cleaning: no action '{self.action}'.{nearest(self.action, ACTIONS)} Choices: {', '.join(ACTIONS)}.")
        if self.kind in ("opening", "phrase") and not (self.phrases and all(text.strip() for text in self.phrases)):
            raise UserError(f"cleaning: a rule of kind {self.kind} needs phrases.")
        if self.kind == "regex" and not self.pattern:
            raise UserError("cleaning: a rule of kind regex needs a pattern.")
        if self.allowed < 0 or not 0 <= self.share < 1:
            raise UserError("cleaning: allowed >= 0 and share in [0, 1) are needed.")
        self.compiled  # noqa: B018  (a bad pattern is refused now)

    @functools.cached_property
    def compiled(self) -> re.Pattern[str]:
        """What is looked for."""
        return PATTERNS.get(self.kind)(self.phrases, self.pattern)

    def hits(self, answer: str) -> list[tuple[int, int]]:
        """Places of an answer that the rule hits, else none."""
        found = spans(self.compiled, answer)
        return found if len(found) > self.allowed else []

    def hits_dialog(self, dialog: Dialog) -> bool:
        return any(self.hits(answer) for answer in dialog.answers)

    def cleaned(self, message: Message) -> Message:
        """The message with what was hit replaced; messages of others than the assistant stay as they are."""
        places = self.hits(message.content) if message.role is Role.ASSISTANT else []
        return replace(message, content=replaced(message.content, places, self.replacement)) if places else message


@dataclass(frozen=True)
class CleaningConfig:
    """Rules, and the statistics of openings by which people find more of them."""

    rules: dict[str, CleaningRule]
    opening_words: int = 2  # words that make an opening in the report
    openings_listed: int = 10  # of the most frequent ones

    def __post_init__(self) -> None:
        if min(self.opening_words, self.openings_listed) < 1:
            raise UserError("cleaning: opening_words and openings_listed must be at least 1.")


def clean(dialogs: Sequence[Dialog], config: CleaningConfig, seed: int, ledger: Ledger) -> list[Dialog]:
    """Applies the rules; what changed or went is entered in the ledger under the rule's name."""
    rules = dict(sorted(config.rules.items()))
    kept = list(dialogs)
    for name, rule in rules.items():
        if rule.action == "modify":
            kept = [_modified(dialog, name, rule, ledger) for dialog in kept]
    emptied = {d.name for d in kept if _is_emptied(d)}
    kept = ledger.divide(kept, emptied, "emptied_by_cleaning", "an answer was nothing but what the rules take out")
    for name, rule in rules.items():
        if rule.action == "drop":
            why = f"an answer has more than {rule.allowed} of {_what(rule)}"
            kept = ledger.divide(kept, {d.name for d in kept if rule.hits_dialog(d)}, name, why, limit=rule.allowed)
    return _balanced(kept, {n: r for n, r in rules.items() if r.action == "balance"}, seed, ledger)


def _modified(dialog: Dialog, name: str, rule: CleaningRule, ledger: Ledger) -> Dialog:
    messages = tuple(map(rule.cleaned, dialog.messages))
    if messages == dialog.messages:
        return dialog
    ledger.modified[name] += 1
    return replace(dialog, messages=messages, notes=dialog.notes | {"modified": [*dialog.notes.get("modified", []), name]})


def _is_emptied(dialog: Dialog) -> bool:
    answers = (m for m in dialog.messages if m.role is Role.ASSISTANT)
    return any(not said(m).strip() for m in answers) and "modified" in dialog.notes


def _balanced(dialogs: list[Dialog], rules: Mapping[str, CleaningRule], seed: int, ledger: Ledger) -> list[Dialog]:
    """Down-samples the dialogs that each rule hits until all shares hold; who stays is a seeded hash of the id."""
    hit = {name: {d.name for d in dialogs if rule.hits_dialog(d)} for name, rule in rules.items()}
    count = -1
    while count != len(dialogs):  # what one rule removes may raise the share of another
        count = len(dialogs)
        for name, rule in rules.items():
            found = sorted((d for d in dialogs if d.name in hit[name]), key=lambda d: (d.place(seed, name), d.name))
            gone = {d.name for d in found[most_kept(len(dialogs) - len(found), rule.share) :]}
            why = f"{len(found)} of {len(dialogs)} dialogs have {_what(rule)}, more than a share of {rule.share:g}"
            dialogs = ledger.divide(dialogs, gone, name, why, value=len(found) / max(len(dialogs), 1), limit=rule.share)
    return dialogs


def most_kept(others: int, share: float) -> int:
    """The largest k with k / (others + k) <= share: how many dialogs with a phrase may stand beside `others` without it."""
    k = math.floor(others * share / (1 - share)) + 1  # one more than exact arithmetic allows, then down: rounding
    while k > 0 and k > share * (others + k):
        k -= 1
    return k


def _what(rule: CleaningRule) -> str:
    if rule.phrases:
        return " / ".join(f"'{text}'" for text in rule.phrases[:3]) + (" / ..." if len(rule.phrases) > 3 else "")
    return f"/{rule.pattern}/" if rule.pattern else {"exclamation": "exclamation marks"}.get(rule.kind, rule.kind)


def phrase_statistics(dialogs: Sequence[Dialog], config: CleaningConfig) -> dict[str, Any]:
    """Per rule the dialogs and the answers that it hits; the most frequent openings of answers with their shares."""
    answers = [answer for dialog in dialogs for answer in dialog.answers]
    openings = Counter(" ".join(words(answer)[: config.opening_words]) for answer in answers)
    openings.pop("", None)
    most = sorted(openings.items(), key=lambda item: (-item[1], item[0]))[: config.openings_listed]
    return {
        "dialogs": len(dialogs),
        "answers": len(answers),
        "rules": {
            name: {"dialogs": sum(map(rule.hits_dialog, dialogs)), "answers": sum(bool(rule.hits(a)) for a in answers)}
            for name, rule in sorted(config.rules.items())
        },
        "openings": [{"opening": text, "answers": n, "share": n / len(answers)} for text, n in most],
    }
