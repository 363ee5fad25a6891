"""`herd reward`: the reward model, from the pre-trained checkpoint, on the preferences of all rounds so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from herd.alignment.fine_tuning import FineTuning, load_tokenizer, require_rows, train, wilson_interval
from herd.config.errors import UserError
from herd.corpus.tokenizer import Tokenizer
from herd.dialog.preferences import Grade, Preference, PreferenceFilter, read_preferences
from herd.dialog.rows import Counted
from herd.model.heads import RewardModel
from herd.model.io import load_model, save_model
from herd.runs.stage import Inputs, Stage, StageRun
from herd.training.reward import RewardModule, comparisons, reward_steps, score_sequences
from herd.training.schedule import step_schedule


@dataclass(frozen=True)
class RewardConfig(FineTuning):
    """Schema of conf/reward.yaml; `batch_size` counts comparisons."""

    filter: PreferenceFilter  # which comparisons are used


def run(config: RewardConfig, inputs: Inputs, stage_run: StageRun) -> dict[str, Any]:
    tokenizer = load_tokenizer(inputs)
    backbone = load_model(inputs["base"] / "model")
    config.check_window(backbone.config)
    rounds = inputs.group("preferences", least=1)
    data, rows = [], {}
    for label, artifact in rounds.items():
        counted, packed = Counted(), Counted()
        kept = config.filter.select(read_preferences(artifact / "preferences.jsonl"), counted)
        data += comparisons(kept, tokenizer, config.window, packed, config.dialect)
        rows[label] = {"kept": packed.kept, "dropped": counted.dropped | packed.dropped}
    require_rows("reward", rows)
    source = reward_steps(
        data,
        config.window,
        tokenizer.pad_id,
        config.batch_size,
        config.trainer.micro_batch_tokens,
        config.epochs,
        config.seed,
    )
    model = RewardModel(backbone, config.seed)
    schedule = step_schedule(config.schedule, config.optimizer.lr, len(source))
    result = train(RewardModule(model, config.optimizer, schedule), source, config, backbone.config, stage_run)
    save_model(model, stage_run.folder / "model")
    heldout = {label: read_preferences(artifact / "heldout.jsonl") for label, artifact in rounds.items()}
    return {
        **heldout_accuracy(model, tokenizer, heldout, config),
        "train_accuracy": result.last["accuracy"],
        "train_loss": result.last["loss"],
        "triples": sum(len(c) == 3 for c in data),
        "pairs": sum(len(c) == 2 for c in data),
        "steps": result.steps,
        "tokens": result.tokens,
        "seconds": result.seconds,
        "rows": rows,
    }


def heldout_accuracy(
    model: RewardModel, tokenizer: Tokenizer, rounds: dict[str, list[Preference]], config: RewardConfig
) -> dict[str, Any]:
    """Share of held-out pairs whose chosen response has the higher score, with Wilson's 95% interval, round by round.

    Rounds ask the same held-out prompts, so their pairs are no independent sample and are never pooled into an interval:
    `accuracy`, `accuracy_interval`, `heldout_pairs` and `length_accuracy` are of the newest round's own pairs, `by_round`
    has them of every round, over the grades that are trained on. `accuracy_by_grade` is over all pairs of different
    responses of all rounds. `length_accuracy` is what choosing the shorter (or, if better, the longer) response reaches,
    a tie counting half.
    """
    every_grade = PreferenceFilter(grades=[grade.value for grade in Grade], max_similarity=1.0)
    by_grade: dict[str, list[bool]] = {}
    by_round: dict[str, dict[str, Any]] = {}
    for label, rows in rounds.items():
        hits: list[bool] = []
        shorter: list[float] = []
        for row in every_grade.select(rows, Counted()):
            pair = Preference(row.id, row.prompt_id, row.prompt, row.chosen, row.rejected, row.grade)
            sequences = comparisons([pair], tokenizer, config.window, Counted(), config.dialect)
            if not sequences:
                continue
            chosen, rejected = score_sequences(model, sequences[0], tokenizer.pad_id, batch_size=2)
            by_grade.setdefault(row.grade.value, []).append(chosen > rejected)
            if config.filter.reason(row) is None:
                hits.append(chosen > rejected)
                lengths = len(sequences[0][0]), len(sequences[0][1])
                shorter.append(0.5 if lengths[0] == lengths[1] else float(lengths[0] < lengths[1]))
        if hits:
            share = sum(shorter) / len(shorter)
            by_round[label] = {
                "accuracy": sum(hits) / len(hits),
                "accuracy_interval": wilson_interval(sum(hits), len(hits)),
                "heldout_pairs": len(hits),
                "length_accuracy": max(share, 1 - share),
            }
    if not by_round:
        raise UserError("reward: no held-out pair is left to measure accuracy on; use more held-out prompts")
    newest = list(by_round)[-1]
    return {
        **by_round[newest],
        "newest_round": newest,
        "by_round": by_round,
        "accuracy_by_round": {label: measured["accuracy"] for label, measured in by_round.items()},
        "accuracy_by_grade": {grade.value: sum(v) / len(v) for grade in Grade if (v := by_grade.get(grade.value))},
    }


STAGE = Stage(
    name="reward",
    version=2,
    config=RewardConfig,
    run=run,
    summary="train a reward model on preferences",
    inputs=("tokens", "base"),
    groups=("preferences",),
)
