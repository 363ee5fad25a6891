"""The plan of an IsoFLOP sweep: budgets -> sizes -> cells, each with its tokens, learning rate, batch and cost.

Llama 3, section 3.2.1: at each compute budget several model sizes are trained, with the tokens that use up the budget, the
peak learning rate chosen by size and the batch fixed per budget.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Optional

from herd.config.errors import UserError
from herd.config.loader import from_dict
from herd.model.config import ModelConfig
from herd.model.counts import flops_per_token, parameter_count, parameter_parts
from herd.model.family import family_members
from herd.runs.atomic import sha256_json, write_json
from herd.scaling.sweep.plan_rules import SizeRule, SpeedRule, TrainingRule

# What a cell says about its model; everything else comes from the command that trains it.
SHAPE_KEYS = ("dim", "n_layers", "n_heads", "n_kv_heads", "ffn_dim", "tie_embeddings")


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
    seeds: list[int] = field(default_factory=list)  # each cell once with each seed; empty = once, with the command's own
    total_flops: Optional[float] = None  # noqa: UP045  (OmegaConf) compute the sweep may cost; what is beyond is dropped
    total_hours: Optional[float] = None  # noqa: UP045  hours of one job that the sweep may take, cell after cell
    speed: SpeedRule = field(default_factory=SpeedRule)  # group conf/speed: hardware of one job, for the estimate of hours
    overrides: list[str] = field(default_factory=list)  # Hydra overrides that every cell gets

    def __post_init__(self) -> None:
        if not self.budgets or any(not (math.isfinite(b) and b > 0) for b in self.budgets):
            raise UserError(f"plan.budgets {list(self.budgets)}: give at least one number of FLOPs above 0.")
        if len(set(self.budgets)) != len(self.budgets):
            raise UserError(f"plan.budgets {list(self.budgets)}: each budget once.")
        if self.seq_len < 1 or self.vocab_size < 0:
            raise UserError("plan: seq_len must be above 0, vocab_size at least 0.")
        if len(set(self.seeds)) != len(self.seeds):
            raise UserError(f"plan.seeds {list(self.seeds)}: each seed once.")
        for name in ("total_flops", "total_hours"):
            limit = getattr(self, name)
            if limit is not None and not limit > 0:
                raise UserError(f"plan.{name} {limit}: give a number above 0, or null for no limit.")


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
    seed: Optional[int] = None  # noqa: UP045  of weights and data order; null = the command's own
    # What a record of the run says about its model, so that its FLOPs can be counted anew; null in plans made elsewhere.
    block_parameters: Optional[int] = None  # noqa: UP045  matrices of the layers
    head_parameters: Optional[int] = None  # noqa: UP045  output head
    embedding_parameters: Optional[int] = None  # noqa: UP045  input embedding; 0 where the head is tied to it
    layers: Optional[int] = None  # noqa: UP045
    width: Optional[int] = None  # noqa: UP045  model width
    seq_len: Optional[int] = None  # noqa: UP045  tokens that attend to each other


@dataclass(frozen=True)
class Plan:
    """Cells to run, and what was left out."""

    cells: tuple[Cell, ...]  # by budget, then size
    dropped: tuple[str, ...]  # one line each: which cell, and why
    metric: str = "loss"
    speed: str = ""  # what the estimated hours assume

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
            cells += [with_seed(cell, seed) for seed in config.seeds] if config.seeds else [cell]
    cells, over = _within(cells, config)
    dropped += over
    if not cells:
        raise UserError(f"The plan has no cell left: {'; '.join(dropped[:3])}.")
    return Plan(tuple(cells), tuple(dropped), config.metric, config.speed.describe())


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
    parameters, parts = float(parameter_count(shape, "6N")), parameter_parts(shape)
    lr = config.training.learning_rate(parameters)
    overrides = [
        *config.overrides,
        *(f"model.{name}={_text(getattr(shape, name))}" for name in SHAPE_KEYS),
        f"curriculum.tokens={tokens}",
        f"curriculum.batch_tokens={batch}",
        f"optimizer.lr={lr:g}",
    ]
    return Cell(
        id=_id(overrides),
        budget=budget,
        parameters=parameters,
        tokens=tokens,
        flops=tokens * per_token,
        flops_convention=config.flops_convention,
        lr=lr,
        batch_tokens=batch,
        steps=steps,
        seconds=config.speed.seconds(tokens * per_token, steps),
        overrides=overrides,
        block_parameters=parts.blocks,
        head_parameters=parts.head,
        embedding_parameters=parts.embedding,
        layers=shape.n_layers,
        width=shape.dim,
        seq_len=config.seq_len,
    )


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def with_seed(cell: Cell, seed: int) -> Cell:
    """The same cell with weights and data order of ``seed``: another cell, whose loss shows what a seed is worth."""
    return replace(with_overrides(cell, [f"seed={seed}"]), seed=seed)


def with_overrides(cell: Cell, more: Sequence[str]) -> Cell:
    """The same cell trained with further Hydra overrides: another cell."""
    overrides = [*cell.overrides, *more]
    return replace(cell, id=_id(overrides), overrides=overrides)


def _id(overrides: Sequence[str]) -> str:
    # A letter first: Hydra would read a bare 383e387056 as the number infinity.
    return f"c{sha256_json(list(overrides))[:9]}"


def _within(cells: Sequence[Cell], config: PlanConfig) -> tuple[list[Cell], list[str]]:
    """Cells that fit into the plan's limits, cheapest budgets first, and a line for each of the others."""
    kept: list[Cell] = []
    over: list[str] = []
    flops = hours = 0.0
    for cell in cells:
        own = cell.seconds / 3600
        where = f"{cell.budget:.3g} FLOPs, {cell.parameters:,.0f} parameters"
        if config.total_flops is not None and flops + cell.flops > config.total_flops:
            over.append(f"{where}: its {cell.flops:.3g} FLOPs beside {flops:.3g} of other cells are beyond total_flops")
        elif config.total_hours is not None and hours + own > config.total_hours:
            over.append(f"{where}: its {own:.3g} hours beside {hours:.3g} of other cells are beyond total_hours")
        else:
            kept.append(cell)
            flops, hours = flops + cell.flops, hours + own
    return kept, over


def write_plan(path: Path, plan: Plan) -> None:
    """Write ``cells.json``."""
    cells = [asdict(cell) for cell in plan.cells]
    totals = {"flops": plan.flops, "seconds": plan.seconds}
    content = {"cells": cells, "dropped": list(plan.dropped), "metric": plan.metric, "speed": plan.speed, "total": totals}
    write_json(path, content)


def read_plan(path: Path) -> Plan:
    """Read ``cells.json``; UserError when it is not one."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        cells = tuple(from_dict(Cell, cell) for cell in content["cells"])
        return Plan(cells, tuple(content["dropped"]), str(content["metric"]), str(content.get("speed", "")))
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
