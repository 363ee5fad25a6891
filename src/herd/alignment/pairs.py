"""Two candidate answers and a verdict, the grader's or people's -> a preference."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from herd.alignment.flaws import add_flaws, random_flaws
from herd.alignment.verdicts import Verdict, resolve
from herd.dialog.grader import GraderConfig
from herd.dialog.messages import Message, Role
from herd.dialog.preferences import Grade, Preference
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
    reason = not_comparable(candidates)
    if reason:
        counted.drop(reason)
        return None
    scores = [grader.score(prompt.task, prompt.reference, c.text, c.finished) for c in candidates]
    grade = grader.grade(abs(scores[0] - scores[1]))
    if grade is None:
        counted.drop("tie")
        return None
    winner = 0 if scores[0] > scores[1] else 1
    edit = scores[winner] < 1.0 and rng.random() < edit_share
    counted.kept += 1
    row = ranked(prompt, candidates, winner, grade, prompt.reference if edit else None, editor="reference")
    named = {"chosen": scores[winner], "rejected": scores[1 - winner]} | ({"edited": 1.0} if edit else {})
    return replace(row, scores=named)


def not_comparable(candidates: list[Candidate]) -> str | None:
    """Why two answers are not compared, as a word to count; None when they are."""
    assert len(candidates) == 2
    if any(not c.text.strip() for c in candidates):
        return "empty_response"
    return "chosen_equals_rejected" if candidates[0].text == candidates[1].text else None


def preference_of_people(
    prompt: Prompt, candidates: list[Candidate], verdicts: list[Verdict], counted: Counted
) -> Preference | None:
    """What people said of two candidates, a and b, as a preference: edited > chosen > rejected.

    None, counted by reason, when nobody judged the pair, they disagree or call it a tie.
    """
    found = resolve(verdicts) if verdicts else "no_verdict"
    if isinstance(found, str):
        counted.drop(found)
        return None
    assert found.grade is not None
    winner = "ab".index(found.better)
    edited = None if found.edited == candidates[winner].text.strip() else found.edited  # left as it was: no edit
    counted.kept += 1
    return ranked(prompt, candidates, winner, found.grade, edited, editor=found.annotator)


def ranked(prompt: Prompt, candidates: list[Candidate], winner: int, grade: Grade, edited: str | None, editor: str) -> Preference:
    """The preference of candidate number `winner`, below its edited version where there is one."""
    chosen, rejected = candidates[winner], candidates[1 - winner]
    return Preference(
        id=f"pair-{prompt.id}",
        prompt_id=prompt.id,
        prompt=prompt.messages,
        chosen=(Message(Role.ASSISTANT, chosen.text),),
        rejected=(Message(Role.ASSISTANT, rejected.text),),
        grade=grade,
        edited=None if edited is None else (Message(Role.ASSISTANT, edited),),
        models={"chosen": chosen.model, "rejected": rejected.model} | ({} if edited is None else {"edited": editor}),
    )
