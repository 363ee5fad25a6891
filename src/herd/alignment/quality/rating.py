"""Quality (paper, section 4.2.3): a dialog is good when its reward is in the top quartile OR the judge gives it the top grade.

Reward and judge disagree often; the paper keeps what either of them likes, for recall. Both scores stay with the row, and how
often they disagree is reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from herd.alignment.quality.agreement import agreement
from herd.alignment.quality.dialogs import Dialog, Ledger
from herd.alignment.quality.judges import Judge, Question, Verdict
from herd.config.errors import UserError, nearest

REWARDS, GROUPS, KEEPS = ("model", "row", "none"), ("all", "source", "topic"), ("either", "both", "all")


@dataclass(frozen=True)
class RatingConfig:
    """What makes a dialog good."""

    reward: str  # model (input reward scores the last answer), row (the row's own `reward`) or none
    share: float  # dialogs that count as good by reward, those at or above this quantile from the top; paper: 0.25
    within: str  # what the quantile is taken of: all dialogs, each source, or each coarse topic
    keep: str  # good by either (the paper), by both, or all (scores are kept, nothing is removed)
    code_topics: list[str]  # coarse topics that the judge grades as code
    general: str  # question on the 3-point scale; {dialog} marks the dialog's place
    code: str  # question on the 2-point scale
    batch_size: int = 64  # dialogs that the reward model reads together

    def __post_init__(self) -> None:
        for name, choices in (("reward", REWARDS), ("within", GROUPS), ("keep", KEEPS)):
            value = getattr(self, name)
            if value not in choices:
                raise UserError(f"rating.{name}: no '{value}'.{nearest(value, choices)} Choices: {', '.join(choices)}.")
        if not 0 < self.share < 1 or self.batch_size < 1:
            raise UserError("rating: share in (0, 1) and batch_size >= 1 are needed.")
        for name in ("general", "code"):
            if "{dialog}" not in getattr(self, name):
                raise UserError(f"rating.{name}: {{dialog}} must mark the place of the dialog.")


def ask_quality(dialogs: Sequence[Dialog], config: RatingConfig, judge: Judge) -> list[tuple[int, Verdict]]:
    """(points of the scale, verdict) of each dialog."""
    questions = []
    for dialog in dialogs:
        text, points = (config.code, 2) if dialog.notes.get("topic") in config.code_topics else (config.general, 3)
        asked = text.replace("{dialog}", dialog.transcript)
        questions.append(Question(dialog, "quality", asked, tuple(str(i + 1) for i in range(points))))
    return [(len(q.answers), verdict) for q, verdict in zip(questions, judge.ask(questions), strict=True)]


def rate(
    dialogs: Sequence[Dialog],
    rewards: Sequence[float | None] | None,
    verdicts: Sequence[tuple[int, Verdict]] | None,
    config: RatingConfig,
    ledger: Ledger,
) -> tuple[list[Dialog], dict[str, Any]]:
    """The good dialogs with their scores, and a report.

    Notes: `reward`, `high_reward`, `grade` of `points`, `top_grade`, and `rating` in (0, 1], the mean of the reward's rank (the
    share of the group with a lower one, ties by half) and the expected grade / points, of those that are known.

    Args:
        rewards: of each dialog, None for one that has none; None altogether: no reward is used.
        verdicts: as :func:`ask_quality` gives them; None: no judge is asked.
    """
    if rewards is None and verdicts is None:
        raise UserError("rating: neither a reward nor a judge; set rating.reward or judge.kind, or leave `rating` out of steps.")
    given = [None] * len(dialogs) if rewards is None else list(rewards)
    groups = [{"all": "", "source": d.source, "topic": str(d.notes.get("topic", ""))}[config.within] for d in dialogs]
    limits, ranks = top_limits(given, groups, config.share), _ranks(given, groups)
    kept: list[Dialog] = []
    by_reward: list[bool] = []
    by_judge: list[bool] = []
    for i, dialog in enumerate(dialogs):
        notes, parts, good = dict(dialog.notes), [], []
        reward = given[i]
        if reward is not None:
            good.append(reward >= limits[groups[i]])
            parts.append(ranks[i])
            notes |= {"reward": reward, "high_reward": good[-1]}
        points, verdict = verdicts[i] if verdicts is not None else (0, Verdict(()))
        if verdict.expected_grade is not None:
            good.append(verdict.grade == points)
            parts.append(verdict.expected_grade / points)
            notes |= {"grade": verdict.grade, "points": points, "top_grade": good[-1]}
        if len(good) == 2:
            by_reward.append(good[0])
            by_judge.append(good[1])
        if parts:
            notes["rating"] = sum(parts) / len(parts)
        rated = replace(dialog, notes=notes)
        if not good and config.keep != "all":
            ledger.drop(rated, "not_rated", f"neither reward nor grade: {verdict.reason or 'too long for the reward model'}")
        elif config.keep == "all" or (any(good) if config.keep == "either" else all(good)):
            kept.append(rated)
        else:
            why = _why(notes, limits.get(groups[i]), config)
            ledger.drop(rated, "low_quality", why, value=reward, limit=limits.get(groups[i]))
    both = agreement(by_reward, by_judge)
    report = {
        "reward_limits": limits,
        "with_reward": sum(r is not None for r in given),
        "good_by_reward": sum(r is not None and r >= limits[g] for r, g in zip(given, groups, strict=True)),
        "graded": sum(v.grade is not None for _, v in verdicts or ()),
        "good_by_judge": sum(v.grade == points for points, v in verdicts or ()),
        "grades": _counts([f"{v.grade} of {points}" if v.grade else v.reason for points, v in verdicts or ()]),
        "reward_against_judge": asdict(both),
    }
    return kept, report


def top_limits(values: Sequence[float | None], groups: Sequence[str], share: float) -> dict[str, float]:
    """Group -> the value from which on one counts as top: the quantile 1 - share (linear, as `numpy.quantile`).

    All that equal the limit are top, so ties can make the top larger than the share.
    """
    members: dict[str, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        if value is not None:
            members.setdefault(group, []).append(value)
    return {group: float(np.quantile(found, 1 - share)) for group, found in sorted(members.items())}


def _ranks(values: Sequence[float | None], groups: Sequence[str]) -> list[float]:
    """Rank of each value within its group in (0, 1), ties at their mean; 0 where there is none."""
    ranks = [0.0] * len(values)
    for group in sorted(set(groups)):
        members = [i for i, g in enumerate(groups) if g == group and values[i] is not None]
        for i, rank in zip(members, mid_ranks([values[i] for i in members]).tolist(), strict=True):  # type: ignore[misc]
            ranks[i] = rank
    return ranks


def mid_ranks(values: Sequence[float]) -> np.ndarray:
    """(values,) share of the values below each one, those equal to it by half: in (0, 1)."""
    x = np.asarray(values, np.float64)
    ordered = np.sort(x)
    return (np.searchsorted(ordered, x, "left") + np.searchsorted(ordered, x, "right")) / (2 * max(len(x), 1))


def _why(notes: dict[str, Any], limit: float | None, config: RatingConfig) -> str:
    parts = []
    if "reward" in notes:
        side = "in" if notes["high_reward"] else "below"
        parts.append(f"reward {notes['reward']:.4g} is {side} the top {config.share:.0%} (from {limit:.4g})")
    if "grade" in notes:
        parts.append(f"the judge's grade is {notes['grade']} of {notes['points']}")
    return " and ".join(parts)


def _counts(names: Sequence[str]) -> dict[str, int]:
    return {name: names.count(name) for name in sorted(set(names))}
