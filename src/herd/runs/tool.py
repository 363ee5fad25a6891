"""A command that is no stage: it prints, or writes where it is told, and leaves nothing in the store."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Tool:
    """One such command; ``conf/<name>.yaml`` holds its values."""

    name: str
    config: type  # frozen dataclass, the schema
    run: Callable[[Any], None]
    summary: str  # one line for `herd --help`
    # Keys whose value is taken as it stands, without Hydra's grammar; one that holds a list may be given repeatedly.
    verbatim: tuple[str, ...] = ()
    # What the help says beside the keys.
    help: str = ""
