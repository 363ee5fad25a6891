"""Two candidate answers and the grader's verdict -> a preference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from herd.alignment.flaws import add_flaws, random_flaws
from herd.dialog.grader import GraderConfig
from herd.dialog.messages import Message, Role
from herd.dialog.preferences import Preference
from herd.dialog.rows import Counted, Prompt


@dataclass(frozen=True)
class Candidate:
    """An answer that may be compared."""

    text: str
    model: str  # who wrote it
    finished: bool = True  # ended by itself


def flawed_candidates(prompt: Prompt, other: str, clean: float, max_flaws: int, rng: np.random.Generator) -> list[Candidate]:
    """Two answers in the place of two models': the first clean with probability `clean`, else with one flaw; the
    second with several.

    `other` is an answer to the same task about another function.
    """
    light = [] if rng.random() < clean else random_flaws(rng, most=1)
    heavy = random_flaws(rng, most=max_flaws)
    names = ["+".join(["reference", *flaws]) for flaws in (light, heavy)]
    texts = [add_flaws(prompt.reference, other, flaws, rng) for flaws in (light, heavy)]
    return [Candidate(text, name) for text, name in zip(texts, names, strict=True)]


def make_preference(
    prompt: Prompt,
    candidates: list[Candidate],
    grader: GraderConfig,
    edit_share: float,
    rng: np.random.Generator,
    counted: Counted,
) -> Preference | None:
    """Grades two candidates; the better is `chosen`, a chosen one with flaws is corrected with probability
    `edit_share`.

    None, counted by reason, when a candidate is empty, both are the same text, or the grader sees no difference.
    """
    assert len(candidates) == 2
    if any(not c.text.strip() for c in candidates):
        counted.drop("empty_response")
        return None
    if candidates[0].text == candidates[1].text:
        counted.drop("chosen_equals_rejected")
        return None
    scores = [grader.score(prompt.task, prompt.reference, c.text, c.finished) for c in candidates]
    grade = grader.grade(abs(scores[0] - scores[1]))
    if grade is None:
        counted.drop("tie")
        return None
    winner = 0 if scores[0] > scores[1] else 1
    ranked = {"chosen": winner, "rejected": 1 - winner}
    edit = scores[winner] < 1.0 and rng.random() < edit_share
    counted.kept += 1
    return Preference(
        id=f"pair-{prompt.id}",
        prompt_id=prompt.id,
        prompt=prompt.messages,
        chosen=(Message(Role.ASSISTANT, candidates[winner].text),),
        rejected=(Message(Role.ASSISTANT, candidates[1 - winner].text),),
        grade=grade,
        edited=(Message(Role.ASSISTANT, prompt.reference),) if edit else None,
        models={name: candidates[i].model for name, i in ranked.items()} | ({"edited": "reference"} if edit else {}),
        scores={name: scores[i] for name, i in ranked.items()} | ({"edited": 1.0} if edit else {}),
    )
