"""The device that a person names."""

import torch

from herd.config.errors import UserError


def find_device(name: str) -> torch.device:
    """``cpu``, ``cuda``, ``cuda:1``, ``mps``; UserError when torch cannot use it here."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device='{name}' is not available here ({str(error).splitlines()[0]}): use cpu.") from error
    return device
