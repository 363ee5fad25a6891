"""`herd pretrain`: token shards to a trained model."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from herd.config.errors import UserError
from herd.config.loader import from_dict
from herd.corpus.mixture import MixConfig, Mixture
from herd.corpus.shards import TokenShards
from herd.model.config import ModelConfig
from herd.model.counts import flops_per_token, parameter_count
from herd.model.transformer import Transformer
from herd.runs.atomic import write_json
from herd.runs.stage import Artifact, Inputs, Stage, StageRun
from herd.training.curriculum import Curriculum, CurriculumConfig
from herd.training.fit import fit
from herd.training.heldout import bits_per_byte, check_domains, heldout_loss, loss_by_domain, mixed_loss
from herd.training.optimizer import OptimizerConfig
from herd.training.pretrain import AtStageEnds, PretrainModule, PretrainSource
from herd.training.trainer_config import TrainerConfig

FLOPS_CONVENTION = "6N"


@dataclass(frozen=True)
class PretrainConfig:
    """One pre-training run."""

    model: ModelConfig  # shape; vocab_size 0 = the tokenizer's
    curriculum: CurriculumConfig  # stages by tokens
    optimizer: OptimizerConfig  # AdamW and the peak learning rate
    mix: MixConfig  # weights of the domains, for stages that name none
    trainer: TrainerConfig  # machine, precision, logging, checkpoints
    seed: int = 0  # of the weights and the order of documents
    eval_tokens: int = 80_000  # held-out tokens scored at the end of each stage, in all domains together; 0 = every one
    eval_seq_len: int = 256  # context of that evaluation, tokens; equal for models that are to be compared

    def __post_init__(self) -> None:
        if self.eval_tokens < 0 or self.eval_seq_len < 2:
            raise UserError("eval_tokens must be 0 or more and eval_seq_len 2 or more.")


def run(config: PretrainConfig, inputs: Inputs, stage_run: StageRun) -> dict[str, Any]:
    """Train, and leave ``model/``, ``stages/<stage>/``, ``metrics.jsonl`` and ``curriculum.json``."""
    shards = TokenShards(inputs["tokens"] / "tokens")
    config = settled(config, shards, inputs.get("flagship"))
    model_config = config.model.with_vocab_size(shards.vocab_size)
    curriculum = Curriculum(config.curriculum, config.mix.weights, config.optimizer.lr)
    curriculum.check_lengths(model_config.max_seq_len)
    initial = next(iter(config.curriculum.stages))
    weights = config.curriculum.stages[initial].mix or config.mix.weights
    if config.eval_seq_len > model_config.max_seq_len:
        raise UserError(f"eval_seq_len {config.eval_seq_len} exceeds model.max_seq_len {model_config.max_seq_len}.")
    mixture = Mixture(shards, "train", curriculum.mixture_phases(), config.seed)
    check_domains(shards.domains("heldout"), weights)
    write_json(stage_run.folder / "curriculum.json", {"tokens": curriculum.tokens, "phases": curriculum.summary()})

    model = Transformer(model_config)
    model.init_weights(config.seed)
    module = PretrainModule(model, config.optimizer, curriculum)

    def evaluate(model: Transformer) -> dict[str, Any]:
        scores = heldout_loss(model, shards, config.eval_seq_len, config.eval_tokens)
        return {
            "loss": mixed_loss(scores, weights),
            "loss_by_domain": loss_by_domain(scores),
            "bits_per_byte_by_domain": bits_per_byte(scores),
        }

    at_ends = AtStageEnds(curriculum, stage_run.folder, evaluate)
    source = PretrainSource(mixture, curriculum, config.trainer.micro_batch_tokens)
    result = fit(
        module,
        source,
        config.trainer,
        stage_run,
        [at_ends],
        description=stage_run.node or "pretrain",
        checkpoint_at=at_ends.is_end,
        fingerprint={"phases": curriculum.summary(), "seed": config.seed},
    )
    final = next(reversed(config.curriculum.stages))
    flops = pretraining_flops(model_config, curriculum) * result.tokens / curriculum.tokens
    stage_run.cost(tokens=result.tokens, flops=flops)
    return {
        "loss": at_ends.evaluations[final]["loss"],
        "initial_loss": at_ends.evaluations[initial]["loss"],
        "tokens": result.tokens,
        "tokens_per_second": result.tokens_per_second,
        "parameters": parameter_count(model_config, "total"),
        "parameters_6N": parameter_count(model_config, "6N"),
        "flops": flops,
        "flops_convention": FLOPS_CONVENTION,
        "seconds": result.seconds,
        "steps": result.steps,
        "schedule": config.curriculum.stages[initial].schedule.kind,
        "mixture": " ".join(f"{name}={share:g}" for name, share in sorted(weights.items())),
        "loss_by_domain": at_ends.evaluations[final]["loss_by_domain"],
        "bits_per_byte_by_domain": at_ends.evaluations[final]["bits_per_byte_by_domain"],
        "initial_loss_by_domain": at_ends.evaluations[initial]["loss_by_domain"],
        "loss_by_stage": {stage: scores["loss"] for stage, scores in at_ends.evaluations.items()},
        "initial_tokens": curriculum.stage_tokens()[initial],
        "epochs": mixture.epochs(),
        "left_out_steps": [list(span) for span in result.left_out],
    }


def settled(config: PretrainConfig, shards: TokenShards, flagship: Artifact | None) -> PretrainConfig:
    """What is trained in the end: ``config`` with the forecast's choices, and with every mix over the domains that there are."""
    if flagship is not None:
        config = as_forecast(config, flagship)
    available = shards.domains("train")
    stages = {name: replace(stage, mix=config.mix.over(stage.mix, available)) for name, stage in config.curriculum.stages.items()}
    mix = replace(config.mix, weights=config.mix.over(config.mix.weights, available))
    return replace(config, mix=mix, curriculum=replace(config.curriculum, stages=stages))


def as_forecast(config: PretrainConfig, flagship: Artifact) -> PretrainConfig:
    """``config`` with the model, tokens, batch and learning rate that a scaling fit chose for the flagship.

    The chosen tokens are those of the initial stage; later stages keep their shares of them.

    Raises:
        UserError: ``flagship.json`` lacks a key.
    """
    path = flagship / "flagship.json"
    chosen = json.loads(path.read_text(encoding="utf-8"))
    missing = [key for key in ("model", "tokens", "batch_tokens", "lr") if key not in chosen]
    if missing:
        raise UserError(f"'{path}' has no '{missing[0]}': it is not a flagship chosen by `herd scaling-fit`.")
    model = from_dict(ModelConfig, chosen["model"])
    tokens, batch_tokens = int(chosen["tokens"]), int(chosen["batch_tokens"])
    return replace(
        config,
        model=replace(model, max_seq_len=max(model.max_seq_len, config.model.max_seq_len)),
        curriculum=replace(config.curriculum, tokens=tokens, batch_tokens=batch_tokens),
        optimizer=replace(config.optimizer, lr=float(chosen["lr"])),
    )


def plan_lines(config: PretrainConfig) -> Iterator[str]:
    """What the run would do, phase by phase; nothing is allocated, so the largest preset plans as fast as the
    smallest.
    """
    model = config.model
    if model.vocab_size:
        size = f"{parameter_count(model, 'total'):,} parameters"
    else:
        size = "vocabulary of the tokenizer"
    yield (
        f"model: {size}; {model.n_layers} layers, width {model.dim}, {model.n_heads} heads, "
        f"{model.n_kv_heads} key-value heads, feed-forward {model.ffn_dim}"
    )
    curriculum = Curriculum(config.curriculum, config.mix.weights, config.optimizer.lr)
    for row in curriculum.summary():
        rope = f", RoPE x{row['rope_factor']:g}" if row["rope_factor"] else ""
        yield (
            f"{row['stage']}: {row['steps']:,} steps, {row['tokens']:,} tokens, batch {row['batch_tokens']:,} = "
            f"{row['rows']:,} x {row['seq_len']:,}, learning rate {row['first_lr']:.3g} -> {row['last_lr']:.3g}{rope}"
        )
    total = f"total: {curriculum.steps:,} steps, {curriculum.tokens:,} tokens"
    if model.vocab_size:
        flops = pretraining_flops(model, curriculum)
        total += f", {flops:.3g} FLOPs ({FLOPS_CONVENTION})"
    yield total


def stage_order(config: PretrainConfig) -> list[str]:
    """The curriculum's stages in order, which the sorted keys of a hash or a manifest do not tell."""
    return list(config.curriculum.stages)


def pretraining_flops(model: ModelConfig, curriculum: Curriculum) -> float:
    """Floating-point operations of a run, forward and backward, under :data:`FLOPS_CONVENTION`."""
    return float(sum(flops_per_token(model, phase.seq_len, FLOPS_CONVENTION) * phase.tokens for phase in curriculum.phases))


STAGE = Stage(
    name="pretrain",
    version=2,
    config=PretrainConfig,
    run=run,
    summary="pre-train a model by curriculum",
    inputs=("tokens",),
    optional=("flagship",),
    fingerprint=stage_order,
)
