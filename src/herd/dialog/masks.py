"""Which tokens a loss sees: each mask is one line over the segment codes of a rendered dialog.

A mask is a bool array (T,) over the *predicted* token: mask[t] says that predicting token t, from the tokens before
it, is trained. `first` is the index of the first message that may be trained: 0 trains every assistant turn (SFT), the
number of prompt messages trains the response alone (DPO and reward rows). Headers are never
trained; termination tokens are trained in SFT and in DPO's NLL term, but not in its preference term (section 4.1.4 of
the paper, "masking out formatting tokens").
"""

from __future__ import annotations

from functools import cache

import numpy as np

from herd.dialog.messages import Role
from herd.dialog.render import Rendered, Segment

_ASSISTANT = int(Role.ASSISTANT)  # numpy compares with an IntEnum some 30 times as slowly


@cache
def _among(segments: tuple[Segment, ...]) -> np.ndarray:
    """(number of codes,) bool, to be indexed by codes: ten times as fast as `np.isin` on a dialog's length."""
    return np.isin(np.arange(len(Segment)), segments)


def _assistant(rendered: Rendered, first: int, *segments: Segment) -> np.ndarray:
    return (rendered.roles == _ASSISTANT) & (rendered.messages >= first) & _among(segments)[rendered.segments]


def sft_mask(rendered: Rendered, first: int = 0) -> np.ndarray:
    """Assistant bodies, tool-call tags and termination tokens; no headers, no prompt, no tool output."""
    return _assistant(rendered, first, Segment.BODY, Segment.PYTHON_TAG, Segment.TERMINATION)


def dpo_mask(rendered: Rendered, first: int = 0, python_tag: bool = False) -> np.ndarray:
    """Assistant bodies alone; `python_tag` adds the tool-call tag, which the paper leaves open."""
    return _assistant(rendered, first, Segment.BODY, *([Segment.PYTHON_TAG] if python_tag else []))


def nll_mask(rendered: Rendered, first: int = 0) -> np.ndarray:
    """DPO's NLL term: the chosen response with its termination tokens, which it must keep likely."""
    return sft_mask(rendered, first)


def reward_position(rendered: Rendered, first: int = 0) -> int:
    """Index of the token at which the reward is read: the response's last real one. IndexError if there is none."""
    return int(np.flatnonzero(sft_mask(rendered, first))[-1])
