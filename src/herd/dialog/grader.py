"""A grader with a known rule, in the place of human annotators.

The score of an answer in [0, 1] is a mean of its correctness (token F1, exact signature, the same call) and of its being the
right kind of thing at all (a sentence, a signature, a call), times a factor for each flaw of form (unfinished, chatter,
exclamation marks, a repeated tail, far too long). The difference of two scores gives the paper's four grades. Answers are
parsed, never executed.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from herd.config.errors import UserError
from herd.dialog.preferences import Grade

CHATTER = (
    "sure",
    "i'm sorry",
    "i am sorry",
    "i apologize",
    "here is",
    "of course",
    "certainly",
    "i think",
    "hope this helps",
)
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class GraderConfig:
    """Factors multiply the score of an answer with that flaw; steps are differences of scores."""

    kind_weight: float = 0.4  # weight of the right kind of answer; correctness has the rest
    unfinished: float = 0.5  # cut at the length limit: no end of turn
    chatter: float = 0.6  # "Sure!", "I'm sorry", "I think"
    exclamation: float = 0.8  # an exclamation mark that the reference does not have
    repeated_tail: float = 0.6  # the last words said twice or more
    too_long: float = 0.7  # more than twice as long as the reference
    significantly_better: float = 0.3  # smallest difference of scores for this grade
    better: float = 0.15
    slightly_better: float = 0.05

    def __post_init__(self) -> None:
        for name in ("kind_weight", "unfinished", "chatter", "exclamation", "repeated_tail", "too_long"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"grader.{name} is a factor in [0, 1], not {getattr(self, name)}")
        if not self.significantly_better > self.better > self.slightly_better > 0:
            raise UserError("grader: need significantly_better > better > slightly_better > 0")

    def grade(self, difference: float) -> Grade | None:
        """Grade of a score difference (better less worse, >= 0); None for a tie."""
        if difference >= self.significantly_better:
            return Grade.SIGNIFICANTLY_BETTER
        if difference >= self.better:
            return Grade.BETTER
        if difference >= self.slightly_better:
            return Grade.SLIGHTLY_BETTER
        return Grade.MARGINALLY_BETTER if difference > 0 else None

    def score(self, task: str, reference: str, answer: str, finished: bool = True) -> float:
        """Score of an answer in [0, 1]; a finished, flawless, right answer has 1, an empty one 0."""
        score = (1 - self.kind_weight) * correctness(task, reference, answer) + self.kind_weight * right_kind(task, answer)
        for flaw in flaws(reference, answer, finished):
            score *= getattr(self, flaw)
        return round(score, 6)


def correctness(task: str, reference: str, answer: str) -> float:
    """How right the answer is, in [0, 1], whatever its form."""
    answer = answer.strip()
    overlap = token_f1(reference, answer)
    if task == "what":
        return overlap
    if "".join(answer.split()) == "".join(reference.split()):
        return 1.0
    if task == "signature":
        return (0.8 if _parses(f"def {answer}: pass") else 0.5) * overlap
    assert task == "call", task
    wanted, given = _call(reference), _call(answer)
    assert wanted is not None, reference
    if given is None:
        return 0.4 * overlap
    if ast.dump(wanted) == ast.dump(given):
        return 1.0
    # Half for the right function, the rest for the right values in the right places.
    same_function = ast.dump(wanted.func) == ast.dump(given.func)
    right = sum(ast.dump(a) == ast.dump(b) for a, b in zip(wanted.args, given.args, strict=False))
    places = max(len(wanted.args), len(given.args) + len(given.keywords), 1)
    return 0.9 * (0.5 * same_function + 0.5 * right / places)


def right_kind(task: str, answer: str) -> bool:
    """Whether the answer is what the task asks for, right or wrong: a sentence, a signature, a call."""
    answer = answer.strip()
    if task == "what":
        return len(answer.split()) >= 3 and _call(answer) is None
    if task == "signature":
        return "(" in answer and _parses(f"def {answer}: pass")
    return _call(answer) is not None


def flaws(reference: str, answer: str, finished: bool) -> list[str]:
    """Names of the flaws of form that the answer has."""
    found = [] if finished else ["unfinished"]
    words = answer.lower().split()
    text = " ".join(words)
    if any(re.search(rf"\b{re.escape(phrase)}\b", text) and phrase not in reference.lower() for phrase in CHATTER):
        found.append("chatter")
    if answer.count("!") > reference.count("!"):
        found.append("exclamation")
    if has_repeated_tail(words) and not has_repeated_tail(reference.lower().split()):
        found.append("repeated_tail")
    if len(answer) > 2 * len(reference) + 10:
        found.append("too_long")
    return found


def has_repeated_tail(words: list[str]) -> bool:
    """True when the answer ends with the same one to eight words twice in a row."""
    return any(words[-n:] == words[-2 * n : -n] for n in range(1, 9) if len(words) >= 2 * n)


def token_f1(reference: str, answer: str) -> float:
    """F1 of the two bags of words and marks, as in SQuAD but with marks kept (they matter in code)."""
    wanted, given = Counter(_WORD.findall(reference.lower())), Counter(_WORD.findall(answer.lower()))
    common = (wanted & given).total()
    return 0.0 if common == 0 else 2 * common / (wanted.total() + given.total())


def _parses(source: str) -> bool:
    return _parsed(source, "exec") is not None


def _call(source: str) -> ast.Call | None:
    tree = _parsed(source.strip(), "eval")
    return tree.body if isinstance(tree, ast.Expression) and isinstance(tree.body, ast.Call) else None


def _parsed(source: str, mode: Literal["exec", "eval"]) -> ast.AST | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd literals in sampled answers
        try:
            return ast.parse(source, mode=mode)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None
