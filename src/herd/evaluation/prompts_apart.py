"""Held-out prompts that chose a checkpoint do not score it: whether `herd best` and the task win_rate keep apart.

A model that was chosen among several on some prompts looks better on these prompts than it is, and so does what it made of
itself: the rows that a chosen checkpoint wrote train the models of the next round.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from herd.config.errors import UserError
from herd.runs.lineage import inputs_of
from herd.runs.manifest import MANIFEST, read_manifest
from herd.runs.stage import Artifact

CHOOSES = "best"  # the command that chooses checkpoints on held-out prompts


def overlap(first: int, count: int, other_first: int, other_count: int) -> int:
    """How many indices are in [first, first + count) and in [other_first, other_first + other_count) both."""
    return max(0, min(first + count, other_first + other_count) - max(first, other_first))


def require_apart(
    first: int, count: int, chosen_by: str, other_first: int, other_count: int, scored: str = "evaluate.win_rate"
) -> None:
    """UserError when the prompts that are scored are among those that chose a checkpoint.

    Args:
        first: index of the first held-out prompt that is scored.
        count: prompts that are scored.
        chosen_by: what chose, for the message.
        other_first: index of the first held-out prompt that it chose on.
        other_count: prompts that it chose on.
        scored: what is scored, for the message.
    """
    both = overlap(first, count, other_first, other_count)
    if both:
        raise UserError(
            f"{scored} asks held-out prompts {first} to {first + count - 1}, and {both} of them chose a checkpoint: {chosen_by} "
            f"used {other_first} to {other_first + other_count - 1}. Set win_rate.first_prompt={other_first + other_count}; if "
            "there are too few prompts, make more (herd dialogs heldout_prompts=...) or lower best's `prompts`."
        )


def choices_behind(models: Mapping[str, Artifact], dialogs: Artifact) -> Iterator[tuple[str, dict[str, Any]]]:
    """(label, manifest) of each `herd best` that chose on prompts of ``dialogs`` and is among what made a model.

    A stage whose folder is gone is passed over, and so is what lies behind it.
    """
    seen: set[str] = set()
    for label, model in models.items():
        waiting = [(model.path, model.manifest)]
        while waiting:
            folder, manifest = waiting.pop()
            if manifest["address"] in seen:
                continue
            seen.add(manifest["address"])
            if manifest["stage"] == CHOOSES and manifest["input_addresses"].get("prompts") == dialogs.address:
                yield label, manifest
            made_from = [source for _, source in inputs_of(folder, manifest)]
            waiting += [(source, read_manifest(source)) for source in made_from if (source / MANIFEST).is_file()]
