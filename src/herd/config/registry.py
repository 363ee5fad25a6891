"""A closed set of named choices: configuration says ``kind: adamw``, never an import path."""

from collections.abc import Callable
from typing import Generic, TypeVar

from herd.config.errors import UserError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps a name to the one thing that carries it.

    Args:
        kind: what is registered, in the singular, as error messages call it (``"optimizer"``).
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that enters its target under ``name``; a name can be taken once."""

        def enter(target: T) -> T:
            assert name not in self._entries, f"{self.kind} '{name}' is registered twice"
            self._entries[name] = target
            return target

        return enter

    def get(self, name: str) -> T:
        """Return the entry called ``name``; raises UserError naming the nearest and all choices."""
        if name not in self._entries:
            hint = nearest(str(name), self._entries)
            raise UserError(f"Unknown {self.kind} '{name}'.{hint} Choices: {', '.join(self.names())}.")
        return self._entries[name]

    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(sorted(self._entries))
