"""The curriculum: stages that move batch size, sequence length, RoPE, mix and learning rate together, keyed by tokens.

A :class:`CurriculumConfig` is compiled once into an explicit list of :class:`CurriculumPhase`; everything a step
needs (its rows, its learning rate, the tokens before it) is then looked up by the step's index and nothing else.
"""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

from herd.config.errors import UserError
from herd.corpus.mixture import Phase, check_weights
from herd.model.config import RopeScaling
from herd.training.gates import GateConfig
from herd.training.schedule import ScheduleConfig, share_at


@dataclass(frozen=True)
class RampStep:
    """Batch and length from one point of a stage on."""

    start: float = 0.0  # share of the stage's tokens at which this begins; the first begins at 0
    batch: float = 1.0  # share of curriculum.batch_tokens in one optimizer step
    seq_len: int = 128  # tokens in a row

    def __post_init__(self) -> None:
        if not 0 <= self.start < 1:
            raise UserError(f"ramp: start = {self.start}: a share in [0, 1) is needed.")
        if self.batch <= 0 or self.seq_len < 2:
            raise UserError(f"ramp: batch = {self.batch} must exceed 0 and seq_len = {self.seq_len} must be 2 or more.")


@dataclass(frozen=True)
class StageConfig:
    """One stage of the curriculum."""

    share: float = 1.0  # tokens of the stage as a share of curriculum.tokens
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)  # learning rate over the stage
    ramp: list[RampStep] = field(default_factory=lambda: [RampStep()])  # batch and length over the stage
    mix: dict[str, float] = field(default_factory=dict)  # domain -> share, sums to 1; empty = the run's mix
    # RoPE from this stage on; None = as before. With one of the two the model's max_seq_len grows to the stage's longest row.
    rope_theta: Optional[float] = None  # noqa: UP045 (base of the frequencies)
    rope_scaling: Optional[RopeScaling] = None  # noqa: UP045 (OmegaConf wants Optional)
    average_checkpoints: int = 0  # weights at so many equal distances of the stage, averaged at its end; 0 = no
    gate: Optional[GateConfig] = None  # noqa: UP045 (what must hold before the next stage; None = nothing)

    @property
    def moves_rope(self) -> bool:
        """Whether positions change with this stage."""
        return self.rope_theta is not None or self.rope_scaling is not None

    def __post_init__(self) -> None:
        if self.share <= 0:
            raise UserError(f"A curriculum stage has share = {self.share}: it must exceed 0 (or leave the stage out).")
        starts = [step.start for step in self.ramp]
        if not starts or starts[0] != 0 or starts != sorted(set(starts)):
            raise UserError(f"ramp: starts must begin with 0 and rise, not {starts}.")
        if self.mix:
            check_weights(self.mix, "curriculum stage's mix")
        if self.rope_theta is not None and self.rope_theta <= 1:
            raise UserError(f"A curriculum stage has rope_theta = {self.rope_theta}: it must exceed 1.")
        if self.average_checkpoints < 0:
            raise UserError(f"average_checkpoints = {self.average_checkpoints}: 0 or more is needed.")
        if self.gate and (self.schedule.kind != "constant" or self.average_checkpoints):
            raise UserError(
                "A curriculum stage with a gate may be extended, so its schedule must be constant and average_checkpoints 0."
            )


@dataclass(frozen=True)
class CurriculumConfig:
    """Stages in order. The first one is the initial stage, whose end the scaling laws forecast."""

    tokens: int = 0  # tokens of a stage of share 1
    batch_tokens: int = 0  # tokens in an optimizer step at ramp batch 1
    stages: dict[str, StageConfig] = field(default_factory=dict)  # name -> stage, in order

    def __post_init__(self) -> None:
        if self.tokens < 1 or self.batch_tokens < 1:
            raise UserError("curriculum.tokens and curriculum.batch_tokens must be 1 or more.")
        if not self.stages:
            raise UserError("curriculum.stages is empty: at least one stage is needed.")
        first = next(iter(self.stages))
        if self.stages[first].gate:
            raise UserError(f"Curriculum stage '{first}' has a gate, but nothing comes before it to recover: take the gate away.")


@dataclass(frozen=True)
class CurriculumPhase:
    """A run of equal optimizer steps."""

    stage: str  # name of the stage it belongs to
    first_step: int  # of the whole run
    steps: int
    first_token: int  # tokens of the whole run before it
    rows: int  # rows in one optimizer step
    seq_len: int  # tokens in a row
    weights: dict[str, float]  # domain -> share

    @property
    def batch_tokens(self) -> int:
        """Tokens in one optimizer step."""
        return self.rows * self.seq_len

    @property
    def tokens(self) -> int:
        """Tokens of the phase."""
        return self.steps * self.batch_tokens


class Curriculum:
    """A compiled curriculum: pure functions of the step.

    A stage gets the whole number of steps that comes nearest to its tokens, at each point of its ramp, so the planned
    tokens differ from the asked ones by half a batch at most; every count here is of the planned ones.

    Args:
        config: the stages.
        mix: weights for the stages that name none.
        lr: peak learning rate, of which the schedules give shares.
        extensions: stage -> how often its gate has extended it.

    Raises:
        UserError: a batch that is no whole number of rows, or a stage smaller than one batch or than its warm-up.
    """

    def __init__(
        self, config: CurriculumConfig, mix: dict[str, float], lr: float, extensions: Mapping[str, int] | None = None
    ) -> None:
        self.config, self.lr, self.extensions = config, lr, dict(extensions or {})
        phases: list[CurriculumPhase] = []
        planned: dict[str, tuple[int, int]] = {}  # stage -> step and token at its end, extensions left out
        step = token = 0
        for name, stage in config.stages.items():
            asked, done, first = config.tokens * stage.share, 0, step
            ends = [ramp.start for ramp in stage.ramp[1:]] + [1.0]
            for ramp, end in zip(stage.ramp, ends, strict=True):
                batch = round(ramp.batch * config.batch_tokens)
                if batch < ramp.seq_len or batch % ramp.seq_len:
                    raise UserError(
                        f"Curriculum stage '{name}': a batch of {batch:,} tokens ({ramp.batch:g} x "
                        f"curriculum.batch_tokens) is no whole number of rows of {ramp.seq_len} tokens: change "
                        "batch_tokens, batch or seq_len."
                    )
                steps, rows = max(0, round((end * asked - done) / batch)), batch // ramp.seq_len
                if steps:
                    phases.append(CurriculumPhase(name, step, steps, token, rows, ramp.seq_len, dict(stage.mix or mix)))
                step, token, done = step + steps, token + steps * batch, done + steps * batch
            planned[name] = step, token
            if step > first and stage.gate:
                # Phases of their own: what came before them stays as it was.
                steps = max(1, round(stage.gate.extend * asked / batch))
                for _ in range(self.extensions.get(name, 0)):
                    phases.append(CurriculumPhase(name, step, steps, token, rows, ramp.seq_len, dict(stage.mix or mix)))
                    step, token = step + steps, token + steps * batch
            if step == first:
                raise UserError(
                    f"Curriculum stage '{name}' has {asked:,.0f} tokens, less than one batch: raise "
                    "curriculum.tokens or the stage's share, or lower batch_tokens."
                )
        self.phases = tuple(phases)
        self.steps, self.tokens = step, token
        self._first_steps = [phase.first_step for phase in phases]
        # Per stage: its first step and token, those after its last, and the position at which its warm-up ends.
        self._stages: dict[str, tuple[int, int, int, int, float]] = {}
        for name, stage in config.stages.items():
            own = [phase for phase in phases if phase.stage == name]
            last = own[-1]
            end_step, end_token = last.first_step + last.steps, last.first_token + last.tokens
            bounds = (own[0].first_step, end_step, own[0].first_token, end_token)
            steps, warmup = planned[name][0] - own[0].first_step, stage.schedule.warmup_steps
            if warmup > steps and not stage.schedule.horizon_steps:
                raise UserError(
                    f"Curriculum stage '{name}' has {steps} steps, and its schedule warms up over {warmup}: lower warmup_steps, "
                    "give a warmup_share instead, or lengthen the stage."
                )
            self._stages[name] = (*bounds, self._warmup(stage.schedule, own[0].first_step, own[0].first_token, planned[name][1]))

    def _warmup(self, schedule: ScheduleConfig, step: int, token: int, end_token: int) -> float:
        if schedule.horizon_steps:
            return schedule.warmup_steps or schedule.warmup_share * schedule.horizon_steps
        if schedule.warmup_steps:
            return self.tokens_at(step + schedule.warmup_steps) - token
        return schedule.warmup_share * (end_token - token)

    def __len__(self) -> int:
        return self.steps

    def phase_index(self, step: int) -> int:
        """Which phase step ``step`` belongs to."""
        assert 0 <= step < self.steps, f"step {step} of {self.steps}"
        return bisect_right(self._first_steps, step) - 1

    def phase(self, step: int) -> CurriculumPhase:
        """The phase of a step."""
        return self.phases[self.phase_index(step)]

    def rows(self, step: int) -> tuple[int, int, int]:
        """(phase, first row within the phase, number of rows) of a step."""
        index = self.phase_index(step)
        phase = self.phases[index]
        return index, (step - phase.first_step) * phase.rows, phase.rows

    def tokens_at(self, step: int) -> int:
        """Tokens before step ``step``; ``tokens_at(steps)`` is the total."""
        phase = self.phases[max(0, bisect_right(self._first_steps, step) - 1)]
        return phase.first_token + (step - phase.first_step) * phase.batch_tokens

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step."""
        phase = self.phase(step)
        schedule = self.config.stages[phase.stage].schedule
        first_step, _, first_token, end_token, warmup = self._stages[phase.stage]
        if schedule.horizon_steps:
            position: tuple[float, float] = step - first_step, step - first_step + 1
            total = schedule.horizon_steps
        else:
            before = self.tokens_at(step) - first_token
            position, total = (before, before + phase.batch_tokens), end_token - first_token
        return self.lr * share_at(schedule, *position, warmup, total)

    def share_after(self, stage: str) -> float:
        """Share of the peak at which a stage's schedule stands at its end, for a run that goes on from there."""
        schedule = self.config.stages[stage].schedule
        first_step, end_step, first_token, end_token, warmup = self._stages[stage]
        done = end_step - first_step if schedule.horizon_steps else end_token - first_token
        return share_at(schedule, done, done, warmup, schedule.horizon_steps or done)

    def stage_ends(self) -> dict[str, int]:
        """Stage -> number of finished steps at its end."""
        return {name: bounds[1] for name, bounds in self._stages.items()}

    def stage_tokens(self) -> dict[str, int]:
        """Stage -> tokens in it."""
        return {name: bounds[3] - bounds[2] for name, bounds in self._stages.items()}

    def longest(self, stage: str) -> int:
        """Longest row of a stage, tokens."""
        return max(ramp.seq_len for ramp in self.config.stages[stage].ramp)

    def averaged_after(self) -> dict[int, str]:
        """Number of finished steps -> stage, for each point at which weights enter that stage's average."""
        points: dict[int, str] = {}
        for name, (first, end, *_) in self._stages.items():
            count = self.config.stages[name].average_checkpoints
            for k in range(1, count + 1):
                points[first + max(1, (end - first) * k // count)] = name
        return points

    def mixture_phases(self) -> list[Phase]:
        """The phases as the corpus's mixture wants them."""
        return [Phase(phase.steps * phase.rows, phase.seq_len, phase.weights) for phase in self.phases]

    def check_lengths(self, max_seq_len: int) -> None:
        """Refuse rows longer than the model's RoPE table, as the stages up to each one have set it (UserError)."""
        for name, stage in self.config.stages.items():
            longest = self.longest(name)
            if stage.moves_rope:
                max_seq_len = max(max_seq_len, longest)
            if longest > max_seq_len:
                raise UserError(
                    f"Curriculum stage '{name}' has rows of {longest} tokens, the model's positions end at "
                    f"{max_seq_len}: raise model.max_seq_len, or give the stage a rope_scaling or a rope_theta."
                )

    def summary(self) -> list[dict[str, Any]]:
        """One row a phase: stage, steps, tokens, batch, length, first and last learning rate, mix, RoPE's base and factor."""
        rows = []
        for phase in self.phases:
            stage = self.config.stages[phase.stage]
            rows.append(
                {
                    "stage": phase.stage,
                    "first_step": phase.first_step,
                    "steps": phase.steps,
                    "first_token": phase.first_token,
                    "tokens": phase.tokens,
                    "batch_tokens": phase.batch_tokens,
                    "rows": phase.rows,
                    "seq_len": phase.seq_len,
                    "first_lr": self.learning_rate(phase.first_step),
                    "last_lr": self.learning_rate(phase.first_step + phase.steps - 1),
                    "mix": phase.weights,
                    "rope_theta": stage.rope_theta,
                    "rope_factor": stage.rope_scaling.factor if stage.rope_scaling else None,
                }
            )
        return rows


def plan_summary(config: CurriculumConfig, mix: dict[str, float], lr: float) -> list[dict[str, Any]]:
    """The phases of a curriculum as rows, without allocating anything: for plans of runs that are not made here."""
    return Curriculum(config, mix, lr).summary()
