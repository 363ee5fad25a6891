"""Gates: what a long-context stage must show before the next begins (Llama 3 paper, section 3.4.2).

A stage ends when the loss on short text has recovered and needles are found up to the stage's length. Until then it is
extended, a stretch at a time. How often is a function of the run alone, and is recorded beside its checkpoints.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from herd.config.errors import UserError
from herd.corpus.shards import TokenSource
from herd.model.transformer import Transformer
from herd.runs.atomic import write_json
from herd.training.needle import needle_accuracy

CHOICES = ("stop", "go_on")


@dataclass(frozen=True)
class GateConfig:
    """What must hold at the end of a stage."""

    # Held-out loss (context eval_seq_len, the run's mix) may exceed that at the end of the curriculum's first stage by this.
    short_loss: float = 0.005  # nats per token
    needle_accuracy: float = 1.0  # share of needles found at the stage's longest row, at a half and at a quarter of it
    needle_trials: int = 64  # at each length
    needle_statements: int = 8  # in a haystack; chance is 1 / statements
    needle_domain: str = "general"  # held-out text of the haystacks
    extend: float = 0.25  # length of one extension, as a share of the stage's
    extensions: int = 4  # at most
    otherwise: str = "go_on"  # go_on | stop: what to do when the last extension has not helped

    def __post_init__(self) -> None:
        if self.otherwise not in CHOICES:
            raise UserError(f"Unknown gate.otherwise '{self.otherwise}'. Choices: {', '.join(CHOICES)}.")
        if not 0 <= self.needle_accuracy <= 1 or self.needle_trials < 1 or self.needle_statements < 2:
            raise UserError("gate: needle_accuracy must lie in [0, 1], needle_trials be 1 and needle_statements 2 or more.")
        if self.extend <= 0 or self.extensions < 0:
            raise UserError("gate: extend must exceed 0 and extensions be 0 or more.")


@dataclass(frozen=True)
class Verdict:
    """What was measured at a gate."""

    passed: bool
    short_loss: float  # nats per token, now
    short_loss_before: float  # at the end of the first stage
    needle_accuracy: dict[str, float]  # length -> share found

    def __str__(self) -> str:
        needles = ", ".join(f"{share:.0%} of needles at {int(length):,}" for length, share in self.needle_accuracy.items())
        return f"loss on short text {self.short_loss:.4f}, before {self.short_loss_before:.4f}; {needles}"


def judge(gate: GateConfig, model: Transformer, source: TokenSource, longest: int, loss: float, before: float) -> Verdict:
    """Measure a model at the end of a stage whose longest row has ``longest`` tokens."""
    lengths = [longest // 4, longest // 2, longest]
    found = {
        str(length): needle_accuracy(model, source, length, gate.needle_trials, gate.needle_statements) for length in lengths
    }
    passed = loss <= before + gate.short_loss and min(found.values()) >= gate.needle_accuracy
    return Verdict(passed, loss, before, found)


class ExtendStage(Exception):
    """A stage has ended, and its gate is not passed."""

    def __init__(self, stage: str) -> None:
        super().__init__(stage)
        self.stage = stage


class Extensions:
    """How often each stage of a run has been extended, in a file beside its checkpoints.

    Args:
        path: the file; read if it is there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.counts: dict[str, int] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def add(self, stage: str, writes: bool) -> None:
        """Count one more."""
        self.counts = self.counts | {stage: self.counts.get(stage, 0) + 1}
        if writes:
            write_json(self.path, self.counts)


Judge = Callable[[str, Transformer, dict[str, Any]], Verdict | None]  # stage, model, its evaluation
