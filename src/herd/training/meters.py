"""What a step costs: floating-point operations under named conventions, where its time goes, memory and energy."""

import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from herd.model.config import ModelConfig
from herd.model.counts import flops_per_token, parameter_parts
from herd.training.steps import StepBatch


@dataclass(frozen=True)
class Flops:
    """Operations of training on some tokens, forward and backward, a multiply-add counted as two.

    All three count six for each weight in a matrix product and token that goes through it (through the output head, where not
    every token is predicted, those that are), and differ in attention's scores and values. Nothing that is computed a second
    time counts, nor a pass without gradients: DPO's reference is computed before training.
    """

    full: float  # the whole square of each row (PaLM, app. B): what most published figures count
    causal: float  # the half of it under the diagonal
    document: float  # that half of each document's own square: what the loss depends on; a shared prompt counts once

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.full + other.full, self.causal + other.causal, self.document + other.document)


NO_FLOPS = Flops(0.0, 0.0, 0.0)


def transformer_flops(config: ModelConfig, batch: StepBatch) -> Flops:
    """Operations of one forward and backward pass over a step's rows, over all ranks.

    With responses R1, R2, ... behind one prompt P, ``squares`` holds (P + R1)^2 + (P + R2)^2 + ... less P^2 for each response but
    the first: the pairs of tokens that see each other, twice.
    """
    if not batch.tokens:
        return NO_FLOPS
    # Attention is linear in the length that a token sees, so rows and documents count as ones of their mean length, weighted by
    # tokens.
    row, document = batch.row_squares / batch.tokens, batch.squares / batch.tokens
    unpredicted = batch.tokens - batch.predicted if batch.predicted is not None else 0
    left_out = 6.0 * parameter_parts(config).head * unpredicted
    return Flops(
        batch.tokens * flops_per_token(config, row, "6N+attention_full") - left_out,
        batch.tokens * flops_per_token(config, row, "6N+attention_causal") - left_out,
        batch.tokens * flops_per_token(config, document, "6N+attention_causal") - left_out,
    )


class StepClock:
    """Seconds by what they were spent on, between one reading and the next.

    On a GPU the host runs ahead, so marks are put into the device's own queue and read when a row of metrics waits for it anyway;
    ``data`` is then the time in which the device had nothing to do.
    """

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._seconds: dict[str, float] = defaultdict(float)
        self._marks: list[tuple[str, torch.cuda.Event]] = []

    def lap(self, name: str, device: torch.device) -> None:
        """What happened since the last lap was ``name``."""
        if device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((name, event))
            return
        now = time.perf_counter()
        self._seconds[name] += now - self._last
        self._last = now

    def read(self) -> dict[str, float]:
        """Seconds by name since the last reading."""
        if self._marks:
            self._marks[-1][1].synchronize()
            for (_, before), (name, after) in zip(self._marks, self._marks[1:], strict=False):
                self._seconds[name] += before.elapsed_time(after) / 1000
            self._marks = self._marks[-1:]
        seconds, self._seconds = dict(self._seconds), defaultdict(float)
        return seconds


def memory(device: torch.device) -> dict[str, int]:
    """Bytes that this process holds: resident on the host, and on a GPU the most allocated and reserved so far."""
    held = {"memory_bytes": psutil.Process().memory_info().rss}
    if device.type == "cuda":
        held["device_memory_allocated_bytes"] = torch.cuda.max_memory_allocated(device)
        held["device_memory_reserved_bytes"] = torch.cuda.max_memory_reserved(device)
    return held


class Energy:
    """Joules that a GPU has used between one reading and the next, where its driver counts them (NVML, package nvidia-ml-py)."""

    def __init__(self, device: torch.device) -> None:
        self._handle, self._nvml = _nvml_handle(device)
        self._before = self._total()

    def read(self) -> dict[str, float]:
        """``device_energy_joules``, or nothing where it is not known."""
        total, before = self._total(), self._before
        self._before = total
        return {} if total is None or before is None else {"device_energy_joules": round(total - before, 3)}

    def _total(self) -> float | None:
        if self._nvml is None:
            return None
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1000
        except self._nvml.NVMLError:  # older than Volta
            return None


def _nvml_handle(device: torch.device) -> tuple[Any, Any]:
    """(handle, module) of a GPU, or (None, None)."""
    if device.type != "cuda":
        return None, None
    try:
        import pynvml
    except ImportError:
        return None, None
    try:
        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        return pynvml.nvmlDeviceGetHandleByUUID(uuid), pynvml
    except pynvml.NVMLError:
        return None, None
