"""`herd sft`: supervised fine-tuning of a pre-trained model on seed and rejection-sampled dialogs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from herd.alignment.fine_tuning import FineTuning, load_tokenizer, read_dialogs, require_rows, train, with_reference
from herd.dialog.rows import Counted, read_prompts
from herd.model.io import load_model, save_model
from herd.runs.stage import Inputs, Stage, StageRun
from herd.training.schedule import step_schedule
from herd.training.sft import SFTModule, sft_loss, sft_sequences, sft_steps
from herd.training.trainer_config import EXECUTION


@dataclass(frozen=True)
class SFTConfig(FineTuning):
    """Schema of conf/sft.yaml; `batch_size` counts packed rows of `window` tokens."""


def run(config: SFTConfig, inputs: Inputs, stage_run: StageRun) -> dict[str, Any]:
    tokenizer = load_tokenizer(inputs)
    model = load_model(inputs["base"] / "model")
    config.check_window(model.config)
    sequences, rows = [], {}
    for label, artifact in inputs.group("dialogs", least=1).items():
        counted = Counted()
        sequences += sft_sequences(read_dialogs(artifact), tokenizer, config.window, counted, config.dialect)
        rows[label] = counted.to_dict()
    require_rows("sft", rows)
    micro_batch_rows = max(1, config.trainer.micro_batch_tokens // config.window)
    source = sft_steps(
        sequences, config.window, tokenizer.pad_id, config.batch_size, micro_batch_rows, config.epochs, config.seed
    )
    schedule = step_schedule(config.schedule, config.optimizer.lr, len(source))
    result = train(SFTModule(model, config.optimizer, schedule), source, config, model.config, stage_run)
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
    inputs=("tokens", "base"),
    optional=("heldout",),
    groups=("dialogs",),
    execution=EXECUTION,
)
