"""`herd reward`: the reward model, from the pre-trained checkpoint, on the preferences of all rounds so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from herd.alignment.fine_tuning import FineTuning, load_tokenizer, require_rows, train
from herd.alignment.heldout_pairs import EVERY_GRADE, HeldoutPairs
from herd.alignment.length_limit import HEADLINE, length_limit, told
from herd.config.errors import UserError, nearest
from herd.dialog.preferences import Grade, PreferenceFilter, read_preferences
from herd.dialog.rows import Counted
from herd.dialog.trained_in import require_dialect, require_tokenizer
from herd.model.heads import RewardModel
from herd.model.io import REWARD, load_model, open_model, save_model
from herd.model.transformer import Transformer
from herd.runs.stage import Artifact, Inputs, Stage, StageRun
from herd.training.reward import ROWS, RewardModule, RewardObjective, RowLayout, comparisons, reward_steps
from herd.training.schedule import step_schedule
from herd.training.trainer_config import EXECUTION, processes_of


@dataclass(frozen=True)
class RewardConfig(FineTuning):
    """Schema of conf/reward.yaml; `batch_size` counts comparisons."""

    row: str  # how responses to a prompt lie in a row: separate | block | causal (the paper's approximation)
    objective: RewardObjective
    filter: PreferenceFilter  # which comparisons are used

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.row not in ROWS:
            raise UserError(f"row: unknown `{self.row}`; use {', '.join(ROWS)}.{nearest(self.row, list(ROWS))}")


def run(config: RewardConfig, inputs: Inputs, stage_run: StageRun) -> dict[str, Any]:
    require_dialect("reward", config.dialect, {"base": inputs["base"]})
    require_tokenizer("reward", inputs["tokens"], {"base": inputs["base"]})
    tokenizer = load_tokenizer(inputs)
    backbone = load_backbone(inputs["base"])
    config.check_window(backbone.config)
    rounds = inputs.group("preferences", least=1)
    layout = RowLayout(config.window, tokenizer.pad_id, config.row)
    data, rows, lengths = [], {}, []
    for label, artifact in rounds.items():
        counted, packed = Counted(), Counted()
        kept = config.filter.select(read_preferences(artifact / "preferences.jsonl"), counted)
        found = comparisons(kept, tokenizer, config.window, packed, config.dialect)
        apart = sum(layout.apart(comparison) for comparison in found)  # fit one by one, not together
        rows[label] = {"kept": packed.kept, "dropped": counted.dropped | packed.dropped}
        rows[label] |= {"apart": apart, "in_part": packed.in_part}
        data += found
        lengths += packed.lengths
    require_rows("reward", rows)
    heldout = {
        label: HeldoutPairs.read(
            read_preferences(artifact / "heldout.jsonl"), EVERY_GRADE, tokenizer, config.window, config.dialect
        )
        for label, artifact in rounds.items()
    }
    measured = [length for pairs in heldout.values() for length in pairs.lengths]
    limits = {"train": length_limit(lengths, config.window), "heldout": length_limit(measured, config.window)}
    too_long = told("reward", limits, stage_run.writes)
    if not any(trained_on(pairs, config.filter) for pairs in heldout.values()):  # said now, not when all is trained
        raise UserError("reward: no held-out pair is left to measure accuracy on; use more held-out prompts")
    source = reward_steps(
        data,
        layout,
        config.batch_size,
        config.trainer.micro_batch_tokens,
        config.epochs,
        config.seed,
        config.objective,
        config.trainer.processes,
    )
    model = RewardModel(backbone, config.seed)
    schedule = step_schedule(config.schedule, config.optimizer.lr, len(source))
    module = RewardModule(model, config.optimizer, schedule)
    module.objective = config.objective
    result = train(module, source, config, backbone.config, stage_run)
    model = module.model
    if stage_run.writes:
        save_model(model, stage_run.folder / "model")
    return {
        **heldout_accuracy(model, heldout, config.filter),
        "train_accuracy": result.last["accuracy"],
        "train_loss": result.last["loss"],
        "triples": sum(len(c.responses) == 3 for c in data),
        "pairs": sum(len(c.responses) == 2 for c in data),
        "steps": result.steps,
        "tokens": result.tokens,
        "seconds": result.seconds,
        "rows": rows,
        **too_long,
    }


def load_backbone(base: Artifact) -> Transformer:
    """The language model that gets a new head; UserError for a reward model, whose trained head would be lost unsaid."""
    folder = base / "model"
    if open_model(folder).kind == REWARD:
        raise UserError(
            f"reward: inputs.base: {folder} is a reward model already: training begins with a new head, its own would be lost. "
            f"Give the pre-trained or SFT model that it came from (herd lineage {base.path}), with all rounds' preferences."
        )
    return load_model(folder)


def trained_on(heldout: HeldoutPairs, chosen_by: PreferenceFilter) -> list[int]:
    """Indices of the pairs that would be trained on, were they not held out."""
    return [i for i, row in enumerate(heldout.rows) if chosen_by.reason(row) is None]


def heldout_accuracy(model: RewardModel, rounds: dict[str, HeldoutPairs], chosen_by: PreferenceFilter) -> dict[str, Any]:
    """Share of held-out pairs whose chosen response has the higher score, beside what length alone reaches.

    Rounds ask the same held-out prompts, so their pairs are no independent sample and are never pooled into an interval:
    `accuracy`, `accuracy_interval`, `heldout_pairs` and the measures of length (see `RankingAccuracy`) are of the newest
    round's own pairs, `by_round` has them of every round, over the grades that are trained on. `accuracy_by_grade` is
    over all pairs of different responses of all rounds.
    """
    by_grade: dict[str, list[bool]] = {}
    by_round: dict[str, dict[str, Any]] = {}
    for label, heldout in rounds.items():
        scores = heldout.scores(model)
        for row, (chosen, rejected) in zip(heldout.rows, scores, strict=True):
            by_grade.setdefault(row.grade.value, []).append(bool(chosen > rejected))
        measured = heldout.accuracy(scores, trained_on(heldout, chosen_by))
        if measured is not None:
            by_round[label] = measured.to_dict()
            by_round[label]["heldout_pairs"] = by_round[label].pop("pairs")
    assert by_round, "no held-out pair, no accuracy"
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
    version=5,
    config=RewardConfig,
    run=run,
    summary="train a reward model on preferences",
    headline=("accuracy", "length_accuracy", "margin", "heldout_pairs", *HEADLINE),
    inputs=("tokens", "base"),
    groups=("preferences",),
    execution=EXECUTION,
    processes=processes_of,
)
