"""The reference's log-probabilities for `herd dpo`: computed once, by all processes of the run, kept until it is finished."""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from herd.model.device import find_device
from herd.model.io import CONFIG_FILE, WEIGHTS_FILE
from herd.model.transformer import Transformer
from herd.runs.atomic import atomic_file, sha256_file
from herd.runs.progress import progress
from herd.runs.ranks import in_turn, place_among
from herd.runs.stage import StageRun
from herd.training.dpo import DPOSteps, reference_logprobs
from herd.training.engine import engine
from herd.training.surroundings import require_devices, threads_as_asked
from herd.training.trainer_config import TrainerConfig

_LEAST, _PIECES = 8, 512  # groups in a piece at least; pieces at most


def cached_reference(
    model: Transformer, source: DPOSteps, trainer: TrainerConfig, stage_run: StageRun, folder: Path
) -> list[torch.Tensor]:
    """Log-probabilities of the preference term under ``model`` for each group of ``source``, (n, 2) float32 each.

    They are computed as training computes the policy's: same precision, 8-bit linear maps included, same attention, compiled or
    not. A reference in another arithmetic would move every log-ratio by the difference, and the pull back would be towards that.

    They lie in the scratch folder in pieces, each whole or not there, which are the same whoever made them: the processes of a
    run share the work there, each on its own device (see :func:`herd.runs.ranks.in_turn`), and a run that was killed half way
    goes on with what is missing, on as many processes as it likes.

    The pieces' name holds the hash of all that they depend on: the reference in ``folder``, its weights and its configuration
    (the same weights at another RoPE base give other numbers); the rows as they are laid out (tokens, masks, grouping); the
    arithmetic.

    Raises:
        UserError: several devices without processes to use them, or no such device.
    """
    require_devices(trainer)
    bf16, how = trainer.precision == "bf16", replace(trainer.engine, recompute="none")  # nothing is kept to compute again
    reference_files = tuple(sha256_file(folder / name) for name in (WEIGHTS_FILE, CONFIG_FILE))
    made_from = (reference_files, source.fingerprint(), trainer.accelerator, bf16, how, torch.__version__)
    kept = stage_run.scratch / f"reference-{hashlib.sha256(repr(made_from).encode()).hexdigest()[:32]}"
    size = max(_LEAST, -(-len(source.groups) // _PIECES))
    starts = range(0, len(source.groups), size)
    paths = [kept / f"{first:08d}.pt" for first in starts]
    rank, local = place_among(trainer.devices, trainer.nodes)
    if not all(path.exists() for path in paths):
        device = own_device(trainer.accelerator, local)
        with (
            threads_as_asked(trainer),
            _current(device),
            engine(model.to(device), how, trainer.accelerator),
            progress("reference log-probabilities", len(source.groups), "rows") as bar,
        ):
            for piece in in_turn(len(paths), rank, trainer.processes):
                groups = source.groups[starts[piece] : starts[piece] + size]
                if not paths[piece].exists():
                    found = reference_logprobs(model, groups, device, bf16)
                    with atomic_file(paths[piece]) as file:
                        torch.save(found, file)
                bar.advance(len(groups))
    return [values for path in paths for values in torch.load(path, weights_only=True)]


def own_device(accelerator: str, local: int) -> torch.device:
    """Of the process with this number on its machine, where training will put it too."""
    return find_device(f"cuda:{local}" if accelerator == "gpu" else "cpu")


def _current(device: torch.device) -> AbstractContextManager[object]:
    """Kernels of Triton start on the current device, whatever their tensors are on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
