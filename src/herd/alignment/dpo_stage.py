"""`herd dpo`: direct preference optimisation of an SFT model on the newest round's preferences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from herd.alignment.fine_tuning import FineTuning, load_tokenizer, load_writer, require_rows, train
from herd.alignment.length_limit import HEADLINE, length_limit, told
from herd.alignment.reference_cache import cached_reference
from herd.config.errors import UserError, nearest
from herd.dialog.preferences import PreferenceFilter, read_preferences
from herd.dialog.rows import Counted
from herd.dialog.trained_in import require_dialect, require_tokenizer
from herd.model.io import load_model, save_model
from herd.runs.stage import Inputs, Stage, StageRun
from herd.runs.statistics import clustered_wilson
from herd.training.dpo import ROWS, DPOModule, DPOObjective, DPOSteps, fitting_pairs, heldout_terms
from herd.training.schedule import step_schedule
from herd.training.trainer_config import EXECUTION, processes_of


@dataclass(frozen=True)
class DPOConfig(FineTuning):
    """Schema of conf/dpo.yaml; `batch_size` counts pairs."""

    row: str  # block: chosen and rejected behind one prompt; separate: a copy of the prompt for each
    objective: DPOObjective
    filter: PreferenceFilter  # which pairs are used

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.row not in ROWS:
            raise UserError(f"row: {self.row!r} is none of {', '.join(ROWS)}.{nearest(self.row, ROWS)}")


def run(config: DPOConfig, inputs: Inputs, stage_run: StageRun) -> dict[str, Any]:
    require_dialect("dpo", config.dialect, {"model": inputs["model"]})
    require_tokenizer("dpo", inputs["tokens"], {"model": inputs["model"]})
    tokenizer = load_tokenizer(inputs)
    folder = inputs["model"] / "model"
    model = load_writer("dpo", "model", inputs["model"])
    config.check_window(model.config)
    pairs, rows, limits = {}, {}, {}
    prompts: list[object] = []  # of the held-out pairs
    for split, file in (("train", "preferences.jsonl"), ("heldout", "heldout.jsonl")):
        counted, fitted = Counted(), Counted()
        kept = config.filter.select(read_preferences(inputs["preferences"] / file), counted)
        found = fitting_pairs(kept, tokenizer, config.window, config.objective, fitted, config.dialect)
        pairs[split], prompts = [pair for _, pair in found], [row.prompt_key for row, _ in found]
        rows[split] = {"kept": fitted.kept, "dropped": counted.dropped | fitted.dropped}
        limits[split] = length_limit(fitted.lengths, config.window)
    too_long = told("dpo", limits, stage_run.writes)
    require_rows("dpo", {"train": rows["train"]})
    if not pairs["heldout"]:
        raise UserError("dpo: no held-out pair is left to measure on; use more held-out prompts")
    source = DPOSteps(
        pairs["train"],
        config.objective,
        config.batch_size,
        config.trainer.micro_batch_tokens,
        config.epochs,
        config.seed,
        config.row,
        config.trainer.processes,
    )
    source.reference = cached_reference(model, source, config.trainer, stage_run, folder)
    schedule = step_schedule(config.schedule, config.optimizer.lr, len(source))
    module = DPOModule(model, config.optimizer, schedule)
    module.objective = config.objective
    result = train(module, source, config, model.config, stage_run)
    model = module.model
    if stage_run.writes:
        save_model(model, stage_run.folder / "model")
    terms = heldout_terms(model, load_model(folder), pairs["heldout"], config.objective)
    scores = {name: float(values.double().mean()) for name, values in terms.items()}
    return {
        "rewards/accuracies": scores["rewards/accuracies"],
        "rewards/accuracies_interval": clustered_wilson(terms["rewards/accuracies"], prompts).to_list(),
        "rewards/margins": scores["rewards/margins"],
        "heldout_pairs": len(prompts),
        **{f"eval_{name}": value for name, value in scores.items()},
        **{f"train_{name}": result.last[name] for name in ("loss", "rewards/accuracies", "rewards/margins")},
        "steps": result.steps,
        "tokens": result.tokens,
        "seconds": result.seconds,
        "rows": rows,
        **too_long,
    }


STAGE = Stage(
    name="dpo",
    version=3,
    config=DPOConfig,
    run=run,
    summary="direct preference optimisation",
    headline=("rewards/accuracies", "rewards/margins", "eval_nll_loss", "train_loss", "heldout_pairs", *HEADLINE),
    inputs=("tokens", "model", "preferences"),
    # Not the size of a micro-batch: it draws the groups of pairs, whose order is that of training.
    execution=tuple(key for key in EXECUTION if key != "trainer.micro_batch_tokens"),
    processes=processes_of,
)
