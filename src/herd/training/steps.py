"""Data by optimizer step: what a step trains on is a pure function of its index.

There is no loader state to save or lose. A run that resumes at step ``s`` asks for step ``s``, whatever the number of
workers.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from herd.config.errors import UserError


class Unmade(Sequence[Any]):
    """Micro-batches that are made when they are asked for, so that a rank makes none but its own.

    Args:
        numbers: of the micro-batches, within their step.
        make: numbers -> these micro-batches, in this order.
    """

    def __init__(self, numbers: range, make: Callable[[range], Iterable[Any]]) -> None:
        self.numbers, self.make = numbers, make

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Unmade(self.numbers[index], self.make)
        return next(iter(self.make(range(self.numbers[index], self.numbers[index] + 1))))

    def __iter__(self) -> Iterator[Any]:
        return iter(self.make(self.numbers))


@dataclass(frozen=True)
class Filler:
    """A micro-batch for a rank that has one less than the others: its passes are made, in which ranks meet, and count nothing."""

    micro_batch: Any  # some micro-batch of the same step


@dataclass(frozen=True)
class StepBatch:
    """Everything one optimizer step trains on.

    The loss of the step is the sum of its micro-batches' summed losses, divided by ``normalizer``; so cutting the same
    examples into more micro-batches, or over more ranks, does not change it.
    """

    step: int  # index of the optimizer step, from 0
    micro_batches: Sequence[Any]  # of the global batch, or of one rank, and made, after `for_rank`
    normalizer: float  # what the summed loss of the GLOBAL batch is divided by: target tokens, or pairs
    tokens: int  # input tokens of the GLOBAL batch, as the papers count them
    # What the step costs, see herd.training.meters; of the GLOBAL batch.
    squares: int = 0  # sum of the squared lengths of the documents; a prompt that responses share is one of them, and counts once
    row_squares: int = 0  # sum over the tokens of the length of the row that each lies in; 0 = the cost is not known
    predicted: int | None = None  # tokens at which the output head is applied; None = all

    def pin_memory(self) -> "StepBatch":
        """The same batch in page-locked memory (DataLoader calls this), where its micro-batches know how."""
        pinned = [m.pin_memory() if hasattr(m, "pin_memory") else m for m in self.micro_batches]
        return replace(self, micro_batches=pinned)

    def for_rank(self, rank: int, world: int) -> "StepBatch":
        """The share of one data-parallel rank, made; all get equally many micro-batches, the last perhaps a :class:`Filler`."""
        share = list(self.micro_batches[rank::world])
        if len(share) < -(-len(self.micro_batches) // world):
            share.append(Filler(share[-1] if share else self.micro_batches[0]))
        return replace(self, micro_batches=share)

    def check_shares(self, world: int) -> None:
        """UserError when so many ranks cannot share the step equally, so that some would be idle in every step like it.

        However it is cut: what cuts it has looked for micro-batches that can be shared.
        """
        count = len(self.micro_batches)
        if count % world:
            raise UserError(
                f"batch_size cannot be shared equally by {world} processes (a step has {count} "
                f"micro-batch{'es' if count > 1 else ''}, however it is cut): make it a multiple of {world}."
            )


class StepSource(Protocol):
    """A finite sequence of optimizer steps. ``source[step]`` must be a pure function of ``step``."""

    def __len__(self) -> int:
        """Number of optimizer steps in all."""
        ...

    def __getitem__(self, step: int) -> StepBatch:
        """The global batch of one step. Its figures are of all ranks; what is dear to make of its micro-batches is
        :class:`Unmade`.
        """
        ...

    def tokens_at(self, step: int) -> int:
        """Input tokens seen before step ``step``, hence after ``step`` finished steps; ``tokens_at(len(self))`` is
        the total.
        """
        ...


class StepDataset(IterableDataset[StepBatch]):
    """Streams steps ``first, first + 1, ...`` of a source; worker ``w`` of ``n`` makes every n-th of them.

    The loader asks its workers in turn, so the order of steps is the same for any number of workers.
    """

    def __init__(self, source: StepSource, first: int, rank: int = 0, world: int = 1) -> None:
        self.source, self.first, self.rank, self.world = source, first, rank, world

    def __iter__(self) -> Iterator[StepBatch]:
        worker = get_worker_info()
        offset, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        for step in range(self.first + offset, len(self.source), stride):
            yield self.source[step].for_rank(self.rank, self.world)


def step_loader(
    source: StepSource, first: int, num_workers: int = 0, rank: int = 0, world: int = 1, pin_memory: bool = False
) -> DataLoader[StepBatch]:
    """A loader that yields the StepBatches from ``first`` on, one at a time.

    It has no length on purpose: Lightning compares a length with the steps counted over the whole run, resumed part
    included, and would stop early.
    """
    return DataLoader(
        StepDataset(source, first, rank, world),
        batch_size=None,
        num_workers=num_workers,
        prefetch_factor=4 if num_workers else None,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # or the loader would draw its base seed from the global generator
    )


def to_device(value: Any, device: torch.device) -> Any:
    """Copy the tensors of a micro-batch (a tensor, dataclass, dict, list or tuple of them) to ``device``; others
    pass.
    """
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {f.name: to_device(getattr(value, f.name), device) for f in dataclasses.fields(value) if f.init}
        return replace(value, **changed)
    if isinstance(value, dict):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, list):
        return [to_device(item, device) for item in value]
    if isinstance(value, tuple) and any(isinstance(item, torch.Tensor) for item in value):
        return tuple(to_device(item, device) for item in value)
    return value
