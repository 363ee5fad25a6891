"""One stage of a recipe, and the stages that a pattern stands for."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby

from herd.config.errors import UserError


@dataclass(frozen=True)
class Node:
    """One stage of a recipe."""

    command: str = ""  # the stage command
    overrides: list[str] = field(default_factory=list)  # Hydra overrides of its configuration
    extra: list[str] = field(default_factory=list)  # the user's own overrides, applied last
    inputs: dict[str, str] = field(default_factory=dict)  # input -> node
    # Input group -> {label: node}. A node with a * stands for the earlier stages that match; the label's * for the same text.
    groups: dict[str, dict[str, str]] = field(default_factory=dict)

    def needs(self) -> list[str]:
        """Names of the nodes that must be finished first."""
        return [*self.inputs.values(), *(node for group in self.groups.values() for node in group.values())]

    def changed_by(self, other: "Node") -> "Node":
        """This stage with the overrides of ``other`` after its own, and its inputs in place of those of the same name."""
        groups = {name: self.groups.get(name, {}) | group for name, group in other.groups.items()}
        return replace(
            self,
            overrides=[*self.overrides, *other.overrides],
            extra=[*self.extra, *other.extra],
            inputs=self.inputs | other.inputs,
            groups=self.groups | groups,
        )

    def spelled_out(self, name: str, earlier: Iterable[str]) -> "Node":
        """This stage with every pattern of its groups replaced by the stages that it stands for, in the order they run.

        Raises:
            UserError: a pattern matches none of ``earlier``.
        """
        names = list(earlier)
        groups = {key: dict(_matches(f"stage '{name}', groups.{key}", group, names)) for key, group in self.groups.items()}
        return replace(self, groups=groups)


def _matches(where: str, group: dict[str, str], earlier: list[str]) -> Iterator[tuple[str, str]]:
    """(label, node) of a group; neighbouring patterns are taken together, so that the stages keep their order."""
    for patterned, entries in groupby(group.items(), key=lambda entry: "*" in entry[1]):
        if not patterned:
            yield from entries
            continue
        patterns = [(label, node, re.compile(re.escape(node).replace(r"\*", "(.*)"))) for label, node in entries]
        for _, node, pattern in patterns:
            if not any(map(pattern.fullmatch, earlier)):
                raise UserError(f"{where}: no earlier stage matches '{node}'.")
        for name in earlier:
            found = next(((label, m[1]) for label, _, pattern in patterns if (m := pattern.fullmatch(name))), None)
            if found:
                yield found[0].replace("*", found[1]), name
