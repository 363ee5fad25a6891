"""Held-out prompts that chose a checkpoint do not score it: whether `herd best` and the task win_rate keep apart.

A model that was chosen among several on some prompts looks better on these prompts than it is, and so does what it made of
itself: the rows that a chosen checkpoint wrote train the models of the next round.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from herd.config.errors import UserError
from herd.runs.lineage import inputs_of
from herd.runs.manifest import MANIFEST, read_manifest
from herd.runs.stage import Artifact

PROMPTS = "heldout_prompts.jsonl"  # of `herd dialogs`
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
        for folder, manifest in made_from(model, seen):
            if manifest["stage"] == CHOOSES and _same_prompts(folder, manifest, dialogs):
                yield label, manifest


def choices_among(models: Mapping[str, Artifact], dialogs: Artifact, store: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(label, manifest) of each `herd best` that compared a model, or an ancestor of one, on prompts of ``dialogs``.

    What a person takes from such a comparison is in no manifest: the one chosen may be scored next, or trained on.

    Args:
        models: label -> model that is to be scored.
        dialogs: whose held-out prompts it is scored on.
        store: folder of finished stages that is searched, beside those in which the models lie.
    """
    family = {manifest["address"]: label for label, model in models.items() for _, manifest in made_from(model, set())}
    for folders in sorted({store.resolve(), *(model.path.parent for model in models.values())}):
        for folder in sorted(path.parent for path in folders.glob(f"{CHOOSES}-*/{MANIFEST}")):
            manifest = read_manifest(folder)
            compared = [
                family[address] for address in manifest["input_addresses"].get("models", {}).values() if address in family
            ]
            if compared and _same_prompts(folder, manifest, dialogs):
                yield compared[0], manifest


def made_from(model: Artifact, seen: set[str]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """(folder, manifest) of a stage and of all that it was made from, but for addresses in ``seen``, which grows."""
    waiting = [(model.path, model.manifest)]
    while waiting:
        folder, manifest = waiting.pop()
        if manifest["address"] in seen:
            continue
        seen.add(manifest["address"])
        yield folder, manifest
        sources = [source for _, source in inputs_of(folder, manifest)]
        waiting += [(source, read_manifest(source)) for source in sources if (source / MANIFEST).is_file()]


def _same_prompts(folder: Path, best: dict[str, Any], dialogs: Artifact) -> bool:
    """Whether `herd best` in ``folder`` read the held-out prompts of ``dialogs``, or a file of the same content."""
    if best["input_addresses"].get("prompts") == dialogs.address:
        return True
    source = dict(inputs_of(folder, best)).get("prompts")
    if source is None or not (source / MANIFEST).is_file():
        return False
    theirs, ours = (manifest["outputs"].get(PROMPTS) for manifest in (read_manifest(source), dialogs.manifest))
    return theirs is not None and theirs == ours
