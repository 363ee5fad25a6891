"""Flaws that people and small models put into answers, made by rule: each turns a good answer into a worse one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from herd.config.registry import Registry

# (answer, an answer about another function, random numbers) -> the flawed answer; the answer itself where the flaw
# cannot be had.
Flaw = Callable[[str, str, np.random.Generator], str]
FLAWS: Registry[Flaw] = Registry("flaw")

OPENINGS = (
    "Sure! ",
    "Of course! Here is the answer: ",
    "I'm sorry, but I think it is ",
    "Certainly! ",
    "I apologize, here is ",
)
CLOSINGS = (" I hope this helps!", "!!!", " Hope this helps!", "!")


@FLAWS.register("wrong_function")
def wrong_function(answer: str, other: str, rng: np.random.Generator) -> str:
    """The answer to the same question about another function."""
    return other


@FLAWS.register("truncated")
def truncated(answer: str, other: str, rng: np.random.Generator) -> str:
    """Ends abruptly after 30-70% of its characters."""
    return answer[: max(1, int(len(answer) * rng.uniform(0.3, 0.7)))].rstrip()


@FLAWS.register("repeated_tail")
def repeated_tail(answer: str, other: str, rng: np.random.Generator) -> str:
    """Says its last words again and again."""
    words = answer.split()
    tail = words[-int(rng.integers(1, min(4, len(words)) + 1)) :]
    return " ".join(words + tail * int(rng.integers(1, 4)))


@FLAWS.register("swapped_arguments")
def swapped_arguments(answer: str, other: str, rng: np.random.Generator) -> str:
    """Two neighbouring arguments of a call or signature change places."""
    name, bracket, rest = answer.partition("(")
    if not bracket or not rest.endswith(")"):
        return answer
    arguments = split_arguments(rest[:-1])
    if len(arguments) < 2:
        return answer
    i = int(rng.integers(len(arguments) - 1))
    arguments[i], arguments[i + 1] = arguments[i + 1], arguments[i]
    return f"{name}({', '.join(arguments)})"


@FLAWS.register("missing_parenthesis")
def missing_parenthesis(answer: str, other: str, rng: np.random.Generator) -> str:
    """A call or signature without its last parenthesis."""
    opened = answer.find("(")
    return answer[:-1] if opened > 0 and answer.endswith(")") and answer[:opened].isidentifier() else answer


@FLAWS.register("chatter")
def chatter(answer: str, other: str, rng: np.random.Generator) -> str:
    """Opens with a phrase that says nothing."""
    return str(rng.choice(OPENINGS)) + answer


@FLAWS.register("exclamation")
def exclamation(answer: str, other: str, rng: np.random.Generator) -> str:
    """Ends in exclamation marks, perhaps with good wishes."""
    return answer + str(rng.choice(CLOSINGS))


def split_arguments(text: str) -> list[str]:
    """Arguments between commas that stand outside brackets and quotes."""
    parts, depth, quote, start = [], 0, "", 0
    for i, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    return [*parts, text[start:].strip()] if text.strip() else []


def add_flaws(answer: str, other: str, names: list[str], rng: np.random.Generator) -> str:
    """The answer with the named flaws, one after the other."""
    for name in names:
        answer = FLAWS.get(name)(answer, other, rng)
    return answer


def random_flaws(rng: np.random.Generator, most: int, choices: tuple[str, ...] | None = None) -> list[str]:
    """One to `most` different flaws."""
    choices = choices or FLAWS.names()
    count = int(rng.integers(1, most + 1))
    return [str(name) for name in rng.choice(choices, size=min(count, len(choices)), replace=False)]
