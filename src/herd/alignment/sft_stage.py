"""`herd sft`: supervised fine-tuning of a pre-trained model on seed and rejection-sampled dialogs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from herd.alignment.fine_tuning import FineTuning, load_tokenizer, load_writer, read_dialogs, require_rows, train, with_reference
from herd.config.errors import UserError, nearest
from herd.dialog.rows import Counted, read_prompts
from herd.dialog.trained_in import require_dialect, require_tokenizer
from herd.model.io import load_model, save_model
from herd.runs.stage import Inputs, Stage, StageRun
from herd.training.schedule import step_schedule
from herd.training.sft import SFTModule, resample, sft_loss, sft_sequences, sft_steps
from herd.training.trainer_config import EXECUTION, processes_of


@dataclass(frozen=True)
class SFTConfig(FineTuning):
    """Schema of conf/sft.yaml; `batch_size` counts packed rows of `window` tokens."""

    weights: dict[str, float]  # label of `dialogs` -> how often each of its dialogs comes in an epoch; 1 for one not named

    def __post_init__(self) -> None:
        super().__post_init__()
        for label, weight in self.weights.items():
            if not 0 <= weight < math.inf:
                raise UserError(f"weights.{label} must be 0 or more, not {weight}")


def run(config: SFTConfig, inputs: Inputs, stage_run: StageRun) -> dict[str, Any]:
    require_dialect("sft", config.dialect, {"base": inputs["base"]})
    require_tokenizer("sft", inputs["tokens"], {"base": inputs["base"]})
    tokenizer = load_tokenizer(inputs)
    model = load_writer("sft", "base", inputs["base"])
    config.check_window(model.config)
    sources = inputs.group("dialogs", least=1)
    for label in config.weights:
        if label not in sources:
            labels = sorted(sources)
            raise UserError(f"weights.{label}: no dialogs of this label, only {', '.join(labels)}.{nearest(label, labels)}")
    sequences, rows = [], {}
    for label, artifact in sources.items():
        counted = Counted()
        kept = sft_sequences(read_dialogs(artifact), tokenizer, config.window, counted, config.dialect)
        drawn = resample(kept, config.weights.get(label, 1.0), config.seed, label)
        sequences += drawn
        rows[label] = counted.to_dict() | {"an_epoch": len(drawn)}
    require_rows("sft", rows)
    micro_batch_rows = max(1, config.trainer.micro_batch_tokens // config.window)
    source = sft_steps(
        sequences,
        config.window,
        tokenizer.pad_id,
        config.batch_size,
        micro_batch_rows,
        config.epochs,
        config.seed,
        config.trainer.processes,
    )
    schedule = step_schedule(config.schedule, config.optimizer.lr, len(source))
    module = SFTModule(model, config.optimizer, schedule)
    result = train(module, source, config, model.config, stage_run)
    model = module.model
    if stage_run.writes:
        save_model(model, stage_run.folder / "model")
    metrics: dict[str, Any] = {"train_loss": result.last["loss"]}
    heldout = inputs.get("heldout")
    if heldout is not None:
        references = with_reference(read_prompts(heldout / "heldout_prompts.jsonl"))
        scored = sft_sequences(references, tokenizer, config.window, Counted(), config.dialect)
        if scored:
            metrics["loss"] = sft_loss(model, scored, config.window, tokenizer.pad_id)
            base = load_model(inputs["base"] / "model")
            metrics["base_loss"] = sft_loss(base, scored, config.window, tokenizer.pad_id)
    return metrics | {"steps": result.steps, "tokens": result.tokens, "seconds": result.seconds, "rows": rows}


STAGE = Stage(
    name="sft",
    version=1,
    config=SFTConfig,
    run=run,
    summary="supervised fine-tuning on dialogs",
    headline=("loss", "base_loss", "train_loss", "steps"),
    inputs=("tokens", "base"),
    optional=("heldout",),
    groups=("dialogs",),
    execution=EXECUTION,
    processes=processes_of,
)
