"""Pre-training: next-token prediction on packed documents, moved along by a curriculum."""

import dataclasses
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from herd.config.errors import UserError
from herd.corpus.mixture import Mixture
from herd.corpus.packing import PackedRows
from herd.model.config import ModelConfig, RopeScaling
from herd.model.io import save_model
from herd.model.masks import Documents, to_device
from herd.model.transformer import Transformer
from herd.objectives.cross_entropy import IGNORE_INDEX, linear_cross_entropy, linear_cross_entropy_with_z
from herd.training.curriculum import Curriculum
from herd.training.gates import ExtendStage, Judge, Verdict
from herd.training.meters import Flops, transformer_flops
from herd.training.module import HerdModule, Metrics
from herd.training.optimizer import OptimizerConfig
from herd.training.start import save_training, set_moments, whole_moments
from herd.training.steps import StepBatch, Unmade
from herd.training.whole import set_whole_weights, whole_weights


class PretrainSource:
    """The rows of each step of a curriculum.

    Args:
        mixture: made from ``curriculum.mixture_phases()``.
        micro_batch_tokens: tokens of one forward and backward pass, at most (one row at least).
        behind: phases of the mixture before the curriculum's, of the run that this one goes on from.
    """

    def __init__(self, mixture: Mixture, curriculum: Curriculum, micro_batch_tokens: int, behind: int = 0) -> None:
        self.mixture, self.curriculum, self.micro_batch_tokens, self.behind = mixture, curriculum, micro_batch_tokens, behind

    def __len__(self) -> int:
        return self.curriculum.steps

    def __getitem__(self, step: int) -> StepBatch:
        phase, first, count = self.curriculum.rows(step)
        place, seq_len = self.behind + phase, self.mixture.phases[self.behind + phase].seq_len
        size = max(1, self.micro_batch_tokens // seq_len)

        def make(numbers: range) -> list[PackedRows]:
            wanted = [row for n in numbers for row in range(n * size, min(count, (n + 1) * size))]
            return self.mixture.rows(place, first, count, wanted).split(size) if wanted else []

        targets, squares = self.mixture.figures(place, first, count)
        tokens = count * seq_len
        return StepBatch(step, Unmade(range(-(-count // size)), make), float(targets), tokens, squares, tokens * seq_len)

    def tokens_at(self, step: int) -> int:
        return self.curriculum.tokens_at(step)


class PretrainModule(HerdModule):
    """Summed cross-entropy of the next token; RoPE follows the curriculum.

    Args:
        model: a Transformer.
        curriculum: gives the learning rate, and the RoPE of each stage.
        moments: state of the optimizer to begin with, see :mod:`herd.training.start`; None = none.
        z_loss: weight of the z-loss; it is then part of the reported ``loss``, and reported alone as ``z_loss``.
    """

    model: Transformer
    z_loss: float = 0.0
    _domains: tuple[str, ...] = ()  # those with weight in the step at work
    _moments: dict[str, Tensor] | None = None

    def __init__(
        self,
        model: Transformer,
        optimizer: OptimizerConfig,
        curriculum: Curriculum,
        moments: dict[str, Tensor] | None = None,
        z_loss: float = 0.0,
    ) -> None:
        super().__init__(model, optimizer, curriculum.learning_rate)
        self.z_loss = z_loss
        self.curriculum = curriculum
        self._moments = moments
        self._rope = rope_by_stage(curriculum, model.config)
        self._stage = ""

    def micro_batch_loss(self, micro_batch: PackedRows) -> tuple[Tensor, Metrics]:
        hidden = self.model(micro_batch.tokens, micro_batch.positions, Documents(micro_batch.lengths))
        weight, targets = self.model.output_weight, micro_batch.targets
        losses = torch.empty(targets.numel(), device=hidden.device)
        by_domain = partial(loss_by_domain_of, micro_batch, losses, self._domains)
        if not self.z_loss:
            return linear_cross_entropy(hidden, weight, targets, losses=losses), by_domain()
        loss, added = linear_cross_entropy_with_z(hidden, weight, targets, self.z_loss, losses=losses)
        return loss, {"z_loss": (added, (targets != IGNORE_INDEX).sum()), **by_domain()}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = super().configure_optimizers()
        if self._moments is not None:
            set_moments(self.model, optimizer, self._moments)
        return optimizer

    def before_step(self, step: int) -> None:
        phase = self.curriculum.phase(step)
        stage, self._domains = phase.stage, tuple(sorted(name for name, weight in phase.weights.items() if weight > 0))
        if stage != self._stage:  # the first step of a stage, or of a resumed run
            self.model.set_rope(*self._rope[stage])
            self._stage = stage

    def level_changes(self, step: int) -> bool:
        return self.curriculum.phase(step).first_step == step

    def step_flops(self, batch: StepBatch) -> Flops:
        return transformer_flops(self.model.config, batch)

    def step_fields(self, step: int) -> dict[str, Any]:
        phase = self.curriculum.phase(step)
        return {"stage": phase.stage, "batch_tokens": phase.batch_tokens, "seq_len": phase.seq_len}


def loss_by_domain_of(rows: PackedRows, losses: Tensor, domains: tuple[str, ...]) -> Metrics:
    """``loss/<domain>`` as (sum, tokens), for each of ``domains``, whether or not a row is of it: ranks must name the same.

    Args:
        rows: of one micro-batch; their ``sources`` are the domains.
        losses: (B * T,) of each position, 0 where nothing is asked.
    """
    if not domains:
        return {}
    member = torch.tensor([[float(source == domain) for domain in domains] for source in rows.sources])  # (B, domains)
    per_row = torch.stack((losses.view(len(rows), -1).sum(1).float(), (rows.targets != IGNORE_INDEX).sum(1).float()))  # (2, B)
    sums, counts = per_row @ to_device(member, losses.device)
    return {f"loss/{domain}": (sums[i], counts[i]) for i, domain in enumerate(domains)}


def rope_by_stage(curriculum: Curriculum, model: ModelConfig) -> dict[str, tuple[float, RopeScaling | None, int]]:
    """Stage -> (RoPE base, its scaling, longest position): each stage keeps what those before it have set."""
    theta, scaling, longest = model.rope_theta, model.rope_scaling, model.max_seq_len
    result = {}
    for name, stage in curriculum.config.stages.items():
        theta, scaling = stage.rope_theta or theta, stage.rope_scaling or scaling
        if stage.moves_rope:
            longest = max(longest, curriculum.longest(name))
        result[name] = (theta, scaling, longest)
    return result


class AtStageEnds(pl.Callback):
    """At the end of each stage: save the weights, average those gathered on the way, evaluate; at the last, save the model.

    The average (of the annealing stage's checkpoints, section 3.4.3) is summed in float64 and becomes the model; what was
    gathered so far is part of every checkpoint, so that a resumed run averages the same.

    Args:
        folder: gets ``stages/<stage>/`` with the weights at each stage's end, before averaging, and ``model/``.
        evaluate: model -> plain values for the row of metrics; called after averaging.
        judge: what a stage's gate finds, called after ``evaluate``; None where the stage has none. Where it is not passed and
            extensions are left, training stops with :class:`ExtendStage` once the checkpoint of the stage's end is written.
        training: stage -> what another run needs to go on from its end, for ``training.json``.
        moments: keep the optimizer's state there too.
    """

    def __init__(
        self,
        curriculum: Curriculum,
        folder: Path,
        evaluate: Callable[[Transformer], dict[str, Any]],
        judge: Judge,
        training: Callable[[str], dict[str, Any]],
        moments: bool = False,
    ) -> None:
        self.curriculum, self.folder, self.evaluate, self.judge = curriculum, folder, evaluate, judge
        self.training, self.moments = training, moments
        self.verdicts: dict[str, list[dict[str, Any]]] = {}  # stage -> what its gate found, extension by extension
        self.evaluations: dict[str, dict[str, Any]] = {}  # stage -> what `evaluate` gave at its end
        self._ends = {step: stage for stage, step in curriculum.stage_ends().items()}
        self._averaged = curriculum.averaged_after()
        self._sums: dict[str, Tensor] = {}  # name -> float64, on the CPU
        self._count = 0

    def is_end(self, step: int) -> bool:
        """Whether a stage ends after ``step`` finished steps."""
        return step in self._ends

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: StepBatch, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, PretrainModule)
        step, model, clock = trainer.global_step, pl_module.model, time.perf_counter()
        if step in self._averaged:
            for name, weight in whole_weights(model).items():
                self._sums[name] = self._sums[name] + weight.double() if name in self._sums else weight.double()
            self._count += 1
        if step not in self._ends:
            return
        stage = self._ends[step]
        self._save(trainer, pl_module, self.folder / "stages" / stage)
        moments = whole_moments(model, trainer.optimizers[0]) if self.moments else None  # every rank takes part
        if trainer.is_global_zero:
            save_training(self.folder / "stages" / stage, self.training(stage), moments)
        if self._count:
            set_whole_weights(model, {name: total / self._count for name, total in self._sums.items()})
            self._sums, self._count = {}, 0
        if step == self.curriculum.steps:
            self._save(trainer, pl_module, self.folder / "model")
        self.evaluations[stage] = self.evaluate(model)
        losses = {f"eval_loss/{name}": value for name, value in self.evaluations[stage]["loss_by_domain"].items()}
        verdict = self.judge(stage, model, self.evaluations)
        if verdict is not None:
            self.verdicts[stage] = [*self.verdicts.get(stage, []), dataclasses.asdict(verdict)]
            losses |= {f"needle_accuracy/{length}": share for length, share in verdict.needle_accuracy.items()}
        pl_module.report({"eval_loss": self.evaluations[stage]["loss"], **losses}, time.perf_counter() - clock)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: StepBatch, batch_idx: int) -> None:
        self.check_gate(trainer.global_step)

    def check_gate(self, step: int) -> None:
        """Raise :class:`ExtendStage` where a stage that must be extended ends after ``step`` finished steps."""
        stage = self._ends.get(step)
        gate = self.curriculum.config.stages[stage].gate if stage else None
        if stage is None or gate is None or self.verdicts[stage][-1]["passed"]:
            return
        if self.curriculum.extensions.get(stage, 0) < gate.extensions:
            raise ExtendStage(stage)
        found = Verdict(**self.verdicts[stage][-1])
        message = f"Stage '{stage}' has not passed its gate after {gate.extensions} extensions: {found}."
        if gate.otherwise == "stop":
            raise UserError(f"{message} Raise the gate's extensions or lower its bounds; or set otherwise=go_on.")
        print(f"{message} Going on.", file=sys.stderr)

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self._sums, "count": self._count, "evaluations": self.evaluations, "verdicts": self.verdicts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._sums, self._count = dict(state_dict["sums"]), int(state_dict["count"])
        self.evaluations = dict(state_dict["evaluations"])
        self.verdicts = dict(state_dict["verdicts"])

    def _save(self, trainer: pl.Trainer, module: HerdModule, folder: Path) -> None:
        whole = module.whole_model()  # every rank takes part
        if trainer.is_global_zero:
            save_model(whole, folder)
