"""`herd pretrain`: token shards to a trained model."""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Optional

from herd.config.errors import UserError, nearest
from herd.config.loader import from_dict
from herd.corpus.mixture import MixConfig, Mixture, check_repetition
from herd.corpus.shards import TokenShards
from herd.model.config import ModelConfig
from herd.model.counts import flops_per_token, parameter_count
from herd.model.transformer import Transformer
from herd.runs.atomic import write_json
from herd.runs.ranks import first_process
from herd.runs.stage import Artifact, Inputs, Stage, StageRun
from herd.training.curriculum import Curriculum, CurriculumConfig
from herd.training.fit import fit
from herd.training.gates import ExtendStage, Extensions, Verdict, judge
from herd.training.heldout import bits_per_byte, check_domains, heldout_loss, loss_by_domain, mixed_loss, write_document_losses
from herd.training.input_checks import check_ranks, check_shards
from herd.training.needle import needle_trials
from herd.training.optimizer import OptimizerConfig
from herd.training.pretrain import AtStageEnds, PretrainModule, PretrainSource
from herd.training.start import Start, open_start, tokenizer_of
from herd.training.trainer_config import EXECUTION, TrainerConfig, processes_of

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
    eval_documents: bool = False  # also write the final model's loss on each held-out document
    save_optimizer: bool = False  # keep the optimizer's moments at the end of each stage, for runs that go on from there
    start_stage: Optional[str] = None  # noqa: UP045 (OmegaConf) stage of the input `start` to go on from; null = its last
    start_lr: str = "checkpoint"  # with an input `start`: checkpoint (the rate where it stood, optimizer.lr is its peak) | own
    z_loss: float = 0.0  # times log^2 of the softmax's normaliser, added to the training loss; 0 = not computed

    def __post_init__(self) -> None:
        if self.z_loss < 0:
            raise UserError(f"z_loss = {self.z_loss}: 0 or more is needed.")
        if self.eval_tokens < 0 or self.eval_seq_len < 2:
            raise UserError("eval_tokens must be 0 or more and eval_seq_len 2 or more.")
        if self.start_lr not in ("checkpoint", "own"):
            hint = nearest(self.start_lr, ("checkpoint", "own"))
            raise UserError(f"Unknown start_lr '{self.start_lr}'.{hint} Choices: checkpoint, own.")


@dataclass(frozen=True)
class Prepared:
    """What a run trains on, once its inputs have had their say."""

    config: PretrainConfig
    shards: TokenShards
    curriculum: Curriculum
    mixture: Mixture
    start: Start | None  # the checkpoint that it goes on from
    behind: int  # phases of the mixture that the checkpoint's data were


def prepare(config: PretrainConfig, inputs: Inputs, extensions: Mapping[str, int] | None = None) -> Prepared:
    """The final configuration, curriculum and data of a run whose stages have been extended so often; UserError for what does
    not fit together.
    """
    shards = TokenShards(inputs["tokens"] / "tokens")
    config = settled(config, shards, inputs.get("flagship"))
    given = inputs.get("start")
    start = open_start(given, config.start_stage) if given else None
    if start is None and config.start_stage is not None:
        raise UserError(
            "start_stage names a stage of inputs.start, which is missing: give inputs.start=FOLDER of `herd pretrain`."
        )
    if start is not None:
        if start.imported:  # its shape is not among the configurations here
            config = replace(config, model=start.shape)
        start.check(config.model.with_vocab_size(shards.vocab_size), tokenizer_of(inputs["tokens"]))
        config = continued(config, start)
    curriculum = Curriculum(config.curriculum, config.mix.weights, config.optimizer.lr, extensions)
    behind = start.phases if start and start.data == _address(inputs["tokens"]) else ()
    mixture = Mixture(shards, "train", [*behind, *curriculum.mixture_phases()], config.seed)
    check_repetition(mixture, config.mix.max_epochs)
    return Prepared(config, shards, curriculum, mixture, start, len(behind))


def run(config: PretrainConfig, inputs: Inputs, stage_run: StageRun) -> dict[str, Any]:
    """Train, and leave ``model/``, ``stages/<stage>/``, ``metrics.jsonl`` and ``curriculum.json``.

    With an input ``start`` training goes on from that run's checkpoint, see :mod:`herd.training.start`.
    """
    first = first_process(config.trainer.processes)
    extensions = Extensions(stage_run.scratch / "extensions.json")
    asked, planned = config, prepare(config, inputs)
    config, shards, start = planned.config, planned.shards, planned.start
    model = _untrained(planned)
    planned.curriculum.check_lengths(model.config.max_seq_len)
    check_ranks(planned.curriculum, config.trainer)
    initial = next(iter(config.curriculum.stages))
    # What a checkpoint is worth is judged on the run's own mix, whatever it is annealed on.
    weights = (None if start else config.curriculum.stages[initial].mix) or config.mix.weights
    if config.eval_seq_len > model.config.max_seq_len:
        raise UserError(f"eval_seq_len {config.eval_seq_len} exceeds model.max_seq_len {model.config.max_seq_len}: lower it.")
    check_domains(shards.domains("heldout"), weights)
    check_shards(inputs["tokens"], shards, planned.mixture.tokens())
    for name, stage in config.curriculum.stages.items():
        if (gate := stage.gate) is not None:  # refuse now what its test would refuse after days
            length = planned.curriculum.longest(name) // 4
            needle_trials(shards.source("heldout", gate.needle_domain), length, 1, gate.needle_statements)

    def evaluate(model: Transformer) -> dict[str, Any]:
        scores = heldout_loss(model, shards, config.eval_seq_len, config.eval_tokens)
        return {
            "loss": mixed_loss(scores, weights),
            "loss_by_domain": loss_by_domain(scores),
            "bits_per_byte_by_domain": bits_per_byte(scores),
        }

    def judge_stage(stage: str, model: Transformer, evaluations: dict[str, Any]) -> Verdict | None:
        gate = config.curriculum.stages[stage].gate
        if gate is None:
            return None
        source, longest = shards.source("heldout", gate.needle_domain), planned.curriculum.longest(stage)
        return judge(gate, model, source, longest, evaluations[stage]["loss"], evaluations[initial]["loss"])

    # As planned: an extension changes what comes after it alone, and does not make another run.
    fingerprint = {
        "phases": planned.curriculum.summary(),
        "seed": config.seed,
        "steps": planned.curriculum.steps,
        "tokens": planned.curriculum.tokens,
    } | ({"start": inputs["start"].address, "stage": start.stage} if start else {})
    while True:
        prepared = prepare(asked, inputs, extensions.counts)
        curriculum = prepared.curriculum
        plan = {"tokens": curriculum.tokens, "extensions": extensions.counts, "phases": curriculum.summary()}
        write_json(stage_run.folder / "curriculum.json", plan)
        training = partial(training_of, prepared, tokens=inputs["tokens"])
        at_ends = AtStageEnds(curriculum, stage_run.folder, evaluate, judge_stage, training, config.save_optimizer)
        moments = start.moments(model) if start else None
        module = PretrainModule(model, config.optimizer, curriculum, moments, config.z_loss)
        try:
            result = fit(
                module,
                PretrainSource(prepared.mixture, curriculum, config.trainer.micro_batch_tokens, prepared.behind),
                config.trainer,
                stage_run,
                [at_ends],
                description=stage_run.node or "pretrain",
                checkpoint_at=at_ends.is_end,
                fingerprint=fingerprint,
            )
            at_ends.check_gate(curriculum.steps)
            model = module.model
            break
        except ExtendStage as end:
            extensions.add(end.stage, writes=first)
            if first:
                found = Verdict(**at_ends.verdicts[end.stage][-1])
                print(f"Stage '{end.stage}' is extended, for its gate is not passed: {found}.", file=sys.stderr)
            model = _untrained(planned)  # the checkpoint to go on from may be an earlier one, where the disk was full
    final = next(reversed(config.curriculum.stages))
    if config.eval_documents:
        write_document_losses(stage_run.folder / "heldout_documents.csv", model, shards, config.eval_seq_len, config.eval_tokens)
    flops = pretraining_flops(model.config, curriculum) * result.tokens / curriculum.tokens
    stage_run.cost(tokens=result.tokens, flops_6n=flops)
    return {
        "loss": at_ends.evaluations[final]["loss"],
        "initial_loss": at_ends.evaluations[initial]["loss"],
        "tokens": result.tokens,
        "tokens_per_second": result.tokens_per_second,
        "parameters": parameter_count(model.config, "total"),
        "parameters_6N": parameter_count(model.config, "6N"),
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
        "epochs": prepared.mixture.epochs(),
        "left_out_steps": [list(span) for span in result.left_out],
        "start": start.describe() if start else None,
        "gates": at_ends.verdicts,
    }


def _untrained(prepared: Prepared) -> Transformer:
    """The model that a run begins with."""
    if prepared.start is not None:
        return prepared.start.model()
    model = Transformer(prepared.config.model.with_vocab_size(prepared.shards.vocab_size))
    model.init_weights(prepared.config.seed)
    return model


def continued(config: PretrainConfig, start: Start) -> PretrainConfig:
    """``config`` with the learning rate at which the checkpoint stood, where it is to go on from there.

    The peak is the checkpoint's own, so that weight decay means what it meant; the first stage's schedule starts at its share.
    """
    if config.start_lr == "own":
        return config
    first = next(iter(config.curriculum.stages))
    stage = config.curriculum.stages[first]
    if stage.schedule.warmup_steps or stage.schedule.warmup_share:
        raise UserError(
            f"start_lr=checkpoint goes on at the checkpoint's learning rate, and stage '{first}' warms up: set its "
            "warmup_steps and warmup_share to 0, or start_lr=own."
        )
    if not start.lr_share > 0:
        raise UserError(
            f"'{start.folder}' stands at learning rate 0: go on from an earlier stage (start_stage), or start_lr=own."
        )
    schedule = replace(stage.schedule, start=start.lr_share)
    stages = config.curriculum.stages | {first: replace(stage, schedule=schedule)}
    return replace(
        config,
        curriculum=replace(config.curriculum, stages=stages),
        optimizer=replace(config.optimizer, lr=start.peak_lr),
    )


def training_of(prepared: Prepared, stage: str, tokens: Artifact) -> dict[str, Any]:
    """What a run needs to go on from the end of ``stage``, beside the weights; see :class:`herd.training.start.Start`."""
    curriculum, start = prepared.curriculum, prepared.start
    done = curriculum.stage_ends()[stage]
    own = [phase for phase in curriculum.phases if phase.first_step < done]
    phases = prepared.mixture.phases[: prepared.behind + len(own)]
    return {
        "steps": done + (start.steps if start else 0),
        "tokens": curriculum.tokens_at(done) + (start.tokens if start else 0),
        "peak_lr": prepared.config.optimizer.lr,
        "lr_share": curriculum.share_after(stage),
        "data": _address(tokens),
        "tokenizer": tokenizer_of(tokens),
        "phases": [asdict(phase) for phase in phases],
    }


def _address(tokens: Artifact) -> str:
    return str(tokens.manifest.get("address", ""))


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
        rope = f", RoPE base {row['rope_theta']:,g}" if row["rope_theta"] else ""
        rope += f", RoPE x{row['rope_factor']:g}" if row["rope_factor"] else ""
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
    version=3,
    config=PretrainConfig,
    run=run,
    summary="pre-train a model by curriculum",
    inputs=("tokens",),
    optional=("flagship", "start"),
    fingerprint=stage_order,
    execution=EXECUTION,
    processes=processes_of,
)
