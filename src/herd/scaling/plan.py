"""The plan of an IsoFLOP sweep: budgets -> sizes -> cells, each with its tokens, learning rate, batch and cost.

Llama 3, section 3.2.1: at each compute budget several model sizes are trained, with the tokens that use up the budget, the
peak learning rate chosen by size and the batch fixed per budget.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Optional

from herd.config.errors import UserError
from herd.config.loader import from_dict
from herd.model.config import ModelConfig
from herd.model.counts import flops_per_token, parameter_count
from herd.model.family import family_members
from herd.runs.atomic import sha256_json, write_json

# What a cell says about its model; everything else comes from the command that trains it.
SHAPE_KEYS = ("dim", "n_layers", "n_heads", "n_kv_heads", "ffn_dim", "tie_embeddings")


@dataclass(frozen=True)
class SizeRule:
    """Which model sizes a budget samples: `count` sizes, evenly spaced in the logarithm, about a guessed optimum."""

    count: int = 5  # sizes per budget
    span: float = 16.0  # largest size / smallest size within a budget
    centre_parameters: float = 1.3e5  # guessed compute-optimal parameters at centre_flops
    centre_flops: float = 1.0e12  # FLOPs
    centre_exponent: float = 0.5  # growth of the optimal size with compute

    def __post_init__(self) -> None:
        if self.count < 1 or self.span < 1 or self.centre_parameters <= 0 or self.centre_flops <= 0:
            raise UserError("sizes: count and span must be at least 1, centre_parameters and centre_flops above 0.")

    def sizes(self, budget: float) -> list[float]:
        """Target parameters for a budget in FLOPs, ascending."""
        centre = self.centre_parameters * (budget / self.centre_flops) ** self.centre_exponent
        if self.count == 1:
            return [centre]
        return [centre * self.span ** (i / (self.count - 1) - 0.5) for i in range(self.count)]


@dataclass(frozen=True)
class TrainingRule:
    """Peak learning rate by model size and batch by budget, both power laws within limits."""

    lr: float = 3e-3  # peak learning rate at lr_parameters
    lr_parameters: float = 3e5  # parameters
    lr_exponent: float = -0.6  # lr grows as parameters ^ lr_exponent
    lr_min: float = 1e-4
    lr_max: float = 6e-3
    batch_tokens: float = 1024  # tokens of one optimizer step at batch_flops
    batch_flops: float = 1e12  # FLOPs
    batch_exponent: float = 0.33  # the batch grows as compute ^ batch_exponent
    batch_min: int = 256  # tokens
    batch_max: int = 65536  # tokens
    min_steps: int = 100  # optimizer steps a run needs: a smaller batch is taken before a run is too short
    max_steps: int = 100000  # optimizer steps a run may take: a larger batch is taken before a run is too slow

    def __post_init__(self) -> None:
        if not 0 < self.lr_min <= self.lr_max or self.lr <= 0 or self.lr_parameters <= 0:
            raise UserError("training: learning rates must be above 0 and lr_min at most lr_max.")
        if not 0 < self.batch_min <= self.batch_max or self.batch_tokens <= 0 or self.batch_flops <= 0:
            raise UserError("training: batches must be above 0 and batch_min at most batch_max.")
        if not 0 < self.min_steps <= self.max_steps:
            raise UserError("training: min_steps must be above 0 and at most max_steps.")

    def learning_rate(self, parameters: float) -> float:
        """Peak learning rate of a model, three significant digits."""
        rate = self.lr * (parameters / self.lr_parameters) ** self.lr_exponent
        return float(f"{min(max(rate, self.lr_min), self.lr_max):.3g}")

    def batch(self, budget: float, tokens: float, seq_len: int) -> int:
        """Tokens of one optimizer step, a multiple of ``seq_len``: the budget's batch, within the limits on steps."""
        batch = self.batch_tokens * (budget / self.batch_flops) ** self.batch_exponent
        batch = min(max(batch, self.batch_min), self.batch_max)
        batch = min(max(batch, tokens / self.max_steps), tokens / self.min_steps)
        return max(round(batch / seq_len), 1) * seq_len


@dataclass(frozen=True)
class PlanConfig:
    """An IsoFLOP sweep: everything that decides its cells."""

    budgets: list[float]  # training compute of each IsoFLOP curve, FLOPs
    sizes: SizeRule = field(default_factory=SizeRule)
    training: TrainingRule = field(default_factory=TrainingRule)
    seq_len: int = 128  # tokens of a training sequence
    vocab_size: int = 0  # entries; 0 = the tokenizer's
    flops_convention: str = "6N"  # how FLOPs are counted: 6N | 6N+attention_full | 6N+attention_causal
    metric: str = "loss"  # the job's returned metric that is the cell's loss
    total_flops: Optional[float] = None  # noqa: UP045  (OmegaConf) compute the sweep may cost; costlier cells are dropped last first
    flops_per_second: float = 3e10  # training speed of one job, for the estimate of hours
    seconds_per_step: float = 4e-3  # overhead of one optimizer step, for the same estimate
    overrides: list[str] = field(default_factory=list)  # Hydra overrides that every cell gets

    def __post_init__(self) -> None:
        if not self.budgets or any(not (math.isfinite(b) and b > 0) for b in self.budgets):
            raise UserError(f"plan.budgets {list(self.budgets)}: give at least one number of FLOPs above 0.")
        if len(set(self.budgets)) != len(self.budgets):
            raise UserError(f"plan.budgets {list(self.budgets)}: each budget once.")
        if self.seq_len < 1 or self.vocab_size < 0 or self.flops_per_second <= 0:
            raise UserError("plan: seq_len and flops_per_second must be above 0, vocab_size at least 0.")


@dataclass(frozen=True)
class Cell:
    """One run of a sweep, with what it should cost."""

    id: str  # hash of the overrides: the same settings are the same cell
    budget: float  # FLOPs
    parameters: float  # in matrix products, output head included
    tokens: int
    flops: float
    flops_convention: str
    lr: float
    batch_tokens: int
    steps: int
    seconds: float  # estimated
    overrides: list[str]  # Hydra overrides, the plan's own included


@dataclass(frozen=True)
class Plan:
    """Cells to run, and what was left out."""

    cells: tuple[Cell, ...]  # by budget, then size
    dropped: tuple[str, ...]  # one line each
    metric: str = "loss"

    @property
    def flops(self) -> float:
        """Training compute of all cells."""
        return sum(cell.flops for cell in self.cells)

    @property
    def seconds(self) -> float:
        """Estimated time of all cells, one after the other."""
        return sum(cell.seconds for cell in self.cells)


def plan_cells(config: PlanConfig, vocab_size: int = 0) -> Plan:
    """Lay out the cells of a sweep.

    Args:
        config: the plan.
        vocab_size: the tokenizer's, used where ``config.vocab_size`` is 0.

    Raises:
        UserError: no vocabulary, or no cell left.
    """
    vocab = config.vocab_size or vocab_size
    if vocab < 1:
        raise UserError("A plan needs the vocabulary: give plan.vocab_size, or inputs.tokens=FOLDER of a tokenized corpus.")
    cells: list[Cell] = []
    dropped: list[str] = []
    for budget in sorted(config.budgets):
        for target, shape in _shapes(config, vocab, budget):
            where = f"{budget:.3g} FLOPs, {target:,.0f} parameters"
            if shape is None:
                dropped.append(f"{where}: the family of shapes has no further member within the span")
                continue
            cell = make_cell(config, shape, budget)
            if cell.steps < config.training.min_steps:
                dropped.append(f"{where}: {cell.steps} optimizer steps, fewer than {config.training.min_steps}")
                continue
            cells.append(cell)
    if config.total_flops is not None:
        cells, over = _within(cells, config.total_flops)
        dropped += [f"{c.budget:.3g} FLOPs, {c.parameters:,.0f} parameters: beyond total_flops" for c in over]
    if not cells:
        raise UserError(f"The plan has no cell left: {'; '.join(dropped[:3])}.")
    return Plan(tuple(cells), tuple(dropped), config.metric)


def _shapes(config: PlanConfig, vocab: int, budget: float) -> list[tuple[float, ModelConfig | None]]:
    """Each target size of a budget with its own member of the family, the nearest that no other target took; by size.

    Targets nearest to the guessed optimum choose first, among the members within the span (and a factor sqrt(2) more); so where
    the family is coarse or ends, the sizes still differ.
    """
    targets = config.sizes.sizes(budget)
    low, high = min(targets) / math.sqrt(2), max(targets) * math.sqrt(2)
    family = family_members(vocab, config.seq_len)
    members = {n: shape for shape in family if low <= (n := float(parameter_count(shape, "6N"))) <= high}
    centre = math.exp(sum(map(math.log, targets)) / len(targets))
    chosen: list[tuple[float, ModelConfig | None]] = []
    for target in sorted(targets, key=lambda size: abs(math.log(size / centre))):
        size = min(members, key=lambda n: abs(math.log(n / target)), default=None)
        chosen.append((target, members.pop(size) if size is not None else None))
    return sorted(chosen, key=lambda pair: parameter_count(pair[1], "6N") if pair[1] else pair[0])


def make_cell(config: PlanConfig, shape: ModelConfig, budget: float) -> Cell:
    """The cell that trains ``shape`` until ``budget`` FLOPs are spent."""
    per_token = flops_per_token(shape, config.seq_len, config.flops_convention)
    batch = config.training.batch(budget, budget / per_token, config.seq_len)
    steps = max(round(budget / per_token / batch), 1)
    tokens = steps * batch  # whole steps, so the budget is met to within half a step
    parameters = float(parameter_count(shape, "6N"))
    lr = config.training.learning_rate(parameters)
    overrides = [
        *config.overrides,
        *(f"model.{name}={_text(getattr(shape, name))}" for name in SHAPE_KEYS),
        f"curriculum.tokens={tokens}",
        f"curriculum.batch_tokens={batch}",
        f"optimizer.lr={lr:g}",
    ]
    return Cell(
        # A letter first: Hydra would read a bare 383e387056 as the number infinity.
        id=f"c{sha256_json(overrides)[:9]}",
        budget=budget,
        parameters=parameters,
        tokens=tokens,
        flops=tokens * per_token,
        flops_convention=config.flops_convention,
        lr=lr,
        batch_tokens=batch,
        steps=steps,
        seconds=tokens * per_token / config.flops_per_second + steps * config.seconds_per_step,
        overrides=overrides,
    )


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _within(cells: Sequence[Cell], total: float) -> tuple[list[Cell], list[Cell]]:
    """Cells that fit into ``total`` FLOPs, cheapest budgets first, and the rest."""
    kept: list[Cell] = []
    over: list[Cell] = []
    spent = 0.0
    for cell in cells:
        fits = spent + cell.flops <= total
        (kept if fits else over).append(cell)
        spent += cell.flops if fits else 0.0
    return kept, over


def write_plan(path: Path, plan: Plan) -> None:
    """Write ``cells.json``."""
    cells = [asdict(cell) for cell in plan.cells]
    totals = {"flops": plan.flops, "seconds": plan.seconds}
    write_json(path, {"cells": cells, "dropped": list(plan.dropped), "metric": plan.metric, "total": totals})


def read_plan(path: Path) -> Plan:
    """Read ``cells.json``; UserError when it is not one."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        cells = tuple(from_dict(Cell, cell) for cell in content["cells"])
        return Plan(cells, tuple(content["dropped"]), str(content["metric"]))
    except FileNotFoundError:
        raise UserError(f"No plan '{path}': make one with `herd scaling-plan`.") from None
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, IsADirectoryError) as error:
        raise UserError(f"'{path}' is not a plan of cells ({type(error).__name__}: {error}).") from None


def vocabulary_of(folder: Path) -> int:
    """Vocabulary size of a tokenized corpus (a finished `tokenize` folder)."""
    path = Path(folder) / "tokens" / "index.json"
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["vocab_size"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"'{folder}' holds no tokenized corpus: give inputs.tokens=FOLDER of `herd tokenize`.") from None
