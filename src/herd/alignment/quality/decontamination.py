"""Exact-match decontamination: no prompt of a benchmark, or of our own held-out prompts, is trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from herd.alignment.quality.dialogs import Dialog, Ledger
from herd.config.errors import UserError
from herd.curation.benchmarks import BenchmarkConfig, read_examples
from herd.curation.text import paragraph_key
from herd.dialog.messages import Role


@dataclass(frozen=True)
class DecontaminationConfig:
    """Whose prompts must not be trained on; the held-out prompts of the input `prompts` never are."""

    benchmarks: list[BenchmarkConfig] = field(default_factory=list)  # `fields` name what makes the prompt

    def __post_init__(self) -> None:
        names = [benchmark.name for benchmark in self.benchmarks]
        if len(set(names)) < len(names):
            raise UserError(f"decontamination.benchmarks: a name occurs twice among {', '.join(names)}.")


def benchmark_prompts(config: DecontaminationConfig, heldout: Mapping[str, str]) -> dict[str, str]:
    """Normal form of each prompt -> `benchmark: id`. Case and layout do not matter (:func:`paragraph_key`).

    Args:
        heldout: id -> text of further prompts.
    """
    found = {paragraph_key(text): f"heldout: {name}" for name, text in heldout.items()}
    for benchmark in config.benchmarks:
        for name, text in zip(*read_examples(benchmark), strict=True):
            found[paragraph_key(text)] = f"{benchmark.name}: {name}"
    found.pop("", None)
    return found


def decontaminate(dialogs: Sequence[Dialog], prompts: Mapping[str, str], ledger: Ledger) -> list[Dialog]:
    """The dialogs of which no user's message, nor all of them up to some turn, is one of the prompts."""
    kept = []
    for dialog in dialogs:
        asked = [m.content for m in dialog.messages if m.role is Role.USER]
        keys = [paragraph_key(text) for text in (*asked, *("\n".join(asked[:n]) for n in range(2, len(asked) + 1)))]
        match = next((prompts[key] for key in keys if key in prompts), None)
        if match is None:
            kept.append(dialog)
        else:
            ledger.drop(dialog, "benchmark_prompt", f"a prompt of a benchmark ({match})")
    return kept
