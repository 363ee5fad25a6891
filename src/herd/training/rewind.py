"""Going back before a spike, and on without the data that led to it (PaLM, arXiv 2204.02311, section 5.1).

Steps whose data are left out are still counted: the learning rate, the mix and the data of every other step stay what they
were, so the run remains a pure function of its configuration and of the record of what was left out.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from herd.runs.atomic import write_json
from herd.training.steps import StepBatch, StepSource

Span = tuple[int, int]  # first step left out, and the first after it that is not


class LeftOut:
    """Spans of steps without data: those configured, and those that rewinds of this run have added.

    Args:
        path: JSON file of the added ones, kept with the run's checkpoints.
        configured: spans from the configuration.
    """

    def __init__(self, path: Path, configured: Sequence[Sequence[int]]) -> None:
        self.path = path
        self.added: list[Span] = [(a, b) for a, b in json.loads(path.read_text())] if path.exists() else []
        self.configured: list[Span] = [(a, b) for a, b in configured]

    @property
    def spans(self) -> list[Span]:
        """All spans, sorted and joined where they touch."""
        joined: list[Span] = []
        for first, end in sorted([*self.configured, *self.added]):
            if joined and first <= joined[-1][1]:
                joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
            else:
                joined.append((first, end))
        return joined

    def add(self, span: Span, writes: bool) -> None:
        """Record a span; one process of a run ``writes``."""
        self.added.append(span)
        if writes:
            write_json(self.path, self.added)

    def __contains__(self, step: int) -> bool:
        return any(first <= step < end for first, end in self.spans)

    def tokens(self, source: StepSource) -> int:
        """Tokens of ``source`` that are left out."""
        last = len(source)
        return sum(source.tokens_at(min(end, last)) - source.tokens_at(min(first, last)) for first, end in self.spans)


class WithoutSpans:
    """A source whose steps in ``left_out`` have no data."""

    def __init__(self, source: StepSource, left_out: LeftOut) -> None:
        self.source, self.left_out = source, left_out

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, step: int) -> StepBatch:
        return StepBatch(step, [], normalizer=1.0, tokens=0) if step in self.left_out else self.source[step]

    def tokens_at(self, step: int) -> int:
        return self.source.tokens_at(step)
