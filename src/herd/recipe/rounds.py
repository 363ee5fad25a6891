"""Rounds of post-training, declared once: what one round is, and how the next one takes over from it (section 4.1.6).

A round is preferences -> reward model -> rejection sampling -> SFT -> DPO (several variants) -> their average -> the best
checkpoint of each kind of task. Preferences compare answers of two models of the round before; the reward model learns
from the preferences of all rounds, DPO from the newest alone; SFT starts from the pre-trained model on the seed dialogs and
all rounds' rejection-sampled rows, which the best checkpoint of each kind of task has written.

Reward model and SFT may be means too (section 4.1.5): with ``members`` each of theirs is trained as a stage of its own, and
``reward`` or ``sft`` is their average, measured beside each member on the round's held-out pairs or references.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from herd.config.errors import UserError, nearest
from herd.recipe.node import Node

COMMANDS = ("preferences", "reward", "reject", "sft", "dpo", "average", "best")
AVERAGED = ("reward", "sft")  # may be the mean of members


@dataclass(frozen=True)
class RoundsConfig:
    """Schema of ``rounds`` in a recipe; the stages are named ``round-<number>/<stage>``."""

    count: int  # how many
    after: str  # the stage that they follow: its model, fine-tuned on seed dialogs alone, answers the first round's prompts
    prompts: dict[str, list[int]]  # preferences, reject: training prompts, a number a round; the last stands for all later ones
    variants: dict[str, list[str]]  # of DPO: stage -> its overrides; two or more are averaged
    candidates: list[str]  # stages of a round whose models may be its best; also answer the next round's preferences
    overrides: dict[str, list[str]] = field(default_factory=dict)  # command -> overrides in every round
    each: dict[str, dict[str, list[str]]] = field(default_factory=dict)  # round-<number> -> stage -> overrides there, after those
    # reward, sft -> stage -> its overrides, as `variants` are of DPO: two or more are trained, and their mean is the round's
    members: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    first_models: dict[str, str] = field(default_factory=dict)  # models of the first preferences; none: flawed references

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"rounds.count must be at least 1, not {self.count}")
        for name in self.overrides:
            _known(f"rounds.overrides.{name}", name, COMMANDS)
        for name, numbers in self.prompts.items():
            _known(f"rounds.prompts.{name}", name, ("preferences", "reject"))
            if not numbers or min(numbers) < 1:
                raise UserError(f"rounds.prompts.{name}: give one number or more, each at least 1, not {numbers}")
        if len(self.prompts) < 2:
            raise UserError("rounds.prompts: give both preferences and reject, e.g. {preferences: [700], reject: [150]}")
        if not self.variants or {*self.variants} & {*COMMANDS} - {"dpo"}:
            raise UserError(f"rounds.variants: name one DPO stage or more, none as another stage of a round: {[*self.variants]}")
        taken = {*COMMANDS, *self.variants}
        for command, members in self.members.items():
            _known(f"rounds.members.{command}", command, AVERAGED)
            if len(members) < 2 or {*members} & taken:
                raise UserError(
                    f"rounds.members.{command}: name two stages or more, none as another stage of a round, "
                    f"e.g. {{{command}-a: [seed=0], {command}-b: [seed=1]}}, not {[*members]}"
                )
            taken |= {*members}
        trained = ["sft", *self.variants, *(["average"] if self.averaged else [])]
        for name in self.candidates:
            _known("rounds.candidates", name, trained)
        if len(set(self.candidates)) < 2:
            raise UserError("rounds.candidates: give two or more, preferences compare two different models")
        for one, stages in self.each.items():
            if not re.fullmatch(r"round-[1-9]\d*", one):  # one beyond `count` waits for its round
                raise UserError(f"rounds.each.{one}: name a round, as round-{self.count}")
            for name in stages:
                _known(f"rounds.each.{one}.{name}", name, [*COMMANDS, *self._settings])
        for number in range(1, self.count + 1):
            self._require_different("rounds.variants", number, "dpo", self.variants)
            for command, members in self.members.items():
                self._require_different(f"rounds.members.{command}", number, command, members)

    @property
    def averaged(self) -> bool:
        """Whether a round ends with a mean of weights."""
        return len(self.variants) > 1

    @property
    def _settings(self) -> dict[str, list[str]]:
        """Stage -> its own overrides, of all that are trained in several variants."""
        return self.variants | {name: own for members in self.members.values() for name, own in members.items()}

    def nodes(self) -> dict[str, Node]:
        """The stages of all rounds, in the order they run."""
        return {name: node for number in range(1, self.count + 1) for name, node in self._round(number)}

    def _round(self, r: int) -> Iterator[tuple[str, Node]]:
        so_far = [f"round-{i}" for i in range(1, r + 1)]
        this, before = so_far[-1], f"round-{r - 1}"
        tokens, dialogs, base = {"tokens": "tokenize"}, {"dialogs": "dialogs"}, {"base": "pretrain"}
        models = {name: f"{before}/{name}" for name in self.candidates} if r > 1 else self.first_models
        best = {"best": f"{before}/best"} if r > 1 else {}

        yield self._stage(r, "preferences", dialogs | (tokens | best if models else {}), {"models": models} if models else {})
        known = {"preferences": {one: f"{one}/preferences" for one in so_far}}
        yield from self._trained(r, "reward", tokens | base, known, {"preferences": f"{this}/preferences"})
        writer = best if r > 1 else {"generator": self.after}
        yield self._stage(
            r,
            "reject",
            tokens | writer | {"reward": f"{this}/reward", "prompts": "dialogs"},
            {"models": models} if r > 1 else {},
        )
        rows = {"seed": "dialogs"} | {one: f"{one}/reject" for one in so_far}
        heldout = {"heldout": "dialogs"}
        yield from self._trained(r, "sft", tokens | base | heldout, {"dialogs": rows}, heldout)
        for name in self.variants:
            yield self._stage(r, "dpo", tokens | {"model": f"{this}/sft", "preferences": f"{this}/preferences"}, {}, name)
        if self.averaged:
            measured = {"preferences": f"{this}/preferences", "reference": f"{this}/sft"}
            yield self._stage(r, "average", tokens | measured, {"models": {name: f"{this}/{name}" for name in self.variants}})
        candidates = {name: f"{this}/{name}" for name in self.candidates}
        yield self._stage(r, "best", tokens | {"prompts": "dialogs", "reward": f"{this}/reward"}, {"models": candidates})

    def _trained(
        self, r: int, command: str, inputs: dict[str, str], groups: dict[str, dict[str, str]], measured: dict[str, str]
    ) -> Iterator[tuple[str, Node]]:
        """The stage, or its members and the mean that stands for it; ``measured``: what the mean is held against."""
        members = self.members.get(command)
        if not members:
            yield self._stage(r, command, inputs, groups)
            return
        for name in members:
            yield self._stage(r, command, inputs, groups, name)
        mean = Node("average", self.overrides.get("average", []), inputs={"tokens": inputs["tokens"]} | measured)
        yield f"round-{r}/{command}", replace(mean, groups={"models": {name: f"round-{r}/{name}" for name in members}})

    def _require_different(self, where: str, r: int, command: str, stages: Iterable[str]) -> None:
        """UserError for two variants of the same settings, which are one model: their mean would be that model."""
        seen: dict[tuple[str, ...], str] = {}
        for name in stages:
            _, node = self._stage(r, command, {}, {}, name)
            first = seen.setdefault(tuple(node.overrides), name)
            if first != name:
                raise UserError(
                    f"{where}: {first} and {name} have the same overrides in round {r}, so they are one model: "
                    f"give {name} something of its own, e.g. [seed=1]"
                )

    def _stage(
        self, r: int, command: str, inputs: dict[str, str], groups: dict[str, dict[str, str]], name: str = ""
    ) -> tuple[str, Node]:
        one = self.each.get(f"round-{r}", {})
        overrides = [*self._prompts(r, command), *self.overrides.get(command, []), *one.get(command, [])]
        if name:
            overrides += self._settings[name] + (one.get(name, []) if name != command else [])
        return f"round-{r}/{name or command}", Node(command, overrides, inputs=inputs, groups=groups)

    def _prompts(self, r: int, command: str) -> list[str]:
        """Which training prompts the stage takes: none that another takes, and the same whatever rounds follow."""
        if command not in self.prompts:
            return []
        taken = sum(self._number(i, kind) for i in range(1, r) for kind in ("preferences", "reject"))
        first = taken + (self._number(r, "preferences") if command == "reject" else 0)
        return [f"first_prompt={first}", f"prompts={self._number(r, command)}"]

    def _number(self, r: int, command: str) -> int:
        numbers = self.prompts[command]
        return numbers[min(r, len(numbers)) - 1]


def _known(where: str, name: str, known: tuple[str, ...] | list[str]) -> None:
    if name not in known:
        raise UserError(f"{where}: there is no '{name}' here.{nearest(name, known)} Choices: {', '.join(known)}.")
