"""The lock of an address of the store; it goes with the process that holds it, however that ends."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from herd.config.errors import UserError


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time works on what is to become ``folder``; UserError where there is no place for it."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"'{folder.parent}' cannot be made ({error.strerror}): choose another run.root.") from error
    with open(_path(folder), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_locked(folder: Path) -> bool:
    """Whether some process works on ``folder`` now."""
    try:
        descriptor = os.open(_path(folder), os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _path(folder: Path) -> Path:
    return folder.with_name(f".lock-{folder.name}")
