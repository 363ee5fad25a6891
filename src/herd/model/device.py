"""The device that a person names."""

import torch

from herd.config.errors import UserError


def find_device(name: str) -> torch.device:
    """``cpu``, ``cuda``, ``cuda:1``, ``mps``; UserError when torch cannot use it here."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device='{name}' is not available here: use {', '.join(_usable())}.") from error
    return device


def _usable() -> list[str]:
    """What a device may be called on this machine."""
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return ["cpu", *(["cuda"] if gpus else []), *gpus, *(["mps"] if torch.backends.mps.is_available() else [])]
