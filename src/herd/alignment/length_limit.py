"""What the length limit of reward and DPO takes away: how many pairs, how long they are, and whether it takes sides.

A pair is dropped whole when one of its responses, with the prompt, is longer than the window: a cut response would be judged in
the middle of a sentence. Two that fit one by one are never dropped: where one row has no room for both, each has its own. People
prefer longer responses more often than not, so a limit may take pairs with a long chosen response before others, and what is
left then teaches a weaker, or another, preference of length than was given. This is measured, not mended: a larger window mends.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from herd.dialog.rows import PairLength
from herd.runs.statistics import clustered_wilson

HEADLINE = ("dropped_too_long", "dropped_too_long_share")  # of a stage's closing line


@dataclass(frozen=True)
class Lengths:
    """Of some pairs: how many, how long in the mean, and in how many of them the chosen response is the longer."""

    pairs: int
    prompt_tokens: float | None  # means; None of no pair
    chosen_tokens: float | None  # of the response alone, the edited one where there is one
    rejected_tokens: float | None
    chosen_longer: float | None  # share of the pairs; equal lengths count half
    chosen_longer_interval: list[float] | None  # 95%, over prompts

    @classmethod
    def of(cls, pairs: Sequence[PairLength]) -> Lengths:
        if not pairs:
            return cls(0, None, None, None, None, None)
        prompt, chosen, rejected = np.array([[p.prompt, p.chosen, p.rejected] for p in pairs], np.float64).T
        longer = (np.sign(chosen - rejected) + 1) / 2
        interval = clustered_wilson(longer, [p.prompt_key for p in pairs]).to_list()
        means = float(prompt.mean()), float(chosen.mean()), float(rejected.mean())
        return cls(len(pairs), *means, float(longer.mean()), interval)


@dataclass(frozen=True)
class LengthLimit:
    """What a window does to pairs."""

    window: int  # tokens
    pairs: int  # held against it
    dropped: int
    share: float  # dropped / pairs; 0 of none
    share_interval: list[float] | None  # 95%, over prompts
    over: dict[str, int]  # dropped pairs by what is too long with its prompt: chosen, rejected, both
    all: Lengths
    gone: Lengths
    left: Lengths
    # Share of pairs with the longer response chosen, among the dropped less among the kept, and its 95% interval (Newcombe 1998,
    # method 10, from both shares' own intervals).
    longer_difference: float | None
    longer_interval: list[float] | None
    status: str  # ok | one_sided
    reason: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def line(self, command: str) -> str:
        """For the person who waits."""
        sides = ", ".join(f"{name} {count:,}" for name, count in self.over.items() if count)
        return (
            f"{command}: {self.dropped:,} of {self.pairs:,} pairs ({self.share:.1%}) are longer than window={self.window} and "
            f"dropped (too long: {sides}): {self.reason}"
        )


def length_limit(pairs: Sequence[PairLength], window: int) -> LengthLimit:
    """Measures what ``window`` tokens did to pairs."""
    gone, left = [p for p in pairs if not p.fits], [p for p in pairs if p.fits]
    share = clustered_wilson([not p.fits for p in pairs], [p.prompt_key for p in pairs]).to_list() if pairs else None
    over = dict.fromkeys(("chosen", "rejected", "both"), 0)
    for p in gone:
        chosen, rejected = p.prompt + p.chosen > window, p.prompt + p.rejected > window
        over["both" if chosen and rejected else "chosen" if chosen else "rejected"] += 1
    taken, kept = Lengths.of(gone), Lengths.of(left)
    difference, interval, status = None, None, "ok"
    reason = "nothing is dropped" if not gone else "nothing is left"
    if taken.chosen_longer is not None and kept.chosen_longer is not None:
        difference = taken.chosen_longer - kept.chosen_longer
        interval = _newcombe(taken, kept)
        among = f"{taken.chosen_longer:.0%} of the dropped and {kept.chosen_longer:.0%} of the kept"
        shares = f"the chosen response is the longer in {among}"
        reason = f"{shares}, no difference shown"
        if interval[0] > 0 or interval[1] < 0:
            status = "one_sided"
            reason = f"{shares}: one-sided, raise window where the model has the positions"
    return LengthLimit(
        window,
        len(pairs),
        len(gone),
        len(gone) / len(pairs) if pairs else 0.0,
        share,
        over,
        Lengths.of(pairs),
        taken,
        kept,
        difference,
        interval,
        status,
        reason,
    )


def _newcombe(first: Lengths, second: Lengths) -> list[float]:
    """95% interval of the difference of two independent shares."""
    assert first.chosen_longer is not None and second.chosen_longer is not None
    assert first.chosen_longer_interval is not None and second.chosen_longer_interval is not None
    (p, (low, high)), (q, (least, most)) = (
        (first.chosen_longer, first.chosen_longer_interval),
        (second.chosen_longer, second.chosen_longer_interval),
    )
    return [p - q - float(np.hypot(p - low, most - q)), p - q + float(np.hypot(high - p, q - least))]


def told(command: str, splits: dict[str, LengthLimit], aloud: bool) -> dict[str, Any]:
    """Metrics of a stage, and a line on stderr for the training pairs where the limit dropped any; one process says it."""
    train = splits["train"]
    if train.dropped and aloud:
        print(train.line(command), file=sys.stderr, flush=True)
    found: dict[str, Any] = {"dropped_too_long": train.dropped, "dropped_too_long_share": train.share}
    found |= {"dropped_too_long_share_interval": train.share_interval}
    return found | {"length_limit": {split: limit.to_dict() for split, limit in splits.items()}}
