"""`herd prune`: SFT dialogs -> the cleaned, rated, deduplicated ones that are worth training on (section 4.2.3)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from herd.alignment.fine_tuning import dialogs_file
from herd.alignment.quality.cleaning import phrase_statistics
from herd.alignment.quality.config import PruneConfig
from herd.alignment.quality.dialogs import DROPPED, NOTES, Dialog, read_dialogs, trainable
from herd.alignment.quality.report import describe, show_prune, with_known_notes
from herd.alignment.quality.steps import STEPS, Context
from herd.alignment.quality.topics import BY_JUDGE
from herd.config.errors import UserError
from herd.curation.sources import content_hashes
from herd.dialog.rows import write_jsonl
from herd.dialog.trained_in import require_dialect, require_tokenizer
from herd.runs.progress import progress
from herd.runs.stage import Inputs, Stage, StageRun

_JUDGED = {"grade": "quality", "difficulty_grade": "difficulty", "fine_topic": "topic", "tags": "tags"}  # note -> key for a file


def run(config: PruneConfig, inputs: Inputs, stage_run: StageRun) -> dict[str, Any]:
    """Writes `dialogs.jsonl` (for `herd sft`), `dropped.jsonl` (each with its rule), and `judged.jsonl`."""
    read = {name: inputs.get(name) for name in ("reward", "judge")}
    require_dialect("prune", config.dialect, read)
    require_tokenizer("prune", inputs.get("tokens"), read)
    sources = inputs.group("dialogs", least=1)
    before = [d for label, artifact in sources.items() for d in read_dialogs(label, dialogs_file(artifact))]
    context = Context(config, inputs, stage_run)
    dialogs = trainable(before, context.ledger)
    seconds: dict[str, float] = {}
    rows_after: dict[str, int] = {}
    with progress(stage_run.node or "pruning", len(config.steps), "steps") as bar:
        for name in config.steps:
            start = time.monotonic()
            dialogs = STEPS.get(name)(dialogs, context)
            seconds[name], rows_after[name] = time.monotonic() - start, len(dialogs)
            bar.advance(dialogs=len(dialogs))
    removed = context.ledger.removed()
    if not dialogs:
        why = ", ".join(f"{rule} {count}" for rule, count in removed.items()) or "the input is empty"
        raise UserError(f"prune: no dialog is left ({why}); loosen these rules, or leave steps out.")
    write_jsonl(stage_run.folder / "dialogs.jsonl", (d.to_row() for d in dialogs))
    write_jsonl(stage_run.folder / "dropped.jsonl", context.ledger.rows)
    if config.judge.kind != "none":
        write_jsonl(stage_run.folder / "judged.jsonl", _judged(dialogs, context))
    known = with_known_notes(before, dialogs, context.ledger)
    return {
        "rows_in": len(before),
        "rows_out": len(dialogs),
        "removed": removed,
        "modified": dict(context.ledger.modified),
        "rows_after": rows_after,
        "phrases_before": phrase_statistics(before, config.cleaning),
        "phrases_after": phrase_statistics(dialogs, config.cleaning),
        "before": describe(known),
        "after": describe(dialogs),
        "steps": context.report,
        "seconds": seconds,
    }


def _judged(dialogs: Sequence[Dialog], context: Context) -> list[dict[str, Any]]:
    """What is known of each dialog, kept or not, in the form that judge.kind=file reads."""
    rows = sorted([*(d.to_row() for d in dialogs), *context.ledger.rows], key=lambda r: (r[NOTES]["source"], r["id"]))
    found = []
    for row in rows:
        notes = row[NOTES]
        said = {key: notes[note] for note, key in _JUDGED.items() if notes.get(note) is not None}
        if said:
            found.append({"id": row["id"], "source": notes["source"]} | said)
    return found


def fingerprint(config: PruneConfig) -> dict[str, Any]:
    """Content of the user's files: benchmarks, the judge's grades, labels of topics."""
    paths = [b.path for b in config.decontamination.benchmarks] if "decontamination" in config.steps else []
    paths += [config.judge.path] if config.judge.kind == "file" else []
    labels = config.topics.labels
    paths += [labels] if "topics" in config.steps and labels != BY_JUDGE and not labels.startswith("python:") else []
    return {path: content_hashes(Path(path)) for path in paths if path}


STAGE = Stage(
    name="prune",
    version=1,
    config=PruneConfig,
    run=run,
    summary="SFT dialogs to the clean, good and different ones",
    optional=("tokens", "reward", "judge", "prompts", "embedder"),
    groups=("dialogs",),
    fingerprint=fingerprint,
    show=show_prune,
)
assert {DROPPED, NOTES}.isdisjoint(("id", "messages"))
